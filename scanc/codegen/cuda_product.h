// What CUDA kernels of form step call where they multiply a small batch with a weight on the matrix units, beside cuda.h and cuda_step.h.
// A warp has 16 lanes of the weight, and of the contracted axis pieces of 64, 128 bytes of each lane, which it reads 16 bytes at a time. The
// units want a thread's operands from four places of 16; which of the 64 stand there is nobody's business as long as both operands agree,
// so they are eight that lie together, from two places.
// _machine: sums[16 x 8] += a[16 x 16] b[16 x 8], of a thread's two lanes (g and g + 8) and two rows (2 t, 2 t + 1), g = thread / 4, t = thread % 4.
#ifndef SCANC_MACHINE
#if __CUDA_ARCH__ >= 800
SCANC_INLINE void multiply_add(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1, bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
SCANC_INLINE void multiply_add(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1, float16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// 16 bytes that are read once: they take no place in the nearest cache.
SCANC_INLINE uint4 once_16(const void* p) {
    uint4 x;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}
#endif
#endif

// Eight neighbours along the contracted axis; zeros past its end. Those that do not lie together come in a short loop: kernels this short
// feel the length of code that they do not run.
template <bool WHOLE, bool ONCE, class T> SCANC_INLINE Pack<T, 8> eight(const T* p, int stride, int left) {
    Pack<T, 8> pack;
    if constexpr (WHOLE) {
        pack.bits = uint4{};
        if (left > 0) {
            if constexpr (ONCE) pack.bits = once_16(p);
            else pack.bits = *reinterpret_cast<const uint4*>(p);
        }
    } else {
        unsigned long long halves[2] = {};
#pragma unroll 1
        for (int j = 0; j < 4; ++j) {
            halves[0] |= (unsigned long long)(j < left ? p[index_t(j) * stride].bits : 0) << (16 * j);
            halves[1] |= (unsigned long long)(j + 4 < left ? p[index_t(j + 4) * stride].bits : 0) << (16 * j);
        }
        pack.bits = uint4{unsigned(halves[0]), unsigned(halves[0] >> 32), unsigned(halves[1]), unsigned(halves[1] >> 32)};
    }
    return pack;
}

// WARPS warps share the contracted axis of SIZE and leave their sums in ``sums[WARPS][ROWS][17]``; each has AT_ONCE pieces on their way.
template <class T, int SIZE, int ROWS, int WARPS> struct FewRows {
    static constexpr int PIECES = (SIZE + 63) / 64, PITCH = 17;
    // How many there are from a place on, eight or more where nobody need ask.
    static constexpr SCANC_INLINE int left(int at) { return SIZE % 64 == 0 ? 8 : SIZE - at; }
    // The weight's lines come nearer. Half a warp takes a piece.
    static SCANC_INLINE void bring(const T* w, int w_lane, int w_state, int lanes) {
        const int thread = threadIdx.x % 32, lane = smaller(thread % 16, lanes - 1);
#pragma unroll 4
        for (int piece = threadIdx.x / 32 + WARPS * (thread / 16); piece < PIECES; piece += 2 * WARPS)
            bring_nearer<1>(w + index_t(lane) * w_lane + index_t(piece * 64) * w_state);
    }
    // ``rows_of(how, j, row, at)`` makes eight of a row from place ``at``; it is asked once for each of ``rows``, and again for those past
    // them, where it makes the last row's.
    template <int AT_ONCE, class How, class Rows>
    static SCANC_INLINE void multiply(How how, float* sums, const T* w, int w_lane, int w_state, int lanes, int rows, const Rows& rows_of) {
        constexpr bool WHOLE = How::value;
        const int warp = threadIdx.x / 32, thread = threadIdx.x % 32, g = thread / 4, t = thread % 4 * 8;
        const T* const lower = w + index_t(smaller(g, lanes - 1)) * w_lane;
        const T* const upper = w + index_t(smaller(g + 8, lanes - 1)) * w_lane;
        float total[ROWS / 8][4];
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) total[j][0] = total[j][1] = total[j][2] = total[j][3] = 0.0f;
#pragma unroll 1
        for (int first = warp; first < PIECES; first += WARPS * AT_ONCE) {
            Pack<T, 8> a[AT_ONCE][2], b[AT_ONCE][2];
#pragma unroll
            for (int u = 0; u < AT_ONCE; ++u) {
                if (first + u * WARPS >= PIECES) break;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int at = (first + u * WARPS) * 64 + half * 32 + t;
                    a[u][half] = eight<WHOLE, true>(lower + (WHOLE ? index_t(at) : index_t(at) * w_state), w_state, left(at));
                    b[u][half] = eight<WHOLE, true>(upper + (WHOLE ? index_t(at) : index_t(at) * w_state), w_state, left(at));
                }
            }
#pragma unroll
            for (int u = 0; u < AT_ONCE; ++u) {
                if (first + u * WARPS >= PIECES) break;
#pragma unroll
                for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int at = (first + u * WARPS) * 64 + half * 32 + t;
                        const Pack<T, 8> c = rows_of(how, j, smaller(j * 8 + g, rows - 1), at);
                        multiply_add(total[j], a[u][half].word[0], b[u][half].word[0], a[u][half].word[1], b[u][half].word[1], c.word[0], c.word[1], T{});
                        multiply_add(total[j], a[u][half].word[2], b[u][half].word[2], a[u][half].word[3], b[u][half].word[3], c.word[2], c.word[3], T{});
                    }
                }
            }
        }
        float* const own = sums + warp * (ROWS * PITCH) + t / 4 * PITCH + g;
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) own[(j * 8 + k % 2) * PITCH + k / 2 * 8] = total[j][k];
        }
    }
    // What each thread has summed of its rows' places, without lanes: four threads have a row, and leave it in ``sums[WARPS][ROWS]``.
    static SCANC_INLINE void leave(float* sums, float (&own)[ROWS / 8]) {
        const int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) {
            float sum = own[j] + __shfl_xor_sync(0xffffffffu, own[j], 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (thread % 4 == 0) sums[warp * ROWS + j * 8 + thread / 4] = sum;
        }
    }
    // One lane's product with one row, or one row's sum: the warps' shares, always in the same order.
    static SCANC_INLINE float at(const float* sums, int row, int lane) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum += sums[(warp * ROWS + row) * PITCH + lane];
        return sum;
    }
    static SCANC_INLINE float at(const float* sums, int row) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum += sums[warp * ROWS + row];
        return sum;
    }
};
