// What a row's elements are counted from: its mean, in two parts, as one float has too few digits for the mean of
// values that are large beside their differences.
//
// Define: CENTRED, 1 for LayerNorm; 0 for RMSNorm, which counts from 0.
#pragma once

#include "ops/norm/args.h"

struct Centre {
    accum mean, rest;

    accum deviation(accum value) const thread { return CENTRED ? (value - mean) - rest : value; }
};

// The sum of two numbers and what its rounding left (Knuth's TwoSum).
inline Centre centre_of(accum pivot, accum mean) {
    Centre centre;
    centre.mean = pivot + mean;
    const accum part = centre.mean - pivot;
    centre.rest = (pivot - (centre.mean - part)) + (mean - part);
    return centre;
}

// As the forward pass left it: statistics [3, rows] are rstd, mean and its rest; of RMSNorm, rstd alone.
inline Centre load_centre(const device accum* statistics, long row, long rows) {
    Centre centre;
    centre.mean = CENTRED ? statistics[rows + row] : 0;
    centre.rest = CENTRED ? statistics[2 * rows + row] : 0;
    return centre;
}
inline void store_centre(Centre centre, device accum* statistics, long row, long rows) {
#if CENTRED
    statistics[rows + row] = centre.mean;
    statistics[2 * rows + row] = centre.rest;
#endif
}
