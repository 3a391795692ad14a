// One row of S partial results, the first of which lies apart from the others, and what each weighs in the whole.
#pragma once

#include "msl/exp_sum.h"
#include "ops/merge/args.h"

// Where a row of a tensor begins; `strides` is one of the struct's.
inline long row_offset(constant MergeArgs& args, long row, constant long (&strides)[8]) {
    return offset_of<ROW_RANK>(row, args.sizes, strides);
}

// A row of each of S tensors, with one element or D.
template <typename Pointer>
struct PartRows {
    Pointer first, others;
    long others_step, first_stride, others_stride;

    Pointer at(int part, int position) const thread {
        return part == 0 ? first + position * first_stride
                         : others + (part - 1) * others_step + position * others_stride;
    }
};

struct Weights {
    PartRows<const device accum*> lse;
    accum base, total;  // the log-sum-exp of all is base + log(total)
    int heaviest;       // the part that weighs most

    void start(PartRows<const device accum*> lse, int parts) thread {
        this->lse = lse;
        accum highest = -INFINITY;
        heaviest = 0;
        for (int part = 0; part < parts; part++)
            if (*lse.at(part, 0) > highest) heaviest = part, highest = *lse.at(part, 0);
        base = exp_base(highest);
        total = 0;
        for (int part = 0; part < parts; part++) total += exp_difference(*lse.at(part, 0), base);
    }
    // -inf where no part has a key.
    accum log_sum_exp() const thread { return total == 0 ? -INFINITY : base + log(total); }
    // exp(lse_s - lse); 0 for a part without keys, whose row is then not looked at.
    accum of(int part) const thread {
        const accum own = *lse.at(part, 0);
        return own == -INFINITY ? accum(0) : exp_difference(own, base) / total;
    }
};
inline Weights weights_of(constant MergeArgs& args, long row, const device accum* first, const device accum* others) {
    first += row_offset(args, row, args.first_lse_rows);
    others += row_offset(args, row, args.others_lse_rows);
    Weights weights;
    weights.start({first, others, args.others_lse_step, 0, 0}, args.parts);
    return weights;
}
