        for (index_t program = 0; program < programs; ++program) {
            index_t rest = program;
            const index_t slot = rest % slots; rest /= slots;
            const index_t i_group = rest % size_g; rest /= size_g;
            const index_t i_b = rest % size_b; rest /= size_b;
            const index_t seg = rest;
            const index_t t0 = seg * segment, t1 = smaller(size_l, t0 + segment);
            for (index_t block = slot * 1; block < smaller(blocks, (slot + 1) * 1); ++block) {
                const index_t first = i_group * per_group + block * LANES;
                const int lanes = int(smaller(LANES, per_group - block * LANES));
                vf mul_of[N];
                for (int n = 0; n < N; ++n) {
                    const vf A = up(load_lanes(A_ptr + first * A_d + n * A_n, A_d, lanes));
                    const vf mul = A * 1.44269504f; mul_of[n] = mul;
                }
                vf h_carry[N];
                for (int n = 0; n < N; ++n) h_carry[n] = vf{};
                for (index_t ts = t0; ts < t1; ts += TILE) {
                    const index_t steps = smaller(TILE, t1 - ts);
                    stage_lanes(delta_tile, 1, delta_ptr + i_b * delta_b + first * delta_d + ts * delta_l, delta_d, delta_l, lanes, steps);
                    stage_lanes(u_tile, 1, u_ptr + i_b * u_b + first * u_d + ts * u_l, u_d, u_l, lanes, steps);
                    const auto* const B_rows = stage_states(B_tile, N, B_ptr + i_b * B_b + i_group * B_g + ts * B_l, B_n, B_l, steps);
                    const index_t B_row = B_rows == B_tile ? N : B_l;
                    const auto* const C_rows = stage_states(C_tile, N, C_ptr + i_b * C_b + i_group * C_g + ts * C_l, C_n, C_l, steps);
                    const index_t C_row = C_rows == C_tile ? N : C_l;
                    for (index_t i = 0; i < steps; ++i) {
                        const vf mul_2 = delta_tile[i] * u_tile[i];
                        vf sum{};
                        #pragma GCC unroll 2
                        for (int n = 0; n < N; ++n) {
                            const vf a = exp2(delta_tile[i] * mul_of[n]);
                            const vf mul_3 = mul_2 * B_rows[i * B_row + n];
                            const vf h = (a * h_carry[n]) + mul_3;
                            const vf mul_4 = C_rows[i * C_row + n] * h;
                            sum += up(mul_4);
                            h_carry[n] = h;
                        }
                        y_out[i] = sum;
                    }
                    unstage_lanes(y_ptr + i_b * y_b + first * y_d + ts * y_l, y_d, y_l, y_out, 1, lanes, steps);
                }
                if (seg == segments - 1) {
                    for (int n = 0; n < N; ++n) {
                        store_lanes(last_state_ptr + i_b * last_state_b + first * last_state_d + n * last_state_n, last_state_d, lanes, h_carry[n]);
                    }
                }
            }
        }
    }
}

}  // namespace scanc
