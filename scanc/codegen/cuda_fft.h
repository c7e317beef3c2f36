// A Fourier transform of N complex points held in the registers of THREADS threads, E = N / THREADS each, at the frequencies f + 1/4.
// It is FIRST x SECOND x THIRD points, one after another: a pass makes transforms of as many points in registers, turns what it made,
// and hands it on through shared memory. Points come as they lie in time and leave in the order in which the last pass has them: products
// of spectra do not mind, and the way back starts from there. N, THREADS, FIRST, SECOND, THIRD (1: there are two passes) and ONE_BUFFER
// (both exchanges go through the same shared memory) are the kernel's.
constexpr int E = N / THREADS;

// cos(2 pi m / D) of numbers known to the compiler.
SCANC_INLINE float cosine(int m, int D) {
    m = m < 0 ? -m : m;
    m %= D;
    if (2 * m > D) m = D - m;
    const bool minus = 4 * m > D;
    if (minus) m = D / 2 - m;
    const bool far = 8 * m > D;
    const double x = 6.283185307179586476925 * (far ? D / 4 - m : m) / D, y = x * x;
    const double c = far ? x * (1 - y / 6 * (1 - y / 20 * (1 - y / 42 * (1 - y / 72 * (1 - y / 110 * (1 - y / 156))))))
                         : 1 - y / 2 * (1 - y / 12 * (1 - y / 30 * (1 - y / 56 * (1 - y / 90 * (1 - y / 132)))));
    return float(minus ? -c : c);
}
SCANC_INLINE float sine(int m, int D) { return cosine(m - D / 4, D); }

// (re + i im) e^(-2 pi i m / D), or backwards; D is a multiple of 8.
template <bool BACK> SCANC_INLINE void turn(float& re, float& im, int m, int D) {
    if (m % D == 0) return;
    const float c = cosine(m, D), s = BACK ? sine(m, D) : -sine(m, D), x = re;
    if (4 * m == D) {
        re = BACK ? -im : im;
        im = BACK ? x : -x;
    } else {
        re = x * c - im * s;
        im = x * s + im * c;
    }
}

// Transforms of R points, in order.
template <int R, bool BACK> struct Small {
    static constexpr int A = R == 8 ? 2 : R == 64 ? 8 : 4, B = R / A;
    static SCANC_INLINE void run(float (&re)[R], float (&im)[R]) {
        float t_re[A][B], t_im[A][B];
#pragma unroll
        for (int b = 0; b < B; ++b) {
            float a_re[A], a_im[A];
#pragma unroll
            for (int a = 0; a < A; ++a) a_re[a] = re[a * B + b], a_im[a] = im[a * B + b];
            Small<A, BACK>::run(a_re, a_im);
#pragma unroll
            for (int a = 0; a < A; ++a) {
                turn<BACK>(a_re[a], a_im[a], a * b, R);
                t_re[a][b] = a_re[a], t_im[a][b] = a_im[a];
            }
        }
#pragma unroll
        for (int a = 0; a < A; ++a) {
            Small<B, BACK>::run(t_re[a], t_im[a]);
#pragma unroll
            for (int b = 0; b < B; ++b) re[a + A * b] = t_re[a][b], im[a + A * b] = t_im[a][b];
        }
    }
};
template <bool BACK> struct Small<2, BACK> {
    static SCANC_INLINE void run(float (&re)[2], float (&im)[2]) {
        const float x = re[1], y = im[1];
        re[1] = re[0] - x, im[1] = im[0] - y;
        re[0] += x, im[0] += y;
    }
};
template <bool BACK> struct Small<4, BACK> {
    static SCANC_INLINE void run(float (&re)[4], float (&im)[4]) {
        const float a = re[0] + re[2], b = im[0] + im[2], c = re[0] - re[2], d = im[0] - im[2];
        const float e = re[1] + re[3], f = im[1] + im[3], g = re[1] - re[3], h = im[1] - im[3];
        re[0] = a + e, im[0] = b + f, re[2] = a - e, im[2] = b - f;
        re[1] = BACK ? c - h : c + h, im[1] = BACK ? d + g : d - g;
        re[3] = BACK ? c + h : c - h, im[3] = BACK ? d - g : d + g;
    }
};

// A pass over n points by R: the transforms that a thread makes are b = tid + THREADS q, of group b / (n / R), of the points
// t + (n / R) e, t = b % (n / R); point e of transform q is in register q R + e.
template <int R, bool BACK> SCANC_INLINE void points(float (&re)[E], float (&im)[E]) {
#pragma unroll
    for (int q = 0; q < E / R; ++q) {
        float a[R], b[R];
#pragma unroll
        for (int e = 0; e < R; ++e) a[e] = re[q * R + e], b[e] = im[q * R + e];
        Small<R, BACK>::run(a, b);
#pragma unroll
        for (int e = 0; e < R; ++e) re[q * R + e] = a[e], im[q * R + e] = b[e];
    }
}

struct Complex {
    float re, im;
};
SCANC_INLINE Complex times(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

// The same address, of which the compiler knows nothing: what is loaded from it anew holds no registers in between.
template <class T> SCANC_INLINE const T* anew(const T* p) {
#ifndef SCANC_MACHINE
    asm volatile("" : "+l"(p));
#endif
    return p;
}

// Times start e^(-2 pi i t f / n) for f < R, the transform's registers; ``row(i)`` gives the factor of f = 2^(i - 1), and their products
// the rest: four at a time, so that few are in registers. STARTED: there is a start, which is not 1.
template <int R, bool STARTED, bool BACK, class Row> SCANC_INLINE void turn_each(float* re, float* im, Complex start, const Row& row) {
    constexpr int HIGH = R / 4;
    Complex low[4], high[HIGH];
    low[1] = row(1), low[2] = row(2), low[3] = times(low[1], low[2]);
    high[0] = start;
#pragma unroll
    for (int h = 1; h < HIGH; ++h) {
        const int top = h >= 8 ? 8 : h >= 4 ? 4 : h >= 2 ? 2 : 1;
        const Complex w = row(top == 8 ? 6 : top == 4 ? 5 : top == 2 ? 4 : 3);
        high[h] = STARTED || h != top ? times(high[h - top], w) : w;
    }
#pragma unroll
    for (int f = STARTED ? 0 : 1; f < R; ++f) {
        const Complex w = f % 4 == 0 ? high[f / 4] : f < 4 && !STARTED ? low[f] : times(high[f / 4], low[f % 4]);
        const float x = re[f], y = im[f], s = BACK ? -w.im : w.im;
        re[f] = x * w.re - y * s;
        im[f] = x * s + y * w.re;
    }
}
// Times e^(-2 pi i t f / n), f the register of its transform; of the first pass f + 1/4. The table has rows of t: those of 1/4, and
// of f = 1, 2, 4, ...
template <int COLUMNS, int R, bool SHIFTED, bool BACK, int COUNT>
SCANC_INLINE void twiddle(float (&re)[COUNT], float (&im)[COUNT], const float2* table, int first) {
#pragma unroll
    for (int q = 0; q < COUNT / R; ++q) {
        const float2* const here = anew(table) + (first + THREADS * q) % COLUMNS;
        const auto row = [&](int i) { const float2 w = read_only(here + i * COLUMNS); return Complex{w.x, w.y}; };
        turn_each<R, SHIFTED, BACK>(re + q * R, im + q * R, SHIFTED ? row(0) : Complex{1, 0}, row);
    }
}

// From a pass over n points by R to one over n / R by S, through shared memory where neighbours do not meet.
template <int n, int R, int S> struct Hand {
    static constexpr int M = n / R, U = M / S, PITCH = M + (U < 32 ? U : 0), SIZE = N / M * PITCH;
    static constexpr bool WARP = THREADS == 32 || (R == E && S == E && M <= 32);
    static SCANC_INLINE int early(int i) {
        const int b = int(threadIdx.x) + THREADS * (i / R);
        return (b / M * R + i % R) * PITCH + b % M;
    }
    static SCANC_INLINE int late(int i) {
        const int b = int(threadIdx.x) + THREADS * (i / S);
        return b / U * PITCH + b % U + U * (i % S);
    }
    static SCANC_INLINE void wait() {
        if (WARP) __syncwarp(~0u);
        else __syncthreads();
    }
    template <bool BACK> static SCANC_INLINE void over(float (&re)[E], float (&im)[E], float* buffer) {
#pragma unroll
        for (int i = 0; i < E; ++i) {
            const int at = BACK ? late(i) : early(i);
            buffer[at] = re[i], buffer[SIZE + at] = im[i];
        }
        wait();
#pragma unroll
        for (int i = 0; i < E; ++i) {
            const int at = BACK ? early(i) : late(i);
            re[i] = buffer[at], im[i] = buffer[SIZE + at];
        }
        if (ONE_BUFFER) __syncthreads();
    }
};
constexpr int LAST = THIRD > 1 ? THIRD : SECOND;
typedef Hand<N, FIRST, SECOND> FirstHand;
typedef Hand<(THIRD > 1 ? N / FIRST : N), (THIRD > 1 ? SECOND : FIRST), LAST> SecondHand;
constexpr int SECOND_TABLE = N / FIRST * 6;  // at most

// A pass's table has rows of N / R numbers.
template <int n, int R, bool SHIFTED, bool BACK> SCANC_INLINE void turned(float (&re)[E], float (&im)[E], const float2* table) {
    twiddle<n / R, R, SHIFTED, BACK, E>(re, im, table, int(threadIdx.x));
}

// Points x[t], t = tid + THREADS q + N / FIRST e in register q FIRST + e. Of REAL points, in ``re``, the frequencies f + 1/4; of complex
// ones the frequencies f.
template <bool REAL = true> SCANC_INLINE void there(float (&re)[E], float (&im)[E], float* buffer, const float2* table) {
    if (REAL)
#pragma unroll
        for (int i = 0; i < E; ++i) {
            const float x = re[i];
            re[i] = x * cosine(i % FIRST, 4 * FIRST), im[i] = -x * sine(i % FIRST, 4 * FIRST);
        }
    points<FIRST, false>(re, im);
    turned<N, FIRST, REAL, false>(re, im, table);
    FirstHand::over<false>(re, im, buffer);
    points<SECOND, false>(re, im);
    if (THIRD > 1) {
        turned<N / FIRST, SECOND, false, false>(re, im, table + SECOND_TABLE);
        SecondHand::over<false>(re, im, buffer + (ONE_BUFFER ? 0 : 2 * FirstHand::SIZE));
        points<LAST, false>(re, im);
    }
}
// Back, N times: REAL to the real part alone.
template <bool REAL = true> SCANC_INLINE void back(float (&re)[E], float (&im)[E], float* buffer, const float2* table) {
    if (THIRD > 1) {
        points<LAST, true>(re, im);
        SecondHand::over<true>(re, im, buffer + (ONE_BUFFER ? 0 : 2 * FirstHand::SIZE));
        turned<N / FIRST, SECOND, false, true>(re, im, table + SECOND_TABLE);
    }
    points<SECOND, true>(re, im);
    FirstHand::over<true>(re, im, buffer);
    turned<N, FIRST, REAL, true>(re, im, table);
    points<FIRST, true>(re, im);
    if (REAL)
#pragma unroll
        for (int i = 0; i < E; ++i) re[i] = re[i] * cosine(i % FIRST, 4 * FIRST) - im[i] * sine(i % FIRST, 4 * FIRST);
}
// Register i holds the step this many after the thread's first, tid.
SCANC_INLINE constexpr int apart(int i) { return THREADS * (i / FIRST) + N / FIRST * (i % FIRST); }

// Spectra in memory, each thread's own numbers where it alone reads them.
SCANC_INLINE void keep(float2* to, const float (&re)[E], const float (&im)[E]) {
#pragma unroll
    for (int i = 0; i < E; ++i) to[i * THREADS + int(threadIdx.x)] = float2{re[i], im[i]};
}
SCANC_INLINE void clear(float (&re)[E], float (&im)[E]) {
#pragma unroll
    for (int i = 0; i < E; ++i) re[i] = im[i] = 0;
}
// The threads come together: between two transforms the same way, which use the same memory.
SCANC_INLINE void together() {
    if (THREADS == 32) __syncwarp(~0u);
    else __syncthreads();
}

// A column of P real steps, N apart, at the frequencies p + 1/4 of a sequence of P N of them: the first pass of its transform, and the last
// of the way back, to the real part, P times it. The table has rows of N numbers, e^(-2 pi i t f / (P N)) of column t for f = 1/4, 1, 2,
// 4, ... A thread has POINTS of its column: all of them, or some of a long one, which GROUPS threads share through shared memory.
template <int P, int POINTS> struct Column {
    static constexpr int OWN = POINTS, GROUPS = P / OWN;
    // Register i holds this step of the column before the way there, and this frequency after it.
    static SCANC_INLINE constexpr int step(int i, int group) { return i * GROUPS + group; }
    static SCANC_INLINE constexpr int frequency(int i, int group) {
        return GROUPS == 1 ? i : group + GROUPS * (i / GROUPS) + OWN * (i % GROUPS);
    }
    static SCANC_INLINE void there(float (&re)[OWN], float (&im)[OWN], const float2* table, int column) {
        shift<false>(re, im);
        Small<OWN, false>::run(re, im);
        twiddle<N, OWN, true, false, OWN>(re, im, table, column);
    }
    static SCANC_INLINE void back(float (&re)[OWN], float (&im)[OWN], const float2* table, int column) {
        twiddle<N, OWN, true, true, OWN>(re, im, table, column);
        Small<OWN, true>::run(re, im);
        shift<true>(re, im);
    }
    // A quarter of a frequency further on, or back to the real part.
    template <bool BACK> static SCANC_INLINE void shift(float (&re)[OWN], float (&im)[OWN]) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const float x = re[i];
            re[i] = x * cosine(i, 4 * OWN) - (BACK ? im[i] * sine(i, 4 * OWN) : 0.0f);
            if (!BACK) im[i] = -x * sine(i, 4 * OWN);
        }
    }
};

// Long columns, P = POINTS G points by G threads: POINTS each, G apart, then an exchange, then POINTS / G times G points. A block has
// LANES columns side by side, and shared memory for P times as many complex numbers; ``inside`` has rows of G numbers,
// e^(-2 pi i g f / P) for f = 1/4, 1, 2, 4, ...
template <int P, int POINTS, int LANES> struct LongColumn : Column<P, POINTS> {
    typedef Column<P, POINTS> Own;
    using Own::GROUPS;
    using Own::OWN;
    static constexpr int SIZE = P * LANES, OWN_ROW = OWN == 32 ? 5 : 4;  // the table's row of f = OWN / 2
    static SCANC_INLINE void there(float (&re)[OWN], float (&im)[OWN], const float2* table, int column, const float2* inside, float* buffer) {
        const int lane = int(threadIdx.x) % LANES, group = int(threadIdx.x) / LANES;
        Own::template shift<false>(re, im);
        Small<OWN, false>::run(re, im);
        turned<false>(re, im, inside, group);
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int at = (i * GROUPS + group) * LANES + lane;
            buffer[at] = re[i], buffer[SIZE + at] = im[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int at = ((group + GROUPS * (i / GROUPS)) * GROUPS + i % GROUPS) * LANES + lane;
            re[i] = buffer[at], im[i] = buffer[SIZE + at];
        }
        each<false>(re, im, table, column, group);
    }
    static SCANC_INLINE void back(float (&re)[OWN], float (&im)[OWN], const float2* table, int column, const float2* inside, float* buffer) {
        const int lane = int(threadIdx.x) % LANES, group = int(threadIdx.x) / LANES;
        each<true>(re, im, table, column, group);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int at = ((group + GROUPS * (i / GROUPS)) * GROUPS + i % GROUPS) * LANES + lane;
            buffer[at] = re[i], buffer[SIZE + at] = im[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int at = (i * GROUPS + group) * LANES + lane;
            re[i] = buffer[at], im[i] = buffer[SIZE + at];
        }
        turned<true>(re, im, inside, group);
        Small<OWN, true>::run(re, im);
        Own::template shift<true>(re, im);
    }
    template <bool BACK> static SCANC_INLINE void turned(float* re, float* im, const float2* inside, int group) {
        const auto row = [&](int i) { const float2 w = read_only(inside + i * GROUPS + group); return Complex{w.x, w.y}; };
        turn_each<OWN, true, BACK>(re, im, row(0), row);
    }
    // Transforms of G points, and the factors of frequencies p + 1/4 + OWN f after them (before them, on the way back).
    template <bool BACK> static SCANC_INLINE void each(float (&re)[OWN], float (&im)[OWN], const float2* table, int column, int group) {
#pragma unroll
        for (int q = 0; q < OWN / GROUPS; ++q) {
            float a[GROUPS], b[GROUPS];
#pragma unroll
            for (int e = 0; e < GROUPS; ++e) a[e] = re[q * GROUPS + e], b[e] = im[q * GROUPS + e];
            const float2* const here = anew(table) + column;
            const auto row = [&](int i) { const float2 w = read_only(here + (i + OWN_ROW) * N); return Complex{w.x, w.y}; };
            if (!BACK) Small<GROUPS, false>::run(a, b);
            turn_each<GROUPS, true, BACK>(a, b, little(column * (4 * (group + GROUPS * q) + 1) * (0.25f / (float(P) * N))), row);
            if (BACK) Small<GROUPS, true>::run(a, b);
#pragma unroll
            for (int e = 0; e < GROUPS; ++e) re[q * GROUPS + e] = a[e], im[q * GROUPS + e] = b[e];
        }
    }
    // e^(-2 pi i x), 0 <= x < 1/8: by series. The turns above are whole numbers over a power of two, and exact.
    static SCANC_INLINE Complex little(float x) {
        const float a = 6.283185307179586f * x, y = a * a;
        return {1 + y * (-0.5f + y * (1 / 24.0f - y * (1 / 720.0f - y * (1 / 40320.0f)))),
                -a * (1 + y * (-1 / 6.0f + y * (1 / 120.0f - y * (1 / 5040.0f - y * (1 / 362880.0f)))))};
    }
};
