// Rung 2: coalesced access. The same sums, but neighbouring threads take neighbouring columns: what a simdgroup reads
// of B at a time, and writes of C, is one run of memory, and what it reads of A is one element. Grid: (N, M) threads.
#include "ops/gemm/ladder/args.h"

kernel void gemm_coalesced(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                           device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                           uint2 position [[thread_position_in_grid]]) {
    const int i = position.y, j = position.x;
    accum sum = 0;
    for (int k = 0; k < args.depth; k++) sum += accum(a[i * args.depth + k]) * accum(b[k * args.columns + j]);
    c[i * args.columns + j] = element(sum);
}
