// O = softmax(scale Q K^T + mask) V and the log-sum-exp of each row: FlashAttention-2 (arXiv:2307.08691), algorithm 1.
//
// A threadgroup takes BQ queries of one head, 16 to a simdgroup, and walks over blocks of BK keys.
// Grid: (ceil(Lq / BQ), Hq, B) threadgroups of THREADS threads.
#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/softmax.h"
#include "msl/tile.h"
#include "ops/attention/args.h"
#include "ops/attention/operand.h"

kernel void attention_forward(const device element* q [[buffer(0)]], const device element* k [[buffer(1)]],
                              const device element* v [[buffer(2)]], const device mask_element* attn_mask [[buffer(3)]],
                              device element* o [[buffer(4)]], device accum* lse [[buffer(5)]],
                              constant AttentionArgs& args [[buffer(6)]], uint3 block [[threadgroup_position_in_grid]],
                              uint3 blocks [[threadgroups_per_grid]],
                              ushort thread_index [[thread_index_in_threadgroup]],
                              ushort simdgroup [[simdgroup_index_in_threadgroup]],
                              ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup chunk k_tile[staged_chunks<BK, BD>()];
    threadgroup chunk v_tile[staged_chunks<BK, BD>()];

    const int batch = block.z, head = block.y, key_head = head / args.group, D = args.head_size;
    const ScoreMask mask = score_mask(args, attn_mask, batch, head);
    const int block_row = (blocks.x - 1 - block.x) * BQ;  // causal blocks with most keys start first
    const int i0 = block_row + simdgroup * TILE;
    const int rows = mask.queries - i0;  // of this simdgroup's tile; may exceed 16 or be negative
    const int block_keys = mask.visible_keys(block_row + BQ - 1);
    const int tile_keys = rows > 0 ? mask.visible_keys(i0 + TILE - 1) : 0;
    k += matrix_offset(args.k_stride, batch, key_head);
    v += matrix_offset(args.v_stride, batch, key_head);

    Rows q_rows;
    q_rows.start(q + matrix_offset(args.q_stride, batch, head) + i0 * args.q_stride[2], args.q_stride[2], rows, D,
                 lane);
    OnlineSoftmax softmax;
    softmax.start();
    TileC acc[BD / TILE];
    for (short d = 0; d < BD / TILE; d++) clear(acc[d]);

    for (int j0 = 0; j0 < block_keys; j0 += BK) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        stage<BK, BD, THREADS>(k_tile, k + j0 * args.k_stride[2], args.k_stride[2], mask.keys - j0, D, thread_index);
        stage<BK, BD, THREADS>(v_tile, v + j0 * args.v_stride[2], args.v_stride[2], mask.keys - j0, D, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (j0 >= tile_keys) continue;

        TileC s[BK / TILE];
        q_rows.times_transposed(s, (const threadgroup element*)k_tile);  // S = Q K^T
        for (short j = 0; j < BK / TILE; j++) mask.apply<false>(s[j], i0, j0 + j * TILE, lane);
        const rows_t factor = softmax.update(s);  // P = exp(S - m)
        for (short d = 0; d < BD / TILE; d++) scale_rows(acc[d], factor);
        add_product(acc, s, (const threadgroup element*)v_tile);  // O += P V
    }

    const rows_t inverse = softmax.finish();
    o += matrix_offset(args.o_stride, batch, head) + i0 * args.o_stride[2];
    for (short d = 0; d < BD / TILE; d++)
        store(acc[d], inverse, o + d * TILE, args.o_stride[2], rows, D - d * TILE, lane);
    lse += (batch * args.query_heads + head) * args.queries + i0;
    store_rows(softmax.log_sum_exp(), lse, rows, lane);
}
