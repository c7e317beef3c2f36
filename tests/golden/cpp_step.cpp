        for (index_t program = 0; program < programs; ++program) {
            index_t rest = program;
            const index_t slot = rest % slots; rest /= slots;
            const index_t i_group = rest % size_g; rest /= size_g;
            const index_t i_b = rest % size_b; rest /= size_b;
            const index_t seg = rest;
            for (index_t block = slot * 1; block < smaller(blocks, (slot + 1) * 1); ++block) {
                const index_t first = i_group * per_group + block * LANES;
                const int lanes = int(smaller(LANES, per_group - block * LANES));
                const vf delta = up(load_lanes(delta_ptr + i_b * delta_b + first * delta_d, delta_d, lanes));
                const vf mul = delta * 1.44269504f;
                const vf u = up(load_lanes(u_ptr + i_b * u_b + first * u_d, u_d, lanes));
                const vf mul_2 = delta * u;
                vf sum{};
                #pragma GCC unroll 2
                for (int n = 0; n < N; ++n) {
                    const float C = widen(*(C_ptr + i_b * C_b + i_group * C_g + n * C_n));
                    const vf A = up(load_lanes(A_ptr + first * A_d + n * A_n, A_d, lanes));
                    const vf a = exp2(mul * A);
                    const vf initial_state = up(load_lanes(initial_state_ptr + i_b * initial_state_b + first * initial_state_d + n * initial_state_n, initial_state_d, lanes));
                    const float B = widen(*(B_ptr + i_b * B_b + i_group * B_g + n * B_n));
                    const vf h = (a * initial_state) + (mul_2 * B);
                    const vf mul_3 = C * h;
                    sum += up(mul_3);
                    store_lanes(last_state_ptr + i_b * last_state_b + first * last_state_d + n * last_state_n, last_state_d, lanes, h);
                }
                store_lanes(y_ptr + i_b * y_b + first * y_d, y_d, lanes, sum);
            }
        }
    }
}

}  // namespace scanc
