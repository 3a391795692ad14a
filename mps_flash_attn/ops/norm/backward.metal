// dx = rstd (g - mean(g) - xhat mean(g xhat)) + dsum with g = dy weight and xhat = (x - mean) rstd; for RMSNorm without
// mean(g). README.md derives it.
//
// Grid as in forward.metal. Defines: WEIGHT, 1 where given; SUM_GRADIENT, 1 when the sum of x and residual has a
// gradient of its own, dsum.
#include "ops/norm/args.h"
#include "ops/norm/centre.h"
#include "ops/norm/row.h"

// The sums over a row of g and of g xhat.
struct Gradients {
    accum g, g_xhat;
};
struct Add {
    Gradients operator()(Gradients a, Gradients b) const thread {
        a.g += b.g;
        a.g_xhat += b.g_xhat;
        return a;
    }
};
inline Gradients across(Gradients value, ushort bit) {
    Gradients other;
    other.g = simd_shuffle_xor(value.g, bit);
    other.g_xhat = simd_shuffle_xor(value.g_xhat, bit);
    return other;
}

kernel void norm_backward(const device element* x [[buffer(0)]], const device parameter* weight [[buffer(1)]],
                          const device accum* statistics [[buffer(2)]], const device element* dy [[buffer(3)]],
                          const device element* dsum [[buffer(4)]], device element* dx [[buffer(5)]],
                          constant NormArgs& args [[buffer(6)]], uint group [[threadgroup_position_in_grid]],
                          ushort thread_index [[thread_index_in_threadgroup]],
                          ushort simdgroup [[simdgroup_index_in_threadgroup]],
                          ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup Gradients scratch[SCRATCH];
    Row row;
    row.start(args, group, thread_index);
    x += offset_of<ROW_RANK>(row.number, args.row_sizes, args.x_stride);
    dy += offset_of<ROW_RANK>(row.number, args.row_sizes, args.dy_stride);
    dsum += offset_of<ROW_RANK>(row.number, args.row_sizes, args.dsum_stride);
    dx += row.number * args.columns;
    const long known = min(row.number, args.rows - 1);  // a team without a row reads the last one's
    const accum rstd = statistics[known];
    const Centre centre = load_centre(statistics, known, args.rows);

    Pack<element> held_x[PLACES], held_dy[PLACES];
    Gradients means = {0, 0};
    for (int step = 0, j = row.first; step < row.steps(); step++, j += STEP) {
        if (j >= row.columns) continue;
        const short place = row.place(step);
        held_x[place] = load_pack(x + j);
        held_dy[place] = load_pack(dy + j);
        const Pack<accum> factor = load_parameters(weight, j, WEIGHT, 1);
        for (short i = 0; i < PACK; i++) {
            const accum g = accum(held_dy[place].at[i]) * factor.at[i];
            means.g += g;
            means.g_xhat += g * (centre.deviation(held_x[place].at[i]) * rstd);
        }
    }
    means = reduce(means, Add(), scratch, simdgroup, lane);
    means.g = CENTRED ? means.g / accum(args.columns) : 0;
    means.g_xhat /= accum(args.columns);

    for (int step = 0, j = row.first; step < row.steps(); step++, j += STEP) {
        if (j >= row.columns) continue;
        const short place = row.place(step);
        if (HELD == 0) {
            held_x[0] = load_pack(x + j);
            held_dy[0] = load_pack(dy + j);
        }
        const Pack<accum> factor = load_parameters(weight, j, WEIGHT, 1);
        Pack<element> result;
#if SUM_GRADIENT
        const Pack<element> own = load_pack(dsum + j);
#endif
        for (short i = 0; i < PACK; i++) {
            const accum g = accum(held_dy[place].at[i]) * factor.at[i];
            accum value = rstd * (g - means.g - centre.deviation(held_x[place].at[i]) * rstd * means.g_xhat);
#if SUM_GRADIENT
            value += accum(own.at[i]);
#endif
            result.at[i] = element(value);
        }
        store_pack(dx + j, result);
    }
}
