// How a team of ROW_THREADS threads goes through its row, a pack a thread at a time.
//
// Define: HELD, the packs of a thread when registers hold the row between two passes; 0 when it is read again.
#pragma once

#include "msl/pack.h"
#include "msl/reduce.h"
#include "msl/strides.h"
#include "ops/norm/args.h"

// Elements from one pack of a thread to its next.
constant constexpr int STEP = ROW_THREADS * PACK;
constant constexpr short PLACES = HELD > 0 ? HELD : 1;

struct Row {
    long number;
    int columns;  // 0 for a team that is left without a row: it takes part in reductions only
    int first;    // of this thread

    void start(constant NormArgs& args, uint group, ushort thread_index) thread {
        number = long(group) * ROWS + thread_index / ROW_THREADS;
        columns = number < args.rows ? args.columns : 0;
        first = thread_index % ROW_THREADS * PACK;
    }
    // Packs of a thread; known to the compiler where registers hold them.
    int steps() const thread { return HELD > 0 ? HELD : (columns + STEP - 1) / STEP; }
    // The register for the pack of this step.
    short place(int step) const thread { return HELD > 0 ? step : 0; }
};

// Parameters as factors and summands, as many as a pack has.
inline Pack<accum> load_parameters(const device parameter* source, int column, bool present, accum otherwise) {
    Pack<accum> values;
    if (present) {
        const Pack<parameter> loaded = load_pack(source + column);
        for (short i = 0; i < PACK; i++) values.at[i] = accum(loaded.at[i]);
    } else {
        for (short i = 0; i < PACK; i++) values.at[i] = otherwise;
    }
    return values;
}
