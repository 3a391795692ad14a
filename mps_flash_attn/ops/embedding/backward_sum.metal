// d_weight[v] = the sum of the gradient's rows of the tokens with index v, added in the order of the tokens; 0 where
// there are none. `starts` and `order` as in backward_order.metal.
//
// A thread takes one pack of a row and owns it, so nothing is added by two. Grid: (D / PACK, V). Define: BY_COUNT, 1 to
// divide the sum by the number of those tokens.
#include "msl/pack.h"
#include "ops/embedding/args.h"

kernel void embedding_backward_sum(const device element* gradient [[buffer(0)]], const device int* starts [[buffer(1)]],
                                   const device int* order [[buffer(2)]], device element* d_weight [[buffer(3)]],
                                   constant EmbeddingArgs& args [[buffer(4)]],
                                   uint2 position [[thread_position_in_grid]]) {
    const long column = position.x * PACK, row = position.y;
    accum sum[PACK] = {};
    for (int n = starts[row]; n < starts[row + 1]; n++) {
        const Pack<element> next = load_pack(gradient + token_offset(args, order[n]) + column);
        for (short i = 0; i < PACK; i++) sum[i] += accum(next.at[i]);
    }
    const accum count = BY_COUNT ? max(starts[row + 1] - starts[row], 1) : 1;
    Pack<element> result;
    for (short i = 0; i < PACK; i++) result.at[i] = element(sum[i] / count);
    store_pack(d_weight + row * args.columns + column, result);
}
