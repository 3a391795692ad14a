// Which keys a query sees and what is added to its scores. Defines: CAUSAL, whether a query has a last key; WINDOW,
// whether it has a first; ALIBI, whether distance counts (Press et al., arXiv:2108.12409); MASK, one of the values
// below; MASK_ELEMENT, what an attn_mask holds.
#pragma once

#include "msl/tile.h"

#define MASK_NONE 0
#define MASK_BOOLEAN 1
#define MASK_ADDITIVE 2

using mask_element = MASK_ELEMENT;

struct ScoreMask {
    accum scale;        // that `apply` multiplies a product q k by
    accum unit;         // that is left to multiply it by: scores are kept in this unit, which is positive
    int queries, keys;  // Lq and Lk
    int causal_offset;  // the last key that query i sees is i + causal_offset
    int window_offset;  // the first one is i + window_offset
    int diagonal;       // query i stands at key i + diagonal
    accum slope;        // that is subtracted for each key between the two
    const device mask_element* values;
    long row_stride, column_stride;

    // The number of keys, from the first, that any query up to `last` may see.
    int visible_keys(int last) const thread { return CAUSAL ? clamp(last + 1 + causal_offset, 0, keys) : keys; }
    // The first key that any query from `first` on may see.
    int first_key(int first) const thread { return WINDOW ? clamp(first + window_offset, 0, keys) : 0; }
    // The first query that sees a key from `first` on.
    int first_query(int first) const thread { return CAUSAL ? max(first - causal_offset, 0) : 0; }
    // The number of queries, from the first, that may see any key up to `last`.
    int seeing_queries(int last) const thread { return WINDOW ? clamp(last + 1 - window_offset, 0, queries) : queries; }
    // Splits the factor of all scores, so that `apply` has nothing to do where no mask is.
    void set_scale(accum factor) thread {
        const bool late = MASK != MASK_ADDITIVE && !ALIBI && factor > 0;
        scale = late ? accum(1) : factor;
        unit = late ? factor : accum(1);
    }
    // Whether some product of `rows` queries from i0 and `columns` keys from j0 is not a score in `unit` as it is.
    bool touches(int i0, int j0, int rows, int columns) const thread {
        const bool edge = i0 + rows > queries || j0 + columns > keys;
        const bool late = CAUSAL && j0 + columns - 1 > i0 + causal_offset;
        const bool early = WINDOW && j0 < i0 + rows - 1 + window_offset;
        return MASK != MASK_NONE || ALIBI || scale != accum(1) || edge || late || early;
    }
    // The score of query i and key j in `unit`, -inf where the key is hidden.
    accum score(accum s, int i, int j) const thread {
        s *= scale;
        const bool inside = i < queries && j < keys;
        const bool near = !(CAUSAL && j > i + causal_offset) && !(WINDOW && j < i + window_offset);
        if (!inside || !near) return -INFINITY;
        if (ALIBI) s -= slope * accum(abs(i + diagonal - j));
#if MASK == MASK_BOOLEAN
        if (!values[i * row_stride + j * column_stride]) s = -INFINITY;
#elif MASK == MASK_ADDITIVE
        s += accum(values[i * row_stride + j * column_stride]);
#endif
        return s;
    }
    // Turns the products q k of a tile into scores. Rows are queries and columns keys, or with TRANSPOSED the other way
    // round.
    template <bool TRANSPOSED>
    void apply(thread TileC& s, int i0, int j0, ushort lane) const thread {
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 4; column++) {
                const short r = tile_row(lane, row), c = tile_col(lane, column);
                const int i = i0 + (TRANSPOSED ? c : r), j = j0 + (TRANSPOSED ? r : c);
                s.at(row, column) = score(s.at(row, column), i, j);
            }
    }
};
