// Count, mean and sum of squared deviations of a part of a row, and how two parts become one. Values are taken less a
// pivot, an element of the row: what they have in common then costs no digits of the mean.
//
// Define: CENTRED, 1 for LayerNorm; 0 for RMSNorm, whose deviations are from 0.
#pragma once

#include "msl/pack.h"
#include "msl/reduce.h"

struct Moments {
    accum count, mean, square;
};

// The moments of two parts together (Chan, Golub and LeVeque 1979). The part with the smaller mean comes first, so that
// swapping the operands gives the same bits, and the product of the deviations cannot overflow where a part is empty.
struct Merge {
    Moments operator()(Moments a, Moments b) const thread {
        Moments both;
        both.count = a.count + b.count;
        both.mean = 0;
        both.square = a.square + b.square;
#if CENTRED
        const bool swap = b.mean < a.mean;
        const accum low = swap ? b.mean : a.mean, high = swap ? a.mean : b.mean;
        const accum low_count = swap ? b.count : a.count, high_count = swap ? a.count : b.count;
        const accum share = both.count > 0 ? high_count / both.count : 0, difference = high - low;
        both.mean = low + difference * share;
        both.square += difference * (low_count * share) * difference;
#endif
        return both;
    }
};

inline Moments no_moments() {
    Moments none;
    none.count = none.mean = none.square = 0;
    return none;
}

// The moments of one pack, in two passes over registers.
inline Moments moments_of(Pack<accum> values, accum pivot) {
    Moments moments = no_moments();
    moments.count = PACK;
#if CENTRED
    for (short i = 0; i < PACK; i++) moments.mean += (values.at[i] - pivot) / PACK;
#endif
    for (short i = 0; i < PACK; i++) {
        const accum deviation = (values.at[i] - pivot) - moments.mean;
        moments.square += deviation * deviation;
    }
    return moments;
}

// For `reduce`.
inline Moments across(Moments value, ushort bit) {
    Moments other = no_moments();
#if CENTRED
    other.count = across(value.count, bit);
    other.mean = across(value.mean, bit);
#endif
    other.square = across(value.square, bit);
    return other;
}
