// What becomes of the elements of A B. Defines: EPILOGUE, 0 where they are only partial sums; BIAS, 1 when a vector is
// added to each row; SAVE, 1 when the sum before the activation is wanted too; ACTIVE, 1 with an activation,
// ACTIVATION, a struct of activation.h; PAIRS, 1 where rows of C have an even number of columns.
#pragma once

#include "msl/activation.h"
#include "msl/tile.h"

// Adds the bias of its columns to a tile.
inline void add_bias(thread TileC& c, const device element* bias, int columns, ushort lane) {
    const columns_t values = load_columns(bias, columns, lane);
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) c.at(row, column) += values[column];
}

inline void activate(thread TileC& c) {
    const ACTIVATION activation = ACTIVATION();
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) c.at(row, column) = activation.value(c.at(row, column));
}

// Writes the tile at row i and column j of the matrix C [rows][columns], and what the activation is made from to `z`.
template <typename Result>
inline void finish(thread TileC& tile, const device element* bias, device element* z, device Result* c, int i, int j,
                   int rows, int columns, ushort lane) {
    const long at = long(i) * columns + j;
#if EPILOGUE && BIAS
    add_bias(tile, bias + j, columns - j, lane);
#endif
#if EPILOGUE && SAVE
    store<PAIRS>(tile, rows_t(1), z + at, columns, rows - i, columns - j, lane);
#endif
#if EPILOGUE && ACTIVE
    activate(tile);
#endif
    store<PAIRS>(tile, rows_t(1), c + at, columns, rows - i, columns - j, lane);
}
