// Names of Metal's compiler that its own headers are made of. Kernels use them to give bfloat the functions that Metal
// lacks. The last argument of a mathematical one says whether to be fast.
#pragma once

#include "integer.h"
#include "math.h"
#include "simdgroup.h"

#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 1
#define __METAL_PRECISE_MATH__ 0

#define SIMT_BUILTIN(name)                          \
    template <class T>                              \
    SIMT_INLINE auto __metal_##name(T x, int = 0) { \
        return metal::name(x);                      \
    }
SIMT_BUILTIN(acos)
SIMT_BUILTIN(acosh)
SIMT_BUILTIN(asin)
SIMT_BUILTIN(asinh)
SIMT_BUILTIN(atan)
SIMT_BUILTIN(atanh)
SIMT_BUILTIN(ceil)
SIMT_BUILTIN(cos)
SIMT_BUILTIN(cosh)
SIMT_BUILTIN(cospi)
SIMT_BUILTIN(exp)
SIMT_BUILTIN(exp10)
SIMT_BUILTIN(exp2)
SIMT_BUILTIN(fabs)
SIMT_BUILTIN(floor)
SIMT_BUILTIN(fract)
SIMT_BUILTIN(ilogb)
SIMT_BUILTIN(log)
SIMT_BUILTIN(log10)
SIMT_BUILTIN(log2)
SIMT_BUILTIN(rint)
SIMT_BUILTIN(round)
SIMT_BUILTIN(rsqrt)
SIMT_BUILTIN(sin)
SIMT_BUILTIN(sinh)
SIMT_BUILTIN(sinpi)
SIMT_BUILTIN(sqrt)
SIMT_BUILTIN(tan)
SIMT_BUILTIN(tanh)
SIMT_BUILTIN(tanpi)
SIMT_BUILTIN(trunc)
#undef SIMT_BUILTIN

#define SIMT_BUILTIN(name)                            \
    template <class T>                                \
    SIMT_INLINE T __metal_##name(T x, T y, int = 0) { \
        return metal::name(x, y);                     \
    }
SIMT_BUILTIN(atan2)
SIMT_BUILTIN(copysign)
SIMT_BUILTIN(divide)
SIMT_BUILTIN(fdim)
SIMT_BUILTIN(fmax)
SIMT_BUILTIN(fmin)
SIMT_BUILTIN(fmod)
SIMT_BUILTIN(nextafter)
SIMT_BUILTIN(pow)
SIMT_BUILTIN(powr)
#undef SIMT_BUILTIN

#define SIMT_BUILTIN(name)                                 \
    template <class T>                                     \
    SIMT_INLINE T __metal_##name(T x, T y, T z, int = 0) { \
        return metal::name(x, y, z);                       \
    }
SIMT_BUILTIN(clamp)
SIMT_BUILTIN(fma)
SIMT_BUILTIN(fmax3)
SIMT_BUILTIN(fmedian3)
SIMT_BUILTIN(fmin3)
#undef SIMT_BUILTIN

template <class T>
SIMT_INLINE T __metal_frexp(T x, int* exponent, int = 0) {
    return metal::frexp(x, *exponent);
}
template <class T>
SIMT_INLINE T __metal_ldexp(T x, int k, int = 0) {
    return metal::ldexp(x, k);
}

SIMT_INLINE ushort __metal_get_simdgroup_size(ushort) { return simt::kLanes; }
SIMT_INLINE ushort __metal_get_thread_index_in_simdgroup(ushort) { return static_cast<ushort>(simt::self()->lane); }

#define __metal_simd_broadcast ::metal::simd_broadcast
#define __metal_simd_max ::metal::simd_max
#define __metal_simd_min ::metal::simd_min
#define __metal_simd_prefix_exclusive_product ::metal::simd_prefix_exclusive_product
#define __metal_simd_prefix_exclusive_sum ::metal::simd_prefix_exclusive_sum
#define __metal_simd_prefix_inclusive_product ::metal::simd_prefix_inclusive_product
#define __metal_simd_prefix_inclusive_sum ::metal::simd_prefix_inclusive_sum
#define __metal_simd_product ::metal::simd_product
#define __metal_simd_shuffle ::metal::simd_shuffle
#define __metal_simd_shuffle_and_fill_down ::metal::simd_shuffle_and_fill_down
#define __metal_simd_shuffle_and_fill_up ::metal::simd_shuffle_and_fill_up
#define __metal_simd_shuffle_down ::metal::simd_shuffle_down
#define __metal_simd_shuffle_rotate_down ::metal::simd_shuffle_rotate_down
#define __metal_simd_shuffle_rotate_up ::metal::simd_shuffle_rotate_up
#define __metal_simd_shuffle_up ::metal::simd_shuffle_up
#define __metal_simd_shuffle_xor ::metal::simd_shuffle_xor
#define __metal_simd_sum ::metal::simd_sum
#define __metal_simd_xor ::metal::simd_xor
