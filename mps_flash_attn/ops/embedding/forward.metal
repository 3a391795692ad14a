// output[n] = weight[input[n]], one row a token.
//
// A thread moves one unit of a row: 16 bytes where all rows allow it, else an element. An index outside the rows gives
// a row of NaN; the operator raises before it comes to that. Grid: (units of a row, N).
#include "ops/embedding/args.h"

#if ALIGNED
using unit = chunk;
constant constexpr short UNIT_ELEMENTS = CHUNK_ELEMENTS;
inline unit nowhere() { return chunk(~0u); }  // all bits set are NaN in every dtype
#else
using unit = element;
constant constexpr short UNIT_ELEMENTS = 1;
inline unit nowhere() { return element(NAN); }
#endif

kernel void embedding_forward(const device INDEX* input [[buffer(0)]], const device element* weight [[buffer(1)]],
                              device element* output [[buffer(2)]], constant EmbeddingArgs& args [[buffer(3)]],
                              uint2 position [[thread_position_in_grid]]) {
    const long column = position.x * UNIT_ELEMENTS, token = position.y;
    const long row = input[token_offset(args, token)];
    const bool inside = row >= 0 && row < args.rows;

    const device unit* source = (const device unit*)(weight + row * args.row_stride + column);
    *(device unit*)(output + token * args.columns + column) = inside ? *source : nowhere();
}
