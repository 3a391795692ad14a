// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
//
// Defines: TOKEN_RANK, dimensions of the tokens: 1 where they are evenly spaced, else 4; INDEX, what indices are held
// in.
#pragma once

#include "msl/strides.h"

struct alignas(8) EmbeddingArgs {
    long sizes[4];    // of the tokens' dimensions
    long strides[4];  // of what the kernel reads of each token over them: its index, or its row of the gradient
    long tokens;      // N
    long rows;        // V, of the weight
    long columns;     // D, of the weight
    long row_stride;  // of the weight
    long column_stride;
    long padding_row;           // the row without a gradient, or -1
    alignas(8) accum max_norm;  // of a row, in the norm of this order
    alignas(8) accum norm_type;
};
static_assert(sizeof(EmbeddingArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");

inline long token_offset(constant EmbeddingArgs& args, long token) {
    return offset_of<TOKEN_RANK>(token, args.sizes, args.strides);
}
