// Exponentials of differences.
#pragma once

#include "msl/types.h"

// exp(x - y) by the hardware's base-2 exponential. The difference is taken first: it is small where the result counts,
// while x and y may be large, and their rounding to base 2 would be an error of the result.
inline accum exp_difference(accum x, accum y) { return fast::exp2((x - y) * LOG2_E); }
