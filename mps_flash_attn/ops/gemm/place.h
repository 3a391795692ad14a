// Which part of the work a threadgroup takes: a block of C, the matrix of the batch, and its share of the depth.
#pragma once

#include "ops/gemm/args.h"

struct Place {
    int row, column;  // first of the block
    int batch, split;
};

// Groups of `args.group` rows of blocks are walked through column by column, so that threadgroups that run at the same
// time share operands in the cache.
inline Place place_of(int number, constant GemmArgs& args) {
    const int block_rows = (args.rows + BM - 1) / BM, block_columns = (args.columns + BN - 1) / BN;
    const int matrix = number / (block_rows * block_columns), block = number % (block_rows * block_columns);
    const int group_blocks = args.group * block_columns;
    const int first_row = block / group_blocks * args.group, inside = block % group_blocks;
    const int height = min(int(args.group), block_rows - first_row);
    Place place;
    place.row = (first_row + inside % height) * BM;
    place.column = inside / height * BN;
    place.batch = matrix % args.batches;
    place.split = matrix / args.batches;
    return place;
}
