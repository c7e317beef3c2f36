// What generated CPU kernels call: lane vectors, their elementary functions, staging of strided tensors.
// A lane vector holds SCANC_LANES neighbouring lanes (channels) at one time step; GCC and Clang split or widen it to
// the machine's registers. Elementary functions are good to a few units in the last place and pass NaN through.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace scanc {

constexpr int LANES = SCANC_LANES;
typedef float vf __attribute__((vector_size(4 * SCANC_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * SCANC_LANES)));
typedef int64_t index_t;

#define SCANC_INLINE static inline __attribute__((always_inline))
// Called once a tile or once a step: inlining them would buy nothing and triple the time a kernel takes to compile.
#define SCANC_CALL static __attribute__((noinline))

SCANC_INLINE vf splat(float x) { return vf{} + x; }
SCANC_INLINE vi splat(int32_t x) { return vi{} + x; }
SCANC_INLINE vf up(vf x) { return x; }
SCANC_INLINE vf up(float x) { return splat(x); }
SCANC_INLINE vi up(vi x) { return x; }
SCANC_INLINE vi up(int32_t x) { return splat(x); }

// Conditions are integers, all bits set for true, so that & | ~ serve lanes and scalars alike.
template <class T> constexpr bool is_lanes = std::is_same<T, vf>::value || std::is_same<T, vi>::value;
SCANC_INLINE int32_t condition(bool x) { return -int32_t(x); }
SCANC_INLINE vi condition(vi x) { return x; }

template <class M, class A, class B> SCANC_INLINE auto select(M m, A a, B b) {
    if constexpr (is_lanes<M>) return m ? up(a) : up(b);
    else if constexpr (is_lanes<A> || is_lanes<B>) return m ? up(a) : up(b);
    else return m ? a : b;
}
// NaN in either argument gives NaN: the comparison that keeps x is false for a NaN x, so it is asked the other way round.
template <class A, class B> SCANC_INLINE auto maximum(A a, B b) {
    if constexpr (is_lanes<A> || is_lanes<B>) { auto x = up(a); auto y = up(b); return (y > x) | (y != y) ? y : x; }
    else return (b > a || b != b) ? b : a;
}
template <class A, class B> SCANC_INLINE auto minimum(A a, B b) {
    if constexpr (is_lanes<A> || is_lanes<B>) { auto x = up(a); auto y = up(b); return (y < x) | (y != y) ? y : x; }
    else return (b < a || b != b) ? b : a;
}

// Every function is written once for any vector type V with integer twin I, and used for lanes and (four wide) scalars.
typedef float v1 __attribute__((vector_size(4)));
typedef int32_t i1 __attribute__((vector_size(4)));

template <class V, class I> struct Math {
    static constexpr float BIG = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits

    // 2^f for |f| <= 1/2, relative error 5e-9 before rounding
    SCANC_INLINE V power(V f) {
        V p = 0.000154614475f + V{};
        p = p * f + 0.00133908674f;
        p = p * f + 0.00961805667f;
        p = p * f + 0.055503571f;
        p = p * f + 0.240226509f;
        p = p * f + 0.693147188f;
        return p * f + 1.0f;
    }
    SCANC_INLINE V exp2(V x) {
#if defined(__AVX512F__)
        // One register of 16 lanes: AVX-512 rounds and scales in single instructions. min and max return their second argument for NaN.
        if constexpr (sizeof(V) == 64) {
            __m512 y = _mm512_min_ps(_mm512_set1_ps(129.0f), _mm512_max_ps(_mm512_set1_ps(-151.0f), (__m512)x));
            __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            V f = (V)_mm512_sub_ps(y, n);
            return (V)_mm512_scalef_ps((__m512)power(f), n);
        }
#endif
        x = x < -127.0f ? V{} - 127.0f : x;
        x = x > 128.0f ? V{} + 128.0f : x;
        V shifted = x + BIG;
        return (V)((I)power(x - (shifted - BIG)) + ((I)shifted << 23));
    }
    // (exponent, log of the mantissa in [sqrt 1/2, sqrt 2)); x > 0 and finite
    SCANC_INLINE V log_parts(V x, V& exponent) {
        I bits = (I)x;
        I e = (bits - 0x3f3504f3) >> 23;
        exponent = __builtin_convertvector(e, V);
        V f = (V)(bits - (e << 23)) - 1.0f;
        V p = 0.0714975345f + V{};
        p = p * f - 0.115712011f;
        p = p * f + 0.116615114f;
        p = p * f - 0.124110506f;
        p = p * f + 0.142499365f;
        p = p * f - 0.166684802f;
        p = p * f + 0.200007075f;
        p = p * f - 0.24999989f;
        p = p * f + 0.333333312f;
        return f - f * f * (0.5f - f * p);
    }
    SCANC_INLINE V edges(V x, V r) {
        r = x == 0.0f ? V{} - __builtin_inff() : r;
        r = x == __builtin_inff() ? x : r;
        return (x < 0.0f) | (x != x) ? V{} + __builtin_nanf("") : r;
    }
    SCANC_INLINE V log2(V x) {
        // Subnormal numbers have no exponent to read: they are scaled into the normal ones first.
        I tiny = x < 1.17549435e-38f;
        V e, m = log_parts(tiny ? x * 8388608.0f : x, e);
        return edges(x, (tiny ? e - 23.0f : e) + m * 1.44269504f);
    }
    SCANC_INLINE V log1p(V x) {
        // log(u) + (x - (u - 1)) / u gives back what rounding u = 1 + x lost
        V u = 1.0f + x, e;
        V m = log_parts(u, e);
        V r = e * 0.693147182f + m + (x - (u - 1.0f)) / u;
        return edges(u, u == __builtin_inff() ? u : r);
    }
    SCANC_INLINE V expm1(V x) {
        V p = 0.000199004305f + V{};
        p = p * x + 0.00139345342f;
        p = p * x + 0.00833329708f;
        p = p * x + 0.0416664569f;
        p = p * x + 0.166666667f;
        p = p * x + 0.500000001f;
        V near = x + x * x * p;
        return (x < 0.35f) & (x > -0.35f) ? near : exp2(x * 1.44269504f) - 1.0f;
    }
    SCANC_INLINE V tanh(V x) {
        V y = x > 9.0f ? V{} + 9.0f : x;
        y = y < -9.0f ? V{} - 9.0f : y;
        V e = expm1(2.0f * y);
        return e / (e + 2.0f);
    }
};

#define SCANC_UNARY(name)                                                                    \
    SCANC_INLINE vf name(vf x) { return Math<vf, vi>::name(x); }                             \
    SCANC_INLINE float name(float x) { return Math<v1, i1>::name(v1{x})[0]; }
SCANC_UNARY(exp2)
SCANC_UNARY(log2)
SCANC_UNARY(log1p)
SCANC_UNARY(expm1)
SCANC_UNARY(tanh)

#define SCANC_BY_LANE(name, call)                                                            \
    SCANC_INLINE float name(float x) { return call; }                                        \
    SCANC_INLINE vf name(vf v) {                                                             \
        vf r;                                                                                \
        for (int k = 0; k < LANES; ++k) { float x = v[k]; r[k] = call; }                     \
        return r;                                                                            \
    }
SCANC_BY_LANE(sqrt, std::sqrt(x))
SCANC_BY_LANE(sin, std::sin(x))
SCANC_BY_LANE(cos, std::cos(x))
SCANC_BY_LANE(erf, std::erf(x))
SCANC_INLINE vf rsqrt(vf x) { return 1.0f / sqrt(x); }
SCANC_INLINE float rsqrt(float x) { return 1.0f / sqrt(x); }
SCANC_INLINE vf abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
SCANC_INLINE float abs(float x) { return std::fabs(x); }
SCANC_INLINE vi abs(vi x) { return x < 0 ? -x : x; }
SCANC_INLINE int32_t abs(int32_t x) { return x < 0 ? -x : x; }
SCANC_INLINE vf sign(vf x) { return x > 0.0f ? splat(1.0f) : x < 0.0f ? splat(-1.0f) : x; }
SCANC_INLINE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
SCANC_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
SCANC_INLINE float to_float(int32_t x) { return float(x); }
SCANC_INLINE vi iota() { vi r; for (int k = 0; k < LANES; ++k) r[k] = k; return r; }
SCANC_INLINE vf mask_lanes(vf x, int lanes) { return iota() < lanes ? x : vf{}; }

// Lane k of the result is lane from[k] of a, or of b from LANES on.
template <class V> SCANC_INLINE V permute(V a, V b, vi from) {
#if defined(__clang__)
    V r;
    for (int k = 0; k < LANES; ++k) r[k] = from[k] < LANES ? a[from[k]] : b[from[k] - LANES];
    return r;
#else
    return __builtin_shuffle(a, b, from);
#endif
}
// The square of LANES vectors of LANES lanes, rows for columns: blocks of 1, 2, 4, … lanes change places.
template <class V> SCANC_INLINE void transpose(V* square) {
    const vi lane = iota();
    for (int half = 1; half < LANES; half *= 2) {
        const vi high = (lane & half) != 0;
        const vi low_half = high ? (lane ^ half) + LANES : lane, high_half = high ? lane + LANES : lane ^ half;
        for (int k = 0; k < LANES; ++k) {
            if (k & half) continue;
            V a = square[k], b = square[k + half];
            square[k] = permute(a, b, low_half);
            square[k + half] = permute(a, b, high_half);
        }
    }
}

// Sum over lanes, by halves, in a fixed order.
SCANC_INLINE float sum_lanes(vf x) {
    float part[LANES];
    std::memcpy(part, &x, sizeof part);
    for (int width = LANES / 2; width; width /= 2)
        for (int k = 0; k < width; ++k) part[k] += part[k + width];
    return part[0];
}
// Lane sums of `count` vectors, one result each: blocks of LANES vectors are summed by a transposing tree.
SCANC_CALL void sum_rows(const vf* rows, int count, float* out) {
    int done = 0;
    if constexpr (LANES >= 4) {
        for (; done + LANES <= count; done += LANES) {
            vf part[LANES];
            for (int k = 0; k < LANES; ++k) part[k] = rows[done + k];
            const vi lane = iota();
            // Step by step, vectors k and k + half merge: lanes with the bit clear keep k's pair sums, the others k + half's.
            for (int half = LANES / 2; half; half /= 2) {
                const vi low = (lane & half) == 0, partner = lane ^ half;
                for (int k = 0; k < half; ++k) {
                    vf a = part[k], b = part[k + half];
                    vf kept = low ? a : b, sent = low ? b : a;
                    part[k] = kept + permute(sent, sent, partner);
                }
            }
            std::memcpy(out + done, &part[0], sizeof(vf));
        }
    }
    for (; done < count; ++done) out[done] = sum_lanes(rows[done]);
}

// Storage types. bfloat16 and float16 are kept as bits and computed in float32.
struct bfloat16 {
    uint16_t bits;
    operator float() const { uint32_t u = uint32_t(bits) << 16; float f; std::memcpy(&f, &u, 4); return f; }
    bfloat16() = default;
    bfloat16(float f) {
        uint32_t u;
        std::memcpy(&u, &f, 4);
        bits = (f != f) ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
};
#if defined(__FLT16_MAX__)
typedef _Float16 float16;
#else
struct float16 {
    uint16_t bits;
    operator float() const {
        uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
        float f;
        uint32_t u = sign | ((rest << 13) + ((rest >= 0x7c00) ? 0x70000000u : 0x38000000u));
        if (rest < 0x400) { f = float(rest) * 5.9604645e-8f; return sign ? -f : f; }
        std::memcpy(&f, &u, 4);
        return f;
    }
    float16() = default;
    float16(float f) {
        uint32_t u;
        std::memcpy(&u, &f, 4);
        uint32_t sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
        if (a > 0x7f800000) bits = uint16_t(sign | 0x7e00);
        else if (a >= 0x477ff000) bits = uint16_t(sign | 0x7c00);
        else if (a < 0x38800000) { float g; std::memcpy(&g, &a, 4); bits = uint16_t(sign | uint32_t(std::nearbyint(g * 16777216.0f))); }
        else bits = uint16_t(sign | ((a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13));
    }
};
#endif

template <class T> SCANC_INLINE auto widen(T x) {
    if constexpr (std::is_same<T, bool>::value) return -int32_t(x);
    else if constexpr (std::is_integral<T>::value) return int32_t(x);
    else return float(x);
}
template <class T> using Wide = decltype(widen(T()));
template <class T> using Lanes = typename std::conditional<std::is_same<Wide<T>, float>::value, vf, vi>::type;

// A whole vector side by side in memory. What compilers make of a loop over 16-bit numbers converts one at a time.
typedef uint16_t v16 __attribute__((vector_size(2 * SCANC_LANES)));
template <class T> SCANC_INLINE Lanes<T> load_vector(const T* p) {
    Lanes<T> r{};
#if defined(__AVX512F__) && defined(__FLT16_MAX__) && SCANC_LANES == 16
    if constexpr (std::is_same_v<T, float16>) return vf(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#endif
    if constexpr (std::is_same_v<T, bfloat16>) {
        v16 bits;
        std::memcpy(&bits, p, sizeof bits);
        return vf(__builtin_convertvector(bits, vi) << 16);
    }
    for (int k = 0; k < LANES; ++k) r[k] = widen(p[k]);
    return r;
}
template <class T, class V> SCANC_INLINE void store_vector(T* p, V v) {
#if defined(__AVX512F__) && defined(__FLT16_MAX__) && SCANC_LANES == 16
    if constexpr (std::is_same_v<T, float16> && std::is_same_v<V, vf>) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        return;
    }
#endif
    if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<V, vf>) {
        const vi u = vi(v);
        const v16 bits = __builtin_convertvector(v != v ? splat(0x7fc0) : (u + 0x7fff + ((u >> 16) & 1)) >> 16, v16);
        std::memcpy(p, &bits, sizeof bits);
        return;
    }
    for (int k = 0; k < LANES; ++k) p[k] = T(v[k]);
}
// One vector of lanes from memory; lanes past the end repeat the last one, so that no garbage enters the arithmetic.
template <class T> SCANC_INLINE Lanes<T> load_lanes(const T* p, index_t stride, int lanes) {
    if (stride == 1 && lanes == LANES) return load_vector(p);
    Lanes<T> r{};
    for (int k = 0; k < LANES; ++k) r[k] = widen(p[(k < lanes ? k : lanes - 1) * stride]);
    return r;
}
template <class T, class V> SCANC_INLINE void store_lanes(T* p, index_t stride, int lanes, V v) {
    if (stride == 1 && lanes == LANES) return store_vector(p, v);
    for (int k = 0; k < lanes; ++k) p[k * stride] = T(v[k]);
}

// A tile of `steps` vectors, dst[i * row]: lanes apart by lane_stride, steps by time_stride in memory.
template <class T, class V> SCANC_CALL void stage_lanes(V* dst, index_t row, const T* src, index_t lane_stride, index_t time_stride, int lanes, index_t steps) {
    if (lane_stride == 1 && lanes == LANES) {
        for (index_t i = 0; i < steps; ++i) dst[i * row] = load_lanes(src + i * time_stride, 1, lanes);
        return;
    }
    index_t done = 0;
    if (time_stride == 1) {
        // Time is contiguous: squares of LANES steps are read along it, a vector a lane, and turned in registers.
        for (; done + LANES <= steps; done += LANES) {
            V square[LANES];
            for (int k = 0; k < LANES; ++k) square[k] = load_lanes(src + (k < lanes ? k : lanes - 1) * lane_stride + done, 1, LANES);
            transpose(square);
            for (int k = 0; k < LANES; ++k) dst[(done + k) * row] = square[k];
        }
    }
    for (index_t i = done; i < steps; ++i) dst[i * row] = load_lanes(src + i * time_stride, lane_stride, lanes);
}
template <class T, class V> SCANC_CALL void unstage_lanes(T* dst, index_t lane_stride, index_t time_stride, const V* src, index_t row, int lanes, index_t steps) {
    index_t done = 0;
    if (time_stride == 1 && lane_stride != 1) {
        for (; done + LANES <= steps; done += LANES) {
            V square[LANES];
            for (int k = 0; k < LANES; ++k) square[k] = src[(done + k) * row];
            transpose(square);
            for (int k = 0; k < lanes; ++k) store_lanes(dst + k * lane_stride + done, 1, LANES, square[k]);
        }
    }
    for (index_t i = done; i < steps; ++i) store_lanes(dst + i * time_stride, lane_stride, lanes, src[i * row]);
}
template <class T, class S> SCANC_CALL void stage_rows(S* dst, index_t row, const T* src, index_t time_stride, index_t steps) {
    for (index_t i = 0; i < steps; ++i) dst[i * row] = widen(src[i * time_stride]);
}
// All states at each step from a tensor that no lane differs in: dst[i * count + n], or the tensor itself where it can be read as it lies.
template <class T, class S> SCANC_CALL const S* stage_states(S* dst, index_t count, const T* src, index_t state_stride, index_t time_stride, index_t steps) {
    typedef Lanes<T> V;
    if constexpr (std::is_same_v<T, S>) {
        if (state_stride == 1) return src;
    }
    index_t done = 0;
    if (time_stride == 1 && count % LANES == 0) {
        for (; done + LANES <= steps; done += LANES)
            for (index_t n = 0; n < count; n += LANES) {
                V square[LANES];
                for (int k = 0; k < LANES; ++k) square[k] = load_lanes(src + (n + k) * state_stride + done, 1, LANES);
                transpose(square);
                for (int k = 0; k < LANES; ++k) std::memcpy(dst + (done + k) * count + n, &square[k], sizeof(V));
            }
    }
    for (index_t i = done; i < steps; ++i)
        for (index_t n = 0; n < count; ++n) dst[i * count + n] = widen(src[n * state_stride + i * time_stride]);
    return dst;
}
template <class T> SCANC_CALL void unstage_rows(T* dst, index_t time_stride, const float* src, index_t row, index_t steps, bool add) {
    for (index_t i = 0; i < steps; ++i) dst[i * time_stride] = T(add ? float(dst[i * time_stride]) + src[i * row] : src[i * row]);
}

// Memory of one thread for the length of a kernel call.
struct Arena {
    char* base;
    explicit Arena(size_t bytes) : base(static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {}
    ~Arena() { std::free(base); }
    Arena(const Arena&) = delete;
    template <class T> T* at(size_t offset) const { return reinterpret_cast<T*>(base + offset); }
};
SCANC_INLINE index_t smaller(index_t a, index_t b) { return a < b ? a : b; }

}  // namespace scanc
