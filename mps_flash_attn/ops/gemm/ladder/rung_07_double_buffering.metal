// Rung 7: double buffering. Rung 6 with two places for tiles, so that loading overlaps with computing.
// Grid: (ceil(N / BN), ceil(M / BM)) threadgroups of BM BN / (TM TN) threads.
#include "ops/gemm/ladder/double_buffer.h"

kernel void gemm_double_buffering(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                                  device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                                  uint2 group [[threadgroup_position_in_grid]],
                                  ushort thread_index [[thread_index_in_threadgroup]]) {
    threadgroup quad a_tiles[2 * BK * BM / 4];
    threadgroup quad b_tiles[2 * BK * BN / 4];
    double_buffered<false, BM, BN>(a, b, c, args, group, thread_index, (threadgroup element*)a_tiles,
                                   (threadgroup element*)b_tiles);
}
