                const auto walk = [&](auto is_whole, int base) {
                    constexpr bool whole = decltype(is_whole)::value;  // the whole tile is there
                    float delta_v[AT_ONCE];
                    read_tile<TILE>(delta_v, tile0, lane, base);
                    float mul_2_v[AT_ONCE];
                    read_tile<TILE>(mul_2_v, tile1, lane, base);
                    float sum_v[AT_ONCE] = {};
                    #pragma unroll
                    for (int k = 0; k < PER; ++k) {
                        float B_v[AT_ONCE];
                        read_row(B_v, B_tile + own * PITCH + k * (SPLIT * PITCH) + base);
                        float C_v[AT_ONCE];
                        read_row(C_v, C_tile + own * PITCH + k * (SPLIT * PITCH) + base);
                        #pragma unroll
                        for (int j = 0; j < AT_ONCE; ++j) {
                            if (!whole && base + j >= steps) continue;
                            const float a = exp2_(delta_v[j] * mul_of[k]);
                            const float mul_3 = mul_2_v[j] * B_v[j];
                            const float h = (a * h_carry[k]) + mul_3;
                            const float mul_4 = C_v[j] * h;
                            sum_v[j] += mul_4;
                            h_carry[k] = h;
                        }
                    }
                    const int turn = fold_split<SPLIT, THREADS>(sum_v);
                    __syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten
                    write_tile<TILE, 4>(tile0, lane, base + turn, sum_v);
                };
                if (steps == TILE) {
                    walk(Yes(), 0);
                }
                else {
                    for (int base = 0; base < steps; base += AT_ONCE) {
                        walk(No(), base);
                    }
                }
                if (along_time) __syncwarp(Warp<THREADS>::ALL);  // warps have the groups of their lanes
                else __syncthreads();
                {
                    const auto groups = [&](auto how) {
                        constexpr bool whole = decltype(how)::whole;
                        const bool along = how.along(along_time);  // groups run along time, or along lanes
                        #pragma unroll 1
                        for (int r = 0; r < 1; ++r) {
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
                            store_group<whole>(base_of<float>(bases, 4) + offset_of<whole>(along, ts + i0, y_l, lane0, y_d), along ? y_l : y_d, y_out0, count);
                        }
                    };
                    if (!together || steps < TILE || lanes < LANES) groups(Anyhow());
                    else if (along_time) groups(AlongTime());
                    else groups(AlongLanes());
                }
                __syncthreads();  // all warps have walked
            }
        }
        if (seg == segments - 1) {
            if (lane < lanes) store_states(last_state_ptr + i_b * last_state_b + first * last_state_d + index_t(own) * last_state_n + index_t(lane) * last_state_d, SPLIT * last_state_n, h_carry, (N - own + SPLIT - 1) / SPLIT);
        }
    }
}
