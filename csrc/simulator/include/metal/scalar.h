// Metal's scalar types, which it declares in the global namespace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "short_float.h"

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;

using bfloat = simt::ShortFloat<simt::BfloatFormat>;
#if defined(__FLT16_MAX__)
using half = _Float16;
#else
using half = simt::ShortFloat<simt::HalfFormat>;
#endif

static_assert(sizeof(long) == 8, "Metal's long has 64 bits");

template <class To, class From>
SIMT_INLINE constexpr To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
    return __builtin_bit_cast(To, value);
}

// Applies a macro to types. Metal declares its functions for each scalar type, not as templates, which decides between
// them and templates of the same name that kernels declare. It has no functions of bfloat.
#define SIMT_FOR_INTEGERS(macro) \
    macro(char) macro(uchar) macro(short) macro(ushort) macro(int) macro(uint) macro(long) macro(ulong)
#define SIMT_FOR_FLOATS(macro) macro(half) macro(float) macro(double)

namespace metal {
using ::bfloat;
using ::half;
using ::ptrdiff_t;
using ::size_t;
}  // namespace metal

namespace simt {

SIMT_INLINE float half_to_float(uint16_t bits) { return HalfFormat::decode(bits); }

// What a type is computed in: 16-bit types in float.
template <class T>
struct Wide {
    using type = T;
};
template <>
struct Wide<half> {
    using type = float;
};
template <>
struct Wide<bfloat> {
    using type = float;
};
template <class T>
using wide_t = typename Wide<T>::type;

// The same as static_cast<float>, without the library call that a compiler may make of it.
template <class T>
SIMT_INLINE constexpr wide_t<T> widen(T value) {
    if constexpr (std::is_same_v<T, half>) {
        return HalfFormat::decode(__builtin_bit_cast(uint16_t, value));
    } else {
        return static_cast<wide_t<T>>(value);
    }
}
template <class T>
SIMT_INLINE constexpr T narrow(wide_t<T> value) {
    if constexpr (std::is_same_v<T, half>) {
        return __builtin_bit_cast(half, HalfFormat::encode(value));
    } else {
        return static_cast<T>(value);
    }
}

}  // namespace simt
