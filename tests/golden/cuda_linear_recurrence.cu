                copies_done<0>();
                {
                    const auto groups = [&](auto along_time) {
                        constexpr bool along = decltype(along_time)::value;  // groups run along time, or along lanes
                        for (int e = thread_here(); e < LANES * TILE / GROUP; e += THREADS) {
                            const int lane0 = along ? e / (TILE / GROUP) : e % (LANES / GROUP) * GROUP;
                            const int i0 = along ? e % (TILE / GROUP) * GROUP : e / (LANES / GROUP);
                            if (lane0 >= lanes || i0 >= steps) continue;
                            [[maybe_unused]] const int count = along ? steps - i0 : lanes - lane0;
                            float a_in[GROUP];
                            read_staged(a_in, reinterpret_cast<float*>(a_staged) + e * GROUP);
                            float b_in[GROUP];
                            read_staged(b_in, reinterpret_cast<float*>(b_staged) + e * GROUP);
                            float tile0_put[GROUP];
                            float tile1_put[GROUP];
                            #pragma unroll
                            for (int j = 0; j < GROUP; ++j) {
                                tile0_put[j] = as_word(a_in[j]);
                                tile1_put[j] = as_word(b_in[j]);
                            }
                            put_group<TILE, along>(tile0, lane0, i0, tile0_put);
                            put_group<TILE, along>(tile1, lane0, i0, tile1_put);
                        }
                    };
                    if (along_time) groups(Yes());
                    else groups(No());
                }
                stage_soon(tile + 1);
                __syncthreads();
                for (int base = 0; base < steps; base += AT_ONCE) {
                    const auto walk = [&](auto is_whole) {
                        constexpr bool whole = decltype(is_whole)::value;  // all AT_ONCE steps are there
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
                        put_group<TILE, true>(tile0, lane, base, h_v);
                    };
                    if (steps - base >= AT_ONCE) walk(Yes());
                    else walk(No());
                }
                __syncthreads();
                {
                    const auto groups = [&](auto along_time) {
                        constexpr bool along = decltype(along_time)::value;  // groups run along time, or along lanes
                        for (int e = thread_here(); e < LANES * TILE / GROUP; e += THREADS) {
                            const int lane0 = along ? e / (TILE / GROUP) : e % (LANES / GROUP) * GROUP;
                            const int i0 = along ? e % (TILE / GROUP) * GROUP : e / (LANES / GROUP);
                            if (lane0 >= lanes || i0 >= steps) continue;
                            [[maybe_unused]] const int count = along ? steps - i0 : lanes - lane0;
                            float h_in[GROUP];
                            take_group<TILE, along>(h_in, tile0, lane0, i0);
                            float h_out0[GROUP];
                            #pragma unroll
                            for (int j = 0; j < GROUP; ++j) {
                                h_out0[j] = h_in[j];
                            }
                            store_group(base_of<float>(bases, 2) + ts * h_l + index_t(i0) * h_l + index_t(lane0) * h_d, along ? h_l : h_d, h_out0, count);
                        }
                    };
                    if (along_time) groups(Yes());
                    else groups(No());
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
