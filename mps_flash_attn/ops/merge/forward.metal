// O = sum of w_s O_s with w_s = exp(lse_s - lse) and lse = log(sum of exp(lse_s)): the attention over all keys from
// those over S disjoint parts of them.
//
// Grid: ceil(rows / ROWS) threadgroups of THREADS threads, ROW_THREADS to a row. Defines: RESULT, what O holds, ELEMENT
// being what the O_s hold; ROW_RANK, of the rows' numbering; those of msl/rows.h.
#include "ops/merge/parts.h"

kernel void merge_forward(const device element* first [[buffer(0)]], const device element* others [[buffer(1)]],
                          const device accum* first_lse [[buffer(2)]], const device accum* others_lse [[buffer(3)]],
                          device result* out [[buffer(4)]], device accum* lse [[buffer(5)]],
                          constant MergeArgs& args [[buffer(6)]], uint group [[threadgroup_position_in_grid]],
                          ushort thread_index [[thread_index_in_threadgroup]]) {
    const Share share = share_of(group, thread_index, args.rows, args.length);
    if (share.length == 0) return;
    first += row_offset(args, share.row, args.first_rows);
    others += row_offset(args, share.row, args.others_rows);
    out += row_offset(args, share.row, args.out_rows);
    lse += row_offset(args, share.row, args.lse_rows);

    const Weights weights = weights_of(args, share.row, first_lse, others_lse);
    const PartRows<const device element*> parts = {first, others, args.others_step, args.first_stride,
                                                   args.others_stride};
    for (int step = 0; share.holds(step); step++) {
        const int position = share.position(step);
        Pack<accum> sum = fill_pack(accum(0));
        for (int part = 0; part < args.parts; part++) {
            const accum weight = weights.of(part);
            if (weight == 0) continue;
            const Pack<accum> values = load_values(parts.at(part, position));
            for (short i = 0; i < PACK; i++) sum.at[i] += weight * values.at[i];
        }
        store_values(out + position * args.out_stride, sum);
    }
    if (share.first == 0) lse[0] = weights.log_sum_exp();
}
