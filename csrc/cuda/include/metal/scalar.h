// Metal's scalar types and numeric limits.
#pragma once

#define SIMT_INLINE __device__ __forceinline__
#define METAL_FUNC __device__ __forceinline__

namespace metal_text {

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = unsigned long;
using ptrdiff_t = long;

static_assert(sizeof(long) == 8, "Metal's long has 64 bits");

}  // namespace metal_text

#include "traits.h"

namespace simt {

using namespace metal_text;

struct HalfFormat {
    static SIMT_INLINE float decode(ushort bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
    static SIMT_INLINE ushort encode(float value) {
        ushort bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
    }
};

// The upper half of a float.
struct BfloatFormat {
    static SIMT_INLINE float decode(ushort bits) { return __uint_as_float(uint{bits} << 16); }
    static SIMT_INLINE ushort encode(float value) {
        ushort bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
    }
};

template <class T>
constexpr bool is_float_or_wider = metal::is_same_v<T, float> || metal::is_same_v<T, double>;
// What an operation of a 16-bit number and a T is computed in.
template <class T>
using Computed = metal::conditional_t<is_float_or_wider<T>, T, float>;

// Stored in 16 bits, computed in float. An operation on two of them rounds its result back, which equals computing
// in 16 bits; one with an integer does too; one with a float gives a float.
template <class Format>
struct ShortFloat {
    ushort bits;

    ShortFloat() = default;
    template <class T, metal::enable_if_t<metal::is_cpp_arithmetic_v<T>, int> = 0>
    SIMT_INLINE ShortFloat(T value) : bits(Format::encode(static_cast<float>(value))) {}
    template <class Other>
    SIMT_INLINE explicit ShortFloat(ShortFloat<Other> value) : ShortFloat(static_cast<float>(value)) {}

    // Explicit to integers, so that `condition ? x : 0` has one type to settle on.
    template <class T, metal::enable_if_t<is_float_or_wider<T> || metal::is_same_v<T, bool>, int> = 0>
    SIMT_INLINE operator T() const {
        return static_cast<T>(Format::decode(bits));
    }
    template <class T, metal::enable_if_t<metal::is_integral_v<T> && !metal::is_same_v<T, bool>, int> = 0>
    SIMT_INLINE explicit operator T() const {
        return static_cast<T>(Format::decode(bits));
    }

    SIMT_INLINE ShortFloat operator+() const { return *this; }
    SIMT_INLINE ShortFloat operator-() const {
        ShortFloat result = *this;
        result.bits ^= 0x8000;
        return result;
    }
    SIMT_INLINE ShortFloat& operator++() { return *this = *this + ShortFloat(1); }
    SIMT_INLINE ShortFloat& operator--() { return *this = *this - ShortFloat(1); }

#define SIMT_ARITHMETIC(op)                                                                   \
    friend SIMT_INLINE ShortFloat operator op(ShortFloat a, ShortFloat b) {                   \
        return ShortFloat(Format::decode(a.bits) op Format::decode(b.bits));                  \
    }                                                                                         \
    template <class T, metal::enable_if_t<metal::is_cpp_arithmetic_v<T>, int> = 0>            \
    friend SIMT_INLINE auto operator op(ShortFloat a, T b) {                                  \
        return metal::conditional_t<is_float_or_wider<T>, T, ShortFloat>(                     \
            static_cast<Computed<T>>(Format::decode(a.bits)) op static_cast<Computed<T>>(b)); \
    }                                                                                         \
    template <class T, metal::enable_if_t<metal::is_cpp_arithmetic_v<T>, int> = 0>            \
    friend SIMT_INLINE auto operator op(T a, ShortFloat b) {                                  \
        return metal::conditional_t<is_float_or_wider<T>, T, ShortFloat>(                     \
            static_cast<Computed<T>>(a) op static_cast<Computed<T>>(Format::decode(b.bits))); \
    }                                                                                         \
    template <class T>                                                                        \
    SIMT_INLINE ShortFloat& operator op## = (T b) {                                           \
        return *this = ShortFloat(*this op b);                                                \
    }                                                                                         \
    template <class T, metal::enable_if_t<metal::is_cpp_arithmetic_v<T>, int> = 0>            \
    friend SIMT_INLINE T& operator op## = (T & a, ShortFloat b) {                             \
        return a = static_cast<T>(a op b);                                                    \
    }
    SIMT_ARITHMETIC(+)
    SIMT_ARITHMETIC(-)
    SIMT_ARITHMETIC(*)
    SIMT_ARITHMETIC(/)
#undef SIMT_ARITHMETIC

#define SIMT_COMPARISON(op)                                                        \
    friend SIMT_INLINE bool operator op(ShortFloat a, ShortFloat b) {              \
        return Format::decode(a.bits) op Format::decode(b.bits);                   \
    }                                                                              \
    template <class T, metal::enable_if_t<metal::is_cpp_arithmetic_v<T>, int> = 0> \
    friend SIMT_INLINE bool operator op(ShortFloat a, T b) {                       \
        return Format::decode(a.bits) op b;                                        \
    }                                                                              \
    template <class T, metal::enable_if_t<metal::is_cpp_arithmetic_v<T>, int> = 0> \
    friend SIMT_INLINE bool operator op(T a, ShortFloat b) {                       \
        return a op Format::decode(b.bits);                                        \
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

namespace metal_text {

using half = simt::ShortFloat<simt::HalfFormat>;
using bfloat = simt::ShortFloat<simt::BfloatFormat>;

template <class To, class From>
SIMT_INLINE constexpr To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
    return __builtin_bit_cast(To, value);
}

namespace metal {

using metal_text::bfloat;
using metal_text::half;

template <>
struct is_floating_point<half> : true_type {};
template <>
struct is_floating_point<bfloat> : true_type {};

// A type described by the bit patterns of its extremes.
template <class T, class Bits, Bits kEpsilon, Bits kMin, Bits kMax, Bits kSign>
struct FloatLimits {
    static constexpr bool is_specialized = true, is_signed = true, is_integer = false, has_infinity = true;
    static constexpr T from(Bits bits) { return __builtin_bit_cast(T, bits); }
    static constexpr T min() { return from(kMin); }
    static constexpr T max() { return from(kMax); }
    static constexpr T lowest() { return from(kMax | kSign); }
    static constexpr T epsilon() { return from(kEpsilon); }
    static constexpr T infinity() { return from(kMax + 1); }
    static constexpr T quiet_NaN() { return from((kMax + 1) | ((kMax + 1) >> 1 & ~(kMax + 1))); }
    static constexpr T denorm_min() { return from(1); }
};
template <class T>
struct numeric_limits {
    static constexpr bool is_specialized = true, is_signed = T(-1) < T(0), is_integer = true, has_infinity = false;
    static constexpr T max() {
        return is_signed ? static_cast<T>((T(1) << (sizeof(T) * 8 - 2)) - 1 + (T(1) << (sizeof(T) * 8 - 2)))
                         : static_cast<T>(~T(0));
    }
    static constexpr T min() { return is_signed ? static_cast<T>(-max() - 1) : T(0); }
    static constexpr T lowest() { return min(); }
};
template <>
struct numeric_limits<half> : FloatLimits<half, ushort, 0x1400, 0x0400, 0x7bff, 0x8000> {};
template <>
struct numeric_limits<bfloat> : FloatLimits<bfloat, ushort, 0x3c00, 0x0080, 0x7f7f, 0x8000> {};
template <>
struct numeric_limits<float> : FloatLimits<float, uint, 0x34000000, 0x00800000, 0x7f7fffff, 0x80000000> {};
template <>
struct numeric_limits<double>
    : FloatLimits<double, ulong, 0x3cb0000000000000, 0x0010000000000000, 0x7fefffffffffffff, 0x8000000000000000> {};

}  // namespace metal
}  // namespace metal_text

#undef INFINITY
#undef NAN
#define INFINITY (::metal_text::metal::numeric_limits<float>::infinity())
#define NAN (::metal_text::metal::numeric_limits<float>::quiet_NaN())
#define HUGE_VALF INFINITY
#define MAXFLOAT (::metal_text::metal::numeric_limits<float>::max())
#define FLT_MAX (::metal_text::metal::numeric_limits<float>::max())
#define FLT_MIN (::metal_text::metal::numeric_limits<float>::min())
#define FLT_EPSILON (::metal_text::metal::numeric_limits<float>::epsilon())
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_PI_F 3.14159265358979323846f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
