// dx = y (dy - sum of y dy) for y = softmax(x), or with LOG dx = dy - exp(y) (sum of dy) for y = log_softmax(x); the
// sums are over the row.
//
// Grid and defines: those of forward.metal.
#include "msl/exp.h"
#include "ops/softmax/args.h"

kernel void softmax_backward(const device result* y [[buffer(0)]], const device result* dy [[buffer(1)]],
                             device element* dx [[buffer(2)]], constant SoftmaxArgs& args [[buffer(3)]],
                             uint group [[threadgroup_position_in_grid]],
                             ushort thread_index [[thread_index_in_threadgroup]],
                             ushort simdgroup [[simdgroup_index_in_threadgroup]],
                             ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup accum scratch[SCRATCH];

    const Share share = share_of(group, thread_index, args.rows, args.length);
    y += offset_of<ROW_RANK>(share.row, args.sizes, args.y_rows);
    dy += offset_of<ROW_RANK>(share.row, args.sizes, args.dy_rows);
    dx += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);

    RowValues<result> outputs, gradients;
    outputs.start(y, args.y_stride, share);
    gradients.start(dy, args.dy_stride, share);
    accum sum = 0;
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        const Pack<accum> out = outputs.get(step), grad = gradients.get(step);
        for (short i = 0; i < PACK; i++) sum += LOG ? grad.at[i] : grad.at[i] * out.at[i];
    }
    sum = reduce(sum, Sum(), scratch, simdgroup, lane);

    for (int step = 0; step < STEPS && share.holds(step); step++) {
        const Pack<accum> out = outputs.get(step);
        Pack<accum> grad = gradients.get(step);
        for (short i = 0; i < PACK; i++)
            grad.at[i] = LOG ? grad.at[i] - exp_difference(out.at[i], 0) * sum : out.at[i] * (grad.at[i] - sum);
        store_values(dx + share.position(step) * args.x_stride, grad);
    }
}
