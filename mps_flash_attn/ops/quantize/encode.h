// The stored number that is nearest to a value, and the scale that brings values into its range: msl/stored.h the other
// way round.
#pragma once

#include "msl/stored.h"

// The largest number that is stored; the largest magnitude of a group becomes it.
constant constexpr float STORED_LARGEST = STORED == STORED_INT8       ? 127
                                          : STORED == STORED_FP8_E4M3 ? 448
                                          : STORED == STORED_FP8_E5M2 ? 57344
                                          : STORED == STORED_INT4     ? 7
                                                                      : 1;

// The scale of a group with this largest magnitude. NaN where that is no finite number, so that the whole group becomes
// NaN; 0 where the scale would be no normal number, which GPUs may take for 0 anyway.
inline float scale_of(accum largest) {
    const float scale = float(largest / STORED_LARGEST);
    if (!(scale <= 3.4028234664e38f)) return NAN;
    return scale >= 1.1754943508e-38f ? scale : 0;
}

// Rounded to nearest, ties to even.
inline uint float8_code(float value) {
    const uint bits = as_type<uint>(value), sign = bits >> 31 << 7, magnitude = bits & 0x7fffffff;
    constexpr int dropped = 23 - FLOAT8_MANTISSA;
    const uint odd = magnitude >> dropped & 1;
    uint code = ((magnitude + (1 << (dropped - 1)) - 1 + odd) >> dropped) - ((127 - FLOAT8_BIAS) << FLOAT8_MANTISSA);
    if (magnitude < uint(128 - FLOAT8_BIAS) << 23)  // below the smallest normal number, in steps of one size
        code = uint(rint(abs(value) / FLOAT8_STEP));
    return sign | code;
}

inline uint nf4_code(float value) {
    uint code = 0;
    for (short i = 0; i < 15; i++) code += value > (NF4[i] + NF4[i + 1]) / 2;
    return code;
}

// The bits of the number nearest to `value`, the lowest STORED_BITS ones. Over the scale of its group, a value is no
// larger than STORED_LARGEST but for rounding, so that none has to be held back.
inline uint stored_code(float value) {
    if (STORED == STORED_INT8 || STORED == STORED_INT4)
        return uint(int(rint(value))) & (STORED == STORED_INT8 ? 0xff : 0xf);
    return STORED == STORED_NF4 ? nf4_code(value) : float8_code(value);
}
