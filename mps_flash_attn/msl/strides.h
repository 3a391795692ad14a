// Where elements of strided tensors lie.
#pragma once

#include "msl/types.h"

// Offset of the element with this number, in row-major order over the first RANK of `sizes`.
template <short RANK, short N>
inline long offset_of(long number, constant long (&sizes)[N], constant long (&strides)[N]) {
    long offset = 0;
    for (short dim = RANK - 1; dim > 0; dim--) {
        offset += number % sizes[dim] * strides[dim];
        number /= sizes[dim];
    }
    return RANK > 0 ? offset + number * strides[0] : 0;
}
