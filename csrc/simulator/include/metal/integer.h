// Functions of integers and their vectors, and abs.
#pragma once

#include "limits.h"
#include "math.h"
#include "relational.h"

namespace metal {

#define SIMT_ABS(T) \
    SIMT_INLINE constexpr T abs(T x) { return x < 0 ? static_cast<T>(-x) : x; }
SIMT_FOR_INTEGERS(SIMT_ABS)
#undef SIMT_ABS

#define SIMT_INTEGER_1(name, expression)                                        \
    template <class T, enable_if_t<is_integral_v<T>, int> = 0>                  \
    SIMT_INLINE constexpr T name(T x) {                                         \
        using Bits = make_unsigned_t<T>;                                        \
        [[maybe_unused]] constexpr int width = static_cast<int>(sizeof(T)) * 8; \
        [[maybe_unused]] const Bits bits = static_cast<Bits>(x);                \
        return static_cast<T>(expression);                                      \
    }
SIMT_INTEGER_1(popcount, __builtin_popcountll(bits))
SIMT_INTEGER_1(clz, bits == 0 ? width : __builtin_clzll(bits) - (64 - width))
SIMT_INTEGER_1(ctz, bits == 0 ? width : __builtin_ctzll(bits))
#undef SIMT_INTEGER_1

template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE constexpr T reverse_bits(T x) {
    make_unsigned_t<T> from = static_cast<make_unsigned_t<T>>(x), to = 0;
    for (size_t i = 0; i < sizeof(T) * 8; ++i, from >>= 1) to = static_cast<make_unsigned_t<T>>(to << 1 | (from & 1));
    return static_cast<T>(to);
}

#define SIMT_ELEMENTWISE_1(name)                                     \
    template <class T, int N>                                        \
    SIMT_INLINE vec<T, N> name(vec<T, N> x) {                        \
        return simt::generate<N>([&](int i) { return name(x[i]); }); \
    }
SIMT_ELEMENTWISE_1(abs)
SIMT_ELEMENTWISE_1(popcount)
SIMT_ELEMENTWISE_1(clz)
SIMT_ELEMENTWISE_1(ctz)
SIMT_ELEMENTWISE_1(reverse_bits)
#undef SIMT_ELEMENTWISE_1

// Computed in twice the width, so that nothing overflows; `clip` brings the result back into T's range.
#define SIMT_INTEGER_2(name, expression)                                   \
    template <class T, enable_if_t<is_integral_v<T>, int> = 0>             \
    SIMT_INLINE constexpr T name(T a, T b) {                               \
        const __int128 x = a, y = b;                                       \
        return static_cast<T>(expression);                                 \
    }                                                                      \
    template <class T, int N>                                              \
    SIMT_INLINE constexpr vec<T, N> name(vec<T, N> a, vec<T, N> b) {       \
        return simt::generate<N>([&](int i) { return name(a[i], b[i]); }); \
    }
namespace detail {
template <class T>
SIMT_INLINE constexpr T clip(__int128 value) {
    const __int128 low = numeric_limits<T>::min(), high = numeric_limits<T>::max();
    return static_cast<T>(value < low ? low : value > high ? high : value);
}
}  // namespace detail
SIMT_INTEGER_2(mulhi, x* y >> (sizeof(T) * 8))
SIMT_INTEGER_2(addsat, detail::clip<T>(x + y))
SIMT_INTEGER_2(subsat, detail::clip<T>(x - y))
SIMT_INTEGER_2(hadd, (x + y) >> 1)
SIMT_INTEGER_2(rhadd, (x + y + 1) >> 1)
SIMT_INTEGER_2(absdiff, x > y ? x - y : y - x)
SIMT_INTEGER_2(rotate, (static_cast<make_unsigned_t<T>>(a) << (b & (sizeof(T) * 8 - 1))) |
                           (static_cast<make_unsigned_t<T>>(a) >> (-b & (sizeof(T) * 8 - 1))))
#undef SIMT_INTEGER_2

template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE constexpr T mad24(T a, T b, T c) {
    return a * b + c;
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE constexpr T mul24(T a, T b) {
    return a * b;
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE constexpr T madhi(T a, T b, T c) {
    return mulhi(a, b) + c;
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE constexpr T extract_bits(T x, uint offset, uint bits) {
    if (bits == 0) return 0;
    constexpr uint width = sizeof(T) * 8;
    return static_cast<T>(static_cast<T>(static_cast<make_unsigned_t<T>>(x) << (width - bits - offset)) >>
                          (width - bits));
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE constexpr T insert_bits(T base, T insert, uint offset, uint bits) {
    using Bits = make_unsigned_t<T>;
    const Bits mask =
        static_cast<Bits>((bits == sizeof(T) * 8 ? ~Bits(0) : static_cast<Bits>((Bits(1) << bits) - 1)) << offset);
    return static_cast<T>((static_cast<Bits>(base) & ~mask) |
                          (static_cast<Bits>(static_cast<Bits>(insert) << offset) & mask));
}

}  // namespace metal
