// output[n] = weight[input[n]], one row a token.
//
// A thread moves one unit of a row: 16 bytes where all rows allow it, else an element. An index outside the rows gives
// a row of NaN; the operator raises before it comes to that. Grid: (units of a row, N).
#include "msl/pack.h"
#include "ops/embedding/args.h"

kernel void embedding_forward(const device INDEX* input [[buffer(0)]], const device element* weight [[buffer(1)]],
                              device element* output [[buffer(2)]], constant EmbeddingArgs& args [[buffer(3)]],
                              uint2 position [[thread_position_in_grid]]) {
    const long column = position.x * PACK, token = position.y;
    const long row = input[token_offset(args, token)];

    Pack<element> values;
    for (short n = 0; n < PACK; n++) values.at[n] = element(NAN);
    if (row >= 0 && row < args.rows) values = load_pack(weight + row * args.row_stride + column);
    store_pack(output + token * args.columns + column, values);
}
