// What label smoothing or probabilities need of a row beside the sum of its exponentials: the weighted sum of its
// values, kept relative to the largest so far like the exponentials, so that an offset common to a row costs no digits.
//
// Define: SPREAD, 0 or 1; without it the sum of the exponentials alone is kept.
#pragma once

#include "msl/exp_sum.h"

struct SmoothedSum {
    ExpSum exponentials;
#if SPREAD
    accum s;  // sum of w (value - base), with w the class's weight and base that of the exponentials
    accum w;  // sum of w
#endif

    void start() thread {
        exponentials.start();
#if SPREAD
        s = 0;
        w = 0;
#endif
    }
    void add(Pack<accum> values, Pack<accum> weights) thread {
#if SPREAD
        const accum before = exp_base(exponentials.m);
#endif
        exponentials.add(values);
#if SPREAD
        const accum base = exp_base(exponentials.m);
        s += w * (before - base);
        for (short i = 0; i < PACK; i++) {
            s += weights.at[i] * (values.at[i] - base);
            w += weights.at[i];
        }
#endif
    }
};

struct MergeSmoothed {
    SmoothedSum operator()(SmoothedSum a, SmoothedSum b) const thread {
        SmoothedSum sum;
        sum.exponentials = Merge()(a.exponentials, b.exponentials);
#if SPREAD
        const accum base = exp_base(sum.exponentials.m);
        sum.s = (a.s + a.w * (exp_base(a.exponentials.m) - base)) + (b.s + b.w * (exp_base(b.exponentials.m) - base));
        sum.w = a.w + b.w;
#endif
        return sum;
    }
};
inline SmoothedSum across(SmoothedSum sum, ushort bit) {
    sum.exponentials = across(sum.exponentials, bit);
#if SPREAD
    sum.s = across(sum.s, bit);
    sum.w = across(sum.w, bit);
#endif
    return sum;
}
