// Exponentials, which softmax kernels spend their time in, and their count.
#pragma once

#include "../simt.h"
#include "short_float.h"

namespace simt {

SIMT_INLINE void count_exponential() {
#if defined(SIMT_CHECKED)
    if (Counters* const counters = self()->counters) ++counters->exponentials;
#endif
}

// value * 2^(n + m), rounded once, where 2^n and 2^m are normal floats and n + m lies in their range or just outside.
SIMT_INLINE float scale_by_powers(float value, int32_t n, int32_t m) {
    return value * float_from_bits(static_cast<uint32_t>(n + 127) << 23) *
           float_from_bits(static_cast<uint32_t>(m + 127) << 23);
}

// Rounds to the nearest integer, for |x| < 2^22: the sum has no room for a fraction.
constexpr float kRound = 0x1.8p23f;

// 2^x and e^x, wrong by at most 1.2 units in the last place.
SIMT_INLINE float exp2(float x) {
    count_exponential();
    x = x > 129.0f ? 129.0f : x;  // written so that a NaN passes
    x = x < -151.0f ? -151.0f : x;
    const float shifted = x + kRound;
    const int32_t n = static_cast<int32_t>(float_bits(shifted) - float_bits(kRound));
    const float f = x - (shifted - kRound);  // in [-1/2, 1/2], exact
    // (2^f - 1) / f in minimax.
    float p = 0x1.446ca6p-13f;
    p = p * f + 0x1.5f08bep-10f;
    p = p * f + 0x1.3b29e4p-7f;
    p = p * f + 0x1.c6af6cp-5f;
    p = p * f + 0x1.ebfbep-3f;
    p = p * f + 0x1.62e43p-1f;
    p = p * f + 1.0f;
    return scale_by_powers(p, n >> 1, n - (n >> 1));
}

SIMT_INLINE float exp(float x) {
    count_exponential();
    x = x > 89.0f ? 89.0f : x;
    x = x < -105.0f ? -105.0f : x;
    const float shifted = x * 0x1.715476p0f + kRound;
    const int32_t n = static_cast<int32_t>(float_bits(shifted) - float_bits(kRound));
    const float whole = shifted - kRound;
    // ln 2 in two parts, of which the first times `whole` is exact.
    const float r = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
    // (e^r - 1 - r) / r^2 in minimax.
    float p = 0x1.6d7572p-10f;
    p = p * r + 0x1.120b8ep-7f;
    p = p * r + 0x1.5554b8p-5f;
    p = p * r + 0x1.5554dcp-3f;
    p = p * r + 0x1p-1f;
    p = p * (r * r) + r + 1.0f;
    return scale_by_powers(p, n >> 1, n - (n >> 1));
}

SIMT_INLINE double exp2(double x) {
    count_exponential();
    return __builtin_exp2(x);
}
SIMT_INLINE double exp(double x) {
    count_exponential();
    return __builtin_exp(x);
}
SIMT_INLINE float exp10(float x) {
    count_exponential();
    return static_cast<float>(__builtin_pow(10.0, x));
}
SIMT_INLINE double exp10(double x) {
    count_exponential();
    return __builtin_pow(10.0, x);
}

}  // namespace simt
