                // Where the states at hand stand in tables (the next tile's, where carries are left; this one's, or zeros) and in rows.
                int in_table = ((tile + 1) & 1) * (LANES * TABLE) + lane * TABLE + part * PER;
                int in_starts = own == 0 ? (tile & 1) * (LANES * TABLE) + lane * TABLE + part * PER : 2 * LANES * TABLE;
                int in_rows = (tile & 1) * (N * ROW) + part * (PER * ROW) + own * (SPAN + 4), state = 0;
                const auto factors = [&](int s, float (&h_a)[SPAN], float& h_product) {
                    const float mul_now = mul_of[in_table + s];
                    #pragma unroll
                    for (int j = 0; j < SPAN; ++j) {
                        const float a = exp2_(dt_v[j] * mul_now);
                        h_a[j] = whole || own * SPAN + j < steps ? a : 1.0f;
                    }
                    h_product = exp2_(dt_total * mul_now);
                };
                const auto ends = [&](int s, const float (&h_a)[SPAN], float (&h_b)[SPAN], float& h_end) {
                    float B_v[SPAN];
                    read_row(B_v, B_rows + in_rows + s * ROW);
                    #pragma unroll
                    for (int j = 0; j < SPAN; ++j) {
                        const float mul_3 = mul_2_v[j] * B_v[j];
                        h_b[j] = whole || own * SPAN + j < steps ? mul_3 : 0.0f;
                    }
                    h_end = end_of(h_a, h_b);
                };
                const auto behind = [&](int s, const float (&h_a)[SPAN], const float (&h_b)[SPAN], float h_carry) {
                    float C_v[SPAN];
                    read_row(C_v, C_rows + in_rows + s * ROW);
                    #pragma unroll
                    for (int j = 0; j < SPAN; ++j) {
                        h_carry = (h_a[j] * h_carry) + h_b[j];
                        const float mul_4 = C_v[j] * h_carry;
                        sum_v[j] += mul_4;
                    }
                };
                float h_a0[SPAN], h_product0, h_a1[SPAN], h_product1, h_b[SPAN], h_end, h_from;
                const auto two_states = [&](auto more) {
                    ends(0, h_a0, h_b, h_end);
                    h_from = span_start<SPANS>(h_product0, h_end, &h_start[in_starts + 0], &h_start[in_table + 0], own);
                    factors(1, h_a1, h_product1);
                    behind(0, h_a0, h_b, h_from);
                    ends(1, h_a1, h_b, h_end);
                    h_from = span_start<SPANS>(h_product1, h_end, &h_start[in_starts + 1], &h_start[in_table + 1], own);
                    if constexpr (decltype(more)::value) factors(2, h_a0, h_product0);
                    behind(1, h_a1, h_b, h_from);
                };
                factors(0, h_a0, h_product0);
                #pragma unroll 1
                for (; state < PER - 2; state += 2) {
                    two_states(Yes());
                    in_table += 2;
                    in_starts += 2;
                    in_rows += 2 * ROW;
                }
                two_states(No());
