// y = (x - mean) rstd weight + bias for each row, with rstd = 1 / sqrt(variance + eps): LayerNorm (Ba, Kiros and
// Hinton, arXiv:1607.06450), or without mean and bias RMSNorm (Zhang and Sennrich, arXiv:1910.07467). Mean and variance
// come out of one pass, by Welford's recurrence over packs and the merge of moments.h between threads.
//
// Grid: ceil(rows / ROWS) threadgroups of THREADS threads, a team of ROW_THREADS for each row. Defines: RESIDUAL, 1 to
// normalise x + residual and write that sum too; WEIGHT and BIAS, 1 where given; ROW_RANK, dimensions that rows are
// counted over.
#include "ops/norm/args.h"
#include "ops/norm/centre.h"
#include "ops/norm/moments.h"
#include "ops/norm/row.h"

kernel void norm_forward(const device element* x [[buffer(0)]], const device element* residual [[buffer(1)]],
                         const device parameter* weight [[buffer(2)]], const device parameter* bias [[buffer(3)]],
                         device element* sum [[buffer(4)]], device element* y [[buffer(5)]],
                         device accum* statistics [[buffer(6)]], constant NormArgs& args [[buffer(7)]],
                         uint group [[threadgroup_position_in_grid]],
                         ushort thread_index [[thread_index_in_threadgroup]],
                         ushort simdgroup [[simdgroup_index_in_threadgroup]],
                         ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup Moments scratch[SCRATCH];
    Row row;
    row.start(args, group, thread_index);
    x += offset_of<ROW_RANK>(row.number, args.row_sizes, args.x_stride);
    residual += offset_of<ROW_RANK>(row.number, args.row_sizes, args.residual_stride);
    y += row.number * args.columns;
    sum += row.number * args.columns;

    accum pivot = 0;
    if (CENTRED && row.columns > 0) pivot = RESIDUAL ? accum(element(accum(x[0]) + accum(residual[0]))) : accum(x[0]);
    Pack<element> held[PLACES];
    Moments moments = no_moments();
    for (int step = 0, j = row.first; step < row.steps(); step++, j += STEP) {
        if (j >= row.columns) continue;
        thread Pack<element>& values = held[row.place(step)];
        values = load_pack(x + j);
#if RESIDUAL
        const Pack<element> added = load_pack(residual + j);
        for (short i = 0; i < PACK; i++) values.at[i] = element(accum(values.at[i]) + accum(added.at[i]));
        store_pack(sum + j, values);
#endif
        moments = Merge()(moments, moments_of(values, pivot));
    }
    moments = reduce(moments, Merge(), scratch, simdgroup, lane);

    const Centre centre = centre_of(pivot, moments.mean);
    const accum rstd = rsqrt(moments.square / accum(args.columns) + args.eps);
    if (row.first == 0 && row.columns > 0) {
        statistics[row.number] = rstd;
        store_centre(centre, statistics, row.number, args.rows);
    }
    for (int step = 0, j = row.first; step < row.steps(); step++, j += STEP) {
        if (j >= row.columns) continue;
        if (HELD == 0) held[0] = load_pack(RESIDUAL ? sum + j : x + j);
        const Pack<accum> factor = load_parameters(weight, j, WEIGHT, 1), summand = load_parameters(bias, j, BIAS, 0);
        Pack<element> result;
        for (short i = 0; i < PACK; i++) {
            const accum normalised = centre.deviation(held[row.place(step)].at[i]) * rstd;
            result.at[i] = element(normalised * factor.at[i] + summand.at[i]);
        }
        store_pack(y + j, result);
    }
}
