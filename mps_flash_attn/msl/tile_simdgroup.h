// The matrix layer over Metal's simdgroup matrices: a tile is 2 x 2 of them, 8 x 8 each.
#pragma once

// Left operand [row][k], right operand [k][column] and accumulator [row][column] of a product.
template <typename T>
struct TileA {
    simdgroup_matrix<T, 8, 8> part[2][2];

    void set(short row, short column, T value) thread { part[row][column / 2].thread_elements()[column % 2] = value; }
};
template <typename T>
struct TileB {
    simdgroup_matrix<T, 8, 8> part[2][2];

    void set(short row, short column, T value) thread { part[row][column / 2].thread_elements()[column % 2] = value; }
};
constant constexpr bool B_TRANSPOSED = false;
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

inline void clear(thread TileC& c) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 2; column++) c.part[row][column] = make_filled_simdgroup_matrix<accum, 8, 8>(0);
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

// The left operand from 16 rows of threadgroup memory, LD elements apart.
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

// The right operand from 16 rows: row k of the memory is row k of the operand.
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

// A whole right operand from 16 rows of device memory: row k of the memory is row k of the operand, or with TRANSPOSED
// its column k.
template <bool TRANSPOSED>
inline void load_right(thread TileB<element>& b, const device element* source, long row_stride) {
    for (short k = 0; k < 2; k++)
        for (short column = 0; column < 2; column++) {
            const short i = (TRANSPOSED ? column : k) * 8, j = (TRANSPOSED ? k : column) * 8;
            simdgroup_load(b.part[k][column], source + i * row_stride + j, row_stride, ulong2(0, 0), TRANSPOSED);
        }
}

// An accumulator as the left operand of the next product, rounded to `element`.
inline void to_a(thread TileA<element>& a, thread TileC& c) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) a.set(row, column, element(c.at(row, column)));
}

// Writes two neighbours, the first of which lies at a multiple of two elements.
template <typename T>
inline void store_pair(device T* place, T first, T second) {
    *(device vec<T, 2>*)place = vec<T, 2>(first, second);
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
