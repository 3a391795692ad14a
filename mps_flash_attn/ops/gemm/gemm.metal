// C = activation(A B + bias), each of them one matrix or a batch. Where the depth is split, `c` gets partial products.
//
// A threadgroup computes a block of BM x BN elements with WM x WN simdgroups, each of which keeps its part of the block
// as 16 x 16 accumulators. Blocks of A and B are staged in threadgroup memory, BK of the depth at a time. With more
// than one of STAGES the next steps are staged while this one is multiplied, and one barrier a step is enough. Grid:
// ceil(M / BM) ceil(N / BN) * batches * splits threadgroups of THREADS threads.
//
// Defines: BM BN BK WM WN THREADS STAGES; WGMMA, 1 where four simdgroups multiply together; BATCH_DIMS; A_DEPTH_LAST,
// B_DEPTH_LAST, 1 where neighbours in depth are neighbours in memory; RESULT, what `c` holds; EPILOGUE, 0 for partial
// products; those of epilogue.h.
#include "msl/strides.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/multiply.h"
#include "ops/gemm/place.h"

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
    Steps steps;
    steps.a.start(a + offset_of<BATCH_DIMS>(place.batch, args.batch_size, args.a_batch_stride), args.a_stride,
                  place.row, args.rows, k1);
    steps.b.start(b + offset_of<BATCH_DIMS>(place.batch, args.batch_size, args.b_batch_stride), args.b_stride,
                  place.column, args.columns, k1);
    steps.start(a_blocks[0], b_blocks[0], k0, k1, thread_index);
    const short own_row = simdgroup / WN * TM * TILE, own_column = simdgroup % WN * TN * TILE;
    TileC acc[TM][TN];
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++) clear(acc[m][n]);

    for (int step = 0; step < AHEAD; step++) steps.stage(step);
    for (int step = 0; step < steps.count; step++) {
        finish_copies<(AHEAD > 0 ? AHEAD - 1 : 0)>();
        threadgroup_barrier(mem_flags::mem_threadgroup);  // this step's blocks are there, those before are used
        steps.stage(step + AHEAD);
        if (AHEAD == 0) {
            finish_copies();
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        multiply(acc, steps, step, own_row, own_column);
    }
    finish_products();

    const long first = (long(place.split) * args.batches + place.batch) * args.rows * args.columns;
    for (short m = 0; m < TM; m++)
        for (short n = 0; n < TN; n++) {
            const int i = place.row + own_row + m * TILE, j = place.column + own_column + n * TILE;
            finish(acc[m][n], bias, z + first, c + first, i, j, args.rows, args.columns, lane);
        }
}
