// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/types.h"

struct alignas(8) ElementwiseArgs {
    long count;     // of elements
    long sizes[8];  // the dimensions that they are counted over; the first DIMS are used
    // Elements between neighbours in those dimensions, 0 where broadcast.
    long x_stride[8];
    long y_stride[8];
    long out_stride[8];  // of the result or, in the backward pass, of its gradient
    long dx_stride[8];
    long dy_stride[8];
    alignas(8) accum number;  // the second operand where that is no tensor
};
static_assert(sizeof(ElementwiseArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
