// dO_s = w_s dO and dlse_s = w_s (dO . (O_s - O) + dlse), since dw_s / dlse_t = w_s (1[s = t] - w_t). With r the
// heaviest part, O_s - O = (O_s - O_r) - sum of w_t (O_t - O_r), which stays exact where that part is almost all of O.
//
// Grid and defines: those of forward.metal, with ROW_THREADS up to 32; LSE_GRADIENT, 0 where dlse is 0.
#include "ops/merge/parts.h"

// The thread's part of the product of a part's row and that of dO.
inline accum dot(Share share, PartRows<const device element*> parts, int part, const device result* d_out,
                 long d_out_stride) {
    accum sum = 0;
    for (int step = 0; share.holds(step); step++) {
        const Pack<accum> values = load_values(parts.at(part, share.position(step)));
        const Pack<accum> gradients = load_values(d_out + share.position(step) * d_out_stride);
        for (short i = 0; i < PACK; i++) sum += values.at[i] * gradients.at[i];
    }
    return sum;
}

kernel void merge_backward(const device element* first [[buffer(0)]], const device element* others [[buffer(1)]],
                           const device accum* first_lse [[buffer(2)]], const device accum* others_lse [[buffer(3)]],
                           const device result* d_out [[buffer(4)]], const device accum* d_lse [[buffer(5)]],
                           device element* d_first [[buffer(6)]], device element* d_others [[buffer(7)]],
                           device accum* d_first_lse [[buffer(8)]], device accum* d_others_lse [[buffer(9)]],
                           constant MergeArgs& args [[buffer(10)]], uint group [[threadgroup_position_in_grid]],
                           ushort thread_index [[thread_index_in_threadgroup]],
                           ushort simdgroup [[simdgroup_index_in_threadgroup]],
                           ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup accum scratch[SCRATCH];

    const Share share = share_of(group, thread_index, args.rows, args.length);
    const long row = share.length ? share.row : 0;  // past the last row, threads take part in reductions alone
    first += row_offset(args, row, args.first_rows);
    others += row_offset(args, row, args.others_rows);
    d_out += row_offset(args, row, args.out_rows);
    d_lse += row_offset(args, row, args.lse_rows);
    d_first += row_offset(args, row, args.d_first_rows);
    d_others += row_offset(args, row, args.d_others_rows);
    d_first_lse += row_offset(args, row, args.d_first_lse_rows);
    d_others_lse += row_offset(args, row, args.d_others_lse_rows);

    const Weights weights = weights_of(args, row, first_lse, others_lse);
    const PartRows<const device element*> parts = {first, others, args.others_step, args.first_stride,
                                                   args.others_stride};
    const PartRows<device element*> d_parts = {d_first, d_others, args.d_others_step, args.d_first_stride,
                                               args.d_others_stride};
    const PartRows<device accum*> d_parts_lse = {d_first_lse, d_others_lse, args.d_others_lse_step, 0, 0};

    const int r = weights.heaviest;
    const accum heaviest = weights.of(r) == 0 ? accum(0) : dot(share, parts, r, d_out, args.out_stride);
    accum whole = 0;
    for (int part = 0; part < args.parts; part++) {
        const accum weight = weights.of(part);
        if (weight != 0 && part != r) whole += weight * (dot(share, parts, part, d_out, args.out_stride) - heaviest);
    }
    whole = reduce(whole, Sum(), scratch, simdgroup, lane) - (LSE_GRADIENT ? d_lse[0] : 0);  // dO . (O - O_r) - dlse

    for (int part = 0; part < args.parts; part++) {
        const accum weight = weights.of(part);
        accum own = 0;
        if (weight != 0 && part != r) own = dot(share, parts, part, d_out, args.out_stride) - heaviest;
        own = reduce(own, Sum(), scratch, simdgroup, lane);  // dO . (O_s - O_r)
        if (share.holds(0) && share.first == 0)
            *d_parts_lse.at(part, 0) = weight == 0 ? accum(0) : weight * (own - whole);
        for (int step = 0; share.holds(step); step++) {
            Pack<accum> gradients = load_values(d_out + share.position(step) * args.out_stride);
            for (short i = 0; i < PACK; i++) gradients.at[i] = weight == 0 ? accum(0) : gradients.at[i] * weight;
            store_values(d_parts.at(part, share.position(step)), gradients);
        }
    }
}
