// Rung 3: tiles in threadgroup memory. A threadgroup of BM x BN threads computes BM x BN elements, one a thread; an
// element of A or B is read from device memory once a threadgroup and then BN or BM times from threadgroup memory.
// Grid: (ceil(N / BN), ceil(M / BM)) threadgroups of THREADS threads.
#include "ops/gemm/ladder/tiles.h"

kernel void gemm_threadgroup_tiles(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                                   device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                                   uint2 group [[threadgroup_position_in_grid]],
                                   ushort thread_index [[thread_index_in_threadgroup]]) {
    threadgroup element a_tile[BM * BK];
    threadgroup element b_tile[BK * BN];
    const int M = args.rows, N = args.columns, K = args.depth, i0 = group.y * BM, j0 = group.x * BN;
    const short i = thread_index / BN, j = thread_index % BN;

    accum sum = 0;
    for (int k = 0; k < K; k += BK) {
        fill<BM, BK>(a_tile, a + i0 * args.depth + k, K, M - i0, K - k, thread_index);
        fill<BK, BN>(b_tile, b + k * args.columns + j0, N, K - k, N - j0, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (short d = 0; d < BK; d++) sum += accum(a_tile[i * BK + d]) * accum(b_tile[d * BN + j]);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (i0 + i < M && j0 + j < N) c[(i0 + i) * args.columns + j0 + j] = element(sum);
}
