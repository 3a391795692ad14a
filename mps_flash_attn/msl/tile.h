// The matrix layer. Its unit is a 16 x 16 tile held by one simdgroup, here as 2 x 2 simdgroup matrices of 8 x 8.
//
// The contract with kernels: a lane holds 8 elements of a tile, in two rows, tile_row(lane) and 8 below it, and four
// columns, two adjacent ones from tile_col(lane) and two more 8 to their right. Nothing outside this file knows
// which lane holds what, so another GPU's layout can stand here.
#pragma once

#include "msl/types.h"

constant constexpr short TILE = 16;

// Left operand [row][k], right operand [k][column] and accumulator [row][column] of a product.
template <typename T>
struct TileA {
    simdgroup_matrix<T, 8, 8> part[2][2];
};
template <typename T>
struct TileB {
    simdgroup_matrix<T, 8, 8> part[2][2];
};
struct TileC {
    simdgroup_matrix<accum, 8, 8> part[2][2];

    // The lane's element in row slot 0..1 and column slot 0..3. A reference cannot bind to an element of a vector,
    // hence the pointer.
    thread accum& at(short row, short column) thread {
        return ((thread accum*)&part[row][column / 2].thread_elements())[column % 2];
    }
};

// Where in the tile the lane's first element lies.
inline short tile_row(ushort lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
inline short tile_col(ushort lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }
// Row of the tile of row slot 0..1, column of column slot 0..3.
inline short tile_row(ushort lane, short slot) { return tile_row(lane) + slot * 8; }
inline short tile_col(ushort lane, short slot) { return tile_col(lane) + slot / 2 * 8 + slot % 2; }

inline void clear(thread TileC& c) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 2; column++) c.part[row][column] = make_filled_simdgroup_matrix<accum, 8, 8>(0);
}

// Multiplies each row of c by its factor.
inline void scale_rows(thread TileC& c, rows_t factor) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) c.at(row, column) *= factor[row];
}

// c += a b
template <typename T>
inline void mma(thread TileC& c, thread const TileA<T>& a, thread const TileB<T>& b) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 2; column++)
            for (short k = 0; k < 2; k++)
                simdgroup_multiply_accumulate(c.part[row][column], a.part[row][k], b.part[k][column],
                                              c.part[row][column]);
}

// The right operand from 16 rows of threadgroup memory, LD elements apart: row k is row k of the operand.
template <short LD>
inline void load_b(thread TileB<element>& b, const threadgroup element* source) {
    for (short k = 0; k < 2; k++)
        for (short column = 0; column < 2; column++)
            simdgroup_load(b.part[k][column], source + k * 8 * LD + column * 8, LD);
}

// The same transposed: row n of the memory is column n of the operand.
template <short LD>
inline void load_bt(thread TileB<element>& b, const threadgroup element* source) {
    for (short k = 0; k < 2; k++)
        for (short column = 0; column < 2; column++)
            simdgroup_load(b.part[k][column], source + column * 8 * LD + k * 8, LD, ulong2(0, 0), true);
}

// The left operand from 16 rows of threadgroup memory, LD elements apart: row m is row m of the operand.
template <short LD>
inline void load_a(thread TileA<element>& a, const threadgroup element* source) {
    for (short row = 0; row < 2; row++)
        for (short k = 0; k < 2; k++) simdgroup_load(a.part[row][k], source + row * 8 * LD + k * 8, LD);
}

// The same transposed: row k of the memory is column k of the operand.
template <short LD>
inline void load_at(thread TileA<element>& a, const threadgroup element* source) {
    for (short row = 0; row < 2; row++)
        for (short k = 0; k < 2; k++)
            simdgroup_load(a.part[row][k], source + k * 8 * LD + row * 8, LD, ulong2(0, 0), true);
}

// The left operand from device memory; what lies outside `rows` x `columns` is 0.
inline void load_a(thread TileA<element>& a, const device element* source, long row_stride, int rows, int columns,
                   ushort lane) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            const short i = tile_row(lane, row), j = tile_col(lane, column);
            const bool inside = i < rows && j < columns;
            a.part[row][column / 2].thread_elements()[column % 2] = inside ? source[i * row_stride + j] : element(0);
        }
}

// An accumulator as the left operand of the next product, rounded to `element`.
inline void to_a(thread TileA<element>& a, thread TileC& c) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++)
            a.part[row][column / 2].thread_elements()[column % 2] = element(c.at(row, column));
}

// Writes factor[row] * c to device memory; what lies outside `rows` x `columns` stays untouched.
template <typename T>
inline void store(thread TileC& c, rows_t factor, device T* target, long row_stride, int rows, int columns,
                  ushort lane) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            const short i = tile_row(lane, row), j = tile_col(lane, column);
            if (i < rows && j < columns) target[i * row_stride + j] = T(factor[row] * c.at(row, column));
        }
}

// Reduces what each lane found in its own columns over the lanes that share its rows.
inline rows_t reduce_max(rows_t value) {
    value = max(value, simd_shuffle_xor(value, 1));
    return max(value, simd_shuffle_xor(value, 8));
}
inline rows_t reduce_sum(rows_t value) {
    value += simd_shuffle_xor(value, 1);
    return value + simd_shuffle_xor(value, 8);
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
