// Two matrices with the same rows, staged together block by block: keys and values, or queries and the gradients of
// their outputs. The first may be turned.
//
// Define: BUFFERS, 2 where threadgroup memory has room for a block that is copied while the one before it is used,
// or 1.
#pragma once

#include "msl/copy.h"
#include "msl/tile.h"
#include "ops/attention/rotary.h"

template <short ROWS>
constexpr short pair_chunks() {
    return BUFFERS * 2 * staged_chunks<ROWS, BD>();
}

template <short ROWS>
struct StagedPair {
    threadgroup chunk* tiles;  // [BUFFERS][2][ROWS][BD]
    const device element *first, *second;
    long first_stride, second_stride;
    int rows, columns;
    Rotary rotary;  // of the first
    ushort thread_index;
    short upcoming;  // the buffer of the block that is copied next

    // The matrices of one head; what comes before the first block is no longer needed.
    void start(const device element* first, const device element* second, int row) thread {
        this->first = first;
        this->second = second;
        if (BUFFERS == 2 && row < rows) copy(row);
    }
    // Where there is one buffer, has the block from `row` copied once nobody uses the one before.
    void prepare(int row) thread {
        if (BUFFERS == 2) return;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        copy(row);
    }
    // Waits until the block from `row` is there; where there are two, has the next copied if it begins before `end`.
    void wait(int row, int end) thread {
        finish_copies();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (BUFFERS == 1) return;
        upcoming = 1 - upcoming;
        if (row + ROWS < end) copy(row + ROWS);
    }
    // The buffer of the block that `wait` waited for.
    short current() const thread { return BUFFERS == 2 ? 1 - upcoming : 0; }
    const threadgroup element* first_tile() const thread { return tile(current() * 2); }
    const threadgroup element* second_tile() const thread { return tile(current() * 2 + 1); }

    const threadgroup element* tile(short n) const thread {
        return (const threadgroup element*)(tiles + n * staged_chunks<ROWS, BD>());
    }
    void copy(int row) thread {
        threadgroup chunk* target = tiles + upcoming * 2 * staged_chunks<ROWS, BD>();
        stage<ROWS, BD, THREADS>(target, first + row * first_stride, first_stride, rows - row, columns,
                                 rotary.from(row), thread_index);
        stage<ROWS, BD, THREADS>(target + staged_chunks<ROWS, BD>(), second + row * second_stride, second_stride,
                                 rows - row, columns, thread_index);
    }
};
