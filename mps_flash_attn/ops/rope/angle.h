// Cosine and sine of the angle by which a pair turns at a position.
//
// Define: ANGLES, where they come from, one of the values below. Positions are `int` or `long`: define POSITION.
#pragma once

#include "msl/turn.h"
#include "ops/rope/args.h"

#define ANGLES_IMPLIED 0    // positions offset, offset + 1, ...
#define ANGLES_POSITIONS 1  // positions in a tensor
#define ANGLES_TABLES 2     // cosines and sines in tensors

#if ANGLES == ANGLES_TABLES
using first_value = accum;   // cosines [B, L, R / 2]
using second_value = accum;  // sines
#else
using first_value = ulong;      // turns of each pair from one position to the next [R / 2], in units of 2^-64 turns
using second_value = POSITION;  // positions [B, L], if there are any
#endif

inline Turn turn_of(const device first_value* first, const device second_value* second, constant RopeArgs& args,
                    long batch, long row, long pair) {
    const long place = batch * args.angle_stride[0] + row * args.angle_stride[1];
    Turn turn;
#if ANGLES == ANGLES_TABLES
    turn.cosine = first[place + pair];
    turn.sine = second[place + pair];
#else
    const long position = ANGLES == ANGLES_POSITIONS ? long(second[place]) : args.offset + row;
    // Whole turns overflow and are gone: what is left is exact, and as a signed number within half a turn.
    const long rest = ulong(position) * first[pair];
    const accum angle = accum(rest) * accum(3.40612158008655459e-19);  // 2 pi / 2^64
    turn.cosine = precise::cos(angle);
    turn.sine = precise::sin(angle);
#endif
    turn.sine *= args.direction;
    return turn;
}
