    const bool whole = per_group % ACROSS == 0
        && vectors_together<ACROSS>(w0_ptr, w0_d, 0)
        && vectors_together<ACROSS>(w1_ptr, w1_d, 0)
        && vectors_together<ACROSS>(bias_ptr, bias_d, 0)
        && vectors_together<ACROSS>(x_ptr, x_d, index_t(x_b) | index_t(x_l))
        && vectors_together<ACROSS>(y_ptr, y_d, index_t(y_b) | index_t(y_l))
        ;
    if (whole) {
        float w0_lanes[ACROSS];
        load_vector(w0_lanes, w0_ptr + place);
        float w1_lanes[ACROSS];
        load_vector(w1_lanes, w1_ptr + place);
        float bias_lanes[ACROSS];
        load_vector(bias_lanes, bias_ptr + place);
        float w0_of[ACROSS];
        float w1_of[ACROSS];
        float bias_of[ACROSS];
        #pragma unroll
        for (int v = 0; v < ACROSS; ++v) {
            const float w0 = w0_lanes[v]; w0_of[v] = w0;
            const float w1 = w1_lanes[v]; w1_of[v] = w1;
            const float bias = bias_lanes[v]; bias_of[v] = bias;
        }
        const bfloat16* const x_at = x_ptr + i_b * x_b + index_t(place) * x_d + (t0 + row * STEPS) * x_l;
        bfloat16* const y_at = y_ptr + i_b * y_b + index_t(place) * y_d + (t0 + row * STEPS) * y_l;
        constexpr int FAR = 1073741824;
        // Of the thread's first steps: where the sequence begins, and where it has ended.
        const int begin = -int(smaller(t0, FAR)) - row * STEPS, end = int(smaller(size_l - t0, FAR)) - row * STEPS;
        const int steps = count > 0 ? int(t1 - t0) : 0;
        const auto patch = [&](auto how, int at) {
            const int before = begin - at, after = end - at;
            Patch<bfloat16, -1, ACROSS, STEPS + 1> x_patch;
            float x_in[ACROSS][STEPS + 1];
            if constexpr (how.vectors) x_patch.template fetch<how.inside>(x_at + index_t(at) * x_l, x_l, before, after);
            else load_patch<-1>(x_in, x_at + index_t(at) * x_l, x_d, x_l, count, before, after);
            if constexpr (how.vectors) x_patch.widen_to(x_in);
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
            store_patch<decltype(how), ALONG>(y_at + index_t(at) * y_l, y_d, y_l, y_out, ACROSS, how.inside ? STEPS : smaller(STEPS, after));
        };
        #pragma unroll 1
        for (int at = 0; at < steps && at < end; at += TILE) {
            if (begin - at <= -1 && end - at >= STEPS + 0) patch(Inside(), at);
            else patch(AtEnds(), at);
        }
    }
