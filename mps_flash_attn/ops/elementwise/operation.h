// What is computed of each element: out = COMBINE(ACTIVATION(x), y), and the derivatives of both.
//
// Defines: ACTIVATION, a struct of msl/activation.h, and COMBINE, one of this file.
#pragma once

#include "msl/activation.h"

// The second operand joins: `by_first` and `by_second` are the derivatives.
struct None {
    accum value(accum a, accum) const thread { return a; }
    accum by_first(accum) const thread { return 1; }
    accum by_second(accum) const thread { return 0; }
};
struct Add {
    accum value(accum a, accum b) const thread { return a + b; }
    accum by_first(accum) const thread { return 1; }
    accum by_second(accum) const thread { return 1; }
};
struct Multiply {
    accum value(accum a, accum b) const thread { return a * b; }
    accum by_first(accum b) const thread { return b; }
    accum by_second(accum a) const thread { return a; }
};
