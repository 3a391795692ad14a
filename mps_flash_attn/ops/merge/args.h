// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/rows.h"

// What the merged result holds, and so its gradient.
using result = RESULT;

struct alignas(8) MergeArgs {
    long rows;
    long length;       // of a row, D
    long parts;        // S: the first and S - 1 others
    long others_step;  // elements between neighbours of the others
    long others_lse_step;
    long d_others_step;
    long d_others_lse_step;
    long sizes[8];       // of the dimensions that number the rows; the first ROW_RANK count
    long first_rows[8];  // elements between neighbours in each of them
    long others_rows[8];
    long out_rows[8];  // of the result or its gradient
    long d_first_rows[8];
    long d_others_rows[8];
    long first_lse_rows[8];
    long others_lse_rows[8];
    long lse_rows[8];  // of the result's or its gradient
    long d_first_lse_rows[8];
    long d_others_lse_rows[8];
    long first_stride;  // elements between neighbours in a row
    long others_stride;
    long out_stride;
    long d_first_stride;
    long d_others_stride;
};
static_assert(sizeof(MergeArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
