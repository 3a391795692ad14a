// Reductions over rows, each shared by a team of ROW_THREADS threads: a power of two up to 32, so that several rows fit
// into a simdgroup, or a larger one that is the whole threadgroup.
//
// Defines: ROW_THREADS; THREADS, threads of a threadgroup, a multiple of 32 and of ROW_THREADS.
#pragma once

#include "msl/types.h"

constant constexpr short LANES = 32;
constant constexpr short SIMDGROUPS = THREADS / LANES;
// Rows of a threadgroup.
constant constexpr short ROWS = THREADS / ROW_THREADS;
// Lanes of a team that are in one simdgroup.
constant constexpr short TEAM_LANES = ROW_THREADS < LANES ? ROW_THREADS : LANES;
// Places that `reduce` needs in threadgroup memory; one is declared, never used, where a row is within a simdgroup.
constant constexpr short SCRATCH = ROW_THREADS > LANES ? SIMDGROUPS : 1;

static_assert((ROW_THREADS & (ROW_THREADS - 1)) == 0, "teams are halved until one lane is left");
static_assert(ROW_THREADS <= LANES || ROW_THREADS == THREADS, "one team a threadgroup");

struct Sum {
    accum operator()(accum a, accum b) const thread { return a + b; }
};
// NaN where either is: Metal's own max would drop it.
struct Max {
    accum operator()(accum a, accum b) const thread { return a > b || isnan(a) ? a : b; }
};

// The same value of the lane whose index differs in this bit. Overload it for a struct to reduce that.
inline accum across(accum value, ushort bit) { return simd_shuffle_xor(value, bit); }

// Combines one value a thread over the team, in the same order for every lane, so that all get the same bits.
// All threads of the threadgroup call it. `scratch` has SCRATCH places; a barrier must come before it is used again.
template <typename Value, typename Combine>
inline Value reduce(Value value, Combine combine, threadgroup Value* scratch, ushort simdgroup, ushort lane) {
    for (ushort bit = TEAM_LANES / 2; bit > 0; bit /= 2) value = combine(value, across(value, bit));
#if ROW_THREADS > 32
    if (lane == 0) scratch[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = scratch[lane % SIMDGROUPS];
    for (ushort bit = SIMDGROUPS / 2; bit > 0; bit /= 2) value = combine(value, across(value, bit));
#endif
    return value;
}
