// Turning pairs of a row's first columns by angles, pack by pack, for rotary position embedding.
//
// Defines: those of msl/pack.h; INTERLEAVED, whether pair i of R / 2 is columns (2 i, 2 i + 1) and not (i, i + R / 2).
#pragma once

#include "msl/pack.h"
#include "msl/turn.h"

// Turns PACK pairs from this one on of a row with so many. It may run in place.
inline void turn_pairs(const device element* source, device element* target, long pair, long pairs,
                       const thread Turn (&turns)[PACK]) {
    const long columns[2] = {INTERLEAVED ? 2 * pair : pair, INTERLEAVED ? 2 * pair + PACK : pairs + pair};
    Pack<element> packs[2];
    for (short i = 0; i < 2; i++) packs[i] = load_pack(source + columns[i]);
    for (short i = 0; i < PACK; i++) {
        const short x = INTERLEAVED ? 2 * i : i, y = INTERLEAVED ? 2 * i + 1 : PACK + i;
        rotate(packs[x / PACK].at[x % PACK], packs[y / PACK].at[y % PACK], turns[i]);
    }
    for (short i = 0; i < 2; i++) store_pack(target + columns[i], packs[i]);
}
