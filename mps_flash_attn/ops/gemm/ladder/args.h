// What every rung is told: C [rows][columns] = A [rows][depth] B [depth][columns], all of them contiguous.
#pragma once

#include "msl/types.h"

struct alignas(8) LadderArgs {
    long rows;     // M
    long columns;  // N
    long depth;    // K
};
static_assert(sizeof(LadderArgs) == LADDER_ARGS_BYTES, "args.h and the packing in launch.py disagree");
