// Comparisons, selection, minima and maxima: functions of scalars that apply to vectors element by element.
#pragma once

#include "vec.h"

namespace metal {

template <class T, enable_if_t<is_arithmetic_v<T>, int> = 0>
SIMT_INLINE constexpr bool isnan(T x) {
    return x != x;
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE bool isinf(T x) {
    return __builtin_isinf(static_cast<double>(x)) != 0;
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE bool isfinite(T x) {
    return __builtin_isfinite(static_cast<double>(x));
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE bool isnormal(T x) {
    return __builtin_isnormal(simt::widen(x));
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE bool signbit(T x) {
    return __builtin_signbit(static_cast<double>(x)) != 0;
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE constexpr bool isunordered(T x, T y) {
    return x != x || y != y;
}
template <class T, enable_if_t<is_floating_point_v<T>, int> = 0>
SIMT_INLINE constexpr bool isordered(T x, T y) {
    return !isunordered(x, y);
}

#define SIMT_ELEMENTWISE_1(name)                                     \
    template <class T, int N>                                        \
    SIMT_INLINE constexpr auto name(vec<T, N> x) {                   \
        return simt::generate<N>([&](int i) { return name(x[i]); }); \
    }
SIMT_ELEMENTWISE_1(isnan)
SIMT_ELEMENTWISE_1(isinf)
SIMT_ELEMENTWISE_1(isfinite)
SIMT_ELEMENTWISE_1(isnormal)
SIMT_ELEMENTWISE_1(signbit)
#undef SIMT_ELEMENTWISE_1

}  // namespace metal

namespace simt {

// Of a number and a NaN, the number. Two selections, of which CPUs have the first as an instruction; nobody predicts
// it.
template <class T>
SIMT_INLINE constexpr T larger(T a, T b) {
    const auto x = widen(a), y = widen(b);
    const auto chosen = x > y ? x : y;
    return narrow<T>(y == y ? chosen : x);
}
template <class T>
SIMT_INLINE constexpr T smaller(T a, T b) {
    const auto x = widen(a), y = widen(b);
    const auto chosen = x < y ? x : y;
    return narrow<T>(y == y ? chosen : x);
}

}  // namespace simt

namespace metal {

#define SIMT_MAX_MIN(T)                                                   \
    SIMT_INLINE constexpr T max(T a, T b) { return simt::larger(a, b); }  \
    SIMT_INLINE constexpr T min(T a, T b) { return simt::smaller(a, b); } \
    SIMT_INLINE constexpr T clamp(T x, T low, T high) { return simt::smaller(simt::larger(x, low), high); }
SIMT_FOR_INTEGERS(SIMT_MAX_MIN)
SIMT_FOR_FLOATS(SIMT_MAX_MIN)
#undef SIMT_MAX_MIN
template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>
SIMT_INLINE constexpr T max(T a, T b) {
    return simt::larger(a, b);
}
template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>
SIMT_INLINE constexpr T min(T a, T b) {
    return simt::smaller(a, b);
}
template <class T, enable_if_t<is_same_v<T, bfloat>, int> = 0>
SIMT_INLINE constexpr T clamp(T x, T low, T high) {
    return simt::smaller(simt::larger(x, low), high);
}

#define SIMT_ELEMENTWISE_2(name)                                                 \
    template <class T, int N>                                                    \
    SIMT_INLINE constexpr vec<T, N> name(vec<T, N> x, vec<T, N> y) {             \
        return simt::generate<N>([&](int i) { return name(x[i], y[i]); });       \
    }                                                                            \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0> \
    SIMT_INLINE constexpr vec<T, N> name(vec<T, N> x, S y) {                     \
        return name(x, vec<T, N>(y));                                            \
    }                                                                            \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0> \
    SIMT_INLINE constexpr vec<T, N> name(S x, vec<T, N> y) {                     \
        return name(vec<T, N>(x), y);                                            \
    }
SIMT_ELEMENTWISE_2(max)
SIMT_ELEMENTWISE_2(min)
#undef SIMT_ELEMENTWISE_2

template <class T>
SIMT_INLINE constexpr T max3(T a, T b, T c) {
    return max(max(a, b), c);
}
template <class T>
SIMT_INLINE constexpr T min3(T a, T b, T c) {
    return min(min(a, b), c);
}
template <class T>
SIMT_INLINE constexpr T median3(T a, T b, T c) {
    return max(min(a, b), min(max(a, b), c));
}
template <class T, int N, class L, class H>
SIMT_INLINE constexpr vec<T, N> clamp(vec<T, N> x, L low, H high) {
    return min(max(x, low), high);
}

// b where the condition holds, else a.
template <class T>
SIMT_INLINE constexpr T select(T a, T b, bool condition) {
    return condition ? b : a;
}
template <class T, int N>
SIMT_INLINE constexpr vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> condition) {
    return simt::generate<N>([&](int i) { return condition[i] ? b[i] : a[i]; });
}

template <int N>
SIMT_INLINE constexpr bool all(vec<bool, N> x) {
    bool result = true;
    for (int i = 0; i < N; ++i) result = result && x[i];
    return result;
}
template <int N>
SIMT_INLINE constexpr bool any(vec<bool, N> x) {
    bool result = false;
    for (int i = 0; i < N; ++i) result = result || x[i];
    return result;
}
SIMT_INLINE constexpr bool all(bool x) { return x; }
SIMT_INLINE constexpr bool any(bool x) { return x; }

}  // namespace metal
