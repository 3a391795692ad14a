// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/rows.h"

// What rows are reduced to: where it is not final, `accum`.
using result = RESULT;

struct alignas(8) ReductionArgs {
    long rows;
    long length;           // of a row
    long part_length;      // of the parts that threadgroups share a row in, a whole number of steps
    long sizes[8];         // of the dimensions that number the rows; the first ROW_RANK count
    long x_rows[8];        // elements between neighbours in each of them, of the input
    long dx_rows[8];       // of its gradient
    long reduced_rows[8];  // of what the rows are reduced to
    long y_rows[8];        // of the largest values
    long dy_rows[8];       // of their gradient
    long column_sizes[8];  // of the dimensions that number the elements of a row; the first COLUMN_RANK count
    long x_columns[8];
    long dx_columns[8];
    long reduced_part;  // elements between what neighbouring parts of a row are reduced to
};
static_assert(sizeof(ReductionArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");

// The thread's share of part group.y of its row, and where that part begins in the row.
struct Part {
    Share share;
    int start;
};
inline Part part_of(uint2 group, ushort thread_index, constant ReductionArgs& args) {
    Part part;
    part.start = group.y * args.part_length;
    part.share = share_of(group.x, thread_index, args.rows, min(args.length - part.start, args.part_length));
    return part;
}
