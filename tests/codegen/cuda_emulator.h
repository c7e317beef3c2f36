// Runs the blocks of a CUDA kernel on a CPU, one after another, every thread a fiber: what the tests check kernels with where there is
// no GPU. A fiber runs until it meets a barrier; in which order fibers are taken up is the caller's choice, so that a missing
// barrier shows as a difference between two orders. Asynchronous copies arrive at once in one order and as late as they may in the other,
// so that a place asked for too early, or read before it was waited for, shows as well. Shared memory starts as NaN. A barrier that some
// threads never reach is an error, and so is an address not aligned to what is moved.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __shared__
#define __align__(n)
#define SCANC_MACHINE

struct Index { unsigned x; };
static Index threadIdx, blockIdx;
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
alignas(16) float shared[64 << 10];

template <class To, class From> static To bits_of(From x) { To r; static_assert(sizeof r == sizeof x); std::memcpy(&r, &x, sizeof r); return r; }
static inline float __int_as_float(int x) { return bits_of<float>(x); }
static inline int __float_as_int(float x) { return bits_of<int>(x); }
static inline float __uint_as_float(unsigned x) { return bits_of<float>(x); }
static inline unsigned __float_as_uint(float x) { return bits_of<unsigned>(x); }
static inline float exp2_(float x) { return exp2f(x); }
static inline float reciprocal(float x) { return 1.0f / x; }
static inline float quotient(float x, float y) { return x / y; }
static inline float log2_fast(float x) { return log2f(x); }
static inline float rsqrt_(float x) { return 1.0f / sqrtf(x); }
static inline float half_to_float(unsigned short x) { return float(bits_of<_Float16>(x)); }
static inline unsigned short float_to_half(float x) { return bits_of<unsigned short>(_Float16(x)); }
static inline int thread_here() { return int(threadIdx.x); }
static inline unsigned block_here() { return blockIdx.x; }
template <class T> static inline T read_only(const T* p) { return *p; }
template <class T> static inline void store_16(T* p, uint4 x) { *reinterpret_cast<uint4*>(p) = x; }
static inline void write_four_if(bool is, float* p, float x, float y, float z, float w) {
    if (is) *reinterpret_cast<float4*>(p) = float4{x, y, z, w};
}

namespace emulator {

enum State { READY, AT_WARP, AT_BLOCK, AT_SIGNAL, AT_CLUSTER, DONE };
struct Copy { void* to; const void* from; size_t bytes; };
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    State state;
    bool started;
    unsigned shuffles, arrivals;
    const int* signal;  // what the fiber waits for, and how many reports
    int reports;
    float slot[2];
    std::vector<std::vector<Copy>> copies;  // groups under way, the last one still open
    std::vector<char> stack;
};
static std::vector<Fiber> all_fibers;
static Fiber* fibers;  // those of the block whose turn it is
static std::vector<std::vector<float>> memories;  // of each block of a cluster its shared memory, while another's is in its place
static unsigned turn;
static jmp_buf scheduler;
static ucontext_t home;
static void (*body)();
static bool late;  // copies arrive when they are waited for

static void wait_at(State state) {
    Fiber& me = fibers[threadIdx.x];
    const unsigned x = threadIdx.x;
    me.state = state;
    if (_setjmp(me.place) == 0) _longjmp(scheduler, 1);
    threadIdx.x = x;
}
static void entry() {
    body();
    fibers[threadIdx.x].state = DONE;
    _longjmp(scheduler, 1);
}
static bool release(unsigned from, unsigned to, State state) {
    bool any = false;
    for (unsigned i = from; i < to; ++i) {
        if (fibers[i].state == DONE) continue;
        if (fibers[i].state != state) return false;
        any = true;
    }
    for (unsigned i = from; i < to; ++i)
        if (fibers[i].state == state) fibers[i].state = READY;
    return any;
}
static bool release_reported(unsigned from, unsigned to) {
    bool any = false;
    for (unsigned i = from; i < to; ++i)
        if (fibers[i].state == AT_SIGNAL && fibers[i].signal[1] >= fibers[i].reports) fibers[i].state = READY, any = true;
    return any;
}
static unsigned least_arrivals() {
    unsigned least = ~0u;
    for (const Fiber& f : all_fibers)
        if (f.state != DONE && f.arrivals < least) least = f.arrivals;
    return least;
}
// The block ``number`` of a cluster has its turn: its shared memory comes to where kernels look for theirs.
static void take_up(unsigned number, unsigned threads, unsigned first) {
    if (number != turn) {
        std::memcpy(memories[turn].data(), shared, sizeof shared);
        std::memcpy(shared, memories[number].data(), sizeof shared);
    }
    turn = number;
    fibers = all_fibers.data() + number * threads;
    blockIdx.x = first + number;
}
static void run_cluster(unsigned first, unsigned cluster, unsigned threads, bool backwards) {
    all_fibers.resize(cluster * threads);
    memories.assign(cluster, std::vector<float>(cluster > 1 ? sizeof shared / sizeof(float) : 0, NAN));
    for (float& word : shared) word = NAN;
    turn = 0;
    for (Fiber& f : all_fibers) {
        f.state = READY;
        f.started = false;
        f.shuffles = f.arrivals = 0;
        f.copies.assign(1, {});
        getcontext(&f.context);
        f.stack.resize(192 << 10);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = &home;
        makecontext(&f.context, entry, 0);
    }
    while (true) {
        bool moved = false, alive = false;
        for (unsigned c = 0; c < cluster; ++c) {
            take_up(backwards ? cluster - 1 - c : c, threads, first);
            for (unsigned w = 0; w < threads; w += 32) {  // the first warp goes on for as long as it can, while others take a step each
                const unsigned from = backwards ? (threads - 1) / 32 * 32 - w : w, to = from + 32 < threads ? from + 32 : threads;
                bool again = true;
                while (again) {
                    for (unsigned k = from; k < to; ++k) {
                        const unsigned i = backwards ? from + to - 1 - k : k;
                        Fiber& f = fibers[i];
                        if (f.state != READY) continue;
                        threadIdx.x = i;
                        if (_setjmp(scheduler) == 0) {
                            if (f.started) _longjmp(f.place, 1);
                            f.started = true;
                            setcontext(&f.context);
                        }
                    }
                    again = release(from, to, AT_WARP);
                    again |= release_reported(from, to);
                    moved |= again;
                    again &= w == 0;
                }
            }
            moved |= release(0, threads, AT_BLOCK);
            moved |= release_reported(0, threads);  // by warps that came later
        }
        const unsigned least = least_arrivals();
        for (Fiber& f : all_fibers) {
            if (f.state == AT_CLUSTER && f.arrivals <= least) f.state = READY, moved = true;
            alive |= f.state != DONE;
        }
        if (!alive) return;
        if (!moved) {
            std::fprintf(stderr, "threads wait at different barriers\n");
            std::abort();
        }
    }
}

}  // namespace emulator

static inline void __syncthreads() { emulator::wait_at(emulator::AT_BLOCK); }
template <int> static inline void meet() { emulator::wait_at(emulator::AT_BLOCK); }
static inline void set_signal(float* signal, int reports) {
    reinterpret_cast<int*>(signal)[0] = reports;
    reinterpret_cast<int*>(signal)[1] = 0;
}
static inline void report(float* signal) { ++reinterpret_cast<int*>(signal)[1]; }
static inline void wait_for_turns(const float* signal, int turns) {
    emulator::Fiber& me = emulator::fibers[threadIdx.x];
    me.signal = reinterpret_cast<const int*>(signal);
    me.reports = me.signal[0] * turns;
    if (me.signal[1] < me.reports) emulator::wait_at(emulator::AT_SIGNAL);
}
static inline void cluster_arrives() { ++emulator::fibers[threadIdx.x].arrivals; }
static inline void cluster_has_arrived() {
    if (emulator::least_arrivals() < emulator::fibers[threadIdx.x].arrivals) emulator::wait_at(emulator::AT_CLUSTER);
}
static inline void read_block(float (&x)[4], const float* p, int block) {
    const float* const from = unsigned(block) == emulator::turn ? p : emulator::memories[block].data() + (p - shared);
    std::memcpy(x, from, sizeof x);
}
static inline void __syncwarp(unsigned) { emulator::wait_at(emulator::AT_WARP); }
static inline float __shfl_xor_sync(unsigned, float x, int d) {
    const unsigned me = threadIdx.x, parity = emulator::fibers[me].shuffles++ & 1;
    emulator::fibers[me].slot[parity] = x;
    emulator::wait_at(emulator::AT_WARP);
    return emulator::fibers[me ^ unsigned(d)].slot[parity];
}

static inline float __shfl_sync(unsigned, float x, int from) {
    const unsigned me = threadIdx.x, parity = emulator::fibers[me].shuffles++ & 1;
    emulator::fibers[me].slot[parity] = x;
    emulator::wait_at(emulator::AT_WARP);
    return emulator::fibers[me / 32 * 32 + unsigned(from)].slot[parity];
}
static inline uint4 once_16(const void* p) { return *static_cast<const uint4*>(p); }
// The matrix units' product of 16 x 16 by 16 x 8: four threads have the words of a lane, and four those of a row.
template <class T>
static inline void multiply_add(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1, T) {
    const auto half = [](float word, int j) {
        T x;
        x.bits = (unsigned short)(bits_of<unsigned>(word) >> (16 * j));
        return widen(x);
    };
    const auto other = [](unsigned word, int from) { return __shfl_sync(0xffffffffu, bits_of<float>(word), from); };
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int from = 0; from < 4; ++from) {
        const float a[4] = {other(a0, g * 4 + from), other(a1, g * 4 + from), other(a2, g * 4 + from), other(a3, g * 4 + from)};
        for (int row = 0; row < 2; ++row) {
            const float low = other(b0, (2 * t + row) * 4 + from), high = other(b1, (2 * t + row) * 4 + from);
            for (int j = 0; j < 2; ++j) {
                sums[row] += half(a[0], j) * half(low, j) + half(a[2], j) * half(high, j);
                sums[2 + row] += half(a[1], j) * half(low, j) + half(a[3], j) * half(high, j);
            }
        }
    }
}

static inline float from_thread(float x, int thread) {
    const unsigned me = threadIdx.x, parity = emulator::fibers[me].shuffles++ & 1;
    emulator::fibers[me].slot[parity] = x;
    emulator::wait_at(emulator::AT_WARP);
    return emulator::fibers[me / 32 * 32 + unsigned(thread)].slot[parity];
}
template <int DISTANCE, int WIDTH, bool LAST> static inline void compose(float& product, float& end) {
    const int here = int(threadIdx.x % 32);
    const bool any = here % WIDTH >= DISTANCE;
    const float e = from_thread(end, any ? here - DISTANCE : here), q = LAST ? 1.0f : from_thread(product, any ? here - DISTANCE : here);
    if (!any) return;
    end = product * e + end;
    product *= q;
}
template <int DISTANCE, int WIDTH> static inline void take_before(float& to, float from) {
    const int here = int(threadIdx.x % 32);
    const bool any = here % WIDTH >= DISTANCE;
    const float e = from_thread(from, any ? here - DISTANCE : here);
    if (any) to = e;
}
template <int COUNT> static inline void keep_values(float (&)[COUNT]) {}
template <class T> static inline T kept(T x) { return x; }
template <class T> static inline T made_once(T x) { return x; }
typedef unsigned Place;
static inline Place place_of(const float* p) { return Place(reinterpret_cast<const char*>(p) - reinterpret_cast<const char*>(shared)); }
static inline float* at_place(Place place) { return reinterpret_cast<float*>(reinterpret_cast<char*>(shared) + place); }
static inline int thread_kept() { return int(threadIdx.x); }
template <int, int> static inline void meet_some(int) { emulator::wait_at(emulator::AT_BLOCK); }

template <int BYTES> static inline void copy_async(void* to, const void* from) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what cp.async moves");
    if ((reinterpret_cast<size_t>(to) | reinterpret_cast<size_t>(from)) % BYTES) {
        std::fprintf(stderr, "a copy of %d bytes is not aligned\n", BYTES);
        std::abort();
    }
    if (!emulator::late) std::memcpy(to, from, BYTES);
    else {
        std::memset(to, 0xff, BYTES);  // NaN until it is there
        emulator::fibers[threadIdx.x].copies.back().push_back({to, from, BYTES});
    }
}
static inline void copies_issued() { emulator::fibers[threadIdx.x].copies.emplace_back(); }
template <int LEFT> static inline void copies_done() {
    auto& groups = emulator::fibers[threadIdx.x].copies;
    while (groups.size() > LEFT + 1) {
        for (const emulator::Copy& c : groups.front()) std::memcpy(c.to, c.from, c.bytes);
        groups.erase(groups.begin());
    }
}

#define EMULATE(Arguments, run)                                                                                  \
    static Arguments given;                                                                                      \
    extern "C" void launch(const void* words, long blocks, unsigned threads, bool backwards, unsigned cluster) { \
        std::memcpy(&given, words, sizeof given);                                                                \
        emulator::late = backwards;                                                                              \
        emulator::body = [] { run(given); };                                                                     \
        for (long b = 0; b < blocks; b += cluster)                                                               \
            emulator::run_cluster(unsigned(backwards ? blocks - cluster - b : b), cluster, threads, backwards);  \
    }
