// Rows that all simdgroups of a threadgroup walk over, in blocks: keys and values, or queries and the gradients of
// their outputs.
//
// Define: STAGED, 1 where the threadgroup copies each block to threadgroup memory for all of its simdgroups, between
// barriers; 0 where every simdgroup reads what it multiplies from device memory, which needs neither.
#pragma once

#include "msl/copy.h"
#include "msl/tile.h"
#include "ops/attention/rotary.h"

// A block [N * 16][COLUMNS] as right operands; what lies outside the matrix is 0.
template <short COLUMNS>
struct Block {
#if STAGED
    const threadgroup element* staged;

    // The tile of rows 16 n and columns 16 d, or with TRANSPOSED its transpose.
    template <bool TRANSPOSED>
    void load(thread TileB<element>& b, short n, short d) const thread {
        constexpr short LD = staged_stride<COLUMNS>();
        const threadgroup element* tile = staged + n * TILE * LD + d * TILE;
        if (TRANSPOSED)
            load_bt<LD>(b, tile);
        else
            load_b<LD>(b, tile);
    }
#else
    const device element* source;
    long row_stride;
    int rows, columns;  // what is left of the matrix
    Rotary rotary;
    ushort lane;

    // As above. Only a tile that is turned, or cut off by the end of the matrix, is read element by element.
    template <bool TRANSPOSED>
    void load(thread TileB<element>& b, short n, short d) const thread {
        const device element* first = source + n * TILE * row_stride;
        const int left = rows - n * TILE, right = columns - d * TILE;
        const bool turned = ROTARY != ROTARY_NONE && d * TILE < 2 * rotary.pairs;
        if (left >= TILE && right >= TILE && !turned) {
            load_right<TRANSPOSED>(b, first + d * TILE, row_stride);
        } else {
            const TurnedRows tile{first, row_stride, d * TILE, rotary.from(n * TILE)};
            load_right<TRANSPOSED>(b, tile, left, right, lane);
        }
    }
#endif
};

// A matrix of one head as blocks of all its columns, or of COLUMNS of them.
template <short COLUMNS>
struct Blocks {
    const device element* source;
    long row_stride;
    int rows, columns;
    Rotary rotary;

    // Has the ROWS rows from `row` on copied to the tile, where blocks are staged.
    template <short ROWS>
    void stage_at(int row, threadgroup chunk* tile, ushort thread_index) const thread {
#if STAGED
        stage<ROWS, COLUMNS, THREADS>(tile, source + row * row_stride, row_stride, rows - row, columns,
                                      rotary.from(row), thread_index);
#endif
    }
    // The block from `row` on, which is in the tile where blocks are staged.
    Block<COLUMNS> at(int row, const threadgroup chunk* tile, ushort lane) const thread {
#if STAGED
        return Block<COLUMNS>{(const threadgroup element*)tile};
#else
        return Block<COLUMNS>{source + row * row_stride, row_stride, rows - row, columns, rotary.from(row), lane};
#endif
    }
};
