// d_weight[v] = the sum of the gradient's rows of the tokens with index v, added in the order of the tokens; 0 where
// there are none. `starts` and `order` as in backward_order.metal.
//
// A thread takes WIDTH neighbouring columns of one row and owns them, so nothing is added by two. Grid: (D / WIDTH, V).
#include "ops/embedding/args.h"

struct alignas(WIDTH * sizeof(element)) Columns {
    element value[WIDTH];
};

kernel void embedding_backward_sum(const device element* gradient [[buffer(0)]], const device int* starts [[buffer(1)]],
                                   const device int* order [[buffer(2)]], device element* d_weight [[buffer(3)]],
                                   constant EmbeddingArgs& args [[buffer(4)]],
                                   uint2 position [[thread_position_in_grid]]) {
    const long column = position.x * WIDTH, row = position.y;
    accum sum[WIDTH] = {};
    for (int n = starts[row]; n < starts[row + 1]; n++) {
        const Columns next = *(const device Columns*)(gradient + token_offset(args, order[n]) + column);
        for (short i = 0; i < WIDTH; i++) sum[i] += accum(next.value[i]);
    }
    Columns result;
    for (short i = 0; i < WIDTH; i++) result.value[i] = element(sum[i]);
    *(device Columns*)(d_weight + row * args.columns + column) = result;
}
