// Rung 10: matrix units. A simdgroup computes BM / WM x BN / WN elements as 16 x 16 tiles of the matrix layer: threads
// no longer multiply elements but take part in products of matrices, 8 x 8 x 8 each on an Apple GPU. Grid: (ceil(N /
// BN), ceil(M / BM)) threadgroups of 32 WM WN threads.
#include "ops/gemm/ladder/args.h"
#include "ops/gemm/operand.h"

constant constexpr short TM = BM / WM / TILE, TN = BN / WN / TILE;  // tiles that a simdgroup keeps

kernel void gemm_simdgroup_matrix(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                                  device element* c [[buffer(2)]], constant LadderArgs& args [[buffer(3)]],
                                  uint2 group [[threadgroup_position_in_grid]],
                                  ushort thread_index [[thread_index_in_threadgroup]],
                                  ushort simdgroup [[simdgroup_index_in_threadgroup]],
                                  ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup chunk a_block[block_chunks<BM, true>()];
    threadgroup chunk b_block[block_chunks<BN, false>()];
    const int M = args.rows, N = args.columns, K = args.depth, i0 = group.y * BM, j0 = group.x * BN;
    const short i = simdgroup / WN * TM * TILE, j = simdgroup % WN * TN * TILE;
    Source<BM, true> a_source;
    Source<BN, false> b_source;
    a_source.start(a, K, i0, M, K);
    b_source.start(b, N, j0, N, K);

    TileC acc[TM][TN];
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++) clear(acc[m][n]);
    for (int k = 0; k < K; k += BK) {
        a_source.stage_at(k, a_block, thread_index);
        b_source.stage_at(k, b_block, thread_index);
        finish_copies();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (short d = 0; d < BK; d += TILE) {
            TileA<element> left[TM];
            TileB<element> right[TN];
            for (short m = 0; m < TM; m++) a_source.load(left[m], a_block, i + m * TILE, d);
            for (short n = 0; n < TN; n++) b_source.load(right[n], b_block, j + n * TILE, d);
            for (short m = 0; m < TM; m++)
                for (short n = 0; n < TN; n++) mma(acc[m][n], left[m], right[n]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++) {
            const int row = i0 + i + m * TILE, column = j0 + j + n * TILE;
            store(acc[m][n], rows_t(1), c + row * args.columns + column, N, M - row, N - column, lane);
        }
}
