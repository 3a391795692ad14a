// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/types.h"

// What weight and bias hold: `element`, or float beside a shorter one. Define: PARAMETER.
using parameter = PARAMETER;

struct alignas(8) NormArgs {
    long rows;
    long columns;       // of a row, over which the mean is taken
    long row_sizes[4];  // the dimensions that rows are counted over; the first ROW_RANK are used
    // Elements between neighbours in those dimensions; within a row they are neighbours in memory.
    long x_stride[4];
    long residual_stride[4];
    long dy_stride[4];
    long dsum_stride[4];
    long blocks;      // that share the sum over all rows for the gradients of weight and bias
    long block_rows;  // rows of each
    alignas(8) accum eps;
};
static_assert(sizeof(NormArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
