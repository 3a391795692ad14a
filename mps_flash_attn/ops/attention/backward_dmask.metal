// The gradient of an additive mask, dM = dS = P (dP - delta), summed over all that shares an element of it: batches,
// heads, and where it has one row or one column for all, queries (SUM_QUERIES) or keys (SUM_KEYS).
//
// A threadgroup owns BQ x BK elements, ROW_TILES * 16 rows to a simdgroup, and walks over what shares them, so that
// each sum has one owner and one order. Grid: (blocks of queries, blocks of keys, batches and heads of the mask)
// threadgroups of THREADS threads; one block stands for all queries, or keys, that are summed.
#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/softcap.h"
#include "msl/softmax.h"
#include "msl/tile.h"
#include "ops/attention/args.h"
#include "ops/attention/block_pair.h"
#include "ops/attention/operand.h"
#include "ops/attention/rotary.h"
#include "ops/attention/tile_sums.h"

kernel void attention_backward_dmask(
    const device element* q [[buffer(0)]], const device element* k [[buffer(1)]], const device element* v [[buffer(2)]],
    const device mask_element* attn_mask [[buffer(3)]], const device accum* cosines [[buffer(4)]],
    const device accum* sines [[buffer(5)]], const device accum* slopes [[buffer(6)]],
    const device uint* seed [[buffer(7)]], const device int* sequences [[buffer(8)]],
    const device element* d_o [[buffer(9)]], const device accum* lse [[buffer(10)]],
    const device accum* delta [[buffer(11)]], device mask_element* d_mask [[buffer(12)]],
    constant AttentionArgs& args [[buffer(13)]], uint3 block [[threadgroup_position_in_grid]],
    ushort thread_index [[thread_index_in_threadgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup chunk tiles[tiles_or_sums()];

    const int D = args.head_size, DV = args.value_head_size, queries = args.queries, keys = args.keys;
    const int mask_heads = args.mask_size[1], mask_batch = block.z / mask_heads, mask_head = block.z % mask_heads;
    const Range batches = sharing(mask_batch, args.mask_size[0], args.batches);
    const Range heads = sharing(mask_head, mask_heads, args.query_heads);
    const Range rows = SUM_QUERIES ? Range{0, queries} : Range{int(block.x * BQ), min(int(block.x + 1) * BQ, queries)};
    const Range columns = SUM_KEYS ? Range{0, keys} : Range{int(block.y * BK), min(int(block.y + 1) * BK, keys)};
    const Rotary of_keys = rotary_tables(args, cosines, sines), of_queries = of_keys.from(args.query_position);
    BlockPair<BK> pair = {tiles,
                          {k, args.k_stride[2], keys, D, of_keys},
                          {v, args.v_stride[2], keys, DV, not_turned()},
                          thread_index,
                          lane,
                          0};
    TileC acc[ROW_TILES][BK / TILE];
    clear(acc);

    for (int batch = batches.begin; batch < batches.end; batch++)
        for (int head = heads.begin; head < heads.end; head++) {
            const Sequence sequence = sequence_of(args, sequences, batch);
            const ScoreMask mask = score_mask(args, attn_mask, slopes, sequence, head);
            const Dropout dropout = dropout_of(args, seed, sequence, head);
            const int key_head = head / args.group;
            pair.start(k + sequence.key_offset(args.k_stride, key_head, 0),
                       v + sequence.key_offset(args.v_stride, key_head, 0), keys);
            for (int block_row = rows.begin; block_row < rows.end; block_row += BQ) {
                const int i0 = block_row + simdgroup * OWN_ROWS, own = queries - i0;
                const long first_row = sequence.row(args, head, i0);
                Rows<BD> q_rows;
                Rows<BV> do_rows;
                q_rows.start(q + sequence.query_offset(args.q_stride, head, i0), args.q_stride[2], own, D,
                             of_queries.from(i0), lane);
                do_rows.start(d_o + sequence.query_offset(args.do_stride, head, i0), args.do_stride[2], own, DV,
                              not_turned(), lane);
                const int end = min(columns.end, mask.visible_keys(block_row + BQ - 1));
                const int begin = max(columns.begin, mask.first_key(block_row) / BK * BK);
                for (int j0 = begin; j0 < end; j0 += BK) {
                    pair.prepare(j0);
                    pair.wait(j0, j0);
                    TileC s[ROW_TILES][BK / TILE], dp[ROW_TILES][BK / TILE];
                    q_rows.times_transposed(s, pair.first_at(j0));     // S = Q K^T
                    do_rows.times_transposed(dp, pair.second_at(j0));  // dP = dO V^T
                    SoftCap<ROW_TILES, BK / TILE> cap;
                    cap.apply(s, args.scale, args.softcap);
                    Dropped<false, ROW_TILES, BK / TILE> dropped;
                    dropped.draw(dropout, i0, j0, lane);
                    dropped.apply(dp);
                    apply<false>(mask, s, i0, j0, lane);
                    for (short r = 0; r < ROW_TILES; r++) {
                        const rows_t lse_rows = load_rows(lse + first_row + r * TILE, own - r * TILE, lane);
                        const rows_t delta_rows = load_rows(delta + first_row + r * TILE, own - r * TILE, lane);
                        for (short j = 0; j < BK / TILE; j++) {
                            weights_and_gradient(s[r][j], dp[r][j], mask.unit, lse_rows, delta_rows);
                            add(acc[r][j], dp[r][j]);
                        }
                    }
                }
            }
        }

    d_mask += (long(block.z) * args.mask_size[2] + rows.begin) * args.mask_size[3] + columns.begin;
    store_sums(acc, (threadgroup accum*)tiles, d_mask, rows.end - rows.begin, columns.end - columns.begin,
               args.mask_size[3], simdgroup, thread_index, lane);
}
