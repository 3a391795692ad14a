// Copies from device to threadgroup memory by all threads of a threadgroup.
#pragma once

#include "msl/types.h"

// Elements between rows of a staged tile: one chunk more than a row where memory allows, so that the rows of a column
// fall into different banks. Define: PAD, 0 or 1.
template <short COLUMNS>
constexpr short staged_stride() {
    return COLUMNS + PAD * CHUNK_ELEMENTS;
}
template <short ROWS, short COLUMNS>
constexpr short staged_chunks() {
    return ROWS * staged_stride<COLUMNS>() / CHUNK_ELEMENTS;
}

// Stages ROWS x COLUMNS elements; what lies outside `rows` x `columns` becomes 0.
//
// Define: ALIGNED, 1 when every row of `source` starts at a multiple of 16 bytes and `columns` is a whole number of
// chunks, so that lanes move whole chunks.
template <short ROWS, short COLUMNS, short THREAD_COUNT>
inline void stage(threadgroup chunk* target, const device element* source, long row_stride, int rows, int columns,
                  ushort thread_index) {
    constexpr short LD = staged_stride<COLUMNS>();
#if ALIGNED
    constexpr short ROW_CHUNKS = COLUMNS / CHUNK_ELEMENTS;
    for (short n = thread_index; n < ROWS * ROW_CHUNKS; n += THREAD_COUNT) {
        const short i = n / ROW_CHUNKS, j = n % ROW_CHUNKS * CHUNK_ELEMENTS;
        const bool inside = i < rows && j < columns;
        target[(i * LD + j) / CHUNK_ELEMENTS] = inside ? *(const device chunk*)(source + i * row_stride + j) : chunk(0);
    }
#else
    threadgroup element* elements = (threadgroup element*)target;
    for (short n = thread_index; n < ROWS * COLUMNS; n += THREAD_COUNT) {
        const short i = n / COLUMNS, j = n % COLUMNS;
        const bool inside = i < rows && j < columns;
        elements[i * LD + j] = inside ? source[i * row_stride + j] : element(0);
    }
#endif
}

// Stages COUNT values of a vector, 0 from `valid` on.
template <short COUNT, short THREAD_COUNT>
inline void stage_values(threadgroup accum* target, const device accum* source, int valid, ushort thread_index) {
    for (short n = thread_index; n < COUNT; n += THREAD_COUNT) target[n] = n < valid ? source[n] : accum(0);
}
