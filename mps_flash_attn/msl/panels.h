// Staged tiles for wgmma, the matrix instructions of warpgroups, four simdgroups that multiply together (csrc/cuda,
// wgmma.h). They read both operands where they are staged, in panels of 64 columns: rows of 128 bytes, eight after
// eight, in which chunk j of row i is at j ^ i % 8, so that neither eight rows nor eight columns share a bank.
#pragma once

#include "msl/types.h"

constant constexpr short PANEL = 64;
static_assert(sizeof(element) == 2, "rows of a panel are 128 bytes");

template <short COLUMNS>
constexpr short staged_stride() {
    return PANEL;
}
template <short ROWS, short COLUMNS>
constexpr short staged_chunks() {
    static_assert(ROWS % 8 == 0 && COLUMNS % PANEL == 0, "a tile is made of whole panels, eight rows at a time");
    return ROWS * COLUMNS / CHUNK_ELEMENTS;
}
// Where the element at row i and column j of a staged tile is.
template <short ROWS, short COLUMNS>
constexpr int staged_place(short i, short j) {
    return (j / PANEL * ROWS + i) * PANEL + (j ^ i % 8 * CHUNK_ELEMENTS) % PANEL;
}

// What a warpgroup multiplies of a tile of ROWS rows, from row i and column j on, multiples of 8 and 16; of an operand
// whose depth runs ACROSS the rows, from column j on, a multiple of 64.
template <short ROWS>
struct Staged {
    const threadgroup element* tile;

    ulong at(short i, short j) const thread {
        return simt::operand_at(tile + (j / PANEL * ROWS + i) * PANEL + j % PANEL, ROWS * PANEL * sizeof(element));
    }
};
