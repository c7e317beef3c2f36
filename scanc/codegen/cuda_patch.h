// What generated CUDA kernels of form stencil call, beside cuda.h.
// What a thread of the form stencil has in registers: ACROSS lanes of STEPS steps and of some before and after them. How they are read: by
// vectors, from within the sequence; so, but of what lies outside nothing (the fill of a look back is asked for); or one by one.
struct Inside { static constexpr bool inside = true, vectors = true; };
struct AtEnds { static constexpr bool inside = false, vectors = true; };
struct OneByOne { static constexpr bool inside = false, vectors = false; };
template <bool SURE> SCANC_INLINE bool within(int at, int before, int after) { return SURE || (at >= before && at < after); }
// An element of a row that unrolled loops read and write by constants; what is outside belongs to steps whose results nobody uses.
template <int COUNT, class V> SCANC_INLINE V held(const V (&row)[COUNT], int at) { return row[at < 0 ? 0 : at < COUNT ? at : COUNT - 1]; }
template <int COUNT, class V> SCANC_INLINE void keep(V (&row)[COUNT], int at, V x) { if (at >= 0 && at < COUNT) row[at] = x; }
template <class T, int COUNT> constexpr int vector_of() { return COUNT * int(sizeof(T)) > 16 ? 16 / int(sizeof(T)) : COUNT; }
// Steps FROM and on of a patch, COUNT of them, one element after another; 0 where the sequence has none. p points at the patch's first step.
template <int FROM, int ACROSS, int COUNT, class T, class V>
SCANC_INLINE void load_patch(V (&to)[ACROSS][COUNT], const T* p, int lane_stride, int time_stride, int lanes, int before, int after) {
#pragma unroll
    for (int v = 0; v < ACROSS; ++v) {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            const bool there = (v < lanes || ACROSS == 1) && within<false>(FROM + j, before, after);
            to[v][j] = there ? V(widen(fetch<true>(p + index_t(v) * lane_stride + index_t(FROM + j) * time_stride))) : V(0);
        }
    }
}
// The same where lanes lie together, by vectors of lanes: as they come from memory, and as numbers.
template <class T, int FROM, int ACROSS, int COUNT> struct Patch {
    static constexpr int WIDTH = vector_of<T, ACROSS>();
    typedef typename Bits<WIDTH * sizeof(T)>::type W;
    Pack<T, WIDTH> packs[COUNT][ACROSS / WIDTH];
    template <bool INSIDE> SCANC_INLINE void fetch(const T* p, int time_stride, int before, int after) {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
#pragma unroll
            for (int k = 0; k < ACROSS / WIDTH; ++k) {
                packs[j][k].bits = W{};
                if (within<INSIDE>(FROM + j, before, after))
                    packs[j][k].bits = read_only(reinterpret_cast<const W*>(p + index_t(FROM + j) * time_stride + k * WIDTH));
            }
        }
    }
    template <class V> SCANC_INLINE void widen_to(V (&to)[ACROSS][COUNT]) const {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
#pragma unroll
            for (int k = 0; k < ACROSS / WIDTH; ++k) {
                V part[WIDTH];
                widen_pack(part, packs[j][k]);
#pragma unroll
                for (int l = 0; l < WIDTH; ++l) to[k * WIDTH + l][j] = part[l];
            }
        }
    }
};
template <class HOW, bool ALONG, int ACROSS, int STEPS, class T, class V>
SCANC_INLINE void store_patch(T* p, int lane_stride, int time_stride, const V (&from)[ACROSS][STEPS], int count, int steps) {
    if constexpr (ALONG) {
#pragma unroll
        for (int v = 0; v < ACROSS; ++v)
            if (v < count) store_group<HOW::vectors>(p + index_t(v) * lane_stride, time_stride, from[v], steps);
    } else {
#pragma unroll
        for (int j = 0; j < STEPS; ++j) {
            V part[ACROSS];
#pragma unroll
            for (int v = 0; v < ACROSS; ++v) part[v] = from[v][j];
            if (j < steps) store_group<HOW::vectors>(p + index_t(j) * time_stride, lane_stride, part, count);
        }
    }
}
// A patch's own steps come nearer, as far as that is to be had (cuda_step.h). Threads whose patches share a line of 128 bytes take turns.
template <bool ALONG, int ACROSS, int STEPS, class T> SCANC_INLINE void bring_patch_nearer(const T* p, int time_stride) {
    constexpr int BYTES = (ALONG ? STEPS : ACROSS) * int(sizeof(T)), SHARE = BYTES < 128 ? 128 / BYTES : 1;
    const int turn = threadIdx.x % SHARE;
    if constexpr (ALONG) {
        if (turn == 0) bring_nearer<BYTES>(p);
    } else {
#pragma unroll
        for (int j = 0; j < STEPS; j += SHARE)
            if (j + turn < STEPS) bring_nearer<BYTES>(p + index_t(j + turn) * time_stride);
    }
}
// Steps FROM and on of a piece, COUNT of them, where steps lie together in memory: a thread's patch may be several pieces, each beside its
// neighbours' of the same number, so that what a warp moves by one instruction is one stretch of memory. What a piece has beyond its own
// steps is read again, no more of it than is looked at; it is near by then. Vectors lie wholly in the sequence or wholly outside.
template <class T, int STEPS, int FROM, int COUNT> struct Piece {
    static constexpr int OVER = FROM + COUNT - STEPS, LOW = FROM < 0 ? ceil_power(-FROM) : 0, HIGH = OVER > 0 ? ceil_power(OVER) : 0;
    template <int SIZE> struct Part {  // SIZE steps
        static constexpr int WIDTH = vector_of<T, (SIZE < STEPS ? SIZE : STEPS)>();
        Pack<T, WIDTH> packs[SIZE / WIDTH];
        // p points at step `at` of those that the sequence has from `begin` to `end`.
        SCANC_INLINE void fetch(const T* p, int at, int begin, int end) {
            typedef typename Bits<WIDTH * sizeof(T)>::type W;
#pragma unroll
            for (int k = 0; k < SIZE / WIDTH; ++k) {
                packs[k].bits = W{};
                if (at + k * WIDTH >= begin && at + k * WIDTH < end) packs[k].bits = read_only(reinterpret_cast<const W*>(p + k * WIDTH));
            }
        }
        template <class V> SCANC_INLINE void widen_to(V (&to)[COUNT], int at) const {
#pragma unroll
            for (int k = 0; k < SIZE / WIDTH; ++k) {
                V part[WIDTH];
                widen_pack(part, packs[k]);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) keep(to, at - FROM + k * WIDTH + j, part[j]);
            }
        }
    };
    Part<STEPS> own;
    Part<LOW ? LOW : 1> low;
    Part<HIGH ? HIGH : 1> high;
    SCANC_INLINE void fetch(const T* p, int at, int begin, int end) {
        own.fetch(p, at, at, end);
        if (LOW) low.fetch(p - LOW, at - LOW, begin, end);
        if (HIGH) high.fetch(p + STEPS, at + STEPS, at, end);
    }
    template <class V> SCANC_INLINE void widen_to(V (&to)[1][COUNT]) const {
        if (LOW) low.widen_to(to[0], -LOW);
        own.widen_to(to[0], 0);
        if (HIGH) high.widen_to(to[0], STEPS);
    }
};
// Whether a tensor's pieces lie together in memory: `apart` are all its other strides, one or-ed with the other.
template <int STEPS, class T> SCANC_INLINE bool vectors_together(const T* p, int time_stride, index_t apart) {
    constexpr int BYTES = vector_of<T, STEPS>() * int(sizeof(T));
    return Bits<BYTES>::one && time_stride == 1 && (index_t(p) | apart * int(sizeof(T))) % BYTES == 0;
}
// COUNT neighbours of memory that nothing writes, known to lie so, 16 bytes at an instruction.
template <int COUNT, class T, class V> SCANC_INLINE void load_vector(V (&to)[COUNT], const T* p) {
    constexpr int WIDTH = vector_of<T, COUNT>();
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH) {
        Pack<T, WIDTH> pack;
        pack.bits = read_only(reinterpret_cast<const typename Bits<WIDTH * sizeof(T)>::type*>(p + k));
        widen_pack(to + k, pack);
    }
}
// The pieces from p on, step `at` of those that end at `end`, come nearer, PIECES of them that are NEXT steps apart. Threads that share lines
// of 128 bytes take turns.
template <int PIECES, int STEPS, int NEXT, class T> SCANC_INLINE void bring_pieces_nearer(const T* p, int at, int end) {
    constexpr int BYTES = STEPS * int(sizeof(T)), SHARE = BYTES < 128 ? 128 / BYTES : 1;
    const int turn = threadIdx.x % SHARE;
#pragma unroll
    for (int q = 0; q < PIECES; q += SHARE) {
        const int to = q * NEXT + turn * (NEXT - STEPS);
        if (q + turn < PIECES && at + to < end) bring_nearer<BYTES>(p + to);
    }
}
// The sum over a lane's threads: those of a group of GROUP neighbours that are APART from each other. Always in the same order.
template <int APART, int GROUP, int THREADS> SCANC_INLINE float row_sum(float x, float* words) {
    constexpr int WITHIN = GROUP < 32 ? GROUP : 32, STEP = APART < 32 ? 32 : APART;
#pragma unroll
    for (int d = APART; d < WITHIN; d *= 2) x += __shfl_xor_sync(Warp<THREADS>::ALL, x, d);
    if constexpr (GROUP > STEP) {
        const int tid = threadIdx.x;
        __syncthreads();
        words[tid] = x;
        __syncthreads();
        x = 0.0f;
        for (int at = tid / GROUP * GROUP + tid % STEP, left = GROUP / STEP; left > 0; --left, at += STEP) x += words[at];
    }
    return x;
}
