// The two products of attention: rows kept by a simdgroup times rows staged in threadgroup memory.
//
// Defines: BD, head size rounded up to whole tiles; HOLD, 1 when a simdgroup keeps its 16 rows in registers, 0 when it
// reads them again for every block because they would not fit.
#pragma once

#include "msl/copy.h"
#include "msl/tile.h"

// Sixteen rows of a matrix [L][D] as left operands, one simdgroup's own.
struct Rows {
    const device element* source;
    long row_stride;
    int rows, columns;
    ushort lane;
#if HOLD
    TileA<element> held[BD / TILE];
#endif

    // `source` points to the first row; rows and columns past `rows` and `columns` are 0.
    void start(const device element* source, long row_stride, int rows, int columns, ushort lane) thread {
        this->source = source;
        this->row_stride = row_stride;
        this->rows = rows;
        this->columns = columns;
        this->lane = lane;
#if HOLD
        for (short d = 0; d < BD / TILE; d++)
            load_a(held[d], source + d * TILE, row_stride, rows, columns - d * TILE, lane);
#endif
    }
    // products[n] = rows * staged^T, for 16 staged rows each; staged is [N * 16][BD].
    template <short N>
    void times_transposed(thread TileC (&products)[N], const threadgroup element* staged) thread {
        constexpr short LD = staged_stride<BD>();
        for (short n = 0; n < N; n++) clear(products[n]);
        for (short d = 0; d < BD / TILE; d++) {
#if HOLD
            thread const TileA<element>& a = held[d];
#else
            TileA<element> a;
            load_a(a, source + d * TILE, row_stride, rows, columns - d * TILE, lane);
#endif
            for (short n = 0; n < N; n++) {
                TileB<element> b;
                load_bt<LD>(b, staged + n * TILE * LD + d * TILE);
                mma(products[n], a, b);
            }
        }
    }
};

// acc += weights * staged; weights is [16][N * 16], rounded to `element`, staged [N * 16][BD], acc [16][BD].
template <short N>
inline void add_product(thread TileC (&acc)[BD / TILE], thread TileC (&weights)[N], const threadgroup element* staged) {
    constexpr short LD = staged_stride<BD>();
    for (short n = 0; n < N; n++) {
        TileA<element> a;
        to_a(a, weights[n]);
        for (short d = 0; d < BD / TILE; d++) {
            TileB<element> b;
            load_b<LD>(b, staged + n * TILE * LD + d * TILE);
            mma(acc[d], a, b);
        }
    }
}
