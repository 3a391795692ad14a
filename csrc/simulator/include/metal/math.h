// Floating-point functions. metal::, metal::fast:: and metal::precise:: share them: nothing here is less than precise.
//
// 16-bit types compute in float and round once. Vectors compute element by element.
#pragma once

#include "../simt.h"
#include "exponential.h"
#include "limits.h"
#include "relational.h"

namespace metal {

// metal::fast and metal::precise name each function by itself, as kernels add overloads of their own to all three.
#define SIMT_SHARE(name) \
    namespace fast {     \
    using metal::name;   \
    }                    \
    namespace precise {  \
    using metal::name;   \
    }

// A function of one argument for each floating-point type and its vectors; `x` is its argument, in float or in double.
// Metal has none for bfloat, so kernels may define it: a template gives way to that.
#define SIMT_MATH_1(name, float_expression, double_expression)                         \
    SIMT_INLINE float name(float x) { return float_expression; }                       \
    SIMT_INLINE double name(double x) { return double_expression; }                    \
    SIMT_INLINE half name(half x) { return simt::narrow<half>(name(simt::widen(x))); } \
    template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>                     \
    SIMT_INLINE T name(T x) {                                                          \
        return T(name(simt::widen(x)));                                                \
    }                                                                                  \
    template <class T, int N>                                                          \
    SIMT_INLINE vec<T, N> name(vec<T, N> x) {                                          \
        return simt::generate<N>([&](int i) { return name(x[i]); });                   \
    }                                                                                  \
    SIMT_SHARE(name)
#define SIMT_BUILTIN_1(name) SIMT_MATH_1(name, __builtin_##name##f(x), __builtin_##name(x))

SIMT_MATH_1(exp, simt::exp(x), simt::exp(x))
SIMT_MATH_1(exp2, simt::exp2(x), simt::exp2(x))
SIMT_MATH_1(exp10, simt::exp10(x), simt::exp10(x))
SIMT_BUILTIN_1(log)
SIMT_BUILTIN_1(log2)
SIMT_BUILTIN_1(log10)
SIMT_BUILTIN_1(sqrt)
SIMT_MATH_1(rsqrt, static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(x))), 1.0 / __builtin_sqrt(x))
SIMT_BUILTIN_1(sin)
SIMT_BUILTIN_1(cos)
SIMT_BUILTIN_1(tan)
SIMT_BUILTIN_1(asin)
SIMT_BUILTIN_1(acos)
SIMT_BUILTIN_1(atan)
SIMT_BUILTIN_1(sinh)
SIMT_BUILTIN_1(cosh)
SIMT_BUILTIN_1(tanh)
SIMT_BUILTIN_1(asinh)
SIMT_BUILTIN_1(acosh)
SIMT_BUILTIN_1(atanh)
SIMT_BUILTIN_1(floor)
SIMT_BUILTIN_1(ceil)
SIMT_BUILTIN_1(trunc)
SIMT_BUILTIN_1(round)
SIMT_BUILTIN_1(rint)
SIMT_BUILTIN_1(fabs)
SIMT_MATH_1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f),
            __builtin_fmin(x - __builtin_floor(x), 0x1.fffffffffffffp-1))
SIMT_MATH_1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f), __builtin_fmin(__builtin_fmax(x, 0.0), 1.0))
SIMT_MATH_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x != x ? 0.0f : x, x > 0 ? 1.0 : x < 0 ? -1.0 : x != x ? 0.0 : x)
SIMT_MATH_1(sinpi, static_cast<float>(__builtin_sin(3.14159265358979323846 * __builtin_remainder(x, 2.0))),
            __builtin_sin(3.14159265358979323846 * __builtin_remainder(x, 2.0)))
SIMT_MATH_1(cospi, static_cast<float>(__builtin_cos(3.14159265358979323846 * __builtin_remainder(x, 2.0))),
            __builtin_cos(3.14159265358979323846 * __builtin_remainder(x, 2.0)))
SIMT_MATH_1(tanpi, static_cast<float>(__builtin_tan(3.14159265358979323846 * __builtin_remainder(x, 1.0))),
            __builtin_tan(3.14159265358979323846 * __builtin_remainder(x, 1.0)))
#undef SIMT_BUILTIN_1
#undef SIMT_MATH_1

// Functions of two arguments, of which either may be a scalar beside a vector.
#define SIMT_MATH_2(name, float_expression, double_expression)                                                 \
    SIMT_INLINE float name(float x, float y) { return float_expression; }                                      \
    SIMT_INLINE double name(double x, double y) { return double_expression; }                                  \
    SIMT_INLINE half name(half x, half y) { return simt::narrow<half>(name(simt::widen(x), simt::widen(y))); } \
    template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>                                             \
    SIMT_INLINE T name(T x, T y) {                                                                             \
        return T(name(simt::widen(x), simt::widen(y)));                                                        \
    }                                                                                                          \
    template <class T, int N>                                                                                  \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, vec<T, N> y) {                                                     \
        return simt::generate<N>([&](int i) { return name(x[i], y[i]); });                                     \
    }                                                                                                          \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                               \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, S y) {                                                             \
        return name(x, vec<T, N>(y));                                                                          \
    }                                                                                                          \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                               \
    SIMT_INLINE vec<T, N> name(S x, vec<T, N> y) {                                                             \
        return name(vec<T, N>(x), y);                                                                          \
    }                                                                                                          \
    SIMT_SHARE(name)
#define SIMT_BUILTIN_2(name) SIMT_MATH_2(name, __builtin_##name##f(x, y), __builtin_##name(x, y))

SIMT_BUILTIN_2(pow)
SIMT_MATH_2(powr, __builtin_powf(x, y), __builtin_pow(x, y))
SIMT_BUILTIN_2(atan2)
SIMT_BUILTIN_2(fmod)
SIMT_BUILTIN_2(copysign)
SIMT_BUILTIN_2(nextafter)
SIMT_BUILTIN_2(fdim)
SIMT_MATH_2(fmax, max(x, y), max(x, y))
SIMT_MATH_2(fmin, min(x, y), min(x, y))
SIMT_MATH_2(step, y < x ? 0.0f : 1.0f, y < x ? 0.0 : 1.0)
SIMT_MATH_2(divide, x / y, x / y)
#undef SIMT_BUILTIN_2
#undef SIMT_MATH_2

// Functions of three arguments.
#define SIMT_MATH_3(name, float_expression, double_expression)                           \
    SIMT_INLINE float name(float x, float y, float z) { return float_expression; }       \
    SIMT_INLINE double name(double x, double y, double z) { return double_expression; }  \
    SIMT_INLINE half name(half x, half y, half z) {                                      \
        return simt::narrow<half>(name(simt::widen(x), simt::widen(y), simt::widen(z))); \
    }                                                                                    \
    template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>                       \
    SIMT_INLINE T name(T x, T y, T z) {                                                  \
        return T(name(simt::widen(x), simt::widen(y), simt::widen(z)));                  \
    }                                                                                    \
    template <class T, int N>                                                            \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                  \
        return simt::generate<N>([&](int i) { return name(x[i], y[i], z[i]); });         \
    }                                                                                    \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>         \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, vec<T, N> y, S z) {                          \
        return name(x, y, vec<T, N>(z));                                                 \
    }                                                                                    \
    SIMT_SHARE(name)
SIMT_MATH_3(fmax3, max3(x, y, z), max3(x, y, z))
SIMT_MATH_3(fmin3, min3(x, y, z), min3(x, y, z))
SIMT_MATH_3(fmedian3, median3(x, y, z), median3(x, y, z))
SIMT_MATH_3(fma, __builtin_fmaf(x, y, z), __builtin_fma(x, y, z))
SIMT_MATH_3(mix, x + (y - x) * z, x + (y - x) * z)
SIMT_MATH_3(smoothstep, (z = saturate((z - x) / (y - x)), z * z * (3.0f - 2.0f * z)),
            (z = saturate((z - x) / (y - x)), z * z * (3.0 - 2.0 * z)))
#undef SIMT_MATH_3

SIMT_INLINE float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
SIMT_INLINE double ldexp(double x, int k) { return __builtin_ldexp(x, k); }
SIMT_INLINE half ldexp(half x, int k) { return simt::narrow<half>(__builtin_ldexpf(simt::widen(x), k)); }
template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>
SIMT_INLINE T ldexp(T x, int k) {
    return T(__builtin_ldexpf(simt::widen(x), k));
}
template <class T, int N>
SIMT_INLINE vec<T, N> ldexp(vec<T, N> x, vec<int, N> k) {
    return simt::generate<N>([&](int i) { return ldexp(x[i], k[i]); });
}

template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE T frexp(T x, int& exponent) {
    return static_cast<T>(__builtin_frexp(static_cast<double>(x), &exponent));
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE T modf(T x, T& whole) {
    whole = trunc(x);
    return copysign(isinf(x) ? T(0) : T(x - whole), x);
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE int ilogb(T x) {
    return __builtin_ilogb(static_cast<double>(x));
}
template <class T>
SIMT_INLINE T sincos(T x, T& cosine) {
    cosine = cos(x);
    return sin(x);
}

#define SIMT_ABS(T) \
    SIMT_INLINE T abs(T x) { return fabs(x); }
SIMT_FOR_FLOATS(SIMT_ABS)
#undef SIMT_ABS
template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>
SIMT_INLINE T abs(T x) {
    return fabs(x);
}

SIMT_SHARE(ldexp)
SIMT_SHARE(frexp)
SIMT_SHARE(modf)
SIMT_SHARE(ilogb)
SIMT_SHARE(sincos)
SIMT_SHARE(abs)
SIMT_SHARE(max)
SIMT_SHARE(min)
SIMT_SHARE(max3)
SIMT_SHARE(min3)
SIMT_SHARE(median3)
SIMT_SHARE(clamp)
SIMT_SHARE(isnan)
SIMT_SHARE(isinf)
SIMT_SHARE(isfinite)
SIMT_SHARE(isnormal)
SIMT_SHARE(signbit)

}  // namespace metal
