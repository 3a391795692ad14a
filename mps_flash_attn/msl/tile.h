// The matrix layer. Its unit is a 16 x 16 tile held by one simdgroup.
//
// The contract with kernels: a lane holds 8 elements of a tile, in two rows, tile_row(lane) and 8 below it, and four
// columns, two adjacent ones from tile_col(lane) and two more 8 to their right. Only the two files included here know
// which lane holds what: one for Metal's 8 x 8 simdgroup matrices, one for the matrix instructions of NVIDIA's GPUs.
//
// Each defines TileA<T>, TileB<T>, TileC with `at(row slot, column slot)`, clear, mma, load_a, load_at, load_b,
// load_bt, to_a, tile_row, tile_col, store_pair, reduce_max and reduce_sum, and whether B_TRANSPOSED: whether a lane's
// elements of a right operand lie where those of the other tiles do, or so in its transpose.
#pragma once

#include "msl/types.h"

constant constexpr short TILE = 16;

#if defined(METAL_ON_CUDA)
#include "msl/tile_mma.h"
#else
#include "msl/tile_simdgroup.h"
#endif

// Row of the tile of row slot 0..1, column of column slot 0..3.
inline short tile_row(ushort lane, short slot) { return tile_row(lane) + slot * 8; }
inline short tile_col(ushort lane, short slot) { return tile_col(lane) + slot / 2 * 8 + slot % 2; }

// Multiplies each row of c by its factor.
inline void scale_rows(thread TileC& c, rows_t factor) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) c.at(row, column) *= factor[row];
}

// The left operand from anything with `at(row, column)`; what lies outside `rows` x `columns` is 0.
template <typename Source>
inline void load_a(thread TileA<element>& a, Source source, int rows, int columns, ushort lane) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            const short i = tile_row(lane, row), j = tile_col(lane, column);
            const bool inside = i < rows && j < columns;
            a.set(row, column, inside ? source.at(i, j) : element(0));
        }
}

// The right operand from anything with `at(row, column)`, whose row k is row k of the operand, or with TRANSPOSED its
// column k; what lies outside `rows` x `columns` is 0.
template <bool TRANSPOSED, typename Source>
inline void load_right(thread TileB<element>& b, Source source, int rows, int columns, ushort lane) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            const short r = tile_row(lane, row), c = tile_col(lane, column);
            const short i = TRANSPOSED == B_TRANSPOSED ? r : c, j = TRANSPOSED == B_TRANSPOSED ? c : r;
            const bool inside = i < rows && j < columns;
            b.set(row, column, inside ? source.at(i, j) : element(0));
        }
}

// Writes factor[row] * c to device memory; what lies outside `rows` x `columns` stays untouched. With PAIRED the target
// is aligned to two elements, and row stride and columns are even, so that a lane writes two neighbours at once.
template <bool PAIRED = false, typename T>
inline void store(thread TileC& c, rows_t factor, device T* target, long row_stride, int rows, int columns,
                  ushort lane) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column += PAIRED ? 2 : 1) {
            const short i = tile_row(lane, row), j = tile_col(lane, column);
            if (i >= rows || j >= columns) continue;
            device T* place = target + i * row_stride + j;
            const accum value = factor[row] * c.at(row, column);
            if (PAIRED)
                store_pair(place, T(value), T(factor[row] * c.at(row, column + 1)));
            else
                *place = T(value);
        }
}

// The lane's two rows of a vector with one value a row; 0 from `rows` on.
inline rows_t load_rows(const device accum* source, int rows, ushort lane) {
    const short i = tile_row(lane, 0), j = tile_row(lane, 1);
    return rows_t(i < rows ? source[i] : 0, j < rows ? source[j] : 0);
}
// Writes one value a row: of the lanes that share a row, the one with its first column.
inline void store_rows(rows_t value, device accum* target, int rows, ushort lane) {
    for (short row = 0; row < 2; row++)
        if (tile_col(lane) == 0 && tile_row(lane, row) < rows) target[tile_row(lane, row)] = value[row];
}
// The lane's four columns of a vector with one value a column; 0 from `columns` on.
template <typename Pointer>
inline columns_t load_columns(Pointer source, int columns, ushort lane) {
    columns_t values(0);
    for (short column = 0; column < 4; column++)
        if (tile_col(lane, column) < columns) values[column] = source[tile_col(lane, column)];
    return values;
}
