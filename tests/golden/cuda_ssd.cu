                const auto walk = [&](auto is_whole, int base) {
                    constexpr bool whole = decltype(is_whole)::value;  // the whole tile is there
                    float mul_3_v[AT_ONCE];
                    read_tile<TILE>(mul_3_v, tile0, lane, base);
                    float exp2__2_v[AT_ONCE];
                    read_row(exp2__2_v, exp2__2_steps0 + base);
                    float sum_v[AT_ONCE] = {};
                    #pragma unroll
                    for (int k = 0; k < PER; ++k) {
                        float B_v[AT_ONCE];
                        read_row(B_v, B_tile + k * PITCH + base);
                        float C_v[AT_ONCE];
                        read_row(C_v, C_tile + k * PITCH + base);
                        #pragma unroll
                        for (int j = 0; j < AT_ONCE; ++j) {
                            if (!whole && base + j >= steps) continue;
                            const float mul_4 = mul_3_v[j] * B_v[j];
                            const float h = (exp2__2_v[j] * h_carry[k]) + mul_4;
                            const float mul_5 = C_v[j] * h;
                            sum_v[j] += mul_5;
                            h_carry[k] = h;
                        }
                    }
                    put_group<TILE>(true, tile0, lane, base, sum_v);
                };
                if (steps == TILE) {
                    walk(Yes(), 0);
                }
                else {
                    for (int base = 0; base < steps; base += AT_ONCE) {
                        walk(No(), base);
                    }
                }
                __syncthreads();
                {
                    const auto groups = [&](auto how) {
                        constexpr bool whole = decltype(how)::whole;
                        const bool along = how.along(along_time);  // groups run along time, or along lanes
                        #pragma unroll 1
                        for (int r = 0; r < 2; ++r) {
                            const int e = thread_here() + r * THREADS;
                            const int lane0 = along ? e / (TILE / GROUP) : e % (LANES / GROUP) * GROUP;
                            const int i0 = along ? e % (TILE / GROUP) * GROUP : e / (LANES / GROUP);
                            if (!whole && (lane0 >= lanes || i0 >= steps)) continue;
                            [[maybe_unused]] const int count = along ? steps - i0 : lanes - lane0;
                            float sum_in[GROUP];
                            take_group<TILE>(along, sum_in, tile0, lane0, i0);
                            float y_out0[GROUP];
                            #pragma unroll
                            for (int j = 0; j < GROUP; ++j) {
                                y_out0[j] = sum_in[j];
                            }
                            store_group<whole>(base_of<float>(bases, 4) + offset_of<whole>(along, ts + i0, y_l, lane0, y_p), along ? y_l : y_p, y_out0, count);
                        }
                    };
                    if (!together || steps < TILE || lanes < LANES) groups(Anyhow());
                    else if (along_time) groups(AlongTime());
                    else groups(AlongLanes());
                }
            }
        }
        if (seg == segments - 1) {
            if (lane < lanes) store_states(last_state_ptr + i_b * last_state_b + i_h * last_state_h + first * last_state_p + index_t(lane) * last_state_p, last_state_n, h_carry, N);
        }
    }
}
