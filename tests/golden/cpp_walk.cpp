        for (index_t program = 0; program < programs; ++program) {
            index_t rest = program;
            const index_t slot = rest % slots; rest /= slots;
            const index_t i_group = rest % 1; rest /= 1;
            const index_t i_b = rest % size_b; rest /= size_b;
            const index_t seg = rest;
            const index_t t0 = seg * segment, t1 = smaller(size_l, t0 + segment);
            for (index_t block = slot * 2; block < smaller(blocks, (slot + 1) * 2); ++block) {
                const index_t first = i_group * per_group + block * LANES;
                const int lanes = int(smaller(LANES, per_group - block * LANES));
                vf h_carry;
                h_carry = vf{};
                for (index_t ts = t0; ts < t1; ts += TILE) {
                    const index_t steps = smaller(TILE, t1 - ts);
                    stage_lanes(x_tile, 1, x_ptr + i_b * x_b + first * x_d + ts * x_l, x_d, x_l, lanes, steps);
                    for (index_t i = 0; i < steps; ++i) {
                        const vf h = (0.5f * h_carry) + x_tile[i];
                        h_out[i] = h;
                        y_1_out[i] = sum_lanes(mask_lanes(h, lanes));
                        h_carry = h;
                    }
                    unstage_lanes(h_ptr + i_b * h_b + first * h_d + ts * h_l, h_d, h_l, h_out, 1, lanes, steps);
                    unstage_rows(y_1_ptr + slot * y_1_slot_part + i_b * y_1_b + ts * y_1_l, y_1_l, y_1_out, 1, steps, block > slot * 2);
                }
            }
        }
    }
}

}  // namespace scanc
