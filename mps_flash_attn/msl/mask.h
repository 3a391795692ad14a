// Which keys a query sees and what is added to its scores. Defines: CAUSAL, 0 or 1; MASK, one of the values below;
// MASK_ELEMENT, what an attn_mask holds.
#pragma once

#include "msl/tile.h"

#define MASK_NONE 0
#define MASK_BOOLEAN 1
#define MASK_ADDITIVE 2

using mask_element = MASK_ELEMENT;

struct ScoreMask {
    accum scale;        // of a score
    int queries, keys;  // Lq and Lk
    int causal_offset;  // the last key that query i sees is i + causal_offset
    const device mask_element* values;
    long row_stride, column_stride;

    // The number of keys, from the first, that any query up to `last` may see.
    int visible_keys(int last) const thread { return CAUSAL ? clamp(last + 1 + causal_offset, 0, keys) : keys; }
    // The first query that sees a key from `first` on.
    int first_query(int first) const thread { return CAUSAL ? max(first - causal_offset, 0) : 0; }
    // Whether some element of the tile with this first query and key needs more than the scale.
    bool touches(int i0, int j0) const thread {
        const bool edge = i0 + TILE > queries || j0 + TILE > keys;
        return MASK != MASK_NONE || edge || (CAUSAL && j0 + TILE - 1 > i0 + causal_offset);
    }
    // The score of query i and key j in base 2, -inf where the key is hidden.
    accum score(accum s, int i, int j) const thread {
        s *= scale;
        const bool hidden = i >= queries || j >= keys || (CAUSAL && j > i + causal_offset);
        if (hidden) return -INFINITY;
#if MASK == MASK_BOOLEAN
        if (!values[i * row_stride + j * column_stride]) s = -INFINITY;
#elif MASK == MASK_ADDITIVE
        s += accum(values[i * row_stride + j * column_stride]);
#endif
        return s;
    }
    // Turns the products q k of a tile into masked scores. Rows are queries and columns keys, or with TRANSPOSED the
    // other way round.
    template <bool TRANSPOSED>
    void apply(thread TileC& s, int i0, int j0, ushort lane) const thread {
        const bool masked = touches(i0, j0);
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 4; column++) {
                const short r = tile_row(lane, row), c = tile_col(lane, column);
                const int i = i0 + (TRANSPOSED ? c : r), j = j0 + (TRANSPOSED ? r : c);
                thread accum& value = s.at(row, column);
                value = masked ? score(value, i, j) : value * scale;
            }
    }
};
