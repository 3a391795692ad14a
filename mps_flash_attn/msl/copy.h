// Copies from device to threadgroup memory by all threads of a threadgroup.
//
// On NVIDIA's GPUs they go on while the threads compute: a kernel ends a group of copies with `finish_copies` in each
// thread, followed by a barrier, before it reads what was copied. On Apple's the copies are over when `stage` returns.
#pragma once

#include "msl/types.h"

#if WGMMA
#include "msl/panels.h"
#else
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
// Where the element at row i and column j of a staged tile is.
template <short ROWS, short COLUMNS>
constexpr int staged_place(short i, short j) {
    return i * staged_stride<COLUMNS>() + j;
}
#endif

// Copies one chunk, or writes zeros where it is not inside.
inline void copy_chunk(threadgroup chunk* target, const device chunk* source, bool inside) {
#if defined(METAL_ON_CUDA)
    simt::start_copy(target, source, inside);
#else
    *target = inside ? *source : chunk(0);
#endif
}

// Ends a group of copies of this thread.
inline void end_copies() {
#if defined(METAL_ON_CUDA)
    simt::end_copies();
#endif
}
// Waits for the copies that this thread started, or for all but the last PENDING groups of them.
template <short PENDING = 0>
inline void finish_copies() {
#if defined(METAL_ON_CUDA)
    simt::finish_copies<PENDING>();
#if WGMMA
    simt::show_writes();
#endif
#endif
}

// A matrix in device memory.
struct StridedRows {
    const device element* source;
    long row_stride;

    element at(int row, int column) const thread { return source[row * row_stride + column]; }
};

// Stages ROWS x COLUMNS elements of anything with `at(row, column)`; what lies outside `rows` x `columns` becomes 0.
template <short ROWS, short COLUMNS, short THREAD_COUNT, typename Source>
inline void stage_elements(threadgroup chunk* target, Source source, int rows, int columns, ushort thread_index) {
    threadgroup element* elements = (threadgroup element*)target;
    for (int n = thread_index; n < ROWS * COLUMNS; n += THREAD_COUNT) {
        const short i = n / COLUMNS, j = n % COLUMNS;
        const bool inside = i < rows && j < columns;
        elements[staged_place<ROWS, COLUMNS>(i, j)] = inside ? source.at(i, j) : element(0);
    }
}

// Stages ROWS x COLUMNS elements of device memory; what lies outside `rows` x `columns` becomes 0.
//
// Defines: ALIGNED, 1 when every row of `source` starts at a multiple of 16 bytes and `columns` is a whole number of
// chunks, so that lanes move whole chunks; WGMMA, 1 where tiles are staged as msl/panels.h has it.
template <short ROWS, short COLUMNS, short THREAD_COUNT>
inline void stage(threadgroup chunk* target, const device element* source, long row_stride, int rows, int columns,
                  ushort thread_index) {
#if ALIGNED
    constexpr short LD = staged_stride<COLUMNS>();
    constexpr short ROW_CHUNKS = COLUMNS / CHUNK_ELEMENTS, STEP = THREAD_COUNT / ROW_CHUNKS;  // rows at a time
    static_assert(staged_place<ROWS, COLUMNS>(STEP, 0) == STEP * LD, "every row of a thread is as far from the next");
    const int i = thread_index / ROW_CHUNKS, j = thread_index % ROW_CHUNKS * CHUNK_ELEMENTS;
    source += i * row_stride + j;
    target += staged_place<ROWS, COLUMNS>(i, j) / CHUNK_ELEMENTS;
    rows = j < columns ? rows - i : 0;
    for (short row = 0; row < ROWS; row += STEP) {
        if ((ROWS % STEP == 0 || i + row < ROWS) && (THREAD_COUNT % ROW_CHUNKS == 0 || i < STEP))
            copy_chunk(target + row * LD / CHUNK_ELEMENTS, (const device chunk*)source, row < rows);
        source += STEP * row_stride;
    }
#else
    stage_elements<ROWS, COLUMNS, THREAD_COUNT>(target, StridedRows{source, row_stride}, rows, columns, thread_index);
#endif
}

// Stages COUNT values of a vector, 0 from `valid` on.
template <short COUNT, short THREAD_COUNT>
inline void stage_values(threadgroup accum* target, const device accum* source, int valid, ushort thread_index) {
    for (short n = thread_index; n < COUNT; n += THREAD_COUNT) target[n] = n < valid ? source[n] : accum(0);
}
