// What varies from call to call. Every field is 8 bytes wide, so that the structs travel as lists of words.
#pragma once

#include "msl/types.h"

// Of one product C [batch][rows][columns] = A [batch][rows][depth] B [batch][depth][columns].
struct alignas(8) GemmArgs {
    // Batch dimensions, of which the first BATCH_DIMS count: sizes, and elements between neighbours, 0 where broadcast.
    long batch_size[4];
    long a_batch_stride[4];
    long b_batch_stride[4];
    long a_stride;     // elements between neighbouring rows of A, or columns where these are contiguous
    long b_stride;     // the same of B
    long rows;         // M
    long columns;      // N
    long depth;        // K
    long batches;      // matrices of C
    long group;        // rows of blocks that are computed together
    long split_depth;  // depth that one threadgroup sums over
};
static_assert(sizeof(GemmArgs) == GEMM_ARGS_BYTES, "args.h and the packing in launch.py disagree");

// Of what is done to the elements of C, and of its gradient.
struct alignas(8) EpilogueArgs {
    long elements;   // of C
    long columns;    // N
    long rows;       // of C, all batches
    long parts;      // partial results, one after the other
    long part_rows;  // rows that one threadgroup sums over
};
static_assert(sizeof(EpilogueArgs) == EPILOGUE_ARGS_BYTES, "args.h and the packing in launch.py disagree");
