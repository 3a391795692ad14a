// 16-bit floating-point types that the compiler does not have.
#pragma once

#include <cstdint>
#include <type_traits>

#include "config.h"

namespace simt {

SIMT_INLINE constexpr uint32_t float_bits(float value) { return __builtin_bit_cast(uint32_t, value); }
SIMT_INLINE constexpr float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// 1 sign, 8 exponent, 7 mantissa bits: the upper half of a float.
struct BfloatFormat {
    static SIMT_INLINE constexpr float decode(uint16_t bits) { return float_from_bits(uint32_t{bits} << 16); }
    // Rounds to nearest, ties to even; a NaN stays one.
    static SIMT_INLINE constexpr uint16_t encode(float value) {
        const uint32_t bits = float_bits(value);
        const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
        return static_cast<uint16_t>((value != value ? bits | 0x400000 : rounded) >> 16);
    }
};

// 1 sign, 5 exponent, 10 mantissa bits.
struct HalfFormat {
    static SIMT_INLINE constexpr float decode(uint16_t bits) {
        // Shifted into place the exponent is off by 112; a multiplication mends it, subnormals included.
        const uint32_t magnitude = uint32_t{bits} << 13 & 0x0fffe000;
        const float finite = float_from_bits(magnitude) * float_from_bits(0x77800000);
        const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000u : 0u;
        return float_from_bits(float_bits(finite) | special | (uint32_t{bits} & 0x8000) << 16);
    }
    static SIMT_INLINE constexpr uint16_t encode(float value) {
        const uint32_t sign = float_bits(value) >> 16 & 0x8000;
        const uint32_t bits = float_bits(value) & 0x7fffffff;
        if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (bits >> 13 & 0x1ff));
        if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
        if (bits < 0x38800000) {
            // Adding 1/2 aligns the last mantissa bit with that of a subnormal; the addition rounds.
            const float aligned = float_from_bits(bits) + 0.5f;
            return static_cast<uint16_t>(sign | (float_bits(aligned) - 0x3f000000));
        }
        return static_cast<uint16_t>(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
    }
};

template <class T>
inline constexpr bool is_float_or_wider = std::is_same_v<T, float> || std::is_same_v<T, double>;

// Stored in 16 bits, computed in float. An operation on two of them rounds its result back, which equals computing
// in 16 bits; one with an integer does too; one with a float gives a float.
template <class Format>
struct ShortFloat {
    uint16_t bits;

    ShortFloat() = default;
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>
    SIMT_INLINE constexpr ShortFloat(T value) : bits(Format::encode(static_cast<float>(value))) {}
#if defined(__FLT16_MAX__)
    SIMT_INLINE constexpr explicit ShortFloat(_Float16 value) : ShortFloat(static_cast<float>(value)) {}
#endif

    // Explicit to integers, so that `condition ? x : 0` has one type to settle on.
    template <class T, std::enable_if_t<is_float_or_wider<T> || std::is_same_v<T, bool>, int> = 0>
    SIMT_INLINE constexpr operator T() const {
        return static_cast<T>(Format::decode(bits));
    }
    template <class T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>, int> = 0>
    SIMT_INLINE constexpr explicit operator T() const {
        return static_cast<T>(Format::decode(bits));
    }
#if defined(__FLT16_MAX__)
    SIMT_INLINE constexpr explicit operator _Float16() const { return static_cast<_Float16>(Format::decode(bits)); }
#endif

    SIMT_INLINE constexpr ShortFloat operator+() const { return *this; }
    SIMT_INLINE constexpr ShortFloat operator-() const {
        ShortFloat result = *this;
        result.bits ^= 0x8000;
        return result;
    }
    SIMT_INLINE constexpr ShortFloat& operator++() { return *this = *this + ShortFloat(1); }
    SIMT_INLINE constexpr ShortFloat& operator--() { return *this = *this - ShortFloat(1); }

#define SIMT_ARITHMETIC(op)                                                                                  \
    friend SIMT_INLINE constexpr ShortFloat operator op(ShortFloat a, ShortFloat b) {                        \
        return ShortFloat(Format::decode(a.bits) op Format::decode(b.bits));                                 \
    }                                                                                                        \
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>                                   \
    friend SIMT_INLINE constexpr auto operator op(ShortFloat a, T b) {                                       \
        return std::conditional_t<is_float_or_wider<T>, T, ShortFloat>(                                      \
            static_cast<std::conditional_t<is_float_or_wider<T>, T, float>>(Format::decode(a.bits))          \
                op static_cast<std::conditional_t<is_float_or_wider<T>, T, float>>(b));                      \
    }                                                                                                        \
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>                                   \
    friend SIMT_INLINE constexpr auto operator op(T a, ShortFloat b) {                                       \
        return std::conditional_t<is_float_or_wider<T>, T, ShortFloat>(                                      \
            static_cast<std::conditional_t<is_float_or_wider<T>, T, float>>(a)                               \
                op static_cast<std::conditional_t<is_float_or_wider<T>, T, float>>(Format::decode(b.bits))); \
    }                                                                                                        \
    template <class T>                                                                                       \
    SIMT_INLINE constexpr ShortFloat& operator op## = (T b) {                                                \
        return *this = ShortFloat(*this op b);                                                               \
    }                                                                                                        \
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>                                   \
    friend SIMT_INLINE constexpr T& operator op## = (T & a, ShortFloat b) {                                  \
        return a = static_cast<T>(a op b);                                                                   \
    }
    SIMT_ARITHMETIC(+)
    SIMT_ARITHMETIC(-)
    SIMT_ARITHMETIC(*)
    SIMT_ARITHMETIC(/)
#undef SIMT_ARITHMETIC

#define SIMT_COMPARISON(op)                                                     \
    friend SIMT_INLINE constexpr bool operator op(ShortFloat a, ShortFloat b) { \
        return Format::decode(a.bits) op Format::decode(b.bits);                \
    }                                                                           \
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>      \
    friend SIMT_INLINE constexpr bool operator op(ShortFloat a, T b) {          \
        return Format::decode(a.bits) op b;                                     \
    }                                                                           \
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>      \
    friend SIMT_INLINE constexpr bool operator op(T a, ShortFloat b) {          \
        return a op Format::decode(b.bits);                                     \
    }
    SIMT_COMPARISON(==)
    SIMT_COMPARISON(!=)
    SIMT_COMPARISON(<)
    SIMT_COMPARISON(<=)
    SIMT_COMPARISON(>)
    SIMT_COMPARISON(>=)
#undef SIMT_COMPARISON
};

}  // namespace simt
