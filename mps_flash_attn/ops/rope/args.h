// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
//
// A row is numbered by (outer, inner, position). Positions may differ between batches, which are runs of outer numbers.
// Define: OUTER_RANK, outer dimensions that are told apart: 1 or 4.
#pragma once

#include "msl/strides.h"

struct alignas(8) RopeArgs {
    long outer_sizes[4];
    long input_outer[4];  // strides, in elements, of the outer dimensions, ...
    long output_outer[4];
    long input_stride[2];  // ... of the inner one and of positions; the last dimension has stride 1
    long output_stride[2];
    long inner;                  // size of the inner dimension
    long outer_per_batch;        // outer numbers that share positions
    long angle_stride[2];        // between batches and between positions, of the tables or of the tensor of positions
    long rotary_pairs;           // R / 2
    long offset;                 // the first position, where none are given
    alignas(8) accum direction;  // 1, or -1 for the inverse
};
static_assert(sizeof(RopeArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
