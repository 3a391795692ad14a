// Adds up the partial sums of backward_parameters.metal over the blocks, in their order.
//
// Grid: (columns, SUMS) threads.
#include "ops/norm/args.h"

kernel void norm_fold_parameters(const device accum* partials [[buffer(0)]], device parameter* gradients [[buffer(1)]],
                                 constant NormArgs& args [[buffer(2)]], uint2 position [[thread_position_in_grid]]) {
    accum total = 0;
    for (long block = 0; block < args.blocks; block++)
        total += partials[(position.y * args.blocks + block) * args.columns + position.x];
    gradients[position.y * args.columns + position.x] = parameter(total);
}
