// What msl/tile_mma.h and msl/copy.h need of CUDA beside Metal's library.
#pragma once

#include "metal/simdgroup.h"

namespace simt {

// An address as instructions on shared memory take it.
SIMT_INLINE uint shared_address(const void* address) { return static_cast<uint>(__cvta_generic_to_shared(address)); }

// Two floats rounded to 16 bits, the first in the lower half.
template <class T>
SIMT_INLINE uint pack(float low, float high);
template <>
SIMT_INLINE uint pack<half>(float low, float high) {
    uint pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <>
SIMT_INLINE uint pack<bfloat>(float low, float high) {
    uint pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Loads four 8 x 8 matrices of 16-bit elements, a pair of which the lane gets of each; lane l gives the address of row
// l % 8 of matrix l / 8.
SIMT_INLINE void load_matrices(uint (&pair)[2][2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pair[0][0]), "=r"(pair[0][1]), "=r"(pair[1][0]), "=r"(pair[1][1])
                 : "r"(shared_address(row)));
}
SIMT_INLINE void load_matrices_transposed(uint (&pair)[2][2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pair[0][0]), "=r"(pair[0][1]), "=r"(pair[1][0]), "=r"(pair[1][1])
                 : "r"(shared_address(row)));
}

// c += a b, with c 16 x 8: [row slot][column of the pair].
template <class T>
SIMT_INLINE void multiply(float (&c)[2][2], const uint (&a)[2][2], const uint (&b)[2]);
#define SIMT_MULTIPLY(T, NAME)                                                                \
    template <>                                                                               \
    SIMT_INLINE void multiply<T>(float (&c)[2][2], const uint(&a)[2][2], const uint(&b)[2]) { \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                            \
            ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
            : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[1][0]), "+f"(c[1][1])                      \
            : "r"(a[0][0]), "r"(a[0][1]), "r"(a[1][0]), "r"(a[1][1]), "r"(b[0]), "r"(b[1]));  \
    }
SIMT_MULTIPLY(half, "f16")
SIMT_MULTIPLY(bfloat, "bf16")
#undef SIMT_MULTIPLY

// Floats as sums of two numbers of TF32, whose mantissa has 10 bits: `high` rounded to nearest, `low` what is left,
// rounded likewise. `high` is rounded as an integer, which may turn NaN into a number, but not `low`, which keeps it;
// an infinite number gives NaN.
template <int N>
struct Split {
    uint high[N], low[N];

    SIMT_INLINE Split(const float (&value)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            high[i] = (__float_as_uint(value[i]) + 0x1000) & 0xffffe000;
            asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low[i]) : "f"(value[i] - __uint_as_float(high[i])));
        }
    }
};
SIMT_INLINE void multiply_tf32(float (&c)[2][2], const uint (&a)[4], const uint (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[1][0]), "+f"(c[1][1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SIMT_INLINE void multiply_split(float (&c)[2][2], const Split<4>& a, const Split<2>& b) {
    multiply_tf32(c, a.low, b.high);
    multiply_tf32(c, a.high, b.low);
    multiply_tf32(c, a.high, b.high);
}

// Writes two neighbours at once: of two bytes each, or of more, which the compiler joins where it can.
template <class T>
SIMT_INLINE void store_together(T* place, T first, T second) {
    if constexpr (sizeof(T) == 2) {
        const auto bits = [](T value) { return uint(__builtin_bit_cast(unsigned short, value)); };
        *reinterpret_cast<uint*>(place) = bits(first) | bits(second) << 16;
    } else {
        place[0] = first;
        place[1] = second;
    }
}

// Copies 16 bytes from device to shared memory without waiting, or writes zeros where they are not inside.
SIMT_INLINE void start_copy(void* target, const void* source, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)),
                 "l"(__cvta_generic_to_global(source)), "r"(inside ? 16 : 0)
                 : "memory");
}
// Ends a group of copies.
SIMT_INLINE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all copies, or for all but the last PENDING groups of them.
template <int PENDING>
SIMT_INLINE void finish_copies() {
    if constexpr (PENDING == 0)
        asm volatile("cp.async.wait_all;" ::: "memory");
    else
        asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace simt
