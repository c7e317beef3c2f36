        for (index_t program = 0; program < programs; ++program) {
            index_t rest = program;
            const index_t slot = rest % slots; rest /= slots;
            const index_t i_group = rest % 1; rest /= 1;
            const index_t i_h = rest % size_h; rest /= size_h;
            const index_t i_b = rest % size_b; rest /= size_b;
            const index_t seg = rest;
            const index_t t0 = seg * segment, t1 = smaller(size_l, t0 + segment);
            for (index_t block = slot * 1; block < smaller(blocks, (slot + 1) * 1); ++block) {
                const index_t first = i_group * per_group + block * LANES;
                const int lanes = int(smaller(LANES, per_group - block * LANES));
                const float A = widen(*(A_ptr + i_h * A_h));
                const float mul = A * 1.44269504f;
                vf h_carry[N];
                for (int n = 0; n < N; ++n) h_carry[n] = vf{};
                for (index_t ts = t0; ts < t1; ts += TILE) {
                    const index_t steps = smaller(TILE, t1 - ts);
                    stage_rows(dt_tile, 1, dt_ptr + i_b * dt_b + ts * dt_l + i_h * dt_h, dt_l, steps);
                    stage_lanes(x_tile, 1, x_ptr + i_b * x_b + ts * x_l + i_h * x_h + first * x_p, x_p, x_l, lanes, steps);
                    const auto* const B_rows = stage_states(B_tile, N, B_ptr + i_b * B_b + ts * B_l + (i_h / (size_h / size_g)) * B_g, B_n, B_l, steps);
                    const index_t B_row = B_rows == B_tile ? N : B_l;
                    const auto* const C_rows = stage_states(C_tile, N, C_ptr + i_b * C_b + ts * C_l + (i_h / (size_h / size_g)) * C_g, C_n, C_l, steps);
                    const index_t C_row = C_rows == C_tile ? N : C_l;
                    for (index_t i = 0; i < steps; ++i) {
                        const float exp2__2 = exp2(dt_tile[i] * mul);
                        const vf mul_2 = dt_tile[i] * x_tile[i];
                        vf sum{};
                        #pragma GCC unroll 2
                        for (int n = 0; n < N; ++n) {
                            const vf mul_3 = mul_2 * B_rows[i * B_row + n];
                            const vf h = (exp2__2 * h_carry[n]) + mul_3;
                            const vf mul_4 = C_rows[i * C_row + n] * h;
                            sum += up(mul_4);
                            h_carry[n] = h;
                        }
                        y_out[i] = sum;
                    }
                    unstage_lanes(y_ptr + i_b * y_b + ts * y_l + i_h * y_h + first * y_p, y_p, y_l, y_out, 1, lanes, steps);
                }
                if (seg == segments - 1) {
                    for (int n = 0; n < N; ++n) {
                        store_lanes(last_state_ptr + i_b * last_state_b + i_h * last_state_h + first * last_state_p + n * last_state_n, last_state_p, lanes, h_carry[n]);
                    }
                }
            }
        }
    }
}

}  // namespace scanc
