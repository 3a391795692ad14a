// Functions of integers.
#pragma once

#include "math.h"

namespace metal_text {
namespace metal {

template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE T abs(T x) {
    return x < 0 ? static_cast<T>(-x) : x;
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE T popcount(T x) {
    return static_cast<T>(::__popcll(static_cast<make_unsigned_t<T>>(x)));
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE T clz(T x) {
    return static_cast<T>(::__clzll(static_cast<make_unsigned_t<T>>(x)) - (64 - static_cast<int>(sizeof(T)) * 8));
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE T ctz(T x) {
    return static_cast<T>(x == 0 ? sizeof(T) * 8 : ::__ffsll(static_cast<make_unsigned_t<T>>(x)) - 1);
}
SIMT_INLINE uint mulhi(uint a, uint b) { return ::__umulhi(a, b); }
SIMT_INLINE int mulhi(int a, int b) { return ::__mulhi(a, b); }
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE T rotate(T a, T b) {
    using Bits = make_unsigned_t<T>;
    constexpr int width = static_cast<int>(sizeof(T)) * 8;
    const Bits bits = static_cast<Bits>(a);
    return static_cast<T>((bits << (b & (width - 1))) | (bits >> (-b & (width - 1))));
}
template <class T, enable_if_t<is_integral_v<T>, int> = 0>
SIMT_INLINE T reverse_bits(T x) {
    return static_cast<T>(::__brevll(static_cast<make_unsigned_t<T>>(x)) >> (64 - sizeof(T) * 8));
}

}  // namespace metal
}  // namespace metal_text
