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
// A thread's states as they lie in memory, widened where they are read: those of 16 bits take half as many registers until then.
template <class T, int COUNT> struct Stored {
    static constexpr int WIDTH = state_vector<T, COUNT>();
    Pack<T, WIDTH> packs[COUNT / WIDTH];
    SCANC_INLINE auto operator[](int k) const { return widen_one(packs[k / WIDTH], k % WIDTH); }
};
template <class T, int WIDTH> SCANC_INLINE auto widen_one(const Pack<T, WIDTH>& pack, int j) { return widen(pack.element[j]); }
template <int WIDTH> SCANC_INLINE float widen_one(const Pack<bfloat16, WIDTH>& pack, int j) {
    return __uint_as_float(j % 2 ? pack.word[j / 2] & 0xffff0000u : pack.word[j / 2] << 16);
}
template <bool WHOLE = false, int COUNT, class T> SCANC_INLINE void load_states(Stored<T, COUNT>& to, const T* p, int stride, int count) {
    constexpr int WIDTH = Stored<T, COUNT>::WIDTH;
#pragma unroll
    for (int k = 0; k < COUNT / WIDTH; ++k) {
        if constexpr (WHOLE && Bits<sizeof(T) * WIDTH>::one) {
            to.packs[k].bits = *reinterpret_cast<const typename Bits<sizeof(T) * WIDTH>::type*>(p + k * WIDTH);
        } else {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) to.packs[k].element[j] = k * WIDTH + j < count ? p[index_t(k * WIDTH + j) * stride] : T{};
        }
    }
}
