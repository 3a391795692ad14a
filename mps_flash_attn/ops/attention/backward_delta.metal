// delta = rowsum(dO * O) - dlse, which both backward kernels subtract (FlashAttention-2, algorithm 2, line 4; the
// log-sum-exp's own gradient joins it because d lse / dS = P). A row that sees no key has P = 0: there dlse, which may
// be NaN where somebody computed with -inf, reaches nothing.
//
// One simdgroup a row. Grid: (32 Lq, Hq, B) threads in threadgroups of (THREADS, 1, 1).
#include "ops/attention/args.h"

kernel void attention_backward_delta(const device element* o [[buffer(0)]], const device element* d_o [[buffer(1)]],
                                     const device accum* d_lse [[buffer(2)]], const device accum* lse [[buffer(3)]],
                                     device accum* delta [[buffer(4)]], constant AttentionArgs& args [[buffer(5)]],
                                     uint3 position [[thread_position_in_grid]],
                                     ushort lane [[thread_index_in_simdgroup]]) {
    const int i = position.x / 32, head = position.y, batch = position.z;
    o += batch * args.o_stride[0] + head * args.o_stride[1] + i * args.o_stride[2];
    d_o += batch * args.do_stride[0] + head * args.do_stride[1] + i * args.do_stride[2];

    accum sum = 0;
    for (int d = lane; d < args.value_head_size; d += 32) sum += accum(o[d]) * accum(d_o[d]);
    sum = simd_sum(sum);

    const long row = (batch * args.query_heads + head) * args.queries + i;
    if (lane == 0) delta[row] = LSE_GRADIENT && lse[row] != -INFINITY ? sum - d_lse[row] : sum;
}
