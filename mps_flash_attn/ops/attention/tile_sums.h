// What the gradient of a mask adds up, and how it leaves the registers. Defines: SUM_QUERIES and SUM_KEYS, 1 where one
// element of the mask serves all queries, or all keys.
#pragma once

#include "msl/mask.h"
#include "msl/tile.h"
#include "ops/attention/block_pair.h"
#include "ops/attention/operand.h"

// Room for the tiles and, afterwards, where queries are summed, for the sums of a threadgroup's rows.
constexpr short tiles_or_sums() {
    constexpr short SUMS = SUM_QUERIES ? BQ * BK * sizeof(accum) / sizeof(chunk) : 0;
    return SUMS > pair_chunks<BK>() ? SUMS : pair_chunks<BK>();
}

struct Range {
    int begin, end;
};
// The batches, or heads, that use number `n` of a mask that has `size` of them: that one, or all.
inline Range sharing(int n, long size, long all) { return size == 1 ? Range{0, int(all)} : Range{n, n + 1}; }

inline void add(thread TileC& sum, thread TileC& term) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) sum.at(row, column) += term.at(row, column);
}

// Adds the columns up into the first one of the first tile.
inline void sum_keys(thread TileC (&acc)[ROW_TILES][BK / TILE], ushort lane) {
    for (short r = 0; r < ROW_TILES; r++) {
        rows_t sum(0);
        for (short n = 0; n < BK / TILE; n++)
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 4; column++) sum[row] += acc[r][n].at(row, column);
        sum = reduce_sum(sum);
        for (short row = 0; row < 2; row++) acc[r][0].at(row, 0) = sum[row];
    }
}

// Writes the threadgroup's rows x columns sums, one where they were summed; `target` is [rows][row_stride], `sums` what
// the tiles were staged in.
inline void store_sums(thread TileC (&acc)[ROW_TILES][BK / TILE], threadgroup accum* sums, device mask_element* target,
                       int rows, int columns, long row_stride, ushort simdgroup, ushort thread_index, ushort lane) {
    if (SUM_KEYS) sum_keys(acc, lane);
    if (SUM_KEYS) columns = 1;
    const int i0 = simdgroup * OWN_ROWS;
#if SUM_QUERIES
    threadgroup_barrier(mem_flags::mem_threadgroup);  // nobody uses the tiles any more, whose memory the sums take
    for (short r = 0; r < ROW_TILES; r++)
        for (short n = 0; n < BK / TILE; n++)
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 4; column++)
                    sums[(i0 + r * TILE + tile_row(lane, row)) * BK + n * TILE + tile_col(lane, column)] =
                        acc[r][n].at(row, column);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (short j = thread_index; j < min(columns, BK); j += THREADS) {
        accum sum = 0;
        for (short i = 0; i < BQ; i++) sum += sums[i * BK + j];
        target[j] = mask_element(sum);
    }
#else
    for (short r = 0; r < ROW_TILES; r++)
        for (short n = 0; n < BK / TILE; n++)
            store(acc[r][n], rows_t(1), target + (i0 + r * TILE) * row_stride + n * TILE, row_stride,
                  rows - i0 - r * TILE, columns - n * TILE, lane);
#endif
}
