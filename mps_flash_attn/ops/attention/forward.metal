// O = dropout(softmax(cap(scale Q K^T) + mask)) V and the log-sum-exp of each row: FlashAttention-2 (arXiv:2307.08691),
// algorithm 1.
//
// A threadgroup takes BQ queries of one head, ROW_TILES * 16 to a simdgroup, and walks over blocks of BK keys. Where
// they are staged, the copy of a block's values goes on while its scores are computed, that of the next block's keys
// while its weights are applied. Grid: (C S ceil(Lq / BQ), Hq, B) threadgroups of THREADS threads: where queries are
// few, S of them share out the keys, and each writes a result of its own, to be merged (Dao et al., Flash-Decoding,
// 2023); where values are wide, C = COLUMN_BLOCKS of them share out their columns, SUM_V = BV to each. Define: OUTPUT,
// what O holds: elements, or for parts, which are not rounded before they are merged, sums.
#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/softcap.h"
#include "msl/softmax.h"
#include "msl/tile.h"
#include "ops/attention/args.h"
#include "ops/attention/block.h"
#include "ops/attention/cache.h"
#include "ops/attention/operand.h"
#include "ops/attention/rotary.h"

using output = OUTPUT;

kernel void attention_forward(const device element* q [[buffer(0)]], const device stored_element* k [[buffer(1)]],
                              const device stored_element* v [[buffer(2)]],
                              const device mask_element* attn_mask [[buffer(3)]],
                              const device accum* cosines [[buffer(4)]], const device accum* sines [[buffer(5)]],
                              const device accum* slopes [[buffer(6)]], const device accum* sinks [[buffer(7)]],
                              const device uint* seed [[buffer(8)]], const device int* sequences [[buffer(9)]],
                              const device int* block_table [[buffer(10)]], const device float* k_scales [[buffer(11)]],
                              const device float* v_scales [[buffer(12)]], device output* o [[buffer(13)]],
                              device accum* lse [[buffer(14)]], constant AttentionArgs& args [[buffer(15)]],
                              uint3 place [[threadgroup_position_in_grid]], uint3 grid [[threadgroups_per_grid]],
                              ushort thread_index [[thread_index_in_threadgroup]],
                              ushort simdgroup [[simdgroup_index_in_threadgroup]],
                              ushort lane [[thread_index_in_simdgroup]]) {
#if STAGED
    threadgroup chunk k_tile[staged_chunks<BK, BD>()];
    threadgroup chunk v_tile[staged_chunks<BK, BV>()];
#else
    threadgroup chunk *const k_tile = nullptr, *const v_tile = nullptr;
#endif

    const uint3 block = unswizzled(place), blocks = unswizzled(grid);
    const int head = block.y, key_head = head / args.group, D = args.head_size;
    const Sequence sequence = sequence_of(args, sequences, block.z);
    const ScoreMask mask = score_mask(args, attn_mask, slopes, sequence, head);
    const Dropout dropout = dropout_of(args, seed, sequence, head);
    const int number = blocks.x - 1 - block.x;  // causal blocks with most keys start first
    const int first_column = number % COLUMN_BLOCKS * SUM_V, columns = args.value_head_size - first_column;
    const int splits = args.splits, split = number / COLUMN_BLOCKS % splits;
    const int block_row = number / COLUMN_BLOCKS / splits * BQ;
    const int i0 = block_row + simdgroup * OWN_ROWS;
    const int rows = mask.queries - i0;  // of this simdgroup's; may exceed OWN_ROWS or be negative
    if (SEQUENCES == SEQUENCES_ALL && block_row >= mask.queries) return;
    const int split_keys = args.split_keys, split_start = split * split_keys;
    const int block_keys = split_start + min(mask.visible_keys(block_row + BQ - 1) - split_start, split_keys);
    const int team0 = block_row + team_row(simdgroup);
    const int own_keys = team0 < mask.queries ? mask.visible_keys(team0 + TEAM_ROWS - 1) : 0;
    const int first = max(split_start, mask.first_key(block_row) / BK * BK), own_first = mask.first_key(team0);
    const long q_stride = args.q_stride[2];
    q += sequence.query_offset(args.q_stride, head, 0);

    const Rotary of_keys = rotary_tables(args, cosines, sines), of_queries = of_keys.from(args.query_position);
    Rows<BD> q_rows;
#if HOLD == HOLD_STAGED
    threadgroup chunk q_tile[staged_chunks<BQ, BD>()];
    stage<BQ, BD, THREADS>(q_tile, q + block_row * q_stride, q_stride, mask.queries - block_row, D,
                           of_queries.from(block_row), thread_index);
    q_rows.start(q_tile, simdgroup);
#else
    q_rows.start(q + i0 * q_stride, q_stride, rows, D, of_queries.from(i0), lane);
#endif
    OnlineSoftmax softmax[ROW_TILES];
    const accum sink = SINKS && split == 0 ? sinks[sequence.number * args.query_heads + head] : accum(-INFINITY);
    for (short r = 0; r < ROW_TILES; r++) softmax[r].start(mask.unit, sink, lane);
    TileC acc[ROW_TILES][SUM_V / TILE];
    clear(acc);

#if CACHED
    const CachedBlocks<BD> keys{
        cache_of(args, k, k_scales, block_table, args.k_stride, args.k_scale_stride, sequence, key_head), 0, mask.keys,
        D};
    const CachedBlocks<BV> values{
        cache_of(args, v, v_scales, block_table, args.v_stride, args.v_scale_stride, sequence, key_head), first_column,
        mask.keys, columns};
#else
    k += sequence.key_offset(args.k_stride, key_head, 0);
    v += sequence.key_offset(args.v_stride, key_head, 0) + first_column;
    const Blocks<BD> keys{k, args.k_stride[2], mask.keys, D, of_keys};
    const Blocks<BV> values{v, args.v_stride[2], mask.keys, columns, not_turned()};
#endif
    if (first < block_keys) keys.template stage_at<BK>(first, k_tile, thread_index);
    for (int j0 = first; j0 < block_keys; j0 += BK) {
        TileC s[ROW_TILES][BK / TILE];
        finish_copies();
        if (STAGED) threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are there, the values before are used
        values.template stage_at<BK>(j0, v_tile, thread_index);
        const bool visible = j0 < own_keys && j0 + BK > own_first;
        if (visible) q_rows.times_transposed(s, keys.at(j0, k_tile, lane));  // S = Q K^T

        finish_copies();
        if (STAGED) threadgroup_barrier(mem_flags::mem_threadgroup);  // the values are there, the keys are used
        if (j0 + BK < block_keys) keys.template stage_at<BK>(j0 + BK, k_tile, thread_index);
        if (!visible) continue;
        SoftCap<ROW_TILES, BK / TILE> cap;
        cap.apply(s, args.scale, args.softcap);
        if (mask.touches(i0, j0, OWN_ROWS, BK)) apply<false>(mask, s, i0, j0, lane);
        for (short r = 0; r < ROW_TILES; r++) {
            const rows_t factor = softmax[r].update(s[r]);  // P = exp(S - m)
            for (short d = 0; d < SUM_V / TILE; d++) scale_rows(acc[r][d], factor);
        }
        Dropped<false, ROW_TILES, BK / TILE> dropped;
        dropped.draw(dropout, i0, j0, lane);
        dropped.apply(s);
        add_product(acc, s, values.at(j0, v_tile, lane), 0);  // O += P V
    }

    rows_t inverse[ROW_TILES];
    for (short r = 0; r < ROW_TILES; r++) inverse[r] = softmax[r].finish();
    o += split * args.split_rows * args.value_head_size + sequence.query_offset(args.o_stride, head, i0) + first_column;
    store(acc, inverse, o, args.o_stride[2], rows, columns, lane);
    if (first_column > 0) return;
    lse += split * args.split_rows + sequence.row(args, head, i0);
    for (short r = 0; r < ROW_TILES; r++) store_rows(softmax[r].log_sum_exp(), lse + r * TILE, rows - r * TILE, lane);
}
