    const bool whole = size_l % STEPS == 0
        && vectors_together<STEPS>(x_ptr, x_l, index_t(x_b) | index_t(x_d))
        && vectors_together<STEPS>(y_ptr, y_l, index_t(y_b) | index_t(y_d))
        ;
    Piece<bfloat16, STEPS, -1, STEPS + 1> x_pieces[PIECES];
    const auto patch = [&](auto how, int q, int at) {
        const int before = begin - at, after = end - at;
        float x_in[1][STEPS + 1];
        if constexpr (how.vectors) x_pieces[q].widen_to(x_in);
        else load_patch<-1>(x_in, x_at + index_t(at) * x_l, x_d, x_l, 1, before, after);
        float y_out[ACROSS][STEPS];
        #pragma unroll
        for (int v = 0; v < ACROSS; ++v) {
            #pragma unroll
            for (int i = 0; i < STEPS; ++i) {
                const float add_2 = ((w0_of[v] * held(x_in[v], i + 1)) + (w1_of[v] * held(x_in[v], i))) + bias_of[v];
                const float y = add_2 * reciprocal(exp2_(add_2 * (-1.44269504f)) + 1.0f);
                if (i >= 0) y_out[v][i < 0 ? 0 : i] = y;
            }
        }
        store_patch<decltype(how), ALONG>(how.vectors ? y_here + q * NEXT : y_at + index_t(at) * y_l, y_d, y_l, y_out, 1, how.vectors ? STEPS : smaller(STEPS, after));
    };
    if (whole) {
        #pragma unroll 1
        for (int start = 0; start < steps; start += TILE) {
            #pragma unroll
            for (int q = 0; q < PIECES; ++q) {
                x_pieces[q].fetch(x_here + q * NEXT, start + q * NEXT, begin, end);
            }
            #pragma unroll
            for (int q = 0; q < PIECES; ++q) {
                if (start + q * NEXT < end) patch(AtEnds(), q, start + q * NEXT);
            }
            x_here += TILE;
            y_here += TILE;
        }
    }
