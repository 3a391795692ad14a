// The sum, the largest value, or the number of elements equal to the largest, of each row or of parts of it. Rows too
// few to fill a GPU are reduced in parts, whose results a second launch reduces.
//
// Grid: ceil(rows / ROWS) x parts threadgroups of THREADS threads, ROW_THREADS to a row. Defines: OPERATION, one of the
// values below; ROW_RANK, COLUMN_RANK; those of msl/rows.h.
#include "ops/reduction/args.h"

#define SUM 0
#define LARGEST 1
#define TIES 2

#if OPERATION == LARGEST
using Combine = Max;
#else
using Combine = Sum;
#endif

// `y` holds the largest values where ties are counted, and is not read otherwise.
kernel void reduction(const device element* x [[buffer(0)]], const device element* y [[buffer(1)]],
                      device result* reduced [[buffer(2)]], constant ReductionArgs& args [[buffer(3)]],
                      uint2 group [[threadgroup_position_in_grid]], ushort thread_index [[thread_index_in_threadgroup]],
                      ushort simdgroup [[simdgroup_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup accum scratch[SCRATCH];

    const Part part = part_of(group, thread_index, args);
    const Share share = part.share;
    x += offset_of<ROW_RANK>(share.row, args.sizes, args.x_rows);
#if OPERATION == TIES
    const element largest = share.length > 0 ? y[offset_of<ROW_RANK>(share.row, args.sizes, args.y_rows)] : element(0);
#endif

    Pack<accum> sums = fill_pack(OPERATION == LARGEST ? accum(-INFINITY) : accum(0));
    for (int step = 0; share.holds(step); step++) {
        Pack<accum> values = load_values(
            x + offset_of<COLUMN_RANK>(part.start + share.position(step), args.column_sizes, args.x_columns));
        for (short i = 0; i < PACK; i++) {
#if OPERATION == TIES
            values.at[i] = values.at[i] == accum(largest);
#endif
            sums.at[i] = Combine()(sums.at[i], values.at[i]);
        }
    }
    accum sum = sums.at[0];
    for (short i = 1; i < PACK; i++) sum = Combine()(sum, sums.at[i]);
    sum = reduce(sum, Combine(), scratch, simdgroup, lane);

    if (share.first == 0 && share.row < args.rows)
        reduced[offset_of<ROW_RANK>(share.row, args.sizes, args.reduced_rows) + group.y * args.reduced_part] =
            result(sum);
}
