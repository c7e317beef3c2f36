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
