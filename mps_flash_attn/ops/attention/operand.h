// The two products of attention: rows kept by a simdgroup times a block of rows that its threadgroup walks over.
//
// Defines: BD and BV, the columns that are staged or held of queries and keys, and of values and outputs, whole tiles;
// SUM_D and SUM_V, those of them that a threadgroup sums; COLUMN_BLOCKS, threadgroups that share out all columns, where
// accumulators for them would not fit in registers: each computes the weights for itself; ROW_TILES, tiles of 16 rows
// that a simdgroup keeps, which share what it loads of a block; HOLD, where the kept rows are, one of the values below;
// HEADS_FIRST, 1 where threadgroups are counted over heads first, then over blocks of rows, so that those that start
// together share what they read; WGMMA, 1 where four simdgroups multiply together, 16 staged rows each.
#pragma once

#include "msl/copy.h"
#include "msl/mask.h"
#include "msl/tile.h"
#include "ops/attention/block.h"
#include "ops/attention/rotary.h"

#define HOLD_NOWHERE 0    // read again from device memory for every block, because they fit nowhere else
#define HOLD_REGISTERS 1  // loaded once
#define HOLD_STAGED 2     // in threadgroup memory

constant constexpr short OWN_ROWS = ROW_TILES * TILE;
constant constexpr short GROUP_ROWS = THREADS / 32 * OWN_ROWS;    // of a threadgroup
constant constexpr short TEAM_ROWS = (WGMMA ? 4 : 1) * OWN_ROWS;  // of simdgroups that multiply together

// The first row of a simdgroup's team, of those of its threadgroup.
inline short team_row(ushort simdgroup) { return simdgroup * OWN_ROWS / TEAM_ROWS * TEAM_ROWS; }

// (block of rows, head, batch) of a place in the grid, or how many of each there are.
inline uint3 unswizzled(uint3 place) { return HEADS_FIRST ? place.yxz : place; }

// A simdgroup's own rows of a matrix [L][COLUMNS] as left operands.
template <short COLUMNS>
struct Rows {
#if HOLD == HOLD_STAGED
    const threadgroup element* staged_rows;
#if WGMMA
    short first;

    void start(const threadgroup chunk* tile, ushort simdgroup) thread {
        staged_rows = (const threadgroup element*)tile;
        first = team_row(simdgroup);
    }
#else

    void start(const threadgroup chunk* tile, ushort simdgroup) thread {
        staged_rows = (const threadgroup element*)tile + simdgroup * OWN_ROWS * staged_stride<COLUMNS>();
    }
    void load(thread TileA<element>& a, short r, short d) const thread {
        constexpr short LD = staged_stride<COLUMNS>();
        load_a<LD>(a, staged_rows + r * TILE * LD + d * TILE);
    }
#endif
#else
    const device element* source;
    long row_stride;
    int rows, columns;
    Rotary rotary;
    ushort lane;
#if HOLD == HOLD_REGISTERS
    TileA<element> held[ROW_TILES][COLUMNS / TILE];
#endif

    // `source` points to the first row; rows and columns past `rows` and `columns` are 0.
    void start(const device element* source, long row_stride, int rows, int columns, Rotary rotary,
               ushort lane) thread {
        this->source = source;
        this->row_stride = row_stride;
        this->rows = rows;
        this->columns = columns;
        this->rotary = rotary;
        this->lane = lane;
#if HOLD == HOLD_REGISTERS
        for (short r = 0; r < ROW_TILES; r++)
            for (short d = 0; d < COLUMNS / TILE; d++) read(held[r][d], r, d);
#endif
    }
    void read(thread TileA<element>& a, short r, short d) const thread {
        const TurnedRows tile{source + r * TILE * row_stride, row_stride, d * TILE, rotary.from(r * TILE)};
        load_a(a, tile, rows - r * TILE, columns - d * TILE, lane);
    }
    void load(thread TileA<element>& a, short r, short d) const thread {
#if HOLD == HOLD_REGISTERS
        a = held[r][d];
#else
        read(a, r, d);
#endif
    }
#endif

    // products[r][n] = rows * block^T, for 16 rows of the block each; the block is [N * 16][COLUMNS].
    template <short N>
    void times_transposed(thread TileC (&products)[ROW_TILES][N], Block<COLUMNS> block) const thread {
        for (short r = 0; r < ROW_TILES; r++)
            for (short n = 0; n < N; n++) clear(products[r][n]);
#if WGMMA
        const Staged<GROUP_ROWS> own{staged_rows};
        const Staged<N * TILE> walked{block.staged};
        simt::begin_products();
        for (short d = 0; d < COLUMNS; d += TILE)
            simt::multiply_group<element, false, false>(products[0], own.at(first, d), walked.at(0, d));
        simt::end_products();
        simt::finish_products<0>();
#else
        for (short d = 0; d < COLUMNS / TILE; d++) {
            TileA<element> a[ROW_TILES];
            for (short r = 0; r < ROW_TILES; r++) load(a[r], r, d);
            for (short n = 0; n < N; n++) {
                TileB<element> b;
                block.template load<true>(b, n, d);
                for (short r = 0; r < ROW_TILES; r++) mma(products[r][n], a[r], b);
            }
        }
#endif
    }
};

// acc += weights * block; weights is [OWN_ROWS][N * 16], rounded to `element`, the block [N * 16][COLUMNS], of which
// acc, [OWN_ROWS][D * 16], takes the columns from tile `first` on.
template <short N, short D, short COLUMNS>
inline void add_product(thread TileC (&acc)[ROW_TILES][D], thread TileC (&weights)[ROW_TILES][N], Block<COLUMNS> block,
                        short first) {
#if WGMMA
    TileA<element> a[N];
    for (short n = 0; n < N; n++) to_a(a[n], weights[0][n]);
    const Staged<N * TILE> walked{block.staged};
    simt::begin_products();
    for (short n = 0; n < N; n++)
        simt::multiply_group<element, true>(acc[0], a[n].pair, walked.at(n * TILE, first * TILE));
    simt::end_products();
    simt::finish_products<0>();
#else
    for (short n = 0; n < N; n++) {
        TileA<element> a[ROW_TILES];
        for (short r = 0; r < ROW_TILES; r++) to_a(a[r], weights[r][n]);
        for (short d = 0; d < D; d++) {
            TileB<element> b;
            block.template load<false>(b, n, first + d);
            for (short r = 0; r < ROW_TILES; r++) mma(acc[r][d], a[r], b);
        }
    }
#endif
}

// Turns products q k into masked scores; i0 and j0 are the first query and the first key, see ScoreMask::apply.
template <bool TRANSPOSED, short N>
inline void apply(thread const ScoreMask& mask, thread TileC (&s)[ROW_TILES][N], int i0, int j0, ushort lane) {
    for (short r = 0; r < ROW_TILES; r++)
        for (short n = 0; n < N; n++) {
            const short own = r * TILE, staged = n * TILE;
            mask.apply<TRANSPOSED>(s[r][n], i0 + (TRANSPOSED ? staged : own), j0 + (TRANSPOSED ? own : staged), lane);
        }
}

template <short N>
inline void clear(thread TileC (&acc)[ROW_TILES][N]) {
    for (short r = 0; r < ROW_TILES; r++)
        for (short n = 0; n < N; n++) clear(acc[r][n]);
}

// Writes the rows of acc, those of tile r multiplied by factor[r]; `target` points to the first.
template <typename T, short D>
inline void store(thread TileC (&acc)[ROW_TILES][D], thread const rows_t (&factor)[ROW_TILES], device T* target,
                  long row_stride, int rows, int columns, ushort lane) {
    for (short r = 0; r < ROW_TILES; r++)
        for (short d = 0; d < D; d++)
            store(acc[r][d], factor[r], target + r * TILE * row_stride + d * TILE, row_stride, rows - r * TILE,
                  columns - d * TILE, lane);
}
