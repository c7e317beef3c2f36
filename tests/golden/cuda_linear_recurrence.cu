                const auto walk = [&](auto is_whole, int base) {
                    constexpr bool whole = decltype(is_whole)::value;  // the whole tile is there
                    float a_v[AT_ONCE];
                    read_tile<TILE>(a_v, tile0, lane, base);
                    float b_v[AT_ONCE];
                    read_tile<TILE>(b_v, tile1, lane, base);
                    float h_v[AT_ONCE] = {};
                    #pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) {
                        if (!whole && base + j >= steps) continue;
                        const float h = (a_v[j] * h_carry) + b_v[j];
                        h_carry = h;
                        h_v[j] = h;
                    }
                    put_group<TILE>(true, tile0, lane, base, h_v);
                };
                if (steps == TILE) {
                    #pragma unroll 1
                    for (int base = 0; base < TILE; base += AT_ONCE) {
                        walk(Yes(), base);
                    }
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
                        for (int r = 0; r < 8; ++r) {
                            const int e = thread_here() + r * THREADS;
                            const int lane0 = along ? e / (TILE / GROUP) : e % (LANES / GROUP) * GROUP;
                            const int i0 = along ? e % (TILE / GROUP) * GROUP : e / (LANES / GROUP);
                            if (!whole && (lane0 >= lanes || i0 >= steps)) continue;
                            [[maybe_unused]] const int count = along ? steps - i0 : lanes - lane0;
                            float h_in[GROUP];
                            take_group<TILE>(along, h_in, tile0, lane0, i0);
                            float h_out0[GROUP];
                            #pragma unroll
                            for (int j = 0; j < GROUP; ++j) {
                                h_out0[j] = h_in[j];
                            }
                            store_group<whole>(base_of<float>(bases, 2) + offset_of<whole>(along, ts + i0, h_l, lane0, h_d), along ? h_l : h_d, h_out0, count);
                        }
                    };
                    if (!together || steps < TILE || lanes < LANES) groups(Anyhow());
                    else if (along_time) groups(AlongTime());
                    else groups(AlongLanes());
                }
            }
        }
        if (seg == segments - 1) {
            {
                if (own == 0 && lane < lanes) *(last_state_ptr + i_b * last_state_b + first * last_state_d + index_t(lane) * last_state_d) = Narrow<float>::of(h_carry);
            }
        }
    }
}
