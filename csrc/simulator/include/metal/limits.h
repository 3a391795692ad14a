// numeric_limits and the numeric constants that Metal defines as macros.
#pragma once

#include <climits>
#include <limits>

#include "scalar.h"

namespace simt {

// A 16-bit floating-point type described by bit patterns.
template <class T, int kDigits, int kDigits10, int kMaxExponent, uint16_t kEpsilon, uint16_t kMin, uint16_t kMax>
struct ShortFloatLimits : std::numeric_limits<float> {
    static constexpr int digits = kDigits, digits10 = kDigits10, max_digits10 = 2 + kDigits * 3 / 10;
    static constexpr int max_exponent = kMaxExponent, min_exponent = 3 - kMaxExponent;
    static constexpr T from(uint16_t bits) { return __builtin_bit_cast(T, bits); }
    static constexpr uint16_t infinity_bits = kMax + 1;
    static constexpr T min() { return from(kMin); }
    static constexpr T max() { return from(kMax); }
    static constexpr T lowest() { return from(kMax | 0x8000); }
    static constexpr T epsilon() { return from(kEpsilon); }
    static constexpr T infinity() { return from(infinity_bits); }
    static constexpr T quiet_NaN() { return from(infinity_bits | (infinity_bits >> 1 & ~infinity_bits)); }
    static constexpr T signaling_NaN() { return from(infinity_bits | 1); }
    static constexpr T denorm_min() { return from(1); }
    static constexpr T round_error() { return narrow<T>(0.5f); }
};

}  // namespace simt

namespace metal {

template <class T>
struct numeric_limits : std::numeric_limits<T> {};
template <>
struct numeric_limits<half> : simt::ShortFloatLimits<half, 11, 3, 16, 0x1400, 0x0400, 0x7bff> {};
template <>
struct numeric_limits<bfloat> : simt::ShortFloatLimits<bfloat, 8, 2, 128, 0x3c00, 0x0080, 0x7f7f> {};
template <class T>
struct numeric_limits<const T> : numeric_limits<T> {};

}  // namespace metal

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define HUGE_VALH (::metal::numeric_limits<half>::infinity())
#define MAXFLOAT __FLT_MAX__
#define MAXHALF (::metal::numeric_limits<half>::max())

#define FLT_DIG 6
#define FLT_EPSILON __FLT_EPSILON__
#define FLT_MANT_DIG 24
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define HALF_EPSILON (::metal::numeric_limits<half>::epsilon())
#define HALF_MAX (::metal::numeric_limits<half>::max())
#define HALF_MIN (::metal::numeric_limits<half>::min())

#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f

#define M_E_H half(M_E_F)
#define M_LOG2E_H half(M_LOG2E_F)
#define M_LOG10E_H half(M_LOG10E_F)
#define M_LN2_H half(M_LN2_F)
#define M_LN10_H half(M_LN10_F)
#define M_PI_H half(M_PI_F)
#define M_PI_2_H half(M_PI_2_F)
#define M_PI_4_H half(M_PI_4_F)
#define M_1_PI_H half(M_1_PI_F)
#define M_2_PI_H half(M_2_PI_F)
#define M_2_SQRTPI_H half(M_2_SQRTPI_F)
#define M_SQRT2_H half(M_SQRT2_F)
#define M_SQRT1_2_H half(M_SQRT1_2_F)
