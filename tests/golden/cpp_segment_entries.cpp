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
                h_carry = load_lanes(entry0_ptr + seg * entry0_segment_part + i_b * entry0_b + first * entry0_d, entry0_d, lanes);
                for (index_t ts = t0; ts < t1; ts += TILE) {
                    const index_t steps = smaller(TILE, t1 - ts);
                    stage_lanes(a_tile, 1, a_ptr + i_b * a_b + first * a_d + ts * a_l, a_d, a_l, lanes, steps);
                    stage_lanes(b_tile, 1, b_ptr + i_b * b_b + first * b_d + ts * b_l, b_d, b_l, lanes, steps);
                    for (index_t i = 0; i < steps; ++i) {
                        const vf h = (a_tile[i] * h_carry) + b_tile[i];
                        h_out[i] = h;
                        h_carry = h;
                    }
                    unstage_lanes(h_ptr + i_b * h_b + first * h_d + ts * h_l, h_d, h_l, h_out, 1, lanes, steps);
                }
                if (seg == segments - 1) {
                    store_lanes(last_state_ptr + i_b * last_state_b + first * last_state_d, last_state_d, lanes, h_carry);
                }
            }
        }
    }
}

}  // namespace scanc
