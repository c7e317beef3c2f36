// What generated CUDA kernels call: elementary functions, storage types, groups of neighbouring elements, sums over threads.
// A block holds LANES x SPLIT threads; the SPLIT threads of a lane are in one warp and share its states. The text is
// self-contained for NVRTC: no header of the CUDA toolkit is included.
typedef long long index_t;

#define SCANC_INLINE __device__ __forceinline__

template <class T> SCANC_INLINE T smaller(T a, T b) { return b < a ? b : a; }
SCANC_INLINE index_t smaller(index_t a, int b) { return a < b ? a : index_t(b); }
SCANC_INLINE index_t smaller(int a, index_t b) { return a < b ? index_t(a) : b; }
// A number of 32 bits among the arguments. Read so, the compiler knows that it multiplies 32 bits by 32.
SCANC_INLINE int low_word(const index_t& x) { return reinterpret_cast<const int*>(&x)[0]; }
constexpr int ceil_power(int x) { int p = 1; while (p < x) p *= 2; return p; }

// -- arithmetic of the machine ---------------------------------------------------------------------------------------------------
// Whoever defines SCANC_MACHINE brings these functions itself: a test that runs kernels on a CPU does.
#ifndef SCANC_MACHINE
SCANC_INLINE float exp2_(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
SCANC_INLINE float reciprocal(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
SCANC_INLINE float quotient(float x, float y) { float r; asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(y)); return r; }
SCANC_INLINE float log2_fast(float x) { float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
SCANC_INLINE float rsqrt_(float x) { float r; asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
SCANC_INLINE float half_to_float(unsigned short x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }
SCANC_INLINE unsigned short float_to_half(float x) { unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
// threadIdx.x and blockIdx.x, read anew: what a loop computes from them stays in it and holds no register outside.
SCANC_INLINE int thread_here() {
    int r;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(r));
    __builtin_assume(r >= 0 && r < 1024);
    return r;
}
// COUNT threads of a block, all of it, come together from different places of the program.
template <int COUNT> SCANC_INLINE void meet() { asm volatile("bar.sync 1, %0;" ::"n"(COUNT) : "memory"); }
// A signal is two words of shared memory: so many reports make a turn of it, and threads wait until as many turns are over as they say.
#if __CUDA_ARCH__ >= 800
SCANC_INLINE unsigned signal_at(const float* signal) { return unsigned(__cvta_generic_to_shared(signal)); }
SCANC_INLINE void set_signal(float* signal, int reports) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(signal_at(signal)), "r"(reports) : "memory");
}
SCANC_INLINE void report(float* signal) {
    asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(signal_at(signal)) : "memory");
}
// Whoever waits has waited for all turns before.
SCANC_INLINE void wait_for_turns(const float* signal, int turns) {
    const unsigned at = signal_at(signal), parity = (turns - 1) & 1;
    unsigned over = 0;
    while (!over) {
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(at), "r"(parity) : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(at), "r"(parity) : "memory");
#endif
    }
}
#else
SCANC_INLINE void set_signal(float* signal, int reports) {
    reinterpret_cast<int*>(signal)[0] = reports;
    reinterpret_cast<int*>(signal)[1] = 0;
}
SCANC_INLINE void report(float* signal) {
    __threadfence_block();
    atomicAdd(reinterpret_cast<int*>(signal) + 1, 1);
}
SCANC_INLINE void wait_for_turns(const float* signal, int turns) {
    const volatile int* const words = reinterpret_cast<const volatile int*>(signal);
    while (words[1] < words[0] * turns) {}
    __threadfence_block();
}
#endif
// The same for COUNT of its threads, of which there are KINDS; of more kinds than the machine has barriers the whole block comes together.
template <int COUNT, int KINDS> SCANC_INLINE void meet_some(int which) {
    if constexpr (KINDS < 15) asm volatile("bar.sync %0, %1;" ::"r"(which + 1), "n"(COUNT) : "memory");
    else __syncthreads();
}
#if __CUDA_ARCH__ >= 900
// Blocks of a cluster: what each wrote before it arrived the others may read once all have. Between two arrivals of a thread comes a wait.
SCANC_INLINE void cluster_arrives() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
SCANC_INLINE void cluster_has_arrived() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Four floats that another block of the cluster, of that number, has where this one has ``p``.
SCANC_INLINE void read_block(float (&x)[4], const float* p, int block) {
    unsigned at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(unsigned(__cvta_generic_to_shared(p))), "r"(block));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3]) : "r"(at) : "memory");
}
#endif
SCANC_INLINE float from_thread(float x, int thread) { return __shfl_sync(~0u, x, thread); }
// What the thread DISTANCE before this one, of WIDTH that are together, does to a carry comes before what this one does.
template <int DISTANCE, int WIDTH, bool LAST> SCANC_INLINE void compose(float& product, float& end) {
    constexpr int BOUND = (32 - WIDTH) << 8;
    if constexpr (LAST)
        asm("{ .reg .pred p; .reg .f32 e; shfl.sync.up.b32 e|p, %0, %2, %3, 0xffffffff; @p fma.rn.f32 %0, %1, e, %0; }"
            : "+f"(end) : "f"(product), "n"(DISTANCE), "n"(BOUND));
    else
        asm("{ .reg .pred p; .reg .f32 e, q; shfl.sync.up.b32 e|p, %0, %2, %3, 0xffffffff; shfl.sync.up.b32 q, %1, %2, %3, 0xffffffff;"
            " @p fma.rn.f32 %0, %1, e, %0; @p mul.f32 %1, %1, q; }" : "+f"(end), "+f"(product) : "n"(DISTANCE), "n"(BOUND));
}
// threadIdx.x of a whole warp's thread, which the compiler keeps, since it cannot read it anew where it is used, and wait for it there.
SCANC_INLINE int thread_kept() { return __shfl_sync(~0u, int(threadIdx.x), int(threadIdx.x) % 32); }
// What the thread DISTANCE before this one has; the first of WIDTH that are together keep what they have.
template <int DISTANCE, int WIDTH> SCANC_INLINE void take_before(float& to, float from) {
    asm("{ .reg .pred p; .reg .f32 e; shfl.sync.up.b32 e|p, %1, %2, %3, 0xffffffff; @p mov.f32 %0, e; }"
        : "+f"(to) : "f"(from), "n"(DISTANCE), "n"((32 - WIDTH) << 8));
}
// Values that the compiler must not make anew where they are used.
template <class T> SCANC_INLINE T kept(T x) {
    if constexpr (sizeof(T) == 8) asm volatile("" : "+l"(x));
    else asm volatile("" : "+r"(x));
    return x;
}
template <int COUNT> SCANC_INLINE void keep_values(float (&x)[COUNT]) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) asm volatile("" : "+f"(x[j]));
}
// A number that is made once for a loop and not of its parts anew in every turn.
SCANC_INLINE int made_once(int x) { asm("" : "+r"(x)); return x; }
template <class T> SCANC_INLINE T* made_once(T* p) { asm("" : "+l"(p)); return p; }
// An address of shared memory in one register.
typedef unsigned Place;
SCANC_INLINE Place place_of(const float* p) { return Place(made_once(int(__cvta_generic_to_shared(p)))); }
SCANC_INLINE float* at_place(Place place) { return static_cast<float*>(__cvta_shared_to_generic(place)); }
SCANC_INLINE unsigned block_here() { unsigned r; asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(r)); return r; }
// 16 bytes of shared memory where `is` holds, without a branch. Who reads them waits at a barrier first.
SCANC_INLINE void write_four_if(bool is, float* p, float x, float y, float z, float w) {
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.v4.f32 [%1], {%2, %3, %4, %5}; }"
                 ::"r"(int(is)), "r"(unsigned(__cvta_generic_to_shared(p))), "f"(x), "f"(y), "f"(z), "f"(w));
}
template <class T> SCANC_INLINE T read_only(const T* p) { return __ldg(p); }
// 16 bytes of a tensor by one instruction; of an assignment the compiler may make four. Reads of other memory may move across it: who reads
// what a block has stored waits at a barrier first.
template <class T> SCANC_INLINE void store_16(T* p, uint4 x) {
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w));
}
#if __CUDA_ARCH__ >= 800
// Copies from global to shared memory that go on while the thread works: of 4, 8 or 16 bytes, and the groups they are waited for in.
template <int BYTES> SCANC_INLINE void copy_async(void* to, const void* from) {
    const unsigned at = unsigned(__cvta_generic_to_shared(to));
    if constexpr (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(BYTES) : "memory");
}
SCANC_INLINE void copies_issued() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> SCANC_INLINE void copies_done() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
#define SCANC_NATIVE_BFLOAT16
SCANC_INLINE unsigned short float_to_bfloat16(float x) { unsigned short r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
SCANC_INLINE float maximum(float x, float y) { float r; asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(y)); return r; }
SCANC_INLINE float minimum(float x, float y) { float r; asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(y)); return r; }
#else
template <int BYTES> SCANC_INLINE void copy_async(void* to, const void* from) {
    const char* const source = static_cast<const char*>(from);
#pragma unroll
    for (int at = 0; at < BYTES; at += 4) {
        const unsigned word = __ldg(reinterpret_cast<const unsigned*>(source + at));
        reinterpret_cast<unsigned*>(static_cast<char*>(to) + at)[0] = word;
    }
}
SCANC_INLINE void copies_issued() {}
template <int LEFT> SCANC_INLINE void copies_done() {}
#endif
#endif

#ifndef SCANC_NATIVE_BFLOAT16
SCANC_INLINE unsigned short float_to_bfloat16(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
// NaN in either argument gives NaN.
SCANC_INLINE float maximum(float x, float y) { return y > x || y != y ? y : x; }
SCANC_INLINE float minimum(float x, float y) { return y < x || y != y ? y : x; }
#endif
// Near zero a polynomial, since log2 of 1 + x knows no more digits of x than 1 + x has; relative error 7e-7 at most.
SCANC_INLINE float log1p_(float x) {
    float p = -0.138455451f;
    p = p * x + 0.157787472f;
    p = p * x - 0.166129187f;
    p = p * x + 0.199403837f;
    p = p * x - 0.250006765f;
    p = p * x + 0.333340853f;
    p = p * x - 0.5f;
    p = p * x + 1.0f;
    return fabsf(x) < 0.25f ? p * x : log2_fast(1.0f + x) * 0.693147182f;
}
// The same for 0 <= x <= 1, by a polynomial alone; relative error 2e-7 at most.
SCANC_INLINE float log1p_unit(float x) {
    float p = 0.00523262937f;
    p = p * x - 0.0295049865f;
    p = p * x + 0.0782255605f;
    p = p * x - 0.136632144f;
    p = p * x + 0.19105992f;
    p = p * x - 0.24842979f;
    p = p * x + 0.333190978f;
    p = p * x - 0.499994934f;
    p = p * x + 0.99999994f;
    return p * x;
}
// 2^x without the special-function unit: 2^i 2^f with i the nearest integer, which 3 * 2^22 leaves in the low bits of a sum. Relative error
// 2e-7; below 2^-126 that, from 2^128 on infinity.
SCANC_INLINE float exp2_polynomial(float x) {
    const float held = minimum(maximum(x, -126.0f), 128.0f), shifted = held + 12582912.0f, f = held - (shifted - 12582912.0f);
    float p = 0.00132764715f;
    p = p * f + 0.00967554133f;
    p = p * f + 0.0555071327f;
    p = p * f + 0.240221197f;
    p = p * f + 0.693146967f;
    p = p * f + 1.00000007f;
    return p * __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
}
// Of EVERY steps j one takes that way.
template <int EVERY> SCANC_INLINE float exp2_either(int j, float x) { return j % EVERY == EVERY - 1 ? exp2_polynomial(x) : exp2_(x); }
SCANC_INLINE int maximum(int x, int y) { return y > x ? y : x; }
SCANC_INLINE int minimum(int x, int y) { return y < x ? y : x; }
SCANC_INLINE float absolute(float x) { return fabsf(x); }
SCANC_INLINE int absolute(int x) { return x < 0 ? -x : x; }
SCANC_INLINE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
SCANC_INLINE int sign(int x) { return (x > 0) - (x < 0); }

// -- storage ---------------------------------------------------------------------------------------------------------------------
// bfloat16 and float16 are bits in memory and float32 in registers.
struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

SCANC_INLINE float widen(float x) { return x; }
SCANC_INLINE float widen(bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
SCANC_INLINE float widen(float16 x) { return half_to_float(x.bits); }
SCANC_INLINE int widen(int x) { return x; }
SCANC_INLINE int widen(long long x) { return int(x); }
SCANC_INLINE bool widen(bool x) { return x; }
template <class T> struct Narrow { template <class V> static SCANC_INLINE T of(V x) { return T(x); } };
template <> struct Narrow<bfloat16> { static SCANC_INLINE bfloat16 of(float x) { return bfloat16{float_to_bfloat16(x)}; } };
template <> struct Narrow<float16> { static SCANC_INLINE float16 of(float x) { return float16{float_to_half(x)}; } };

// COUNT neighbours moved by one instruction: the integer type of their size.
template <int BYTES> struct Bits { typedef unsigned char type; static constexpr bool one = false; };
template <> struct Bits<2> { typedef unsigned short type; static constexpr bool one = true; };
template <> struct Bits<4> { typedef unsigned type; static constexpr bool one = true; };
template <> struct Bits<8> { typedef uint2 type; static constexpr bool one = true; };
template <> struct Bits<16> { typedef uint4 type; static constexpr bool one = true; };
template <class T, int COUNT> union Pack {
    typename Bits<sizeof(T) * COUNT>::type bits;
    T element[COUNT];
    unsigned word[(sizeof(T) * COUNT + 3) / 4];
    SCANC_INLINE Pack() {}
};
// The COUNT elements of a pack: of two bfloat16 in a word the upper is one where the lower is blanked.
template <int COUNT, class T, class V> SCANC_INLINE void widen_pack(V* to, const Pack<T, COUNT>& pack) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) to[j] = widen(pack.element[j]);
}
template <int COUNT> SCANC_INLINE void widen_pack(float* to, const Pack<bfloat16, COUNT>& pack) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) to[j] = __uint_as_float(j % 2 ? pack.word[j / 2] & 0xffff0000u : pack.word[j / 2] << 16);
}
template <class T, int COUNT> SCANC_INLINE bool together(const T* p, int stride) {
    return COUNT > 1 && Bits<sizeof(T) * COUNT>::one && stride == 1 && (index_t(p) & (sizeof(T) * COUNT - 1)) == 0;
}
// Where nothing in the kernel writes the tensor, loads go through the read-only path and may be moved before stores.
template <bool CONSTANT, class T> SCANC_INLINE T fetch(const T* p) {
    if constexpr (CONSTANT && Bits<sizeof(T)>::one) {
        Pack<T, 1> pack;
        pack.bits = read_only(reinterpret_cast<const typename Bits<sizeof(T)>::type*>(p));
        return pack.element[0];
    } else return *p;
}

// `count` of COUNT elements of memory, `stride` apart, 16 bytes at once where they lie so; the rest is zero.
template <bool CONSTANT, int COUNT, class T, class V> SCANC_INLINE void load_group(V (&to)[COUNT], const T* p, int stride, int count) {
    constexpr int WIDTH = COUNT * sizeof(T) > 16 && COUNT % 2 == 0 ? 16 / sizeof(T) : COUNT;
    if (count >= COUNT && together<T, WIDTH>(p, stride)) {
        typedef typename Bits<sizeof(T) * WIDTH>::type W;
#pragma unroll
        for (int c = 0; c < COUNT; c += WIDTH) {
            Pack<T, WIDTH> pack;
            if constexpr (CONSTANT) pack.bits = read_only(reinterpret_cast<const W*>(p + c));
            else pack.bits = *reinterpret_cast<const W*>(p + c);
            widen_pack(to + c, pack);
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < COUNT; ++j) to[j] = j < count ? V(widen(fetch<CONSTANT>(p + index_t(j) * stride))) : V(0);
}
// How many of COUNT neighbours one instruction moves.
template <class T, int COUNT> constexpr int at_a_time() { return COUNT * sizeof(T) > 16 && COUNT % 2 == 0 ? 16 / int(sizeof(T)) : COUNT; }
template <int COUNT, class T, class V> SCANC_INLINE void store_vectors(T* p, const V (&from)[COUNT]) {
    constexpr int WIDTH = at_a_time<T, COUNT>();
#pragma unroll
    for (int c = 0; c < COUNT; c += WIDTH) {
        Pack<T, WIDTH> pack;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) pack.element[j] = Narrow<T>::of(from[c + j]);
        if constexpr (sizeof(T) * WIDTH == 16) store_16(p + c, pack.bits);
        else *reinterpret_cast<typename Bits<sizeof(T) * WIDTH>::type*>(p + c) = pack.bits;
    }
}
// WHOLE says that all COUNT are there and lie together.
template <bool WHOLE = false, int COUNT, class T, class V> SCANC_INLINE void store_group(T* p, int stride, const V (&from)[COUNT], int count) {
    if constexpr (WHOLE && Bits<sizeof(T) * at_a_time<T, COUNT>()>::one) store_vectors(p, from);
    else if (count >= COUNT && together<T, at_a_time<T, COUNT>()>(p, stride)) store_vectors(p, from);
    else {
#pragma unroll
        for (int j = 0; j < COUNT; ++j)
            if (j < count) p[index_t(j) * stride] = Narrow<T>::of(from[j]);
    }
}

// A thread's states: its COUNT of a row of memory, in vectors of 16 bytes (or of four) where they lie so.
template <class T, int COUNT> constexpr int state_vector() {
    constexpr int MOST = 16 / int(sizeof(T));
    return COUNT % MOST == 0 ? MOST : COUNT % 4 == 0 ? 4 : 1;
}
template <int COUNT, class T> SCANC_INLINE bool states_together(const T* p, int stride, int count) {
    return count >= COUNT && (COUNT == 1 || stride == 1) && (index_t(p) & (sizeof(T) * state_vector<T, COUNT>() - 1)) == 0;
}
// WHOLE says that they lie so.
template <bool WHOLE = false, int COUNT, class T, class V> SCANC_INLINE void load_states(V (&to)[COUNT], const T* p, int stride, int count) {
    constexpr int WIDTH = state_vector<T, COUNT>();
    if constexpr (WHOLE && Bits<sizeof(T) * WIDTH>::one) {
        Pack<T, WIDTH> packs[COUNT / WIDTH];
#pragma unroll
        for (int k = 0; k < COUNT / WIDTH; ++k)
            packs[k].bits = *reinterpret_cast<const typename Bits<sizeof(T) * WIDTH>::type*>(p + k * WIDTH);
#pragma unroll
        for (int k = 0; k < COUNT / WIDTH; ++k) widen_pack(to + k * WIDTH, packs[k]);
    } else {
        V part[WIDTH];
#pragma unroll
        for (int k = 0; k < COUNT; k += WIDTH) {
            load_group<false>(part, p + index_t(k) * stride, stride, count - k);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) to[k + j] = part[j];
        }
    }
}
template <bool WHOLE = false, int COUNT, class T, class V> SCANC_INLINE void store_states(T* p, int stride, const V (&from)[COUNT], int count) {
    constexpr int WIDTH = state_vector<T, COUNT>();
    V part[WIDTH];
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) part[j] = from[k + j];
        store_group<WHOLE>(p + index_t(k) * stride, stride, part, count - k);
    }
}
// The same from shared memory, where a thread's part of a row is aligned to its size.
template <int COUNT> SCANC_INLINE void read_row(float (&to)[COUNT], const float* row) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (int k = 0; k < COUNT; k += 4) {
            const float4 v = *reinterpret_cast<const float4*>(row + k);
            to[k] = v.x; to[k + 1] = v.y; to[k + 2] = v.z; to[k + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) to[k] = row[k];
    }
}
template <int COUNT> SCANC_INLINE void write_row(float* row, const float (&from)[COUNT]) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (int k = 0; k < COUNT; k += 4) *reinterpret_cast<float4*>(row + k) = float4{from[k], from[k + 1], from[k + 2], from[k + 3]};
    } else if constexpr (COUNT == 2) {
        *reinterpret_cast<float2*>(row) = float2{from[0], from[1]};
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) row[k] = from[k];
    }
}
// COUNT neighbours, 4, 2 or 1, into places j … of an array.
template <int COUNT, int HELD> SCANC_INLINE void read_part(float (&to)[HELD], int j, const float* from) {
    if constexpr (COUNT == 4) {
        const float4 v = *reinterpret_cast<const float4*>(from);
        to[j] = v.x; to[j + 1] = v.y; to[j + 2] = v.z; to[j + 3] = v.w;
    } else if constexpr (COUNT == 2) {
        const float2 v = *reinterpret_cast<const float2*>(from);
        to[j] = v.x; to[j + 1] = v.y;
    } else to[j] = *from;
}
// Addresses that a block's loops start from, kept in shared memory.
SCANC_INLINE void set_base(float* bases, int which, const void* p) { reinterpret_cast<index_t*>(bases)[which] = index_t(p); }
template <class T> SCANC_INLINE T* base_of(const float* bases, int which) {
    return reinterpret_cast<T*>(reinterpret_cast<const index_t*>(bases)[which]);
}
#define LIKELY(x) __builtin_expect(!!(x), 1)
struct Yes { static constexpr bool value = true, sure = false; };
struct No { static constexpr bool value = false, sure = false; };
struct Sure { static constexpr bool value = true, sure = true; };  // what is asked for next is there as well
// How a block's groups of neighbours lie: whole tiles along one axis, 16 bytes aligned, which needs no questions; or anyhow.
struct AlongTime { static constexpr bool whole = true; static constexpr SCANC_INLINE bool along(bool) { return true; } };
struct AlongLanes { static constexpr bool whole = true; static constexpr SCANC_INLINE bool along(bool) { return false; } };
struct Anyhow { static constexpr bool whole = false; static constexpr SCANC_INLINE bool along(bool time) { return time; } };
template <class T> SCANC_INLINE bool lie_together(const T* p, int stride, int other) {
    return stride == 1 && ((index_t(p) | index_t(other) * int(sizeof(T))) & 15) == 0;
}
// From a tensor's lane 0 and time 0 to an element. Of WHOLE groups the stride they run along is known.
template <bool WHOLE> SCANC_INLINE index_t offset_of(bool along, index_t t, int t_stride, int lane, int lane_stride) {
    return t * (WHOLE && along ? 1 : t_stride) + index_t(lane) * (WHOLE && !along ? 1 : lane_stride);
}
// The element `step` steps behind ts and `lane` lanes behind the first: of WHOLE groups by one product, of 32 bits by 32, for each.
template <bool WHOLE, class T> SCANC_INLINE T* element_of(T* p, bool along, index_t ts, int step, int t_stride, int lane, int lane_stride) {
    if constexpr (!WHOLE) return p + offset_of<false>(along, ts + step, t_stride, lane, lane_stride);
    else {
        T* const first = made_once(p + (along ? ts + step : ts * t_stride + lane));
        return (T*)((char*)first + index_t(made_once((along ? lane : step) * int(sizeof(T)))) * (along ? lane_stride : t_stride));
    }
}
SCANC_INLINE float as_word(float x) { return x; }
SCANC_INLINE float as_word(int x) { return __int_as_float(x); }
SCANC_INLINE float as_word(bool x) { return __int_as_float(x); }

// wait_for_turns without a loop that the compiler sees: straight code around it stays one piece.
SCANC_INLINE void wait_in_line(const float* signal, int turns) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra AGAIN; }"
                 ::"r"(signal_at(signal)), "r"((turns - 1) & 1) : "memory");
#else
    wait_for_turns(signal, turns);
#endif
}
// Of tiles in turns: the signals of those of even and of odd number. A warp that is done with a tile says so, and who needs all of them waits.
SCANC_INLINE void set_signals(float* signals, int warps) {
    set_signal(signals, warps);
    set_signal(signals + 2, warps);
}
SCANC_INLINE void say(float* signals, int tile) {
    __syncwarp(0xffffffffu);
    if (thread_here() % 32 == 0) report(signals + (tile & 1) * 2);
}
SCANC_INLINE void wait_for(const float* signals, int tile) { wait_for_turns(signals + (tile & 1) * 2, tile / 2 + 1); }

// -- sums over threads -----------------------------------------------------------------------------------------------------------
// Always in the same order, so that results are the same from run to run.
template <int THREADS> struct Warp {
    static constexpr int WIDTH = THREADS < 32 ? THREADS : 32;
    static constexpr unsigned ALL = WIDTH == 32 ? 0xffffffffu : (1u << WIDTH) - 1;
};
// Which thread has which lane, and which of its SPLIT shares: two lanes' threads alternate. Of 16 bytes a thread a warp reads a half at once,
// not a quarter, if each thread reads what its neighbour does, or what the next but one does: rows of states are then read so by the
// threads of two lanes, and tiles by a lane's own.
template <int SPLIT, int THREADS> struct Share {
    static constexpr int PAIR = SPLIT > 1 && Warp<THREADS>::WIDTH > SPLIT ? 2 : 1;
    static SCANC_INLINE int lane(int thread) { return PAIR == 1 ? thread / SPLIT : thread / (2 * SPLIT) * 2 + thread % 2; }
    static SCANC_INLINE int own(int thread) { return thread / PAIR % SPLIT; }
    // The bit of a thread's number that is bit d of lane * SPLIT + own.
    static constexpr int bit(int d) { return PAIR == 1 || d > SPLIT ? d : d == SPLIT ? 1 : 2 * d; }
};
template <int SPLIT, int THREADS> SCANC_INLINE float from_other(float x, int d) {
    return __shfl_xor_sync(Warp<THREADS>::ALL, x, Share<SPLIT, THREADS>::bit(d));
}
// Over the SPLIT threads of a lane; all of them get the sum.
template <int SPLIT, int THREADS> SCANC_INLINE float split_sum(float x) {
#pragma unroll
    for (int d = SPLIT / 2; d > 0; d /= 2) x += from_other<SPLIT, THREADS>(x, d);
    return x;
}
template <int THREADS> SCANC_INLINE float warp_sum(float x) {
#pragma unroll
    for (int d = Warp<THREADS>::WIDTH / 2; d > 0; d /= 2) x += __shfl_xor_sync(Warp<THREADS>::ALL, x, d);
    return x;
}

// Of the values a thread holds it sends half to the thread that differs in bit D and adds what it gets to the other half, until its
// threads have one value each; down to bit LOW.
template <int HELD, int D, int LOW, int SPLIT, int THREADS, int COUNT> SCANC_INLINE void fold(float (&v)[COUNT], int& first) {
    if constexpr (D >= LOW) {
        if constexpr (HELD > 1) {
            constexpr int HALF = HELD / 2;
            const bool upper = threadIdx.x & Share<SPLIT, THREADS>::bit(D);
#pragma unroll
            for (int k = 0; k < HALF; ++k) {
                const float sent = upper ? v[k] : v[k + HALF], kept = upper ? v[k + HALF] : v[k];
                v[k] = kept + from_other<SPLIT, THREADS>(sent, D);
            }
            first += upper ? HALF : 0;
            fold<HALF, D / 2, LOW, SPLIT, THREADS>(v, first);
        } else {
            v[0] += from_other<SPLIT, THREADS>(v[0], D);
            fold<1, D / 2, LOW, SPLIT, THREADS>(v, first);
        }
    }
}
// Of COUNT sums over a lane's threads each thread gets its share, from the one numbered by what is returned on.
template <int SPLIT, int THREADS, int COUNT> SCANC_INLINE int fold_split(float (&v)[COUNT]) {
    int first = 0;
    fold<COUNT, SPLIT / 2, 1, SPLIT, THREADS>(v, first);
    return first;
}
// The same through shared memory, which takes no selections: a thread leaves its COUNT sums in fours, each beside those of its warp's other
// threads, and takes its share of what all of its lane's threads have left. In which order it reads them differs from thread to thread, so
// that no bank is read twice at a time; sums are added in pairs that are the same in any such order.
template <int SPLIT, int THREADS, int COUNT> struct Exchange {
    static constexpr int WIDTH = Warp<THREADS>::WIDTH, PAIR = Share<SPLIT, THREADS>::PAIR, SHARE = COUNT / SPLIT, WIDE = SHARE < 4 ? SHARE : 4;
    static constexpr int FLOATS = THREADS * COUNT;  // of one exchange
    Place mine, others[SPLIT];
    SCANC_INLINE Exchange(float* parts, int thread) {
        constexpr int BITS = SPLIT < 4 ? 1 : SPLIT < 8 ? 2 : SPLIT < 16 ? 3 : 4, WITHIN = SHARE > 2 ? 0 : SHARE == 2 ? 1 : 2;
        const int within = thread % WIDTH, own = Share<SPLIT, THREADS>::own(thread), pair = PAIR == 1 ? 0 : within / (2 * SPLIT);
        const int first = ((own >> WITHIN | own << (BITS - WITHIN)) ^ (BITS == 1 ? pair >> 1 & WITHIN : pair << (BITS - WITHIN) & 3)) & (SPLIT - 1);
        float* const warp = parts + thread / WIDTH * WIDTH * COUNT;
        mine = place_of(warp + within * 4);
        const int lane = PAIR == 1 ? 0 : pair * 2 * SPLIT + within % 2, four = own * SHARE / 4 * WIDTH * 4 + own * SHARE % 4;
#pragma unroll
        for (int i = 0; i < SPLIT; ++i) others[i] = place_of(warp + four + (lane + (first ^ i) * PAIR) * 4);
    }
    // In one of two places, `turn`; of the block's sums these are the ones WHICH.
    template <int WHICH> SCANC_INLINE void leave(const float (&v)[COUNT], int turn) const {
#pragma unroll
        for (int c = 0; c < COUNT; c += 4) {
            const float part[4] = {v[c], v[c + 1], v[c + 2], v[c + 3]};
            write_row(at_place(mine) + (2 * WHICH + turn) * FLOATS + c * WIDTH, part);
        }
    }
    // This thread's share: the sums from own * SHARE on.
    template <int WHICH> SCANC_INLINE void take(float (&v)[SHARE], int turn) const {
        float found[SPLIT][SHARE];
#pragma unroll
        for (int i = 0; i < SPLIT; ++i) {
#pragma unroll
            for (int j = 0; j < SHARE; j += WIDE) read_part<WIDE>(found[i], j, at_place(others[i]) + (2 * WHICH + turn) * FLOATS + j * WIDTH);
        }
#pragma unroll
        for (int d = 1; d < SPLIT; d *= 2) {
#pragma unroll
            for (int i = 0; i < SPLIT; i += 2 * d) {
#pragma unroll
                for (int j = 0; j < SHARE; ++j) found[i][j] += found[i + d][j];
            }
        }
#pragma unroll
        for (int j = 0; j < SHARE; ++j) v[j] = found[0][j];
    }
};
// Sums over the lanes of a warp of COUNT values of each state. A warp's lanes lie in FLIPS parts, and register k of part `flip` has
// state k ^ flip: two parts that differ in one bit have the same two states in each other's register, so that each keeps one and sends
// one without asking which. Called as register k of FLIPS has come, this adds up whatever pairs it completes; in the end register 0
// of each part has its state's sums over the threads that stand at the same place of every part.
template <int SPLIT, int THREADS, int FLIPS, int COUNT> SCANC_INLINE void fold_states(float (&v)[FLIPS][COUNT], int k) {
#pragma unroll
    for (int d = 1; d < FLIPS; d *= 2) {
        if ((k & (2 * d - 1)) != 2 * d - 1) continue;
#pragma unroll
        for (int j = 0; j < COUNT; ++j)
            v[k + 1 - 2 * d][j] += from_other<SPLIT, THREADS>(v[k + 1 - d][j], d * (Warp<THREADS>::WIDTH / FLIPS));
    }
}
// The rest of it: row[j] = sum over the lanes of this thread's part of v[j].
template <int SPLIT, int THREADS, int FLIPS, int COUNT> SCANC_INLINE void leave_sums(const float (&v)[COUNT], float* row) {
    constexpr int HELD = ceil_power(COUNT), LANES = Warp<THREADS>::WIDTH / FLIPS / SPLIT;
    constexpr int LEFT = HELD > LANES ? HELD / LANES : 1;
    constexpr int SAME = LANES > HELD ? LANES / HELD : 1;  // so many neighbouring lanes hold the same sum; one of them writes it
    float w[HELD];
#pragma unroll
    for (int j = 0; j < HELD; ++j) w[j] = j < COUNT ? v[j < COUNT ? j : 0] : 0.0f;
    int first = 0;
    fold<HELD, Warp<THREADS>::WIDTH / FLIPS / 2, SPLIT, SPLIT, THREADS>(w, first);
    __syncwarp(Warp<THREADS>::ALL);  // what stood here has been read
    if (Share<SPLIT, THREADS>::lane(threadIdx.x) % SAME == 0) {
        if constexpr (HELD == COUNT && LEFT % 4 == 0) {
#pragma unroll
            for (int j = 0; j < LEFT; j += 4) *reinterpret_cast<float4*>(row + first + j) = float4{w[j], w[j + 1], w[j + 2], w[j + 3]};
        } else {
#pragma unroll
            for (int j = 0; j < LEFT; ++j)
                if (HELD == COUNT || first + j < COUNT) row[first + j] = w[j];
        }
    }
}
// Registers of states k ^ flip in the order of the states.
template <int FLIPS, int COUNT> SCANC_INLINE void put_in_order(float (&to)[COUNT], const float (&from)[COUNT], int flip) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) to[k] = from[k];
#pragma unroll
    for (int d = 1; d < FLIPS; d *= 2) {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            if (k & d) continue;
            const float x = to[k], y = to[k + d];
            to[k] = flip & d ? y : x;
            to[k + d] = flip & d ? x : y;
        }
    }
}

// -- staging ---------------------------------------------------------------------------------------------------------------------
// `count` neighbours of a value looked up at another time t: `fill` where that is outside 0 … size - 1.
template <int COUNT, class T, class V> SCANC_INLINE void load_shifted(V (&to)[COUNT], const T* p, int stride, int count, index_t t, int t_step,
                                                                               index_t size, V fill) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        const index_t at = t + j * t_step;
        to[j] = j < count && at >= 0 && at < size ? V(widen(fetch<true>(p + index_t(j) * stride))) : fill;
    }
}
// A tile holds a value of LANES lanes and TILE steps, a lane's steps after one another in fours; which four stands where differs from
// lane to lane, so that neither neighbouring lanes nor lanes a group apart meet in a bank.
template <int TILE> SCANC_INLINE int turned(int lane) {
    constexpr int FOURS = TILE % 4 == 0 ? TILE / 4 : 1, ROW = FOURS >= 8 ? 1 : 8 / FOURS, MASK = (FOURS < 8 ? FOURS : 8) - 1;
    return (((lane / ROW) ^ (lane / 8)) & MASK) * 4;
}
template <int TILE> SCANC_INLINE int tile_at(int lane, int i) { return lane * TILE + (i ^ turned<TILE>(lane)); }
// COUNT neighbours along time, from step i on, which is a multiple of COUNT; in fours where COUNT and TILE allow. Of where four c stands, only
// one part depends on i, and the other stays the same for a thread.
template <int TILE, int COUNT> SCANC_INLINE void read_tile(float (&to)[COUNT], const float* tile, int lane, int i) {
    if constexpr (COUNT % 4 == 0 && TILE % 4 == 0) {
        const int turn = turned<TILE>(lane);
        const float* const first = tile + lane * TILE + (i ^ (turn & ~(COUNT - 1)));
#pragma unroll
        for (int c = 0; c < COUNT; c += 4) {
            float part[4];
            read_row(part, first + (c ^ (turn & (COUNT - 1))));
#pragma unroll
            for (int j = 0; j < 4; ++j) to[c + j] = part[j];
        }
    } else {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) to[c] = tile[tile_at<TILE>(lane, i + c)];
    }
}
// A group of neighbours into a tile and out of it: ALONG time, or along lanes.
template <int TILE, int COUNT> SCANC_INLINE void put_group(bool along, float* tile, int lane, int i, const float (&from)[COUNT]) {
    if (along && COUNT % 4 == 0 && TILE % 4 == 0) {
#pragma unroll
        for (int c = 0; c + 3 < COUNT; c += 4) {
            const float part[4] = {from[c], from[c + 1], from[c + 2], from[c + 3]};
            write_row(tile + tile_at<TILE>(lane, i + c), part);
        }
    } else {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) tile[along ? tile_at<TILE>(lane, i + j) : tile_at<TILE>(lane + j, i)] = from[j];
    }
}
// COUNT neighbours along time of more that a thread holds, which do not cross a four if they are fewer.
template <int TILE, int COUNT, int HELD> SCANC_INLINE void write_tile(float* tile, int lane, int i, const float (&from)[HELD]) {
    constexpr int WIDTH = TILE % 4 != 0 ? 1 : COUNT % 4 == 0 ? 4 : COUNT;
#pragma unroll
    for (int c = 0; c < COUNT; c += WIDTH) {
        float part[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) part[j] = from[c + j];
        write_row(tile + tile_at<TILE>(lane, i + c), part);
    }
}
// Where the steps of a lane stand in the block's first tile, for a thread that walks it: of the fours of COUNT steps, from one that is a
// multiple of COUNT on, the first, and how far the others are from it. Other tiles are so many words behind the first.
template <int TILE, int COUNT> struct LaneSteps {
    Place tile;
    int row, far[COUNT / 4];
    SCANC_INLINE LaneSteps(const float* first, int lane) {
        const int turn = turned<TILE>(lane);
        tile = place_of(first);
        row = made_once(4 * (lane * TILE + turn));
#pragma unroll
        for (int c = 1; c < COUNT / 4; ++c) far[c] = made_once(4 * ((turn ^ 4 * c) - turn));
    }
    SCANC_INLINE void read(float (&to)[COUNT], index_t behind, int i) const {
        const Place four = tile + (row ^ 4 * i);
#pragma unroll
        for (int c = 0; c < COUNT / 4; ++c) read_part<4>(to, 4 * c, at_place(c > 0 ? four + far[c] : four) + behind);
    }
    // Steps that do not cross a four, from `by` behind i on.
    template <int WROTE> SCANC_INLINE void write(const float (&from)[WROTE], index_t behind, int i, int by) const {
        write_row(at_place(tile + (row ^ 4 * by ^ 4 * i)) + behind, from);
    }
};
template <int TILE, int COUNT> SCANC_INLINE void take_group(bool along, float (&to)[COUNT], const float* tile, int lane, int i) {
    if (along) read_tile<TILE>(to, tile, lane, i);
    else {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) to[j] = tile[tile_at<TILE>(lane + j, i)];
    }
}
// A thread's share of a lane's sum over a tile's steps, back from the last one or onwards. Fours of steps go to the SPLIT threads of a lane
// in turns, counted from the first tile on: sums do not depend on where tiles begin.
template <int TILE, int SPLIT, bool BACK> SCANC_INLINE void add_steps(float& total, const float* values, int lane, int own, int tile, int steps) {
    constexpr int WIDE = TILE < 4 ? TILE : 4, FOURS = TILE / WIDE, TURNS = FOURS > SPLIT ? FOURS / SPLIT : 1;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int r = BACK ? TURNS - 1 - turn : turn;
        const int four = FOURS >= SPLIT ? r * SPLIT + own : (own - tile * TILE / 4) & (SPLIT - 1);
        if (FOURS < SPLIT && four >= FOURS) continue;
        float part[WIDE];
        read_tile<TILE>(part, values, lane, four * WIDE);
#pragma unroll
        for (int k = 0; k < WIDE; ++k) {
            const int j = BACK ? WIDE - 1 - k : k;
            if (four * WIDE + j < steps) total += part[j];
        }
    }
}
// A thread's COUNT words at a block's start, WIDE at an instruction, groups of so many WIDE * APART from each other.
template <int WIDE, int APART, int COUNT> SCANC_INLINE void keep_words(float* to, const float (&from)[COUNT]) {
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDE) {
        float part[WIDE];
#pragma unroll
        for (int j = 0; j < WIDE; ++j) part[j] = from[k + j];
        write_row(to + k * APART, part);
    }
}
// Back from there as word k has its turn: the group that it is the first of.
template <int WIDE, int APART, int COUNT> SCANC_INLINE void take_words(float (&to)[COUNT], const float* from, int k) {
    if (k % WIDE != 0) return;
    float part[WIDE];
    read_row(part, from + k * APART);
#pragma unroll
    for (int j = 0; j < WIDE; ++j) to[k + j] = part[j];
}
// A group of neighbours of memory into its own place of shared memory, asynchronously where they lie together; zero past `count`.
// The thread that asked for them reads them after copies_done.
template <int BYTES> SCANC_INLINE void copy_pieces(void* place, const void* p) {
#pragma unroll
    for (int at = 0; at < BYTES; at += BYTES < 16 ? BYTES : 16)
        copy_async<(BYTES < 16 ? BYTES : 16)>(static_cast<char*>(place) + at, static_cast<const char*>(p) + at);
}
template <bool WHOLE, int COUNT, class T> SCANC_INLINE void stage_group(T* place, const T* p, int stride, int count) {
    constexpr int BYTES = COUNT * int(sizeof(T)), PIECE = BYTES < 16 ? BYTES : 16;
    constexpr bool PIECES = BYTES >= 4 && BYTES % PIECE == 0;
    if constexpr (WHOLE && PIECES) copy_pieces<BYTES>(place, p);
    else {
        if constexpr (PIECES) {
            if (count >= COUNT && stride == 1 && (index_t(p) & (PIECE - 1)) == 0) {
                copy_pieces<BYTES>(place, p);
                return;
            }
        }
#pragma unroll
        for (int j = 0; j < COUNT; ++j) place[j] = j < count ? fetch<true>(p + index_t(j) * stride) : T();
    }
}
template <int COUNT, class T, class V> SCANC_INLINE void read_staged(V (&to)[COUNT], const T* place) {
    constexpr int BYTES = COUNT * int(sizeof(T)), WIDTH = BYTES > 16 && BYTES % 16 == 0 ? 16 / int(sizeof(T)) : COUNT;
    if constexpr (Bits<WIDTH * sizeof(T)>::one) {
#pragma unroll
        for (int c = 0; c < COUNT; c += WIDTH) {
            Pack<T, WIDTH> pack;
            pack.bits = *reinterpret_cast<const typename Bits<sizeof(T) * WIDTH>::type*>(place + c);
            widen_pack(to + c, pack);
        }
    } else {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) to[j] = widen(place[j]);
    }
}
// Rows: rows[n * PITCH + i] for the steps i of a tile and the states n, the same for all lanes. A thread stages and spreads chunks of
// COUNT neighbours along time, or along states where those lie together in memory. `fill` stands outside steps lo … hi - 1 (a shift's), zero past the last state.
template <int TILE, int COUNT, int PADDED, int THREADS, int TURNS, class F> SCANC_INLINE void each_chunk(bool along, F&& chunk) {
    constexpr int CHUNKS = PADDED * TILE / COUNT;
    const int thread = thread_here();
#pragma unroll (TURNS)
    for (int turn = 0; turn < (CHUNKS + THREADS - 1) / THREADS; ++turn) {
        const int e = (TURNS > 1 ? thread : thread_here()) + turn * THREADS;
        if (CHUNKS % THREADS != 0 && e >= CHUNKS) break;
        const int n = along ? e / (TILE / COUNT) : e % (PADDED / COUNT) * COUNT, i = along ? e % (TILE / COUNT) * COUNT : e / (PADDED / COUNT);
        chunk(e, n, i);
    }
}
template <int TILE, int COUNT, int PADDED, int THREADS, int TURNS = 1, class T>
SCANC_INLINE void stage_rows(bool whole, T* places, const T* p, int n_stride, int t_stride, int states, int steps) {
    if (whole && steps == TILE) {
        each_chunk<TILE, COUNT, PADDED, THREADS, TURNS>(true, [&](int e, int n, int i) {
            stage_group<true, COUNT>(places + e * COUNT, p + index_t(n) * n_stride + i, 1, COUNT);
        });
        return;
    }
    const bool along = COUNT == 1 || n_stride != 1;
    each_chunk<TILE, COUNT, PADDED, THREADS, 1>(along, [&](int e, int n, int i) {
        const int count = along ? (n < states ? steps - i : 0) : (i < steps ? states - n : 0);
        if (i < steps) stage_group<false, COUNT>(places + e * COUNT, p + index_t(n) * n_stride + index_t(i) * t_stride, along ? t_stride : n_stride, count);
    });
}
// Step i of a row, where SPAN of them stand together, four words from the next ones; 0 for none between.
template <int SPAN> SCANC_INLINE int row_at(int i) { return SPAN > 0 ? i / (SPAN > 0 ? SPAN : 1) * (SPAN + 4) + i % (SPAN > 0 ? SPAN : 1) : i; }
template <int TILE, int COUNT, int PADDED, int PITCH, int THREADS, int TURNS = 1, int SPAN = 0, class T>
SCANC_INLINE void spread_rows(float* rows, const T* places, int n_stride, int steps) {
    const auto spread = [&](bool along, int e, int n, int i) {
        decltype(widen(T())) part[COUNT];
        read_staged(part, places + e * COUNT);
        float words[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; ++j) words[j] = as_word(part[j]);
        if (along) write_row(rows + n * PITCH + row_at<SPAN>(i), words);
        else {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) rows[(n + j) * PITCH + row_at<SPAN>(i)] = words[j];
        }
    };
    const bool along = COUNT == 1 || n_stride != 1;
    if (TURNS > 1 && along && steps == TILE) {
        each_chunk<TILE, COUNT, PADDED, THREADS, TURNS>(true, [&](int e, int n, int i) { spread(true, e, n, i); });
        return;
    }
    each_chunk<TILE, COUNT, PADDED, THREADS, 1>(along, [&](int e, int n, int i) {
        if (i < steps) spread(along, e, n, i);
    });
}
template <int TILE, int PADDED, int PITCH, int THREADS, class T, class V>
SCANC_INLINE void load_rows(float* rows, const T* p, int n_stride, int t_stride, int states, int steps, index_t lo, index_t hi, V fill) {
    for (int e = thread_here(); e < PADDED * TILE; e += THREADS) {
        const int n = e / TILE, i = e % TILE;
        if (i >= steps) continue;
        const bool inside = n < states && i >= lo && i < hi;
        rows[n * PITCH + i] = as_word(inside ? V(widen(fetch<true>(p + index_t(n) * n_stride + index_t(i) * t_stride))) : n < states ? fill : V(0));
    }
}
// The sum over the lanes of a block, left by the threads of the first lane in their x; every thread of the block must come here.
template <int SPLIT, int THREADS> SCANC_INLINE float block_lane_sum(float x, float* words, int lanes) {
    const int lane = Share<SPLIT, THREADS>::lane(threadIdx.x), own = Share<SPLIT, THREADS>::own(threadIdx.x);
    __syncthreads();
    words[lane * SPLIT + own] = x;
    __syncthreads();
    float total = 0.0f;
    if (lane == 0)
        for (int l = 0; l < lanes; ++l) total += words[l * SPLIT + own];
    return total;
}

// -- spans -----------------------------------------------------------------------------------------------------------------------
// SPANS neighbouring threads share a lane's time, each a span of steps; two lanes' threads alternate (see Share).
template <int SPANS> struct Spans {
    static constexpr int PAIR = SPANS < 32 ? 2 : 1, WIDTH = SPANS * PAIR;
    template <class I> static SCANC_INLINE int lane(I thread) { return PAIR == 1 ? thread / SPANS : thread / WIDTH * 2 + thread % 2; }
    template <class I> static SCANC_INLINE int own(I thread) { return thread / PAIR % SPANS; }
};
template <int COUNT> SCANC_INLINE void copy_values(float (&to)[COUNT], const float (&from)[COUNT]) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) to[j] = from[j];
}
// What steps a_j h + b_j end in from zero, and the product of their transitions.
template <int COUNT> SCANC_INLINE float end_of(const float (&a)[COUNT], const float (&b)[COUNT]) {
    float end = b[0];
#pragma unroll
    for (int j = 1; j < COUNT; ++j) end = a[j] * end + b[j];
    return end;
}
template <int COUNT> SCANC_INLINE float product_of(const float (&a)[COUNT]) {
    float product = a[0];
#pragma unroll
    for (int j = 1; j < COUNT; ++j) product *= a[j];
    return product;
}
// Elements from a tensor's first step to `steps` later ones. Of WHOLE groups the stride is known to be one.
template <bool WHOLE> SCANC_INLINE index_t after(int steps, int stride) {
    if constexpr (WHOLE) return steps;
    else return index_t(steps) * stride;
}
// Rows that lie together, of whole tiles: a thread's chunks stand DOWN rows below each other, so that it has one address for all of them.
template <int TILE, int COUNT, int STATES, int THREADS> struct Chunks {
    static constexpr int PER_ROW = TILE / COUNT, ALL = STATES * PER_ROW, DOWN = THREADS / PER_ROW, TURNS = (ALL + THREADS - 1) / THREADS;
    static constexpr bool plain = COUNT > 1 && THREADS % PER_ROW == 0;
    static SCANC_INLINE int state(int thread) { return smaller(thread / PER_ROW, STATES - 1); }
    static SCANC_INLINE int step(int thread) { return thread % PER_ROW * COUNT; }
    static SCANC_INLINE bool has(int thread, int turn) { return (turn + 1) * THREADS <= ALL || thread < ALL - turn * THREADS; }
};
template <int COUNT, class T> SCANC_INLINE void read_chunk(float (&words)[COUNT], const T* place) {
    decltype(widen(T())) part[COUNT];
    read_staged(part, place);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) words[j] = as_word(part[j]);
}
template <int COUNT> SCANC_INLINE void write_row_if(bool is, float* row, const float (&from)[COUNT]) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (int k = 0; k < COUNT; k += 4) write_four_if(is, row + k, from[k], from[k + 1], from[k + 2], from[k + 3]);
    } else if (is) write_row(row, from);
}
// Chunk e of rows: COUNT neighbours along time, or along states where those lie together in memory; into a place of its own, and from there.
template <int TILE, int COUNT, int STATES, class F> SCANC_INLINE void with_chunk(bool along, int e, F&& chunk) {
    if (along) chunk(e / (TILE / COUNT), e % (TILE / COUNT) * COUNT);
    else chunk(e % (STATES / COUNT) * COUNT, e / (STATES / COUNT));
}
template <int TILE, int COUNT, int STATES, class T>
SCANC_INLINE void stage_chunk(T* place, int e, const T* p, int n_stride, int t_stride, int steps) {
    const bool along = COUNT == 1 || n_stride != 1;
    with_chunk<TILE, COUNT, STATES>(along, e, [&](int n, int i) {
        const T* const from = p + index_t(n) * n_stride + index_t(i) * t_stride;
        if (i < steps) stage_group<false, COUNT>(place, from, along ? t_stride : n_stride, along ? steps - i : STATES - n);
    });
}
template <int TILE, int COUNT, int STATES, int ROW, int SPAN, class T>
SCANC_INLINE void spread_chunk(float* rows, int e, const T* place, int n_stride, int steps) {
    const bool along = COUNT == 1 || n_stride != 1;
    with_chunk<TILE, COUNT, STATES>(along, e, [&](int n, int i) {
        if (i >= steps) return;
        float words[COUNT];
        read_chunk(words, place);
        if (along) write_row(rows + n * ROW + row_at<SPAN>(i), words);
        else {
#pragma unroll
            for (int j = 0; j < COUNT; ++j) rows[(n + j) * ROW + row_at<SPAN>(i)] = words[j];
        }
    });
}
// Of several states at once, so that one's shuffles go while another's do.
template <int SPANS, int D, int STATES> SCANC_INLINE void compose_from(float (&product)[STATES], float (&end)[STATES]) {
#pragma unroll
    for (int s = 0; s < STATES; ++s) compose<D * Spans<SPANS>::PAIR, Spans<SPANS>::WIDTH, (2 * D >= SPANS)>(product[s], end[s]);
    if constexpr (2 * D < SPANS) compose_from<SPANS, 2 * D>(product, end);
}
// The carries that each of a lane's threads starts its steps from, which take any to product h + end. A lane's own, from which the first
// of them starts, stand at `carry`, where the others find zeros; the last leaves new ones at `left`.
template <int SPANS, int STATES>
SCANC_INLINE void span_starts(float (&from)[STATES], float (&product)[STATES], float (&end)[STATES], const float* carry, float* left, int own) {
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
        from[s] = carry[s];
        end[s] = product[s] * from[s] + end[s];
    }
    compose_from<SPANS, 1>(product, end);
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
        if (own == SPANS - 1) left[s] = end[s];
        take_before<Spans<SPANS>::PAIR, Spans<SPANS>::WIDTH>(from[s], end[s]);
    }
}
// PARTS threads of the same span, at the same place of as many warps, make SPAN / PARTS of its values each: one's go to all of them.
// OVER threads have spans of their own.
template <int SPAN, int PARTS, int OVER> SCANC_INLINE void pass_part(float* place, const float (&mine)[SPAN / PARTS], int within, int part) {
#pragma unroll
    for (int j = 0; j < SPAN / PARTS; j += 4) {
        const float four[4] = {mine[j], mine[j + 1], mine[j + 2], mine[j + 3]};
        write_row(place + ((part * (SPAN / PARTS) + j) / 4 * OVER + within) * 4, four);
    }
}
template <int SPAN, int OVER> SCANC_INLINE void take_parts(float (&all)[SPAN], const float* place, int within) {
#pragma unroll
    for (int j = 0; j < SPAN; j += 4) {
        float four[4];
        read_row(four, place + (j / 4 * OVER + within) * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) all[j + i] = four[i];
    }
}
// And back: sums that each has a part of go to who makes something of them. Of two threads each leaves what the other wants; of more all
// leave everything, and add the parts up in their order.
template <int SPAN, int PARTS, int OVER> SCANC_INLINE void gather_parts(float (&mine)[SPAN / PARTS], const float (&all)[SPAN], float* place,
                                                                       int within, int part) {
    constexpr int OWN = SPAN / PARTS;
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
        if (PARTS == 2 && p == part) continue;
#pragma unroll
        for (int j = 0; j < OWN; j += 4) {
            const float four[4] = {all[p * OWN + j], all[p * OWN + j + 1], all[p * OWN + j + 2], all[p * OWN + j + 3]};
            write_row(place + ((((PARTS == 2 ? 0 : part) * PARTS + p) * OWN + j) / 4 * OVER + within) * 4, four);
        }
    }
    meet_some<32 * PARTS, OVER / 32>(within / 32);
#pragma unroll
    for (int j = 0; j < OWN; j += 4) {
        float four[4];
        if constexpr (PARTS == 2) {
            read_row(four, place + ((part * OWN + j) / 4 * OVER + within) * 4);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float own = part == 0 ? all[j + i] : all[OWN + j + i], other = four[i];
                mine[j + i] = part == 0 ? own + other : other + own;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) mine[j + i] = 0.0f;
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                read_row(four, place + (((p * PARTS + part) * OWN + j) / 4 * OVER + within) * 4);
#pragma unroll
                for (int i = 0; i < 4; ++i) mine[j + i] += four[i];
            }
        }
    }
}
