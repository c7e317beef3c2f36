    for (int at = 0; at < steps && at < end; at += NEXT) {
            patch(OneByOne(), 0, at);
        }
    }
    #pragma unroll
    for (int v = 0; v < ACROSS; ++v) {
        {
            const float whole = row_sum<1, ROWS, THREADS>(d_w0_total[v], nullptr);
            if (row == 0 && v < count) *(d_w0_ptr + seg * d_w0_segment_part + i_b * d_w0_b_part + index_t(place) * d_w0_d) = Narrow<float>::of(whole);
        }
        {
            const float whole = row_sum<1, ROWS, THREADS>(d_w1_total[v], nullptr);
            if (row == 0 && v < count) *(d_w1_ptr + seg * d_w1_segment_part + i_b * d_w1_b_part + index_t(place) * d_w1_d) = Narrow<float>::of(whole);
        }
        {
            const float whole = row_sum<1, ROWS, THREADS>(d_bias_total[v], nullptr);
            if (row == 0 && v < count) *(d_bias_ptr + seg * d_bias_segment_part + i_b * d_bias_b_part + index_t(place) * d_bias_d) = Narrow<float>::of(whole);
        }
    }
}
