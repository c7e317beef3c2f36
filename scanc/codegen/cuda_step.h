// What CUDA kernels that begin early call, and those of form step, beside cuda.h.
// A kernel that is launched while the one before still runs has its blocks in place when that ends. It must wait before it reads or writes
// what others may have written or read; to bring memory nearer it need not.
#if !defined(SCANC_MACHINE) && __CUDA_ARCH__ >= 900
SCANC_INLINE void wait_for_earlier_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
SCANC_INLINE void let_later_kernels_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
template <int BYTES> SCANC_INLINE void bring_nearer(const void* p) {
#pragma unroll
    for (int at = 0; at < BYTES; at += 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(p) + at));
}
// The block's share of memory that a later kernel reads, by one instruction of a thread.
SCANC_INLINE void bring_share(const unsigned char* p, index_t bytes) {
    if (threadIdx.x != 0 || index_t(p) % 16 != 0) return;
    const unsigned lines = unsigned(bytes >> 7), share = (lines + gridDim.x - 1) / gridDim.x, first = share * block_here();
    if (first >= lines) return;
    const unsigned size = (lines - first < share ? lines - first : share) * 128;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p + index_t(first) * 128), "r"(size) : "memory");
}
#else
SCANC_INLINE void bring_share(const unsigned char*, index_t) {}
SCANC_INLINE void wait_for_earlier_kernels() {}
SCANC_INLINE void let_later_kernels_begin() {}
template <int BYTES> SCANC_INLINE void bring_nearer(const void*) {}
#endif
// A thread's COUNT states as they lie in memory, widened where they are read: those of 16 bits take half as many registers until then.
// GROUP of them lie together, and the next ones APART from there, behind those of the lane's other threads: what neighbours read and write by
// one instruction is then one piece of memory.
template <class T, int COUNT, int GROUP, int APART> struct Stored {
    static constexpr int WIDTH = state_vector<T, GROUP>();
    Pack<T, WIDTH> packs[COUNT / WIDTH];
    SCANC_INLINE auto operator[](int k) const { return widen_one(packs[k / WIDTH], k % WIDTH); }
};
template <class T, int WIDTH> SCANC_INLINE auto widen_one(const Pack<T, WIDTH>& pack, int j) { return widen(pack.element[j]); }
template <int WIDTH> SCANC_INLINE float widen_one(const Pack<bfloat16, WIDTH>& pack, int j) {
    return __uint_as_float(j % 2 ? pack.word[j / 2] & 0xffff0000u : pack.word[j / 2] << 16);
}
template <bool WHOLE = false, int COUNT, int GROUP, int APART, class T>
SCANC_INLINE void load_states(Stored<T, COUNT, GROUP, APART>& to, const T* p, int stride, int count) {
    constexpr int WIDTH = Stored<T, COUNT, GROUP, APART>::WIDTH;
#pragma unroll
    for (int k = 0; k < COUNT / WIDTH; ++k) {
        if constexpr (WHOLE && Bits<sizeof(T) * WIDTH>::one) {
            to.packs[k].bits = *reinterpret_cast<const typename Bits<sizeof(T) * WIDTH>::type*>(p + (k * WIDTH / GROUP * APART + k * WIDTH % GROUP));
        } else {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                const int at = k * WIDTH / GROUP * APART + k * WIDTH % GROUP + j;
                to.packs[k].element[j] = at < count ? p[index_t(at) * stride] : T{};
            }
        }
    }
}
// States are read again when the next token comes, with all the weights of a model in between: they leave the caches first.
#ifndef SCANC_MACHINE
template <class T> SCANC_INLINE void store_16_once(T* p, uint4 x) {
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w));
}
#else
template <class T> SCANC_INLINE void store_16_once(T* p, uint4 x) { store_16(p, x); }
#endif
template <bool WHOLE, int GROUP, int APART, int COUNT, class T, class V>
SCANC_INLINE void store_apart(T* p, int stride, const V (&from)[COUNT], int count) {
    constexpr int WIDTH = state_vector<T, GROUP>();
#pragma unroll
    for (int k = 0; k < COUNT; k += WIDTH) {
        V part[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) part[j] = from[k + j];
        const int at = k / GROUP * APART + k % GROUP;
        if constexpr (WHOLE && sizeof(T) * WIDTH == 16) {
            Pack<T, WIDTH> pack;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) pack.element[j] = Narrow<T>::of(part[j]);
            store_16_once(p + at, pack.bits);
        } else store_group<WHOLE>(p + index_t(at) * stride, stride, part, count - at);
    }
}
// Whether all of a thread's states are there, and vectors of each group.
template <int COUNT, int GROUP, int APART, class T> SCANC_INLINE bool states_apart(const T* p, int stride, int count) {
    return count >= (COUNT / GROUP - 1) * APART + GROUP && states_together<GROUP>(p, stride, GROUP);
}
