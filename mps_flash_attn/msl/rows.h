// How a team walks over its row of a strided tensor: in each step a thread takes WIDTH neighbouring elements.
//
// Defines: those of msl/reduce.h; WIDTH, 1, or 4 or 8 where rows are contiguous, start at a multiple of 16 bytes
// and are a whole number of WIDTH long; HOLD, the most steps of a row where a thread
// keeps its elements in registers, 0 where rows may be longer and are read again.
#pragma once

#include "msl/reduce.h"
#include "msl/strides.h"

// Bound of loops over steps: a constant where values are held, so that their array is unrolled into registers.
constant constexpr int STEPS = HOLD ? HOLD : 0x7fffffff;

// A thread's part of a row.
struct Share {
    long row;    // number of the row
    int length;  // of the row; 0 past the last row, whose threads still take part in reductions
    int first;   // the thread's first element

    int position(int step) const thread { return first + step * ROW_THREADS * WIDTH; }
    bool holds(int step) const thread { return position(step) < length; }
};

inline Share share_of(uint group, ushort thread_index, long rows, long length) {
    Share share;
    share.row = long(group) * ROWS + thread_index / ROW_THREADS;
    share.length = share.row < rows ? length : 0;
    share.first = thread_index % ROW_THREADS * WIDTH;
    return share;
}

// WIDTH elements from `source` on, the first of a step.
template <typename T>
inline void load(thread accum (&values)[WIDTH], const device T* source) {
#if WIDTH > 1
    for (short n = 0; n < WIDTH; n += 4) {
        const vec<T, 4> part = *(const device vec<T, 4>*)(source + n);
        for (short i = 0; i < 4; i++) values[n + i] = accum(part[i]);
    }
#else
    values[0] = accum(source[0]);
#endif
}
template <typename T>
inline void store(device T* target, thread const accum (&values)[WIDTH]) {
#if WIDTH > 1
    for (short n = 0; n < WIDTH; n += 4) {
        vec<T, 4> part;
        for (short i = 0; i < 4; i++) part[i] = T(values[n + i]);
        *(device vec<T, 4>*)(target + n) = part;
    }
#else
    target[0] = T(values[0]);
#endif
}

// A thread's elements of a row that is needed more than once: kept in registers where they fit.
template <typename T>
struct RowValues {
    const device T* row;
    long stride;
    Share share;
#if HOLD
    accum held[HOLD][WIDTH];
#endif

    void start(const device T* row, long stride, Share share) thread {
        this->row = row;
        this->stride = stride;
        this->share = share;
#if HOLD
        for (short step = 0; step < HOLD; step++)
            if (share.holds(step)) load(held[step], row + share.position(step) * stride);
#endif
    }
    // The elements of a step that the share holds.
    void get(thread accum (&values)[WIDTH], int step) const thread {
#if HOLD
        for (short n = 0; n < WIDTH; n++) values[n] = held[step][n];
#else
        load(values, row + share.position(step) * stride);
#endif
    }
};
