            for (int i = 0; i < steps; ++i) {
                const int at = i * PITCH + lane;
                const float delta = tile0[at];
                const float mul_2 = tile1[at];
                float B_row[PER];
                read_row(B_row, B_tile + i * 2 + 0);
                float C_row[PER];
                read_row(C_row, C_tile + i * 2 + 0);
                float sum = 0.0f;
                #pragma unroll
                for (int k = 0; k < PER; ++k) {
                    const float a = exp2_(delta * mul_of[k]);
                    const float mul_3 = mul_2 * B_row[k];
                    const float h = (a * h_carry[k]) + mul_3;
                    const float mul_4 = C_row[k] * h;
                    sum += mul_4;
                    h_carry[k] = h;
                }
                tile0[at] = as_word(sum);
            }
            __syncthreads();
            {
                const auto groups = [&](auto along_time) {
                    constexpr bool along = decltype(along_time)::value;  // groups run along time, or along lanes
                    float* const y_at0 = base_of<float>(bases, 4) + ts * y_l;
                    for (int e = thread_here(); e < LANES * TILE / GROUP; e += THREADS) {
                        const int lane0 = along ? e / TILE * GROUP + e % GROUP : e % LANES / GROUP * GROUP;
                        const int i0 = along ? e % TILE / GROUP * GROUP : e / LANES * GROUP + e % GROUP;
                        if (lane0 >= lanes || i0 >= steps) continue;
                        const int count = along ? steps - i0 : lanes - lane0;
                        float y_out0[GROUP];
                        #pragma unroll
                        for (int j = 0; j < GROUP; ++j) {
                            const int at = i0 * PITCH + lane0 + j * (along ? PITCH : 1);
                            y_out0[j] = tile0[at];
                        }
                        store_group(y_at0 + index_t(i0) * y_l + index_t(lane0) * y_d, along ? y_l : y_d, y_out0, count);
                    }
                };
                if ((y_l == 1) >= (y_d == 1)) groups(Yes());
                else groups(No());
            }
        }
        if (seg == segments - 1) {
            if (lane < lanes) store_states(last_state_ptr + i_b * last_state_b + first * last_state_d + index_t(lane) * last_state_d, last_state_n, h_carry, N);
        }
    }
}
