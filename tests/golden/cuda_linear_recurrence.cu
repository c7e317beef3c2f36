        float h_carry;
        h_carry = 0.0f;
        if (tid == 0) {
            set_base(bases, 0, a_ptr + i_b * a_b + first * a_d);
            set_base(bases, 1, b_ptr + i_b * b_b + first * b_d);
            set_base(bases, 2, h_ptr + i_b * h_b + first * h_d);
        }
        const index_t tiles = (t1 - t0 + TILE - 1) / TILE;
        for (index_t tile = 0; tile < tiles; ++tile) {
            const index_t ts = t0 + tile * TILE;
            const int steps = int(smaller(TILE, t1 - ts));
            __syncthreads();
            {
                const auto groups = [&](auto along_time) {
                    constexpr bool along = decltype(along_time)::value;  // groups run along time, or along lanes
                    const float* const a_at = base_of<const float>(bases, 0) + ts * a_l;
                    const float* const b_at = base_of<const float>(bases, 1) + ts * b_l;
                    for (int e = thread_here(); e < LANES * TILE / GROUP; e += THREADS) {
                        const int lane0 = along ? e / TILE * GROUP + e % GROUP : e % LANES / GROUP * GROUP;
                        const int i0 = along ? e % TILE / GROUP * GROUP : e / LANES * GROUP + e % GROUP;
                        if (lane0 >= lanes || i0 >= steps) continue;
                        const int count = along ? steps - i0 : lanes - lane0;
                        float a_in[GROUP];
                        load_group<true>(a_in, a_at + index_t(i0) * a_l + index_t(lane0) * a_d, along ? a_l : a_d, count);
                        float b_in[GROUP];
                        load_group<true>(b_in, b_at + index_t(i0) * b_l + index_t(lane0) * b_d, along ? b_l : b_d, count);
                        #pragma unroll
                        for (int j = 0; j < GROUP; ++j) {
                            const int at = i0 * PITCH + lane0 + j * (along ? PITCH : 1);
                            tile0[at] = as_word(a_in[j]);
                            tile1[at] = as_word(b_in[j]);
                        }
                    }
                };
                if ((a_l == 1) + (b_l == 1) >= (a_d == 1) + (b_d == 1)) groups(Yes());
                else groups(No());
            }
            __syncthreads();
            for (int i = 0; i < steps; ++i) {
                const int at = i * PITCH + lane;
                const float a = tile0[at];
                const float b = tile1[at];
                const float h = (a * h_carry) + b;
                h_carry = h;
                tile0[at] = as_word(h);
            }
            __syncthreads();
            {
                const auto groups = [&](auto along_time) {
                    constexpr bool along = decltype(along_time)::value;  // groups run along time, or along lanes
                    float* const h_at0 = base_of<float>(bases, 2) + ts * h_l;
                    for (int e = thread_here(); e < LANES * TILE / GROUP; e += THREADS) {
                        const int lane0 = along ? e / TILE * GROUP + e % GROUP : e % LANES / GROUP * GROUP;
                        const int i0 = along ? e % TILE / GROUP * GROUP : e / LANES * GROUP + e % GROUP;
                        if (lane0 >= lanes || i0 >= steps) continue;
                        const int count = along ? steps - i0 : lanes - lane0;
                        float h_out0[GROUP];
                        #pragma unroll
                        for (int j = 0; j < GROUP; ++j) {
                            const int at = i0 * PITCH + lane0 + j * (along ? PITCH : 1);
                            h_out0[j] = tile0[at];
                        }
                        store_group(h_at0 + index_t(i0) * h_l + index_t(lane0) * h_d, along ? h_l : h_d, h_out0, count);
                    }
                };
                if ((h_l == 1) >= (h_d == 1)) groups(Yes());
                else groups(No());
            }
        }
        if (seg == segments - 1) {
            {
                if (own == 0 && lane < lanes) *(last_state_ptr + i_b * last_state_b + first * last_state_d + index_t(lane) * last_state_d) = Narrow<float>::of(h_carry);
            }
        }
    }
}
