// The sum of the exponentials of a row, kept relative to the row's largest value while that is still being found
// (Milakov and Gimelshein, arXiv:1805.02867, algorithm 3).
#pragma once

#include "msl/exp.h"
#include "msl/rows.h"

// What to subtract before exponentials of values up to m: while all are -inf, 0, so that their sum is 0 and not NaN.
inline accum exp_base(accum m) { return m == -INFINITY ? accum(0) : m; }

struct ExpSum {
    accum m;  // largest value so far
    accum l;  // sum of exp(value - m)

    void start() thread {
        m = -INFINITY;
        l = 0;
    }
    // A NaN among the values leaves m alone and makes l NaN.
    void add(Pack<accum> values) thread {
        accum highest = m;
        for (short i = 0; i < PACK; i++) highest = max(highest, values.at[i]);
        const accum base = exp_base(highest);
        l *= exp_difference(m, base);
        for (short i = 0; i < PACK; i++) l += exp_difference(values.at[i], base);
        m = highest;
    }
};

// Joins two parts of a row. Symmetric to the bit: of the two sums only the one with the smaller m is scaled.
struct Merge {
    ExpSum operator()(ExpSum a, ExpSum b) const thread {
        ExpSum sum;
        sum.m = max(a.m, b.m);
        const accum factor = exp_difference(min(a.m, b.m), exp_base(sum.m));
        sum.l = a.m < b.m ? a.l * factor + b.l : b.l * factor + a.l;
        return sum;
    }
};
inline ExpSum across(ExpSum sum, ushort bit) {
    sum.m = across(sum.m, bit);
    sum.l = across(sum.l, bit);
    return sum;
}
