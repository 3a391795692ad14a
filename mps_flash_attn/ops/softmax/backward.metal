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
    accum out[WIDTH], grad[WIDTH];
    accum sum = 0;
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        outputs.get(out, step);
        gradients.get(grad, step);
        for (short n = 0; n < WIDTH; n++) sum += LOG ? grad[n] : grad[n] * out[n];
    }
    sum = reduce(sum, Sum(), scratch, simdgroup, lane);

    for (int step = 0; step < STEPS && share.holds(step); step++) {
        outputs.get(out, step);
        gradients.get(grad, step);
        for (short n = 0; n < WIDTH; n++)
            grad[n] = LOG ? grad[n] - exp_difference(out[n], 0) * sum : out[n] * (grad[n] - sum);
        store(dx + share.position(step) * args.x_stride, grad);
    }
}
