// Which weights are dropped: a function of the key, the head, the query and the key's place alone, so that kernels with
// other tiles, and transposed ones, drop the same. Define: DROPOUT, 0 or 1.
#pragma once

#include "msl/philox.h"
#include "msl/tile.h"

struct Dropout {
    uint2 key;   // of the random numbers
    uint head;   // counted over all batches
    uint below;  // a weight with a smaller number is dropped
    accum kept;  // factor of the others
};

// What becomes of ROWS x COLUMNS tiles of weights. Rows are queries and columns keys, or with TRANSPOSED the other way
// round.
template <bool TRANSPOSED, short ROWS, short COLUMNS>
struct Dropped {
#if DROPOUT
    uchar bits[ROWS][COLUMNS];  // of a tile's elements, set for those that are kept
    accum kept;

    // Draws for tiles from query i0 and key j0 on, both multiples of 16. One call of the generator serves the four
    // elements of a tile that are 8 rows or 8 columns apart, which one lane holds in either orientation.
    void draw(thread const Dropout& dropout, int i0, int j0, ushort lane) thread {
        kept = dropout.kept;
        for (short r = 0; r < ROWS; r++)
            for (short n = 0; n < COLUMNS; n++) {
                const uint query_tile = i0 / TILE + (TRANSPOSED ? n : r), key_tile = j0 / TILE + (TRANSPOSED ? r : n);
                uint set = 0;
                for (short next = 0; next < 2; next++) {
                    const uint row = tile_row(lane, 0), column = tile_col(lane, next);
                    const uint place = TRANSPOSED ? column * 8 + row : row * 8 + column;
                    const uint4 random = philox(uint4(query_tile, key_tile, place, dropout.head), dropout.key);
                    for (short low = 0; low < 2; low++)
                        for (short right = 0; right < 2; right++) {
                            const uint number = random[TRANSPOSED ? right * 2 + low : low * 2 + right];
                            set |= uint(number >= dropout.below) << (low * 4 + right * 2 + next);
                        }
                }
                bits[r][n] = set;
            }
    }
    void apply(thread TileC (&weights)[ROWS][COLUMNS]) const thread {
        for (short r = 0; r < ROWS; r++)
            for (short n = 0; n < COLUMNS; n++)
                for (short row = 0; row < 2; row++)
                    for (short column = 0; column < 4; column++) {
                        const bool keeps = bits[r][n] >> (row * 4 + column) & 1;
                        weights[r][n].at(row, column) *= keeps ? kept : accum(0);
                    }
    }
#else
    void draw(thread const Dropout&, int, int, ushort) const thread {}
    void apply(thread TileC (&)[ROWS][COLUMNS]) const thread {}
#endif
};
