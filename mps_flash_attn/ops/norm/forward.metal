// y = (x - mean) rstd weight + bias for each row, with rstd = 1 / sqrt(variance + eps): LayerNorm (Ba, Kiros and
// Hinton, arXiv:1607.06450), or without mean and bias RMSNorm (Zhang and Sennrich, arXiv:1910.07467). Mean and variance
// come out of one pass, by Welford's recurrence over packs and the merge of moments.h between threads.
//
// Grid: ceil(rows / ROWS) threadgroups of THREADS threads, a team of ROW_THREADS for each row. Defines: RESIDUAL, 1 to
// normalise x + residual and write that sum too; WEIGHT and BIAS, 1 where given; ROW_RANK, of the rows' numbering;
// those of msl/rows.h.
#include "msl/rows.h"
#include "ops/norm/args.h"
#include "ops/norm/centre.h"
#include "ops/norm/moments.h"

kernel void norm_forward(const device element* x [[buffer(0)]], const device element* residual [[buffer(1)]],
                         const device parameter* weight [[buffer(2)]], const device parameter* bias [[buffer(3)]],
                         device element* sum [[buffer(4)]], device element* y [[buffer(5)]],
                         device accum* statistics [[buffer(6)]], constant NormArgs& args [[buffer(7)]],
                         uint group [[threadgroup_position_in_grid]],
                         ushort thread_index [[thread_index_in_threadgroup]],
                         ushort simdgroup [[simdgroup_index_in_threadgroup]],
                         ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup Moments scratch[SCRATCH];
    const Share share = share_of(group, thread_index, args.rows, args.length);
    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    residual += offset_of<ROW_RANK>(share.row, args.sizes, args.residual_rows);
    y += share.row * args.length;
    sum += share.row * args.length;

    RowValues<element> row;
    row.start(x, 1, share);
    accum pivot = 0;
#if CENTRED
    if (lane % TEAM_LANES == 0 && share.length > 0)
        pivot = RESIDUAL ? accum(element(accum(x[0]) + accum(residual[0]))) : accum(x[0]);
    pivot = simd_shuffle(pivot, ushort(lane - lane % TEAM_LANES));
#endif
    Moments moments = no_moments();
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        Pack<accum> values = row.get(step);
#if RESIDUAL
        const Pack<accum> added = load_values(residual + share.position(step));
        for (short i = 0; i < PACK; i++) values.at[i] = accum(element(values.at[i] + added.at[i]));
        row.replace(step, convert_pack<element>(values), sum);
#endif
        moments = Merge()(moments, moments_of(values, pivot));
    }
    moments = reduce(moments, Merge(), scratch, simdgroup, lane);

    const Centre centre = centre_of(pivot, moments.mean);
    const accum rstd = rsqrt(moments.square / accum(args.length) + args.eps);
    if (share.first == 0 && share.length > 0) {
        statistics[share.row] = rstd;
        store_centre(centre, statistics, share.row, args.rows);
    }
    if (RESIDUAL && HOLD == 0) row.start(sum, 1, share);
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        const int j = share.position(step);
        const Pack<accum> factor = WEIGHT ? load_values(weight + j) : fill_pack(accum(1));
        const Pack<accum> summand = BIAS ? load_values(bias + j) : fill_pack(accum(0));
        Pack<accum> values = row.get(step);
        for (short i = 0; i < PACK; i++)
            values.at[i] = centre.deviation(values.at[i]) * rstd * factor.at[i] + summand.at[i];
        store_values(y + j, values);
    }
}
