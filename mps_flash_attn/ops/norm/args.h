// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/types.h"

// What weight and bias hold: `element`, or float beside a shorter one. Define: PARAMETER.
using parameter = PARAMETER;

struct alignas(8) NormArgs {
    long rows;
    long length;    // of a row, over which the mean is taken
    long sizes[8];  // of the dimensions that number the rows, in row-major order; the first ROW_RANK count
    // Elements between neighbours in each of them; those of a row are neighbours in memory.
    long x_rows[8];
    long residual_rows[8];
    long dy_rows[8];
    long dsum_rows[8];
    long blocks;      // that share the sum over all rows for the gradients of weight and bias
    long block_rows;  // rows of each
    alignas(8) accum eps;
};
static_assert(sizeof(NormArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
