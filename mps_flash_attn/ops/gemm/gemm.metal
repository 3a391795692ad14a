// C = activation(A B + bias), each of them one matrix or a batch. Where the depth is split, `c` gets partial products.
//
// A threadgroup computes a block of BM x BN elements with WM x WN simdgroups, each of which keeps its part of the block
// as 16 x 16 accumulators. Blocks of A and B are staged in threadgroup memory, BK of the depth at a time. With STAGES 2
// the next step is staged while this one is multiplied, and one barrier a step is enough.
// Grid: ceil(M / BM) ceil(N / BN) * batches * splits threadgroups of THREADS threads.
//
// Defines: BM BN BK WM WN THREADS STAGES; BATCH_DIMS; A_DEPTH_LAST, B_DEPTH_LAST, 1 where neighbours in depth are
// neighbours in memory; RESULT, what `c` holds; EPILOGUE, 0 for partial products; those of epilogue.h.
#include "msl/strides.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/operand.h"
#include "ops/gemm/place.h"

constant constexpr short TM = BM / WM / TILE, TN = BN / WN / TILE;  // tiles that a simdgroup keeps
using result = RESULT;

kernel void gemm(const device element* a [[buffer(0)]], const device element* b [[buffer(1)]],
                 const device element* bias [[buffer(2)]], device element* z [[buffer(3)]],
                 device result* c [[buffer(4)]], constant GemmArgs& args [[buffer(5)]],
                 uint3 group [[threadgroup_position_in_grid]], ushort thread_index [[thread_index_in_threadgroup]],
                 ushort simdgroup [[simdgroup_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup chunk a_blocks[STAGES][block_chunks<BM, A_DEPTH_LAST>()];
    threadgroup chunk b_blocks[STAGES][block_chunks<BN, B_DEPTH_LAST>()];

    const Place place = place_of(group.x, args);
    const int k0 = place.split * args.split_depth, k1 = min(k0 + args.split_depth, args.depth);
    Source<BM, A_DEPTH_LAST> a_source;
    Source<BN, B_DEPTH_LAST> b_source;
    a_source.start(a + offset_of<BATCH_DIMS>(place.batch, args.batch_size, args.a_batch_stride), args.a_stride,
                   place.row, args.rows, k1);
    b_source.start(b + offset_of<BATCH_DIMS>(place.batch, args.batch_size, args.b_batch_stride), args.b_stride,
                   place.column, args.columns, k1);
    const short own_row = simdgroup / WN * TM * TILE, own_column = simdgroup % WN * TN * TILE;
    TileC acc[TM][TN];
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++) clear(acc[m][n]);

    short now = 0;  // where this step's blocks are
    if (STAGES == 2) {
        a_source.stage_at(k0, a_blocks[now], thread_index);
        b_source.stage_at(k0, b_blocks[now], thread_index);
    }
    for (int k = k0; k < k1; k += BK) {
        finish_copies();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const short next = STAGES - 1 - now;
        const int ahead = k + (STAGES - 1) * BK;
        if (ahead < k1) {
            a_source.stage_at(ahead, a_blocks[next], thread_index);
            b_source.stage_at(ahead, b_blocks[next], thread_index);
        }
        if (STAGES == 1) {
            finish_copies();
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        for (short d = 0; d < BK; d += TILE) {
            TileA<element> left[TM];
            TileB<element> right[TN];
            for (short m = 0; m < TM; m++) a_source.load(left[m], a_blocks[now], own_row + m * TILE, d);
            for (short n = 0; n < TN; n++) b_source.load(right[n], b_blocks[now], own_column + n * TILE, d);
            for (short m = 0; m < TM; m++)
                for (short n = 0; n < TN; n++) mma(acc[m][n], left[m], right[n]);
        }
        now = next;
    }

    const long first = (long(place.split) * args.batches + place.batch) * args.rows * args.columns;
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++) {
            const int i = place.row + own_row + m * TILE, j = place.column + own_column + n * TILE;
            finish(acc[m][n], bias, z + first, c + first, i, j, args.rows, args.columns, lane);
        }
}
