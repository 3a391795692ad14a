// Rung 1: the definition. A thread computes one element of C; neighbouring threads take neighbouring rows.
// Grid: (M, N) threads.
#include "ops/gemm/ladder/args.h"

kernel void gemm_naive(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                       device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                       uint2 position [[thread_position_in_grid]]) {
    const int i = position.x, j = position.y;
    accum sum = 0;
    for (int k = 0; k < args.depth; k++) sum += accum(a[i * args.depth + k]) * accum(b[k * args.columns + j]);
    c[i * args.columns + j] = element(sum);
}
