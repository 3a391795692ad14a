// Scores kept within +-cap by cap tanh(s / cap), as in Gemma 2 (arXiv:2408.00118). Define: SOFTCAP, 0 or 1.
#pragma once

#include "msl/tile.h"

// For ROWS x COLUMNS tiles: turns products into capped scores, then gradients of those into gradients of the scores
// before.
template <short ROWS, short COLUMNS>
struct SoftCap {
#if SOFTCAP
    TileC slope[ROWS][COLUMNS];  // 1 - tanh^2

    void apply(thread TileC (&s)[ROWS][COLUMNS], accum scale, accum cap) thread {
        const accum factor = scale / cap;
        for (short r = 0; r < ROWS; r++)
            for (short n = 0; n < COLUMNS; n++)
                for (short row = 0; row < 2; row++)
                    for (short column = 0; column < 4; column++) {
                        const accum t = precise::tanh(factor * s[r][n].at(row, column));
                        s[r][n].at(row, column) = cap * t;
                        slope[r][n].at(row, column) = 1 - t * t;
                    }
    }
    void take_back(thread TileC (&ds)[ROWS][COLUMNS]) thread {
        for (short r = 0; r < ROWS; r++)
            for (short n = 0; n < COLUMNS; n++)
                for (short row = 0; row < 2; row++)
                    for (short column = 0; column < 4; column++)
                        ds[r][n].at(row, column) *= slope[r][n].at(row, column);
    }
#else
    void apply(thread TileC (&)[ROWS][COLUMNS], accum, accum) const thread {}
    void take_back(thread TileC (&)[ROWS][COLUMNS]) const thread {}
#endif
};
