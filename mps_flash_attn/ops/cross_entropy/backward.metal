// dx_c = dloss (f p_c - (1 - e) w_t [c = t] - e / C w_c) with p = exp(x - m) / l recomputed and f the sum of what is
// subtracted over all classes; 0 in a row that does not take part.
//
// Grid and defines: those of forward.metal.
#include "msl/exp.h"
#include "ops/cross_entropy/args.h"

kernel void cross_entropy_backward(const device element* x [[buffer(0)]], const device long* target [[buffer(1)]],
                                   const device accum* weight [[buffer(2)]], const device accum* d_loss [[buffer(3)]],
                                   const device accum* statistics [[buffer(4)]], device element* dx [[buffer(5)]],
                                   constant CrossEntropyArgs& args [[buffer(6)]],
                                   uint group [[threadgroup_position_in_grid]],
                                   ushort thread_index [[thread_index_in_threadgroup]]) {
    const Share share = share_of(group, thread_index, args.rows, args.length);
    if (!share.holds(0)) return;

    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    dx += offset_of<ROW_RANK>(share.row, args.sizes, args.dx_rows);
    const Label label = label_of(target[offset_of<ROW_RANK>(share.row, args.sizes, args.target_rows)], weight, args);
    const accum grad = d_loss[offset_of<ROW_RANK>(share.row, args.sizes, args.d_loss_rows)];
    const long place = offset_of<ROW_RANK>(share.row, args.sizes, args.loss_rows);
    const accum m = statistics[place];
    const accum scale = statistics[args.rows + place] * statistics[2 * args.rows + place];  // 1 / l times f

    accum values[WIDTH];
    for (int step = 0; share.holds(step); step++) {
        const int first = share.position(step);
        load(values, x + first * args.x_stride);
        for (short n = 0; n < WIDTH; n++) {
            accum value = exp_difference(values[n], m) * scale;
            if (first + n == label.c) value -= args.on_target * label.weight;
            if (SMOOTHING) value -= args.on_each * weight_of(weight, first + n);
            values[n] = label.counts ? grad * value : accum(0);
        }
        store(dx + first * args.dx_stride, values);
    }
}
