// Floating-point functions, comparisons, selection. metal::precise:: shares those of metal::, which are as precise as
// CUDA's; metal::fast:: takes the hardware's approximations where there are any.
//
// 16-bit types compute in float and round once. Vectors compute element by element.
#pragma once

#include "vec.h"

namespace metal_text {
namespace metal {

#define SIMT_SHARE(name) \
    namespace precise {  \
    using metal::name;   \
    }
#define SIMT_SHARE_WITH_FAST(name) \
    SIMT_SHARE(name)               \
    namespace fast {               \
    using metal::name;             \
    }

// A function of one argument for each floating-point type and its vectors.
#define SIMT_MATH_1(name, float_expression, double_expression)                  \
    SIMT_INLINE float name(float x) { return float_expression; }                \
    SIMT_INLINE double name(double x) { return double_expression; }             \
    SIMT_INLINE half name(half x) { return half(name(static_cast<float>(x))); } \
    template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>              \
    SIMT_INLINE T name(T x) {                                                   \
        return T(name(static_cast<float>(x)));                                  \
    }                                                                           \
    template <class T, int N>                                                   \
    SIMT_INLINE vec<T, N> name(vec<T, N> x) {                                   \
        return simt::generate<N>([&](int i) { return name(x.data[i]); });       \
    }
#define SIMT_CUDA_1(name)                      \
    SIMT_MATH_1(name, ::name##f(x), ::name(x)) \
    SIMT_SHARE_WITH_FAST(name)
// The same with an approximation of the float's function in metal::fast.
#define SIMT_FAST_1(name, approximation)             \
    SIMT_MATH_1(name, ::name##f(x), ::name(x))       \
    SIMT_SHARE(name)                                 \
    namespace fast {                                 \
    SIMT_MATH_1(name, approximation, metal::name(x)) \
    }

}  // namespace metal
}  // namespace metal_text

namespace simt {
// 2^x by the hardware, wrong by at most 2 units in the last place; denormal results are 0.
SIMT_INLINE float approximate_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
}  // namespace simt

namespace metal_text {
namespace metal {

SIMT_FAST_1(exp, ::__expf(x))
SIMT_FAST_1(exp2, simt::approximate_exp2(x))
SIMT_FAST_1(exp10, ::__exp10f(x))
SIMT_FAST_1(log, ::__logf(x))
SIMT_FAST_1(log2, ::__log2f(x))
SIMT_FAST_1(log10, ::__log10f(x))
SIMT_FAST_1(sin, ::__sinf(x))
SIMT_FAST_1(cos, ::__cosf(x))
SIMT_CUDA_1(sqrt)
SIMT_CUDA_1(rsqrt)
SIMT_CUDA_1(tan)
SIMT_CUDA_1(asin)
SIMT_CUDA_1(acos)
SIMT_CUDA_1(atan)
SIMT_CUDA_1(sinh)
SIMT_CUDA_1(cosh)
SIMT_CUDA_1(tanh)
SIMT_CUDA_1(asinh)
SIMT_CUDA_1(acosh)
SIMT_CUDA_1(atanh)
SIMT_CUDA_1(sinpi)
SIMT_CUDA_1(cospi)
SIMT_CUDA_1(floor)
SIMT_CUDA_1(ceil)
SIMT_CUDA_1(trunc)
SIMT_CUDA_1(round)
SIMT_CUDA_1(rint)
SIMT_CUDA_1(fabs)
SIMT_MATH_1(abs, ::fabsf(x), ::fabs(x))
SIMT_SHARE_WITH_FAST(abs)
SIMT_MATH_1(fract, ::fminf(x - ::floorf(x), 0x1.fffffep-1f), ::fmin(x - ::floor(x), 0x1.fffffffffffffp-1))
SIMT_SHARE_WITH_FAST(fract)
SIMT_MATH_1(saturate, ::fminf(::fmaxf(x, 0.0f), 1.0f), ::fmin(::fmax(x, 0.0), 1.0))
SIMT_SHARE_WITH_FAST(saturate)
SIMT_MATH_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x != x ? 0.0f : x, x > 0 ? 1.0 : x < 0 ? -1.0 : x != x ? 0.0 : x)
SIMT_SHARE_WITH_FAST(sign)
#undef SIMT_FAST_1
#undef SIMT_CUDA_1
#undef SIMT_MATH_1

// Functions of two arguments, of which either may be a scalar beside a vector.
#define SIMT_MATH_2(name, float_expression, double_expression)                                                 \
    SIMT_INLINE float name(float x, float y) { return float_expression; }                                      \
    SIMT_INLINE double name(double x, double y) { return double_expression; }                                  \
    SIMT_INLINE half name(half x, half y) { return half(name(static_cast<float>(x), static_cast<float>(y))); } \
    template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>                                             \
    SIMT_INLINE T name(T x, T y) {                                                                             \
        return T(name(static_cast<float>(x), static_cast<float>(y)));                                          \
    }                                                                                                          \
    SIMT_ELEMENTWISE_2(name)
#define SIMT_ELEMENTWISE_2(name)                                                     \
    template <class T, int N>                                                        \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, vec<T, N> y) {                           \
        return simt::generate<N>([&](int i) { return name(x.data[i], y.data[i]); }); \
    }                                                                                \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>     \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, S y) {                                   \
        return name(x, vec<T, N>(y));                                                \
    }                                                                                \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>     \
    SIMT_INLINE vec<T, N> name(S x, vec<T, N> y) {                                   \
        return name(vec<T, N>(x), y);                                                \
    }                                                                                \
    SIMT_SHARE_WITH_FAST(name)

// Of a number and a NaN, the number.
SIMT_MATH_2(fmax, ::fmaxf(x, y), ::fmax(x, y))
SIMT_MATH_2(fmin, ::fminf(x, y), ::fmin(x, y))
SIMT_MATH_2(pow, ::powf(x, y), ::pow(x, y))
SIMT_MATH_2(powr, ::powf(x, y), ::pow(x, y))
SIMT_MATH_2(atan2, ::atan2f(x, y), ::atan2(x, y))
SIMT_MATH_2(fmod, ::fmodf(x, y), ::fmod(x, y))
SIMT_MATH_2(copysign, ::copysignf(x, y), ::copysign(x, y))
SIMT_MATH_2(fdim, ::fdimf(x, y), ::fdim(x, y))
SIMT_MATH_2(step, y < x ? 0.0f : 1.0f, y < x ? 0.0 : 1.0)
SIMT_MATH_2(divide, x / y, x / y)
#undef SIMT_MATH_2

#define SIMT_MAX_MIN(T, larger, smaller)            \
    SIMT_INLINE T max(T x, T y) { return larger; }  \
    SIMT_INLINE T min(T x, T y) { return smaller; } \
    SIMT_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
#define SIMT_MAX_MIN_INTEGER(T) SIMT_MAX_MIN(T, x > y ? x : y, x < y ? x : y)
SIMT_MAX_MIN_INTEGER(char)
SIMT_MAX_MIN_INTEGER(uchar)
SIMT_MAX_MIN_INTEGER(short)
SIMT_MAX_MIN_INTEGER(ushort)
SIMT_MAX_MIN_INTEGER(int)
SIMT_MAX_MIN_INTEGER(uint)
SIMT_MAX_MIN_INTEGER(long)
SIMT_MAX_MIN_INTEGER(ulong)
SIMT_MAX_MIN(half, fmax(x, y), fmin(x, y))
SIMT_MAX_MIN(bfloat, fmax(x, y), fmin(x, y))
SIMT_MAX_MIN(float, ::fmaxf(x, y), ::fminf(x, y))
SIMT_MAX_MIN(double, ::fmax(x, y), ::fmin(x, y))
#undef SIMT_MAX_MIN_INTEGER
#undef SIMT_MAX_MIN
SIMT_ELEMENTWISE_2(max)
SIMT_ELEMENTWISE_2(min)
#undef SIMT_ELEMENTWISE_2
template <class T, int N, class L, class H>
SIMT_INLINE vec<T, N> clamp(vec<T, N> x, L low, H high) {
    return min(max(x, low), high);
}
SIMT_SHARE_WITH_FAST(clamp)
template <class T>
SIMT_INLINE T max3(T x, T y, T z) {
    return max(max(x, y), z);
}
template <class T>
SIMT_INLINE T min3(T x, T y, T z) {
    return min(min(x, y), z);
}
template <class T>
SIMT_INLINE T median3(T x, T y, T z) {
    return max(min(x, y), min(max(x, y), z));
}

// Functions of three arguments.
#define SIMT_MATH_3(name, float_expression, double_expression)                                  \
    SIMT_INLINE float name(float x, float y, float z) { return float_expression; }              \
    SIMT_INLINE double name(double x, double y, double z) { return double_expression; }         \
    SIMT_INLINE half name(half x, half y, half z) {                                             \
        return half(name(static_cast<float>(x), static_cast<float>(y), static_cast<float>(z))); \
    }                                                                                           \
    template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>                              \
    SIMT_INLINE T name(T x, T y, T z) {                                                         \
        return T(name(static_cast<float>(x), static_cast<float>(y), static_cast<float>(z)));    \
    }                                                                                           \
    template <class T, int N>                                                                   \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                         \
        return simt::generate<N>([&](int i) { return name(x.data[i], y.data[i], z.data[i]); }); \
    }                                                                                           \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                \
    SIMT_INLINE vec<T, N> name(vec<T, N> x, vec<T, N> y, S z) {                                 \
        return name(x, y, vec<T, N>(z));                                                        \
    }                                                                                           \
    SIMT_SHARE_WITH_FAST(name)
SIMT_MATH_3(fma, ::fmaf(x, y, z), ::fma(x, y, z))
SIMT_MATH_3(mix, x + (y - x) * z, x + (y - x) * z)
#undef SIMT_MATH_3

SIMT_INLINE float ldexp(float x, int k) { return ::ldexpf(x, k); }
SIMT_INLINE double ldexp(double x, int k) { return ::ldexp(x, k); }

// Of a floating-point number and of each element of a vector.
#define SIMT_CLASSIFY(name, expression)                                   \
    template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>      \
    SIMT_INLINE bool name(T argument) {                                   \
        const auto x = static_cast<simt::Computed<T>>(argument);          \
        return expression;                                                \
    }                                                                     \
    template <class T, int N>                                             \
    SIMT_INLINE vec<bool, N> name(vec<T, N> x) {                          \
        return simt::generate<N>([&](int i) { return name(x.data[i]); }); \
    }                                                                     \
    SIMT_SHARE_WITH_FAST(name)
SIMT_CLASSIFY(isnan, x != x)
SIMT_CLASSIFY(isinf, ::isinf(x))
SIMT_CLASSIFY(isfinite, ::isfinite(x))
SIMT_CLASSIFY(signbit, ::signbit(x))
#undef SIMT_CLASSIFY
#undef SIMT_SHARE_WITH_FAST
#undef SIMT_SHARE

// b where the condition holds, else a.
template <class T>
SIMT_INLINE T select(T a, T b, bool condition) {
    return condition ? b : a;
}
template <class T, int N>
SIMT_INLINE vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> condition) {
    return simt::generate<N>([&](int i) { return condition.data[i] ? b.data[i] : a.data[i]; });
}

template <int N>
SIMT_INLINE bool all(vec<bool, N> x) {
    bool result = true;
    for (int i = 0; i < N; ++i) result = result && x.data[i];
    return result;
}
template <int N>
SIMT_INLINE bool any(vec<bool, N> x) {
    bool result = false;
    for (int i = 0; i < N; ++i) result = result || x.data[i];
    return result;
}
SIMT_INLINE bool all(bool x) { return x; }
SIMT_INLINE bool any(bool x) { return x; }

template <class T, int N>
SIMT_INLINE T dot(vec<T, N> a, vec<T, N> b) {
    T sum = a.data[0] * b.data[0];
    for (int i = 1; i < N; ++i) sum += a.data[i] * b.data[i];
    return sum;
}

}  // namespace metal
}  // namespace metal_text
