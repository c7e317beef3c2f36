    for (int at = 0; t0 + at < t1; at += TILE) {
        const index_t t = t0 + at + row * STEPS;
        // Of the patch's steps, counted from its first: where the sequence begins, and where it has ended.
        const int before = -int(smaller(t, MANY)), after = int(smaller(size_l - t, MANY));
        const auto patch = [&](auto how) {
            float d_y_in[ACROSS][STEPS + 1];
            if (how.vectors) d_y_patch.fetch<how.inside>(d_y_at + index_t(at) * d_y_l, d_y_l, before, after);
            float x_in[ACROSS][STEPS + 2];
            if (how.vectors) x_patch.fetch<how.inside>(x_at + index_t(at) * x_l, x_l, before, after);
            if (how.vectors) d_y_patch.widen_to(d_y_in);
            else d_y_patch.load(d_y_in, d_y_at + index_t(at) * d_y_l, d_y_d, d_y_l, count, before, after);
            if (how.vectors) x_patch.widen_to(x_in);
            else x_patch.load(x_in, x_at + index_t(at) * x_l, x_d, x_l, count, before, after);
            float d_x_out[ACROSS][STEPS];
            #pragma unroll
            for (int v = 0; v < ACROSS; ++v) {
                float mul_row[STEPS + 1];
                #pragma unroll
                for (int i = -1; i < STEPS; ++i) {
                    const float add_2 = ((w0_of[v] * held(x_in[v], i + 2)) + (w1_of[v] * held(x_in[v], i + 1))) + bias_of[v];
                    const float reciprocal_2 = reciprocal(exp2_(add_2 * (-1.44269504f)) + 1.0f);
                    const float mul = held(d_y_in[v], i + 1) * (reciprocal_2 * ((add_2 * (1.0f - reciprocal_2)) + 1.0f)); keep(mul_row, i + 1, mul);
                    const float d_seen = mul * w1_of[v];
                    const float d_x = (within<how.inside>(i + 1, before, after) ? d_seen : 0.0f) + (held(mul_row, i) * w0_of[v]);
                    const float mul_8 = held(mul_row, i) * held(x_in[v], i + 1);
                    const float mul_9 = held(mul_row, i) * held(x_in[v], i);
                    if (i >= 0) d_x_out[v][i < 0 ? 0 : i] = d_x;
                    if (i >= 0 && within<how.vectors>(i, before, after)) d_w0_total[v] += mul_8;
                    if (i >= 0 && within<how.vectors>(i, before, after)) d_w1_total[v] += mul_9;
                    if (i >= 0 && within<how.vectors>(i, before, after)) d_bias_total[v] += held(mul_row, i);
                }
            }
            store_patch<decltype(how), ALONG>(d_x_at + index_t(at) * d_x_l, d_x_d, d_x_l, d_x_out, count, smaller(STEPS, after));
        };
        const bool inside = t0 + at + rows0 * STEPS >= 8 && t0 + at + rows1 * STEPS + STEPS + 8 <= size_l;
        if (vectors && inside) patch(Inside());
        else if (vectors && t + STEPS <= size_l) patch(AtEnds());
        else if (count > 0 && t < t1) patch(OneByOne());
    }
    #pragma unroll
    for (int v = 0; v < ACROSS; ++v) {
        {
            const float whole = row_sum<1, ROWS, THREADS>(d_w0_total[v], nullptr);
            if (row == 0 && v < count) *(d_w0_ptr + seg * d_w0_segment_part + i_b * d_w0_b_part + first * d_w0_d + index_t(lane + v) * d_w0_d) = Narrow<float>::of(whole);
        }
        {
            const float whole = row_sum<1, ROWS, THREADS>(d_w1_total[v], nullptr);
            if (row == 0 && v < count) *(d_w1_ptr + seg * d_w1_segment_part + i_b * d_w1_b_part + first * d_w1_d + index_t(lane + v) * d_w1_d) = Narrow<float>::of(whole);
        }
        {
            const float whole = row_sum<1, ROWS, THREADS>(d_bias_total[v], nullptr);
            if (row == 0 && v < count) *(d_bias_ptr + seg * d_bias_segment_part + i_b * d_bias_b_part + first * d_bias_d + index_t(lane + v) * d_bias_d) = Narrow<float>::of(whole);
        }
    }
}
