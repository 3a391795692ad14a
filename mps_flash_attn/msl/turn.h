// Turning pairs of numbers by angles, for rotary position embedding (Su et al., arXiv:2104.09864).
#pragma once

#include "msl/types.h"

struct Turn {
    accum cosine, sine;
};

inline void rotate(thread element& x, thread element& y, Turn turn) {
    const accum u = x, v = y;
    x = element(u * turn.cosine - v * turn.sine);
    y = element(u * turn.sine + v * turn.cosine);
}
