// Rotary position embedding (Su et al., arXiv:2104.09864, equation 34): turns each pair (x, y) of a row's first R
// columns by an angle that grows with the row's position,
//
//     (x, y)  ->  (x cos - y sin, x sin + y cos)
//
// and copies the other columns. Pair i is columns (i, i + R / 2) or, INTERLEAVED, (2 i, 2 i + 1). With direction -1 it
// is the inverse, which is also the gradient. It may run in place.
//
// A thread takes two packs of a row, which are PACK pairs, or a pack that is only copied, of up to HEADS rows at one
// position, so that it computes angles once for all of them. Grid: (threads of a row, L, outer * ceil(inner / HEADS)).
#include "msl/turn_pack.h"
#include "ops/rope/angle.h"

kernel void rope_forward(const device element* input [[buffer(0)]], const device first_value* first [[buffer(1)]],
                         const device second_value* second [[buffer(2)]], device element* output [[buffer(3)]],
                         constant RopeArgs& args [[buffer(4)]], uint3 position [[thread_position_in_grid]]) {
    const long row = position.y, pairs = args.rotary_pairs, pair = position.x * PACK;
    const long chunks = (args.inner + HEADS - 1) / HEADS, outer = position.z / chunks;
    const long begin = position.z % chunks * HEADS, end = min(begin + HEADS, args.inner);
    input += offset_of<OUTER_RANK>(outer, args.outer_sizes, args.input_outer) + row * args.input_stride[1];
    output += offset_of<OUTER_RANK>(outer, args.outer_sizes, args.output_outer) + row * args.output_stride[1];

    if (pair >= pairs) {
        const long column = pairs + pair;  // behind R columns, the one with number pair - R / 2
        for (long n = begin; n < end; n++)
            store_pack(output + n * args.output_stride[0] + column,
                       load_pack(input + n * args.input_stride[0] + column));
        return;
    }
    Turn turns[PACK];
    for (short i = 0; i < PACK; i++)
        turns[i] = turn_of(first, second, args, outer / args.outer_per_batch, row, pair + i);
    for (long n = begin; n < end; n++)
        turn_pairs(input + n * args.input_stride[0], output + n * args.output_stride[0], pair, pairs, turns);
}
