// loss = -(1 - e) w_t log p_t - e / C sum of w_c log p_c of each row, with log p = x - m - log l, the row's class t,
// the classes' weights w and label smoothing e; with probabilities q -sum of w_c ((1 - e) q_c + e / C) log p_c. The row
// is read once; its log-softmax is never written.
//
// Grid: ceil(rows / ROWS) threadgroups of THREADS threads, ROW_THREADS to a row. Defines: those of args.h.
#include "ops/cross_entropy/args.h"
#include "ops/cross_entropy/smoothed_sum.h"

// `row_weight` is w_t, 0 of a row that does not take part. `statistics` is [3][rows], for the backward pass: m, 1 / l
// and the factor of p in the gradient.
kernel void cross_entropy_forward(const device element* x [[buffer(0)]], const device target_t* target [[buffer(1)]],
                                  const device accum* weight [[buffer(2)]], device accum* loss [[buffer(3)]],
                                  device accum* row_weight [[buffer(4)]], device accum* statistics [[buffer(5)]],
                                  constant CrossEntropyArgs& args [[buffer(6)]],
                                  uint group [[threadgroup_position_in_grid]],
                                  ushort thread_index [[thread_index_in_threadgroup]],
                                  ushort simdgroup [[simdgroup_index_in_threadgroup]],
                                  ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup SmoothedSum scratch[SCRATCH];

    const Share share = share_of(group, thread_index, args.rows, args.length);
    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    target += offset_of<ROW_RANK>(share.row, args.sizes, args.target_rows);
    SmoothedSum sum;
    sum.start();
    for (int step = 0; share.holds(step); step++) {
        const int first = share.position(step);
        sum.add(load_values(x + first * args.x_stride), spread_of(target, first, weight, args));
    }
    sum = reduce(sum, MergeSmoothed(), scratch, simdgroup, lane);
    if (share.first > 0 || share.row >= args.rows) return;

    const Label label = label_of(target, weight, args);
    const accum m = sum.exponentials.m, log_l = log(sum.exponentials.l);
    accum total = 0, factor = 0;
    if (label.counts) {
#if SPREAD
        total = sum.w * log_l - sum.s;
        factor = sum.w;
#endif
#if !PROBABILITIES
        total -= args.on_target * label.weight * (accum(x[label.c * args.x_stride]) - m - log_l);
        factor += args.on_target * label.weight;
#endif
    }
    const long place = offset_of<ROW_RANK>(share.row, args.sizes, args.loss_rows);
    loss[place] = total;
    row_weight[place] = label.weight;
    statistics[place] = m;
    statistics[args.rows + place] = 1 / sum.exponentials.l;
    statistics[2 * args.rows + place] = factor;
}
