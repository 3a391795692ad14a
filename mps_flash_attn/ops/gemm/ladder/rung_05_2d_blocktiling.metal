// Rung 5: two-dimensional blocktiling. A thread computes TM x TN elements: TM + TN reads of threadgroup memory serve
// TM TN products.
// Grid: (ceil(N / BN), ceil(M / BM)) threadgroups of BM BN / (TM TN) threads.
#include "ops/gemm/ladder/tiles.h"

kernel void gemm_2d_blocktiling(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                                device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                                uint2 group [[threadgroup_position_in_grid]],
                                ushort thread_index [[thread_index_in_threadgroup]]) {
    threadgroup element a_tile[BM * BK];
    threadgroup element b_tile[BK * BN];
    const int M = args.rows, N = args.columns, K = args.depth, i0 = group.y * BM, j0 = group.x * BN;
    const short i = thread_index / (BN / TN) * TM, j = thread_index % (BN / TN) * TN;

    accum sums[TM][TN] = {};
    for (int k = 0; k < K; k += BK) {
        fill<BM, BK>(a_tile, a + i0 * args.depth + k, K, M - i0, K - k, thread_index);
        fill<BK, BN>(b_tile, b + k * args.columns + j0, N, K - k, N - j0, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (short d = 0; d < BK; d++) {
            accum left[TM], right[TN];
            for (short m = 0; m < TM; m++) left[m] = a_tile[(i + m) * BK + d];
            for (short n = 0; n < TN; n++) right[n] = b_tile[d * BN + j + n];
            for (short m = 0; m < TM; m++)
                for (short n = 0; n < TN; n++) sums[m][n] += left[m] * right[n];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++)
            if (i0 + i + m < M && j0 + j + n < N) c[(i0 + i + m) * args.columns + j0 + j + n] = element(sums[m][n]);
}
