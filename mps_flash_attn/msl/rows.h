// How a team walks over its row of a strided tensor: in each step a thread takes a pack of neighbouring elements.
//
// Defines: those of msl/pack.h, PACK being more than 1 only where rows are contiguous, start at a multiple of 16 bytes
// and are a whole number of packs long, and of msl/reduce.h; HOLD, the most steps of a row where a thread keeps its
// packs in registers, 0 where rows may be longer and are read again.
#pragma once

#include "msl/pack.h"
#include "msl/reduce.h"
#include "msl/strides.h"

// Bound of loops over steps: a constant where values are held, so that their array is unrolled into registers.
constant constexpr int STEPS = HOLD ? HOLD : 0x7fffffff;

// A thread's part of a row.
struct Share {
    long row;    // number of the row
    int length;  // of the row; 0 past the last row, whose threads still take part in reductions
    int first;   // the thread's first element

    int position(int step) const thread { return first + step * ROW_THREADS * PACK; }
    bool holds(int step) const thread { return position(step) < length; }
};

inline Share share_of(uint group, ushort thread_index, long rows, long length) {
    Share share;
    share.row = long(group) * ROWS + thread_index / ROW_THREADS;
    share.length = share.row < rows ? length : 0;
    share.first = thread_index % ROW_THREADS * PACK;
    return share;
}

// A thread's elements of a row that is needed more than once: kept in registers where they fit.
template <typename T>
struct RowValues {
    const device T* row;
    long stride;
    Share share;
#if HOLD
    Pack<T> held[HOLD];
#endif

    void start(const device T* row, long stride, Share share) thread {
        this->row = row;
        this->stride = stride;
        this->share = share;
#if HOLD
        for (short step = 0; step < HOLD; step++)
            if (share.holds(step)) held[step] = load_pack(row + share.position(step) * stride);
#endif
    }
    // The elements of a step that the share holds.
    Pack<accum> get(int step) const thread {
#if HOLD
        return convert_pack<accum>(held[step]);
#else
        return load_values(row + share.position(step) * stride);
#endif
    }
    // Writes other elements of a step to `target`. They take the place of the row's where it is held; elsewhere, start
    // again from `target` to get them.
    void replace(int step, Pack<T> values, device T* target) thread {
        store_pack(target + share.position(step) * stride, values);
#if HOLD
        held[step] = values;
#endif
    }
};
