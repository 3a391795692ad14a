// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/rows.h"

struct alignas(8) CrossEntropyArgs {
    long rows;
    long length;          // of a row: the number of classes
    long sizes[8];        // of the dimensions that number the rows; the first ROW_RANK count
    long x_rows[8];       // elements between neighbours in each of them, of the logits
    long dx_rows[8];      // of their gradient
    long target_rows[8];  // of the target
    long loss_rows[8];    // of the loss, the row's weight and each plane of the statistics
    long d_loss_rows[8];  // of the loss's gradient
    long x_stride;        // elements between neighbours in a row
    long dx_stride;
    long ignore_index;
    alignas(8) accum on_target;  // 1 - label_smoothing, for the target's class
    alignas(8) accum on_each;    // label_smoothing / classes, for each class
};
static_assert(sizeof(CrossEntropyArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");

// The weight of a class that exists.
inline accum weight_of(const device accum* weight, long c) { return WEIGHTED ? weight[c] : accum(1); }

// A row's class, and whether the row takes part: not if the class is to be ignored, nor if it does not exist.
struct Label {
    long c;
    bool counts;
    accum weight;  // of the class, 0 where the row does not take part
};
inline Label label_of(long c, const device accum* weight, constant CrossEntropyArgs& args) {
    Label label;
    label.c = c;
    label.counts = c >= 0 && c < args.length && c != args.ignore_index;
    label.weight = label.counts ? weight_of(weight, c) : accum(0);
    return label;
}
