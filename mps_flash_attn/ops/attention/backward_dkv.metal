// dV = P^T dO and dK = scale dS^T Q, summed over the query heads that share a key head: FlashAttention-2
// (arXiv:2307.08691), algorithm 2, its key side. Everything is transposed: rows of a tile are keys.
//
// A threadgroup takes BK keys of one key head, ROW_TILES * 16 to a simdgroup, and walks over blocks of BQ queries of
// each query head in turn, so no two threadgroups add to the same gradient. Grid: (C ceil(Lk / BK), Hkv, B)
// threadgroups of THREADS threads, C = COLUMN_BLOCKS of which share out the columns of both gradients. Define:
// STAGE_VALUES, 1 when the queries' lse and delta are staged beside the tiles, where memory has room for them.
#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/softcap.h"
#include "msl/softmax.h"
#include "msl/tile.h"
#include "ops/attention/args.h"
#include "ops/attention/block_pair.h"
#include "ops/attention/operand.h"
#include "ops/attention/rotary.h"

kernel void attention_backward_dkv(
    const device element* q [[buffer(0)]], const device element* k [[buffer(1)]], const device element* v [[buffer(2)]],
    const device mask_element* attn_mask [[buffer(3)]], const device accum* cosines [[buffer(4)]],
    const device accum* sines [[buffer(5)]], const device accum* slopes [[buffer(6)]],
    const device uint* seed [[buffer(7)]], const device int* sequences [[buffer(8)]],
    const device element* d_o [[buffer(9)]], const device accum* lse [[buffer(10)]],
    const device accum* delta [[buffer(11)]], device element* dk [[buffer(12)]], device element* dv [[buffer(13)]],
    constant AttentionArgs& args [[buffer(14)]], uint3 place [[threadgroup_position_in_grid]],
    ushort thread_index [[thread_index_in_threadgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]]) {
#if STAGED
    threadgroup chunk tiles[pair_chunks<BQ>()];
#else
    threadgroup chunk* const tiles = nullptr;
#endif

    const uint3 block = unswizzled(place);
    const int key_head = block.y, D = args.head_size, DV = args.value_head_size;
    const Sequence sequence = sequence_of(args, sequences, block.z);
    const int column_block = block.x % COLUMN_BLOCKS, block_row = block.x / COLUMN_BLOCKS * BK;
    const int j0 = block_row + simdgroup * OWN_ROWS, team0 = block_row + team_row(simdgroup);
    const int rows = sequence.keys - j0;  // of this simdgroup's; may exceed OWN_ROWS or be negative
    if (SEQUENCES != SEQUENCES_NONE && block_row >= sequence.keys) return;
    const long k_stride = args.k_stride[2], v_stride = args.v_stride[2];
    k += sequence.key_offset(args.k_stride, key_head, 0);
    v += sequence.key_offset(args.v_stride, key_head, 0);

    const Rotary of_keys = rotary_tables(args, cosines, sines), of_queries = of_keys.from(args.query_position);
    Rows<BD> k_rows;
    Rows<BV> v_rows;
#if HOLD == HOLD_STAGED
    threadgroup chunk k_tile[staged_chunks<BK, BD>()];
    threadgroup chunk v_tile[staged_chunks<BK, BV>()];
    const int block_rows = sequence.keys - block_row;
    stage<BK, BD, THREADS>(k_tile, k + block_row * k_stride, k_stride, block_rows, D, of_keys.from(block_row),
                           thread_index);
    stage<BK, BV, THREADS>(v_tile, v + block_row * v_stride, v_stride, block_rows, DV, thread_index);
    k_rows.start(k_tile, simdgroup);
    v_rows.start(v_tile, simdgroup);
#else
    k_rows.start(k + j0 * k_stride, k_stride, rows, D, of_keys.from(j0), lane);
    v_rows.start(v + j0 * v_stride, v_stride, rows, DV, not_turned(), lane);
#endif
#if STAGE_VALUES
    threadgroup accum lse_tile[BUFFERS][BQ];
    threadgroup accum delta_tile[BUFFERS][BQ];
#endif
    TileC dk_acc[ROW_TILES][SUM_D / TILE], dv_acc[ROW_TILES][SUM_V / TILE];
    clear(dk_acc);
    clear(dv_acc);

    const int queries = sequence.queries;
    BlockPair<BQ> pair = {tiles,
                          {q, args.q_stride[2], queries, D, of_queries},
                          {d_o, args.do_stride[2], queries, DV, not_turned()},
                          thread_index,
                          lane,
                          0};
    for (int head = key_head * args.group; head < (key_head + 1) * args.group; head++) {
        const ScoreMask mask = score_mask(args, attn_mask, slopes, sequence, head);
        const Dropout dropout = dropout_of(args, seed, sequence, head);
        const long first_row = sequence.row(args, head, 0);
        const int own_queries = team0 < sequence.keys ? mask.first_query(team0) : queries + BQ;  // masked before
        const int first = mask.first_query(block_row) / BQ * BQ, end = mask.seeing_queries(block_row + BK - 1);
        const int own_end = mask.seeing_queries(team0 + TEAM_ROWS - 1);

        if (first < end)
            pair.start(q + sequence.query_offset(args.q_stride, head, 0),
                       d_o + sequence.query_offset(args.do_stride, head, 0), first);
        for (int i0 = first; i0 < end; i0 += BQ) {
            pair.prepare(i0);
#if STAGE_VALUES
            const int valid = queries - i0;
            stage_values<BQ, THREADS>(lse_tile[pair.upcoming], lse + first_row + i0, valid, thread_index);
            stage_values<BQ, THREADS>(delta_tile[pair.upcoming], delta + first_row + i0, valid, thread_index);
#endif
            pair.wait(i0, end);
            if (i0 + BQ <= own_queries || i0 >= own_end) continue;

            TileC s[ROW_TILES][BQ / TILE], dp[ROW_TILES][BQ / TILE];
            k_rows.times_transposed(s, pair.first_at(i0));    // S^T = K Q^T
            v_rows.times_transposed(dp, pair.second_at(i0));  // dP^T = V dO^T
            SoftCap<ROW_TILES, BQ / TILE> cap;
            cap.apply(s, args.scale, args.softcap);
            Dropped<true, ROW_TILES, BQ / TILE> dropped;
            dropped.draw(dropout, i0, j0, lane);
            dropped.apply(dp);
            if (mask.touches(i0, j0, BQ, OWN_ROWS)) apply<true>(mask, s, i0, j0, lane);
            for (short i = 0; i < BQ / TILE; i++) {
                const int i_tile = i0 + i * TILE;
#if STAGE_VALUES
                const columns_t lse_columns = load_columns(lse_tile[pair.current()] + i * TILE, TILE, lane);
                const columns_t delta_columns = load_columns(delta_tile[pair.current()] + i * TILE, TILE, lane);
#else
                const columns_t lse_columns = load_columns(lse + first_row + i_tile, queries - i_tile, lane);
                const columns_t delta_columns = load_columns(delta + first_row + i_tile, queries - i_tile, lane);
#endif
                for (short r = 0; r < ROW_TILES; r++)
                    weights_and_gradient(s[r][i], dp[r][i], mask.unit, lse_columns,
                                         delta_columns);  // dS = P (dP - delta)
            }
            dropped.apply(s);
            cap.take_back(dp);
            add_product(dv_acc, s, pair.second_at(i0), column_block * SUM_V / TILE);  // dV += P^T dO
            add_product(dk_acc, dp, pair.first_at(i0), column_block * SUM_D / TILE);  // dK += dS^T Q
        }
    }

    rows_t scale[ROW_TILES], one[ROW_TILES];
    for (short r = 0; r < ROW_TILES; r++) {
        scale[r] = rows_t(args.scale);
        one[r] = rows_t(1);
    }
    const int dk_column = column_block * SUM_D, dv_column = column_block * SUM_V;
    dk += sequence.key_offset(args.dk_stride, key_head, j0) + dk_column;
    dv += sequence.key_offset(args.dv_stride, key_head, j0) + dv_column;
    store(dk_acc, scale, dk, args.dk_stride[2], rows, D - dk_column, lane);
    store(dv_acc, one, dv, args.dv_stride[2], rows, DV - dv_column, lane);
}
