// Queries and keys turned by their positions as they are loaded: rotary position embedding by tables of cosines and
// sines, as in ops/rope. What is turned is rounded to `element`, as if it had been stored and loaded.
//
// Define: ROTARY, one of the values below.
#pragma once

#include "msl/copy.h"
#include "msl/turn.h"
#include "ops/attention/args.h"

#define ROTARY_NONE 0
#define ROTARY_HALF 1         // pair i is columns (i, i + R / 2)
#define ROTARY_INTERLEAVED 2  // pair i is columns (2 i, 2 i + 1)

// By what the rows of a matrix are turned.
struct Rotary {
    const device accum* cosines;  // [rows][R / 2]
    const device accum* sines;
    int pairs;  // R / 2, 0 where rows are not turned

    // By what those from this row on are turned.
    Rotary from(int row) const thread { return Rotary{cosines + long(row) * pairs, sines + long(row) * pairs, pairs}; }
};

inline Rotary not_turned() { return Rotary{nullptr, nullptr, 0}; }
inline Rotary rotary_tables(constant AttentionArgs& args, const device accum* cosines, const device accum* sines) {
    return Rotary{cosines, sines, int(args.rotary_pairs)};
}

// A matrix in device memory of which pairs of columns are turned; `first` is the column that counts as 0.
struct TurnedRows {
    const device element* source;
    long row_stride;
    int first;
    Rotary rotary;

    element at(int row, int column) const thread {
        const device element* values = source + row * row_stride;
        column += first;
        if (ROTARY == ROTARY_NONE || column >= 2 * rotary.pairs) return values[column];
        const bool second = ROTARY == ROTARY_HALF ? column >= rotary.pairs : column % 2 == 1;
        const int pair = ROTARY == ROTARY_HALF ? column - (second ? rotary.pairs : 0) : column / 2;
        element x = values[ROTARY == ROTARY_HALF ? pair : 2 * pair];
        element y = values[ROTARY == ROTARY_HALF ? pair + rotary.pairs : 2 * pair + 1];
        const long place = long(row) * rotary.pairs + pair;
        rotate(x, y, Turn{rotary.cosines[place], rotary.sines[place]});
        return second ? y : x;
    }
};

// As `stage`, of rows that may be turned.
template <short ROWS, short COLUMNS, short THREAD_COUNT>
inline void stage(threadgroup chunk* target, const device element* source, long row_stride, int rows, int columns,
                  Rotary rotary, ushort thread_index) {
    if (ROTARY == ROTARY_NONE || rotary.pairs == 0) {
        stage<ROWS, COLUMNS, THREAD_COUNT>(target, source, row_stride, rows, columns, thread_index);
    } else {
        const TurnedRows turned{source, row_stride, 0, rotary};
        stage_elements<ROWS, COLUMNS, THREAD_COUNT>(target, turned, rows, columns, thread_index);
    }
}
