// dweight = sum over rows of dy xhat and dbias = sum over rows of dy, over the rows of one block: partial sums, which a
// reduction adds up. Nobody else writes them, so there are no atomics, and the order of additions is fixed.
//
// A lane takes PACK columns; the simdgroups of a threadgroup take the rows of its block in turn. Grid:
// (ceil(columns / (32 PACK)), blocks) threadgroups of THREADS threads. Define: SUMS, 1 for dweight, 2 for dbias too.
#include "msl/pack.h"
#include "msl/strides.h"
#include "ops/norm/args.h"
#include "ops/norm/centre.h"

constant constexpr short LANES = 32;
constant constexpr short SIMDGROUPS = THREADS / LANES;

kernel void norm_backward_parameters(const device element* x [[buffer(0)]],
                                     const device accum* statistics [[buffer(1)]],
                                     const device element* dy [[buffer(2)]], device accum* partials [[buffer(3)]],
                                     constant NormArgs& args [[buffer(4)]],
                                     uint2 block [[threadgroup_position_in_grid]],
                                     ushort simdgroup [[simdgroup_index_in_threadgroup]],
                                     ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup accum scratch[SUMS][SIMDGROUPS][LANES * PACK];
    const long column = (long(block.x) * LANES + lane) * PACK;
    const bool inside = column < args.length;
    const long last = min((block.y + 1) * args.block_rows, args.rows);

    accum sums[2][PACK] = {};
    for (long row = block.y * args.block_rows + simdgroup; row < last; row += SIMDGROUPS) {
        if (!inside) continue;
        const accum rstd = statistics[row];
        const Centre centre = load_centre(statistics, row, args.rows);
        const Pack<element> values = load_pack(x + offset_of<ROW_RANK>(row, args.sizes, args.x_rows) + column);
        const Pack<element> gradient = load_pack(dy + offset_of<ROW_RANK>(row, args.sizes, args.dy_rows) + column);
        for (short i = 0; i < PACK; i++) {
            sums[0][i] += accum(gradient.at[i]) * (centre.deviation(values.at[i]) * rstd);
            sums[1][i] += accum(gradient.at[i]);
        }
    }
    for (short which = 0; which < SUMS; which++)
        for (short i = 0; i < PACK; i++) scratch[which][simdgroup][lane * PACK + i] = sums[which][i];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (simdgroup > 0 || !inside) return;
    for (short which = 0; which < SUMS; which++)
        for (short i = 0; i < PACK; i++) {
            accum total = 0;
            for (short s = 0; s < SIMDGROUPS; s++) total += scratch[which][s][lane * PACK + i];
            partials[(which * args.blocks + block.y) * args.length + column + i] = total;
        }
}
