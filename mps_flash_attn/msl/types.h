// The number types of a kernel. Defines: ELEMENT, what tensors hold; ACCUMULATOR, what sums are kept in.
#pragma once

#include <metal_stdlib>

using namespace metal;

using element = ELEMENT;
using accum = ACCUMULATOR;

// One value for each of the two rows of a tile that a lane holds.
using rows_t = vec<accum, 2>;
// One value for each of the four columns of a tile that a lane holds.
using columns_t = vec<accum, 4>;

constant constexpr accum LOG2_E = accum(1.44269504088896340736);

// Sixteen bytes: what one lane moves at a time.
using chunk = uint4;
constant constexpr short CHUNK_ELEMENTS = sizeof(chunk) / sizeof(element);
