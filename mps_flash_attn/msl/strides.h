// Where elements of strided tensors lie.
#pragma once

#include "msl/types.h"

// Offset of the element with this number, in row-major order over the first RANK of `sizes`. Numbers of 32 bits are
// divided faster.
template <short RANK, typename Number, short N>
inline long offset_of(Number number, constant long (&sizes)[N], constant long (&strides)[N]) {
    long offset = 0;
    for (short dim = RANK - 1; dim > 0; dim--) {
        offset += number % Number(sizes[dim]) * strides[dim];
        number /= Number(sizes[dim]);
    }
    return RANK > 0 ? offset + number * strides[0] : 0;
}
