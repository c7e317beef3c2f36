        for (index_t program = 0; program < programs; ++program) {
            index_t rest = program;
            const index_t slot = rest % slots; rest /= slots;
            const index_t i_group = rest % 1; rest /= 1;
            const index_t i_b = rest % size_b; rest /= size_b;
            const index_t seg = rest;
            const index_t t0 = seg * segment, t1 = smaller(size_l, t0 + segment);
            for (index_t block = slot * 1; block < smaller(blocks, (slot + 1) * 1); ++block) {
                const index_t first = i_group * per_group + block * LANES;
                const int lanes = int(smaller(LANES, per_group - block * LANES));
                vf h_carry;
                h_carry = vf{};
                vf d_b_carry;
                d_b_carry = vf{};
                const index_t parts = (t1 - t0 + TILE - 1) / TILE;
                for (index_t part = 0; part < parts; ++part) {
                    h_carry_at_block[part * 1 + 0] = h_carry;
                    if (part == parts - 1) break;  // the last block's end is nobody's start
                    const index_t ts = t0 + part * TILE, steps = smaller(TILE, t1 - ts);
                    stage_lanes(a_tile, 1, a_ptr + i_b * a_b + first * a_d + ts * a_l, a_d, a_l, lanes, steps);
                    stage_lanes(b_tile, 1, b_ptr + i_b * b_b + first * b_d + ts * b_l, b_d, b_l, lanes, steps);
                    for (index_t i = 0; i < steps; ++i) {
                        const vf h = (a_tile[i] * h_carry) + b_tile[i];
                        h_carry = h;
                    }
                }
                for (index_t part = parts - 1; part >= 0; --part) {
                    const index_t ts = t0 + part * TILE, steps = smaller(TILE, t1 - ts);
                    h_carry = h_carry_at_block[part * 1 + 0];
                    stage_lanes(a_tile, 1, a_ptr + i_b * a_b + first * a_d + ts * a_l, a_d, a_l, lanes, steps);
                    stage_lanes(b_tile, 1, b_ptr + i_b * b_b + first * b_d + ts * b_l, b_d, b_l, lanes, steps);
                    stage_lanes(d_h_tile, 1, d_h_ptr + i_b * d_h_b + first * d_h_d + ts * d_h_l, d_h_d, d_h_l, lanes, steps);
                    for (index_t i = 0; i < steps; ++i) {
                        h_carry_history[i] = h_carry;
                        const vf h = (a_tile[i] * h_carry) + b_tile[i];
                        h_carry = h;
                        h_carry_history[(i + 1)] = h_carry;
                    }
                    for (index_t i = steps - 1; i >= 0; --i) {
                        const vf d_b = d_b_carry + d_h_tile[i];
                        const vf d_a = d_b * h_carry_history[i];
                        d_a_out[i] = d_a;
                        d_b_out[i] = d_b;
                        d_b_carry = a_tile[i] * d_b;
                    }
                    unstage_lanes(d_a_ptr + i_b * d_a_b + first * d_a_d + ts * d_a_l, d_a_d, d_a_l, d_a_out, 1, lanes, steps);
                    unstage_lanes(d_b_ptr + i_b * d_b_b + first * d_b_d + ts * d_b_l, d_b_d, d_b_l, d_b_out, 1, lanes, steps);
                }
            }
        }
    }
}

}  // namespace scanc
