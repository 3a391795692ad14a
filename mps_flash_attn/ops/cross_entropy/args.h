// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
//
// Defines: PROBABILITIES, 1 where the target is a probability of each class, 0 where it is a class; TARGET, what it is
// held in; WEIGHTED, 1 for weights of classes other than 1; SPREAD, 1 where every class weighs in a row's loss, for
// label smoothing or probabilities; ROW_RANK; those of msl/rows.h.
#pragma once

#include "msl/rows.h"

using target_t = TARGET;

struct alignas(8) CrossEntropyArgs {
    long rows;
    long length;          // of a row: the number of classes
    long sizes[8];        // of the dimensions that number the rows; the first ROW_RANK count
    long x_rows[8];       // elements between neighbours in each of them, of the logits
    long dx_rows[8];      // of their gradient
    long target_rows[8];  // of the target
    long loss_rows[8];    // of the loss, the row's weight and each plane of the statistics
    long d_loss_rows[8];  // of the loss's gradient
    long d_target_rows[8];
    long x_stride;  // elements between neighbours in a row
    long dx_stride;
    long target_stride;  // of probabilities
    long d_target_stride;
    long ignore_index;
    alignas(8) accum on_target;  // 1 - label_smoothing, for the target
    alignas(8) accum on_each;    // label_smoothing / classes, for each class
};
static_assert(sizeof(CrossEntropyArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");

// The weight of a class that exists.
inline accum weight_of(const device accum* weight, long c) { return WEIGHTED ? weight[c] : accum(1); }

// A row's class, and whether the row takes part: not if the class is to be ignored, nor if it does not exist. A row of
// probabilities has no class.
struct Label {
    long c;
    bool counts;
    accum weight;  // of the class, 0 where the row does not take part; 1 of probabilities
};
inline Label label_of(const device target_t* target, const device accum* weight, constant CrossEntropyArgs& args) {
    Label label;
    label.c = PROBABILITIES ? -1 : long(target[0]);
    label.counts = PROBABILITIES || (label.c >= 0 && label.c < args.length && label.c != args.ignore_index);
    label.weight = PROBABILITIES ? accum(1) : label.counts ? weight_of(weight, label.c) : accum(0);
    return label;
}

// What the classes from `first` on weigh in the loss of a row that takes part, -sum of spread log p, without what its
// own class adds.
inline Pack<accum> spread_of(const device target_t* target, int first, const device accum* weight,
                             constant CrossEntropyArgs& args) {
    Pack<accum> spread = fill_pack(args.on_each);
#if PROBABILITIES
    const Pack<accum> given = load_values(target + first * args.target_stride);
    for (short i = 0; i < PACK; i++) spread.at[i] += args.on_target * given.at[i];
#endif
    for (short i = 0; i < PACK; i++) spread.at[i] = SPREAD ? weight_of(weight, first + i) * spread.at[i] : accum(0);
    return spread;
}
