struct Arguments {
    const bfloat16* u_ptr;
    const float* pregate_ptr;
    bfloat16* y_ptr;
    float2* k_spectrum_ptr;
    float2* table_ptr;
    index_t u_b, u_d, u_l, pregate_b, pregate_d, pregate_l, y_b, y_d, y_l, size_b, size_d, size_l, rows, walk, blocks, near, held, items, programs;
};

extern "C" __global__ void __launch_bounds__(32, 1) run(const __grid_constant__ Arguments arguments) {
    const bfloat16* const u_ptr = arguments.u_ptr;
    const float* const pregate_ptr = arguments.pregate_ptr;
    bfloat16* const y_ptr = arguments.y_ptr;
    float2* const k_spectrum_ptr = arguments.k_spectrum_ptr;
    float2* const table_ptr = arguments.table_ptr;
    const index_t u_b = arguments.u_b;
    const index_t u_d = arguments.u_d;
    const index_t pregate_b = arguments.pregate_b;
    const index_t pregate_d = arguments.pregate_d;
    const index_t y_b = arguments.y_b;
    const index_t y_d = arguments.y_d;
    const index_t size_b = arguments.size_b;
    const index_t size_d = arguments.size_d;
    const index_t size_l = arguments.size_l;
    const index_t rows = arguments.rows;
    const index_t walk = arguments.walk;
    const index_t near = arguments.near;
    extern __shared__ __align__(16) float shared[];
    const int tid = threadIdx.x;
    unsigned rest = unsigned(block_here());
    const index_t i_d = rest % unsigned(size_d); rest /= unsigned(size_d);
    const index_t part = rest;
    const float2* const k_at = k_spectrum_ptr + index_t(i_d) * near * N + tid;
    for (int step = 0; step < walk; ++step) {
        const index_t row = part * walk + step;
        if (row >= rows) break;
        index_t left = row;
        const index_t i_b = left % size_b; left /= size_b;
        float re[E], im[E];
        {
            const bfloat16* const u_at = u_ptr + i_b * u_b + i_d * u_d + 0 + tid;
            const float* const pregate_at = pregate_ptr + i_b * pregate_b + i_d * pregate_d + 0 + tid;
            const int mine = int(smaller(size_l - 0, N)) - tid;
            #pragma unroll
            for (int i = 0; i < E; ++i) {
                const bool inside = apart(i) < mine;
                const float u = inside ? widen(u_at[apart(i)]) : 0.0f;
                const float pregate = inside ? widen(pregate_at[apart(i)]) : 0.0f;
                const float x_2 = u * pregate;
                re[i] = x_2;
            }
        }
        there(re, im, shared, table_ptr);
        #pragma unroll
        for (int i = 0; i < E; ++i) {
            const float x_re = re[i], x_im = im[i];
            float p_re = 0, p_im = 0;
            {
                const float2 k = read_only(k_at + i * THREADS);
                p_re += x_re * k.x - x_im * k.y, p_im += x_im * k.x + x_re * k.y;
            }
            re[i] = p_re, im[i] = p_im;
        }
        back(re, im, shared, table_ptr);
        {
            bfloat16* const y_at = y_ptr + i_b * y_b + i_d * y_d + 0 + tid;
            const int mine = int(smaller(size_l - 0, N)) - tid;
            #pragma unroll
            for (int i = 0; i < E; ++i) {
                const bool inside = apart(i) < mine;
                if (inside) y_at[apart(i)] = Narrow<bfloat16>::of(re[i]);
            }
        }
    }
}
