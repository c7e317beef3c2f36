                stage_rows_of(is_whole, tile + 2);
                meet_some<32 * SPLIT, OVER / 32>(within / 32);
                take_parts<SPAN, OVER>(dt_v, passed_on + 0 * (SPAN * OVER), within);
                take_parts<SPAN, OVER>(mul_2_v, passed_on + 1 * (SPAN * OVER), within);
                float dt_total = 0.0f;
                #pragma unroll
                for (int j = 0; j < SPAN; ++j) dt_total += whole || own * SPAN + j < steps ? dt_v[j] : 0.0f;
                stage_soon(is_whole, tile + 1);
                copies_issued();
                float sum_v[SPAN] = {};
                // Where the states at hand stand in tables (the next tile's, where carries are left; this one's, or zeros) and in rows.
                int in_table = ((tile + 1) & 1) * (LANES * TABLE) + lane * TABLE + part * PER;
                int in_starts = own == 0 ? (tile & 1) * (LANES * TABLE) + lane * TABLE + part * PER : 2 * LANES * TABLE;
                int in_rows = rows_now + part * (PER * ROW) + own * (SPAN + 4);
                #pragma unroll 1
                for (int k = 0; k < PER; k += 2) {
                    const auto before = [&](int s, float (&h_a)[SPAN], float (&h_b)[SPAN], float& h_product, float& h_end) {
                        const float mul_now = mul_of[in_table + s];
                        float B_v[SPAN];
                        read_row(B_v, rows + in_rows + s * ROW);
                        #pragma unroll
                        for (int j = 0; j < SPAN; ++j) {
                            const float a = exp2_(dt_v[j] * mul_now);
                            const float mul_3 = mul_2_v[j] * B_v[j];
                            h_a[j] = whole || own * SPAN + j < steps ? a : 1.0f;
                            h_b[j] = whole || own * SPAN + j < steps ? mul_3 : 0.0f;
                        }
                        h_end = end_of(h_a, h_b);
                        h_product = exp2_(dt_total * mul_now);
                    };
                    const auto behind = [&](int s, const float (&h_a)[SPAN], const float (&h_b)[SPAN], float h_carry) {
                        float C_v[SPAN];
                        read_row(C_v, rows + 576 + in_rows + s * ROW);
                        #pragma unroll
                        for (int j = 0; j < SPAN; ++j) {
                            h_carry = (h_a[j] * h_carry) + h_b[j];
                            const float mul_4 = C_v[j] * h_carry;
                            sum_v[j] += mul_4;
                        }
                    };
                    float h_a0[SPAN], h_b0[SPAN], h_a1[SPAN], h_b1[SPAN], h_products[2], h_ends[2], h_starts[2];
                    before(0, h_a0, h_b0, h_products[0], h_ends[0]);
                    before(1, h_a1, h_b1, h_products[1], h_ends[1]);
                    span_starts<SPANS>(h_starts, h_products, h_ends, h_start + in_starts, h_start + in_table, own);
                    behind(0, h_a0, h_b0, h_starts[0]);
                    behind(1, h_a1, h_b1, h_starts[1]);
                    in_table += 2;
                    in_starts += 2;
                    in_rows += 2 * ROW;
                }
                float sum_part[OWN];
                gather_parts<SPAN, SPLIT, OVER>(sum_part, sum_v, passed_back, within, part);
                float y_out[OWN];
                #pragma unroll
                for (int j = 0; j < OWN; ++j) {
                    y_out[j] = sum_part[j];
                }
                if ((whole || lane < lanes)) store_group<whole>(y_at + after<whole>(tile * TILE, y_l), y_l, y_out, steps - own * SPAN - part * OWN);
            };
