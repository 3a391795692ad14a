// dx = [x = y] dy / ties: the elements of a row that are its largest value y share its gradient evenly, as in PyTorch.
// A row with NaN has no element equal to its y, so its gradient is 0 / 0.
//
// Grid and defines: those of reduction.metal.
#include "ops/reduction/args.h"

kernel void reduction_amax_backward(const device element* x [[buffer(0)]], const device element* y [[buffer(1)]],
                                    const device element* dy [[buffer(2)]], const device accum* ties [[buffer(3)]],
                                    device element* dx [[buffer(4)]], constant ReductionArgs& args [[buffer(5)]],
                                    uint2 group [[threadgroup_position_in_grid]],
                                    ushort thread_index [[thread_index_in_threadgroup]]) {
    const Part part = part_of(group, thread_index, args);
    const Share share = part.share;
    if (!share.holds(0)) return;

    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    dx += offset_of<ROW_RANK>(share.row, args.sizes, args.dx_rows);
    const accum largest = y[offset_of<ROW_RANK>(share.row, args.sizes, args.y_rows)];
    const accum grad = dy[offset_of<ROW_RANK>(share.row, args.sizes, args.dy_rows)];
    const accum count = ties[offset_of<ROW_RANK>(share.row, args.sizes, args.reduced_rows)];

    for (int step = 0; share.holds(step); step++) {
        const int position = part.start + share.position(step);
        Pack<accum> values = load_values(x + offset_of<COLUMN_RANK>(position, args.column_sizes, args.x_columns));
        for (short i = 0; i < PACK; i++) values.at[i] = accum(values.at[i] == largest) * grad / count;
        store_values(dx + offset_of<COLUMN_RANK>(position, args.column_sizes, args.dx_columns), values);
    }
}
