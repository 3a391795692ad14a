// renormalised[v] = weight[v] min(1, max_norm / (norm + 1e-7)) for the rows that a token has, norm being the p-norm of
// the row. Rows that no token has, or that are short enough, are left alone, so both may be one tensor. `starts` as in
// backward_order.metal.
//
// A simdgroup takes a row, so one that many tokens share is divided once. Grid: (32, V). Define: NORM_TWO, NORM_LARGEST
// or NORM_POWER, for p = 2, infinity and any other.
#include "msl/pack.h"
#include "msl/reduce.h"
#include "ops/embedding/args.h"

#if NORM == NORM_LARGEST
using Join = Max;
#else
using Join = Sum;
#endif
inline accum term(accum value, accum p) {
    return NORM == NORM_TWO ? value * value : NORM == NORM_LARGEST ? abs(value) : pow(abs(value), p);
}
inline accum norm_of(accum terms, accum p) {
    return NORM == NORM_TWO ? sqrt(terms) : NORM == NORM_LARGEST ? terms : pow(terms, 1 / p);
}

kernel void embedding_renormalise(const device element* weight [[buffer(0)]], const device int* starts [[buffer(1)]],
                                  device element* renormalised [[buffer(2)]],
                                  constant EmbeddingArgs& args [[buffer(3)]],
                                  uint2 position [[thread_position_in_grid]],
                                  ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup accum unused[SCRATCH];
    const long row = position.y;
    if (starts[row] == starts[row + 1]) return;

    weight += row * args.row_stride;
    renormalised += row * args.row_stride;
    const Join join = Join();
    accum terms = 0;
    for (long column = lane * PACK; column < args.columns; column += LANES * PACK) {
        const Pack<element> values = load_pack(weight + column * args.column_stride);
        for (short i = 0; i < PACK; i++) terms = join(terms, term(accum(values.at[i]), args.norm_type));
    }
    const accum norm = norm_of(reduce(terms, join, unused, 0, lane), args.norm_type);
    if (!(norm > args.max_norm)) return;

    const accum scale = args.max_norm / (norm + accum(1e-7));
    for (long column = lane * PACK; column < args.columns; column += LANES * PACK) {
        Pack<element> values = load_pack(weight + column * args.column_stride);
        for (short i = 0; i < PACK; i++) values.at[i] = element(accum(values.at[i]) * scale);
        store_pack(renormalised + column * args.column_stride, values);
    }
}
