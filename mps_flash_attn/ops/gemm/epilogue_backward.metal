// Gradients of activation(Z + bias) from dC: dZ = dC * activation'(Z), and for the bias the sums of dZ over part_rows
// rows, which gemm_reduce adds up. Without an activation dZ is dC, and is not written.
//
// A threadgroup takes 32 columns, one a lane, and part_rows rows, in turn by its simdgroups.
// Grid: (ceil(columns / 32), parts, 1) threadgroups of THREADS threads.
// Defines: BIAS, 1 when the sums are wanted; ACTIVE, 1 with an activation; ACTIVATION, a struct of activation.h.
#include "msl/activation.h"
#include "ops/gemm/args.h"

constant constexpr short LANES = 32;
constant constexpr short SIMDGROUPS = THREADS / LANES;

kernel void gemm_epilogue_backward(const device element* dc [[buffer(0)]], const device element* z [[buffer(1)]],
                                   device element* dz [[buffer(2)]], device accum* sums [[buffer(3)]],
                                   constant EpilogueArgs& args [[buffer(4)]],
                                   uint3 group [[threadgroup_position_in_grid]],
                                   ushort simdgroup [[simdgroup_index_in_threadgroup]],
                                   ushort lane [[thread_index_in_simdgroup]]) {
#if BIAS
    threadgroup accum simdgroup_sums[SIMDGROUPS][LANES];
#endif

    const int column = group.x * LANES + lane;
    const int begin = group.y * args.part_rows, end = min(begin + args.part_rows, args.rows);
    const ACTIVATION activation = ACTIVATION();
    accum sum = 0;
    if (column < args.columns)
        for (int row = begin + simdgroup; row < end; row += SIMDGROUPS) {
            const long at = row * args.columns + column;
            accum gradient = dc[at];
#if ACTIVE
            gradient *= activation.slope(z[at]);
            dz[at] = element(gradient);
#endif
            sum += gradient;
        }
#if BIAS
    simdgroup_sums[simdgroup][lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup > 0 || column >= args.columns) return;
    for (short other = 1; other < SIMDGROUPS; other++) sum += simdgroup_sums[other][lane];
    sums[group.y * args.columns + column] = sum;
#endif
}
