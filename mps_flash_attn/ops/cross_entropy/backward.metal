// dx_c = dloss (f p_c - (1 - e) w_t [c = t] - e / C w_c) with p = exp(x - m) / l recomputed and f the sum of what is
// subtracted over all classes; 0 in a row that does not take part. With probabilities q (1 - e) w_c q_c is subtracted
// in the place of that of the class, and dq_c = -dloss (1 - e) w_c log p_c.
//
// Grid and defines: those of forward.metal; X_GRADIENT and TARGET_GRADIENT, 1 for those that are wanted.
#include "msl/exp.h"
#include "ops/cross_entropy/args.h"

kernel void cross_entropy_backward(const device element* x [[buffer(0)]], const device target_t* target [[buffer(1)]],
                                   const device accum* weight [[buffer(2)]], const device accum* d_loss [[buffer(3)]],
                                   const device accum* statistics [[buffer(4)]],
                                   device target_t* d_target [[buffer(5)]], device element* dx [[buffer(6)]],
                                   constant CrossEntropyArgs& args [[buffer(7)]],
                                   uint group [[threadgroup_position_in_grid]],
                                   ushort thread_index [[thread_index_in_threadgroup]]) {
    const Share share = share_of(group, thread_index, args.rows, args.length);
    if (!share.holds(0)) return;

    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    dx += offset_of<ROW_RANK>(share.row, args.sizes, args.dx_rows);
    target += offset_of<ROW_RANK>(share.row, args.sizes, args.target_rows);
    d_target += offset_of<ROW_RANK>(share.row, args.sizes, args.d_target_rows);
    const Label label = label_of(target, weight, args);
    const accum grad = d_loss[offset_of<ROW_RANK>(share.row, args.sizes, args.d_loss_rows)];
    const long place = offset_of<ROW_RANK>(share.row, args.sizes, args.loss_rows);
    const accum m = statistics[place], inverse_l = statistics[args.rows + place];
    const accum scale = inverse_l * statistics[2 * args.rows + place];  // times f

    for (int step = 0; share.holds(step); step++) {
        const int first = share.position(step);
        const Pack<accum> values = load_values(x + first * args.x_stride);
#if TARGET_GRADIENT
        Pack<accum> of_target;
        for (short i = 0; i < PACK; i++)
            of_target.at[i] =
                -grad * args.on_target * weight_of(weight, first + i) * (values.at[i] - m + log(inverse_l));
        store_values(d_target + first * args.d_target_stride, of_target);
#endif
#if X_GRADIENT
        Pack<accum> of_x = spread_of(target, first, weight, args);
        for (short i = 0; i < PACK; i++) {
            accum value = exp_difference(values.at[i], m) * scale - of_x.at[i];
            if (first + i == label.c) value -= args.on_target * label.weight;
            of_x.at[i] = label.counts ? grad * value : accum(0);
        }
        store_values(dx + first * args.dx_stride, of_x);
#endif
    }
}
