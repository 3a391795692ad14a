// Rung 6: vectorised loads. Threads move four elements at a time; for that the tile of A is transposed on its way into
// threadgroup memory, so that the TM elements that a thread needs of it lie side by side.
// Grid: (ceil(N / BN), ceil(M / BM)) threadgroups of BM BN / (TM TN) threads.
#include "ops/gemm/ladder/block.h"

kernel void gemm_vectorised(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                            device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                            uint2 group [[threadgroup_position_in_grid]],
                            ushort thread_index [[thread_index_in_threadgroup]]) {
    threadgroup quad a_tile[BK * BM / 4];
    threadgroup quad b_tile[BK * BN / 4];
    threadgroup element* a_elements = (threadgroup element*)a_tile;
    threadgroup element* b_elements = (threadgroup element*)b_tile;
    const int M = args.rows, N = args.columns, K = args.depth, i0 = group.y * BM, j0 = group.x * BN;

    Share<BM, BK> a_share;
    Share<BK, BN> b_share;
    ThreadBlock<false, BM, BN> block;
    block.start(thread_index);
    for (int k = 0; k < K; k += BK) {
        a_share.fetch(a + i0 * args.depth + k, K, M - i0, K - k, thread_index);
        b_share.fetch(b + k * args.columns + j0, N, K - k, N - j0, thread_index);
        a_share.template put_transposed<BM>(a_elements, thread_index);
        b_share.template put<BN>(b_elements, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        block.multiply(a_elements, b_elements);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    block.write(c + i0 * args.columns + j0, N, M - i0, N - j0);
}
