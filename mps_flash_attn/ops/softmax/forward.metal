// y = exp(x - m) / l of each row, or with LOG its logarithm x - m - log l, with m the largest value of the row and l
// the sum of exp(x - m), both found in one reading (Milakov and Gimelshein, arXiv:1805.02867, algorithm 3).
//
// Grid: ceil(rows / ROWS) threadgroups of THREADS threads, ROW_THREADS to a row. Defines: LOG, 0 or 1; ROW_RANK, of the
// rows' numbering; those of msl/rows.h.
#include "msl/exp_sum.h"
#include "ops/softmax/args.h"

kernel void softmax_forward(const device element* x [[buffer(0)]], device result* y [[buffer(1)]],
                            constant SoftmaxArgs& args [[buffer(2)]], uint group [[threadgroup_position_in_grid]],
                            ushort thread_index [[thread_index_in_threadgroup]],
                            ushort simdgroup [[simdgroup_index_in_threadgroup]],
                            ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup ExpSum scratch[SCRATCH];

    const Share share = share_of(group, thread_index, args.rows, args.length);
    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    y += offset_of<ROW_RANK>(share.row, args.sizes, args.y_rows);

    RowValues<element> row;
    row.start(x, args.x_stride, share);
    ExpSum sum;
    sum.start();
    for (int step = 0; step < STEPS && share.holds(step); step++) sum.add(row.get(step));
    sum = reduce(sum, Merge(), scratch, simdgroup, lane);

    const accum scale = 1 / sum.l, log_l = log(sum.l);
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        Pack<accum> values = row.get(step);
        for (short i = 0; i < PACK; i++)
            values.at[i] = LOG ? values.at[i] - sum.m - log_l : exp_difference(values.at[i], sum.m) * scale;
        store_values(y + share.position(step) * args.y_stride, values);
    }
}
