// Two matrices with the same rows, walked over together: keys and values, or queries and the gradients of their
// outputs.
//
// Define: BUFFERS, 2 where threadgroup memory has room for a block that is copied while the one before it is used,
// or 1.
#pragma once

#include "ops/attention/block.h"

template <short ROWS>
constexpr short pair_chunks() {
    return BUFFERS * (staged_chunks<ROWS, BD>() + staged_chunks<ROWS, BV>());
}

template <short ROWS>
struct BlockPair {
    threadgroup chunk* tiles;  // [BUFFERS], of a block [ROWS][BD] and one [ROWS][BV], where blocks are staged
    Blocks<BD> first;
    Blocks<BV> second;
    ushort thread_index, lane;
    short upcoming;  // the buffer of the block that is copied next

    // The matrices of one head; what comes before the first block is no longer needed.
    void start(const device element* first_source, const device element* second_source, int row) thread {
        first.source = first_source;
        second.source = second_source;
        if (STAGED && BUFFERS == 2 && row < first.rows) copy(row);
    }
    // Where there is one buffer, has the block from `row` copied once nobody uses the one before.
    void prepare(int row) thread {
        if (!STAGED || BUFFERS == 2) return;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        copy(row);
    }
    // Waits until the block from `row` is there; where there are two, has the next copied if it begins before `end`.
    void wait(int row, int end) thread {
        if (!STAGED) return;
        finish_copies();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (BUFFERS == 1) return;
        upcoming = 1 - upcoming;
        if (row + ROWS < end) copy(row + ROWS);
    }
    // The buffer of the block that `wait` waited for.
    short current() const thread { return BUFFERS == 2 ? 1 - upcoming : 0; }
    // The blocks from `row` on, for which `wait` waited.
    Block<BD> first_at(int row) const thread { return first.at(row, first_tile(current()), lane); }
    Block<BV> second_at(int row) const thread { return second.at(row, second_tile(current()), lane); }

    // The tiles of buffer n.
    threadgroup chunk* first_tile(short n) const thread { return tiles + n * (pair_chunks<ROWS>() / BUFFERS); }
    threadgroup chunk* second_tile(short n) const thread { return first_tile(n) + staged_chunks<ROWS, BD>(); }
    void copy(int row) thread {
        first.template stage_at<ROWS>(row, first_tile(upcoming), thread_index);
        second.template stage_at<ROWS>(row, second_tile(upcoming), thread_index);
    }
};
