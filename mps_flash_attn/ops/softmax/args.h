// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/rows.h"

// What the result of the forward pass holds, and so its gradient.
using result = RESULT;

struct alignas(8) SoftmaxArgs {
    long rows;
    long length;      // of a row
    long sizes[8];    // of the dimensions that number the rows; the first ROW_RANK count
    long x_rows[8];   // elements between neighbours in each of them, of the input or its gradient
    long y_rows[8];   // of the output
    long dy_rows[8];  // of the output's gradient
    long x_stride;    // elements between neighbours in a row
    long y_stride;
    long dy_stride;
};
static_assert(sizeof(SoftmaxArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
