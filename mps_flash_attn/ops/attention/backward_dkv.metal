// dV = P^T dO and dK = scale dS^T Q, summed over the query heads that share a key head: FlashAttention-2
// (arXiv:2307.08691), algorithm 2, its key side. Everything is transposed: rows of a tile are keys.
//
// A threadgroup takes BK keys of one key head, 16 to a simdgroup, and walks over blocks of BQ queries of each query
// head in turn, so no two threadgroups add to the same gradient. Grid: (ceil(Lk / BK), Hkv, B) threadgroups of THREADS
// threads. Define: STAGE_VALUES, 1 when threadgroup memory has room for the queries' lse and delta beside the tiles.
#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/softmax.h"
#include "msl/tile.h"
#include "ops/attention/args.h"
#include "ops/attention/operand.h"

kernel void attention_backward_dkv(
    const device element* q [[buffer(0)]], const device element* k [[buffer(1)]], const device element* v [[buffer(2)]],
    const device mask_element* attn_mask [[buffer(3)]], const device element* d_o [[buffer(4)]],
    const device accum* lse [[buffer(5)]], const device accum* delta [[buffer(6)]], device element* dk [[buffer(7)]],
    device element* dv [[buffer(8)]], constant AttentionArgs& args [[buffer(9)]],
    uint3 block [[threadgroup_position_in_grid]], ushort thread_index [[thread_index_in_threadgroup]],
    ushort simdgroup [[simdgroup_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup chunk q_tile[staged_chunks<BQ, BD>()];
    threadgroup chunk do_tile[staged_chunks<BQ, BD>()];
#if STAGE_VALUES
    threadgroup accum lse_tile[BQ];
    threadgroup accum delta_tile[BQ];
#endif

    const int batch = block.z, key_head = block.y, D = args.head_size;
    const int block_row = block.x * BK, j0 = block_row + simdgroup * TILE;
    const int rows = args.keys - j0;  // of this simdgroup's tile; may exceed 16 or be negative

    Rows k_rows, v_rows;
    k_rows.start(k + matrix_offset(args.k_stride, batch, key_head) + j0 * args.k_stride[2], args.k_stride[2], rows, D,
                 lane);
    v_rows.start(v + matrix_offset(args.v_stride, batch, key_head) + j0 * args.v_stride[2], args.v_stride[2], rows, D,
                 lane);
    TileC dk_acc[BD / TILE], dv_acc[BD / TILE];
    for (short d = 0; d < BD / TILE; d++) {
        clear(dk_acc[d]);
        clear(dv_acc[d]);
    }

    for (int head = key_head * args.group; head < (key_head + 1) * args.group; head++) {
        const ScoreMask mask = score_mask(args, attn_mask, batch, head);
        const device element* q_head = q + matrix_offset(args.q_stride, batch, head);
        const device element* do_head = d_o + matrix_offset(args.do_stride, batch, head);
        const long first_row = (batch * args.query_heads + head) * args.queries;
        const int tile_queries = rows > 0 ? mask.first_query(j0) : mask.queries;  // of those, all before are masked

        for (int i0 = mask.first_query(block_row) / BQ * BQ; i0 < mask.queries; i0 += BQ) {
            const int valid = mask.queries - i0;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            stage<BQ, BD, THREADS>(q_tile, q_head + i0 * args.q_stride[2], args.q_stride[2], valid, D, thread_index);
            stage<BQ, BD, THREADS>(do_tile, do_head + i0 * args.do_stride[2], args.do_stride[2], valid, D,
                                   thread_index);
#if STAGE_VALUES
            stage_values<BQ, THREADS>(lse_tile, lse + first_row + i0, valid, thread_index);
            stage_values<BQ, THREADS>(delta_tile, delta + first_row + i0, valid, thread_index);
#endif
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (i0 + BQ <= tile_queries) continue;

            TileC s[BQ / TILE], dp[BQ / TILE];
            k_rows.times_transposed(s, (const threadgroup element*)q_tile);    // S^T = K Q^T
            v_rows.times_transposed(dp, (const threadgroup element*)do_tile);  // dP^T = V dO^T
            for (short i = 0; i < BQ / TILE; i++) {
#if STAGE_VALUES
                const columns_t lse_columns = load_columns(lse_tile + i * TILE, TILE, lane);
                const columns_t delta_columns = load_columns(delta_tile + i * TILE, TILE, lane);
#else
                const columns_t lse_columns = load_columns(lse + first_row + i0 + i * TILE, valid - i * TILE, lane);
                const columns_t delta_columns = load_columns(delta + first_row + i0 + i * TILE, valid - i * TILE, lane);
#endif
                mask.apply<true>(s[i], i0 + i * TILE, j0, lane);
                weights_and_gradient(s[i], dp[i], lse_columns, delta_columns);  // dS = P (dP - delta)
            }
            add_product(dv_acc, s, (const threadgroup element*)do_tile);  // dV += P^T dO
            add_product(dk_acc, dp, (const threadgroup element*)q_tile);  // dK += dS^T Q
        }
    }

    dk += matrix_offset(args.dk_stride, batch, key_head) + j0 * args.dk_stride[2];
    dv += matrix_offset(args.dv_stride, batch, key_head) + j0 * args.dv_stride[2];
    for (short d = 0; d < BD / TILE; d++) {
        store(dk_acc[d], rows_t(args.scale), dk + d * TILE, args.dk_stride[2], rows, D - d * TILE, lane);
        store(dv_acc[d], rows_t(1), dv + d * TILE, args.dv_stride[2], rows, D - d * TILE, lane);
    }
}
