// Numbers stored in 8 or 4 bits, which stand for value = scale * number: what the bits mean, and where they lie.
//
// A row of columns lies in bytes without gaps; of two columns that share a byte, the even one is in the low half.
// Numbers come out of their bits by operations on integers, so nothing but the row and its scales is read.
//
// Defines: STORED, one of the values below; for 4 bits STORED_GROUP, the even number of columns that share a scale.
// Formats of 8 bits have one scale a row.
#pragma once

#include "msl/types.h"

#define STORED_ELEMENTS 0  // as they are: nothing below is for them
#define STORED_INT8 1      // -127 to 127
#define STORED_FP8_E4M3 2  // 4 bits of exponent, 3 of mantissa, no infinities; largest 448 (arXiv:2209.05433)
#define STORED_FP8_E5M2 3  // the upper half of a `half`; largest finite number 57344
#define STORED_INT4 4      // -7 to 7
#define STORED_NF4 5       // sixteen quantiles of a normal distribution (arXiv:2305.14314, appendix E)

#define STORED_IN_GROUPS (STORED == STORED_INT4 || STORED == STORED_NF4)

constant constexpr short STORED_BITS = STORED_IN_GROUPS ? 4 : 8;

constant constexpr float NF4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// Of a floating-point number in a byte: bits of mantissa, the exponent's bias, and the largest finite magnitude.
constant constexpr int FLOAT8_MANTISSA = STORED == STORED_FP8_E4M3 ? 3 : 2;
constant constexpr int FLOAT8_BIAS = STORED == STORED_FP8_E4M3 ? 7 : 15;
constant constexpr uint FLOAT8_LARGEST = STORED == STORED_FP8_E4M3 ? 0x7e : 0x7b;
// The step between numbers below the smallest normal one: 2^-9 or 2^-16.
constant constexpr float FLOAT8_STEP = STORED == STORED_FP8_E4M3 ? 1.0f / 512 : 1.0f / 65536;

inline float float8_number(uint code) {
    const uint magnitude = code & 0x7f, sign = (code & 0x80) << 24;
    uint bits = (magnitude << (23 - FLOAT8_MANTISSA)) + ((127 - FLOAT8_BIAS) << 23);
    if (magnitude >> FLOAT8_MANTISSA == 0) bits = as_type<uint>(float(magnitude) * FLOAT8_STEP);
    if (magnitude > FLOAT8_LARGEST)  // E4M3 has one NaN, E5M2 infinity and three
        bits = 0x7f800000 | (STORED == STORED_FP8_E4M3 ? 1 << 22 : (magnitude & 3) << 21);
    return as_type<float>(sign | bits);
}

// The number that stands in the lowest STORED_BITS bits; those above are ignored.
inline float stored_number(uint code) {
    if (STORED == STORED_INT8) return int(code << 24) >> 24;
    if (STORED == STORED_INT4) return int(code << 28) >> 28;
    if (STORED == STORED_NF4) return NF4[code & 15];
    return float8_number(code);
}

// One column of a row, without its scale.
inline accum stored_value(const device uchar* row, int column) {
#if STORED_IN_GROUPS
    return stored_number(row[column / 2] >> (column % 2 * 4));
#else
    return stored_number(row[column]);
#endif
}

// The scale of one column, of the scales of its row.
inline accum stored_scale(const device float* scales, int column) {
#if STORED_IN_GROUPS
    return scales[column / STORED_GROUP];
#else
    return scales[0];
#endif
}
