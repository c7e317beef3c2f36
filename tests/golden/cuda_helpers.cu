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
                    if constexpr (whole) {  // those of the steps before; the first time what is then overwritten
                        const int turn = fold_split<SPLIT, THREADS>(sum_late);
                        __syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten
                        write_tile<TILE, 2>(tile0, lane, (base > 0 ? base - AT_ONCE : 0) + turn, sum_late);
                        #pragma unroll
                        for (int j = 0; j < AT_ONCE; ++j) { sum_late[j] = sum_v[j]; }
                    }
                    else {
                        const int turn = fold_split<SPLIT, THREADS>(sum_v);
                        __syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten
                        write_tile<TILE, 2>(tile0, lane, base + turn, sum_v);
                    }
                };
                if (steps == TILE) {
                    #pragma unroll 2
                    for (int base = 0; base < TILE; base += AT_ONCE) {
                        walk(Yes(), base);
                    }
                    const int turn = fold_split<SPLIT, THREADS>(sum_late);
                    __syncwarp(Warp<THREADS>::ALL);  // all of the lane's threads have read what is overwritten
                    write_tile<TILE, 2>(tile0, lane, (TILE - AT_ONCE) + turn, sum_late);
                }
                else {
                    for (int base = 0; base < steps; base += AT_ONCE) {
                        walk(No(), base);
                    }
                }
                meet<ALL>();
            }
        }
        if (walks) {
            if (seg == segments - 1) {
                if (lane < lanes) store_states(last_state_ptr + i_b * last_state_b + first * last_state_d + index_t(own) * last_state_n + index_t(lane) * last_state_d, SPLIT * last_state_n, h_carry, (N - own + SPLIT - 1) / SPLIT);
            }
        }
    }
}
