// dQ = scale dS K with dS = P (dO V^T - delta) and P = exp(S - lse) recomputed: FlashAttention-2 (arXiv:2307.08691),
// algorithm 2, its query side.
//
// A threadgroup takes BQ queries of one head, ROW_TILES * 16 to a simdgroup, and walks over blocks of BK keys.
// Grid: (C ceil(Lq / BQ), Hq, B) threadgroups of THREADS threads, C = COLUMN_BLOCKS of which share out the columns.
#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/softcap.h"
#include "msl/softmax.h"
#include "msl/tile.h"
#include "ops/attention/args.h"
#include "ops/attention/block_pair.h"
#include "ops/attention/operand.h"
#include "ops/attention/rotary.h"

kernel void attention_backward_dq(const device element* q [[buffer(0)]], const device element* k [[buffer(1)]],
                                  const device element* v [[buffer(2)]],
                                  const device mask_element* attn_mask [[buffer(3)]],
                                  const device accum* cosines [[buffer(4)]], const device accum* sines [[buffer(5)]],
                                  const device accum* slopes [[buffer(6)]], const device uint* seed [[buffer(7)]],
                                  const device int* sequences [[buffer(8)]], const device element* d_o [[buffer(9)]],
                                  const device accum* lse [[buffer(10)]], const device accum* delta [[buffer(11)]],
                                  device element* dq [[buffer(12)]], constant AttentionArgs& args [[buffer(13)]],
                                  uint3 place [[threadgroup_position_in_grid]], uint3 grid [[threadgroups_per_grid]],
                                  ushort thread_index [[thread_index_in_threadgroup]],
                                  ushort simdgroup [[simdgroup_index_in_threadgroup]],
                                  ushort lane [[thread_index_in_simdgroup]]) {
#if STAGED
    threadgroup chunk tiles[pair_chunks<BK>()];
#else
    threadgroup chunk* const tiles = nullptr;
#endif

    const uint3 block = unswizzled(place), blocks = unswizzled(grid);
    const int head = block.y, key_head = head / args.group;
    const int D = args.head_size, DV = args.value_head_size;
    const Sequence sequence = sequence_of(args, sequences, block.z);
    const ScoreMask mask = score_mask(args, attn_mask, slopes, sequence, head);
    const Dropout dropout = dropout_of(args, seed, sequence, head);
    const int number = blocks.x - 1 - block.x;  // causal blocks with most keys start first
    const int first_column = number % COLUMN_BLOCKS * SUM_D, block_row = number / COLUMN_BLOCKS * BQ;
    const int i0 = block_row + simdgroup * OWN_ROWS;
    const int rows = mask.queries - i0;  // of this simdgroup's; may exceed OWN_ROWS or be negative
    if (SEQUENCES == SEQUENCES_ALL && block_row >= mask.queries) return;
    const int block_keys = mask.visible_keys(block_row + BQ - 1);
    const int team0 = block_row + team_row(simdgroup);
    const int own_keys = team0 < mask.queries ? mask.visible_keys(team0 + TEAM_ROWS - 1) : 0;
    const int first = mask.first_key(block_row) / BK * BK, own_first = mask.first_key(team0);
    const long q_stride = args.q_stride[2], do_stride = args.do_stride[2];
    q += sequence.query_offset(args.q_stride, head, 0);
    d_o += sequence.query_offset(args.do_stride, head, 0);

    const Rotary of_keys = rotary_tables(args, cosines, sines), of_queries = of_keys.from(args.query_position);
    Rows<BD> q_rows;
    Rows<BV> do_rows;
#if HOLD == HOLD_STAGED
    threadgroup chunk q_tile[staged_chunks<BQ, BD>()];
    threadgroup chunk do_tile[staged_chunks<BQ, BV>()];
    const int valid = mask.queries - block_row;
    stage<BQ, BD, THREADS>(q_tile, q + block_row * q_stride, q_stride, valid, D, of_queries.from(block_row),
                           thread_index);
    stage<BQ, BV, THREADS>(do_tile, d_o + block_row * do_stride, do_stride, valid, DV, thread_index);
    q_rows.start(q_tile, simdgroup);
    do_rows.start(do_tile, simdgroup);
#else
    q_rows.start(q + i0 * q_stride, q_stride, rows, D, of_queries.from(i0), lane);
    do_rows.start(d_o + i0 * do_stride, do_stride, rows, DV, not_turned(), lane);
#endif
    const long first_row = sequence.row(args, head, i0);
    rows_t lse_rows[ROW_TILES], delta_rows[ROW_TILES];
    for (short r = 0; r < ROW_TILES; r++) {
        lse_rows[r] = load_rows(lse + first_row + r * TILE, rows - r * TILE, lane);
        delta_rows[r] = load_rows(delta + first_row + r * TILE, rows - r * TILE, lane);
    }
    TileC acc[ROW_TILES][SUM_D / TILE];
    clear(acc);

    k += sequence.key_offset(args.k_stride, key_head, 0);
    v += sequence.key_offset(args.v_stride, key_head, 0);
    BlockPair<BK> pair = {tiles,
                          {k, args.k_stride[2], mask.keys, D, of_keys},
                          {v, args.v_stride[2], mask.keys, DV, not_turned()},
                          thread_index,
                          lane,
                          0};
    if (first < block_keys) pair.start(k, v, first);
    for (int j0 = first; j0 < block_keys; j0 += BK) {
        pair.prepare(j0);
        pair.wait(j0, block_keys);
        if (j0 >= own_keys || j0 + BK <= own_first) continue;

        TileC s[ROW_TILES][BK / TILE], dp[ROW_TILES][BK / TILE];
        q_rows.times_transposed(s, pair.first_at(j0));     // S = Q K^T
        do_rows.times_transposed(dp, pair.second_at(j0));  // dP = dO V^T
        SoftCap<ROW_TILES, BK / TILE> cap;
        cap.apply(s, args.scale, args.softcap);
        Dropped<false, ROW_TILES, BK / TILE> dropped;
        dropped.draw(dropout, i0, j0, lane);
        dropped.apply(dp);
        if (mask.touches(i0, j0, OWN_ROWS, BK)) apply<false>(mask, s, i0, j0, lane);
        for (short r = 0; r < ROW_TILES; r++)
            for (short j = 0; j < BK / TILE; j++)
                weights_and_gradient(s[r][j], dp[r][j], mask.unit, lse_rows[r], delta_rows[r]);  // dS = P (dP - delta)
        cap.take_back(dp);
        add_product(acc, dp, pair.first_at(j0), first_column / TILE);  // dQ += dS K
    }

    rows_t scale[ROW_TILES];
    for (short r = 0; r < ROW_TILES; r++) scale[r] = rows_t(args.scale);
    dq += sequence.query_offset(args.dq_stride, head, i0) + first_column;
    store(acc, scale, dq, args.dq_stride[2], rows, D - first_column, lane);
}
