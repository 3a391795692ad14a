// Rung 8: no bank conflicts, and rung 9 with other tile sizes. Rung 7 with rows of A^T that are PAD elements apart, so
// that the columns of A that a simdgroup writes at a time fall into different banks, and threads whose quads
// interleave. Grid: (ceil(N / BN), ceil(M / BM)) threadgroups of BM BN / (TM TN) threads.
#include "ops/gemm/ladder/double_buffer.h"

kernel void gemm_bank_conflicts(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                                device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                                uint2 group [[threadgroup_position_in_grid]],
                                ushort thread_index [[thread_index_in_threadgroup]]) {
    threadgroup quad a_tiles[2 * BK * (BM + PAD) / 4];
    threadgroup quad b_tiles[2 * BK * BN / 4];
    double_buffered<true, BM + PAD, BN>(a, b, c, args, group, thread_index, (threadgroup element*)a_tiles,
                                        (threadgroup element*)b_tiles);
}
