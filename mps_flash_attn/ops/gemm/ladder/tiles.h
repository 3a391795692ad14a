// Copies of tiles from device to threadgroup memory by all threads of a threadgroup. What lies outside of the matrix
// becomes 0. Defines: THREADS; VECTOR, 1 when rows of A, B and C are whole numbers of aligned quads.
#pragma once

#include "ops/gemm/ladder/args.h"

// Four elements, which a thread moves at once.
using quad = vec<element, 4>;

// Fills a tile [ROWS][COLUMNS] element by element.
template <short ROWS, short COLUMNS>
inline void fill(threadgroup element* tile, const device element* source, long stride, int rows, int columns,
                 ushort thread_index) {
    for (short n = thread_index; n < ROWS * COLUMNS; n += THREADS) {
        const short i = n / COLUMNS, j = n % COLUMNS;
        tile[n] = i < rows && j < columns ? source[i * stride + j] : element(0);
    }
}

// The quad from column `j` on of a row of which `columns` elements are left.
inline quad read_quad(const device element* row, int j, int columns) {
#if VECTOR
    return j < columns ? *(const device quad*)(row + j) : quad(0);
#else
    quad value(0);
    for (short n = 0; n < 4; n++)
        if (j + n < columns) value[n] = row[j + n];
    return value;
#endif
}
inline void write_quad(device element* row, int j, int columns, quad value) {
#if VECTOR
    if (j < columns) *(device quad*)(row + j) = value;
#else
    for (short n = 0; n < 4; n++)
        if (j + n < columns) row[j + n] = value[n];
#endif
}

// A thread's share of a tile [ROWS][COLUMNS] on its way through registers.
template <short ROWS, short COLUMNS>
struct Share {
    quad quads[ROWS * COLUMNS / (4 * THREADS)];

    void fetch(const device element* source, long stride, int rows, int columns, ushort thread_index) thread {
        for (short n = 0; n < ROWS * COLUMNS / (4 * THREADS); n++) {
            const short i = (thread_index + n * THREADS) / (COLUMNS / 4),
                        j = (thread_index + n * THREADS) % (COLUMNS / 4) * 4;
            quads[n] = i < rows ? read_quad(source + i * stride, j, columns) : quad(0);
        }
    }
    // Into a tile of rows of LD elements.
    template <short LD>
    void put(threadgroup element* tile, ushort thread_index) const thread {
        for (short n = 0; n < ROWS * COLUMNS / (4 * THREADS); n++) {
            const short i = (thread_index + n * THREADS) / (COLUMNS / 4),
                        j = (thread_index + n * THREADS) % (COLUMNS / 4) * 4;
            *(threadgroup quad*)(tile + i * LD + j) = quads[n];
        }
    }
    // Into its transpose [COLUMNS][LD].
    template <short LD>
    void put_transposed(threadgroup element* tile, ushort thread_index) const thread {
        for (short n = 0; n < ROWS * COLUMNS / (4 * THREADS); n++) {
            const short i = (thread_index + n * THREADS) / (COLUMNS / 4),
                        j = (thread_index + n * THREADS) % (COLUMNS / 4) * 4;
            for (short e = 0; e < 4; e++) tile[(j + e) * LD + i] = quads[n][e];
        }
    }
};
