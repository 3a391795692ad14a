// dx = rstd (g - mean(g) - xhat mean(g xhat)) + dsum with g = dy weight and xhat = (x - mean) rstd; for RMSNorm without
// mean(g). README.md derives it.
//
// Grid as in forward.metal. Defines: WEIGHT, 1 where given; SUM_GRADIENT, 1 when the sum of x and residual has a
// gradient of its own, dsum.
#include "msl/rows.h"
#include "ops/norm/args.h"
#include "ops/norm/centre.h"

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
    const Share share = share_of(group, thread_index, args.rows, args.length);
    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
    dy += offset_of<ROW_RANK>(share.row, args.sizes, args.dy_rows);
    dsum += offset_of<ROW_RANK>(share.row, args.sizes, args.dsum_rows);
    dx += share.row * args.length;
    accum rstd = 0;
    Centre centre = {0, 0};
    if (share.length > 0) {
        rstd = statistics[share.row];
        centre = load_centre(statistics, share.row, args.rows);
    }

    RowValues<element> inputs, gradients;
    inputs.start(x, 1, share);
    gradients.start(dy, 1, share);
    Gradients sums = {0, 0};
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        const Pack<accum> factor = WEIGHT ? load_values(weight + share.position(step)) : fill_pack(accum(1));
        const Pack<accum> values = inputs.get(step), gradient = gradients.get(step);
        for (short i = 0; i < PACK; i++) {
            const accum g = gradient.at[i] * factor.at[i];
            sums.g += g;
            sums.g_xhat += g * (centre.deviation(values.at[i]) * rstd);
        }
    }
    sums = reduce(sums, Add(), scratch, simdgroup, lane);
    if (!CENTRED) sums.g = 0;

    // Everything times N, so that a row of one element gets exactly 0. A compiler may contract g - mean(g) to
    // fma(dy, weight, -mean(g)), which leaves what g lost to rounding, times rstd. As a factor of an explicit fma g is
    // rounded as it was when summed: fma(1, g, -g) is 0 however the rest is compiled, and so is xhat.
    const accum n = args.length, scale = rstd / n;
    for (int step = 0; step < STEPS && share.holds(step); step++) {
        const int j = share.position(step);
        const Pack<accum> factor = WEIGHT ? load_values(weight + j) : fill_pack(accum(1));
        const Pack<accum> own = SUM_GRADIENT ? load_values(dsum + j) : fill_pack(accum(0));
        const Pack<accum> values = inputs.get(step), gradient = gradients.get(step);
        Pack<accum> result;
        for (short i = 0; i < PACK; i++) {
            const accum g = gradient.at[i] * factor.at[i];
            const accum xhat = centre.deviation(values.at[i]) * rstd;
            result.at[i] = scale * (fma(n, g, -sums.g) - xhat * sums.g_xhat) + own.at[i];
        }
        store_values(dx + j, result);
    }
}
