// Rows in 8 or 4 bits a number: of each group of columns the largest magnitude gives the scale, and every value over it
// becomes the nearest number of the format. Formats of 8 bits take a whole row as one group.
//
// A team of ROW_THREADS threads takes a group and keeps it in registers, in units of at least a stored byte: UNIT
// columns, 16 bytes of the input where rows are aligned. The stored rows and scales have no gaps. Grid: a team for each
// group of each row. Defines: HOLD, units that a thread keeps; those of msl/stored.h, msl/pack.h and msl/reduce.h.
#include "msl/pack.h"
#include "msl/reduce.h"
#include "ops/quantize/args.h"
#include "ops/quantize/encode.h"

constant constexpr short PER_BYTE = 8 / STORED_BITS;
constant constexpr short UNIT = PACK > PER_BYTE ? PACK : PER_BYTE;
struct alignas(UNIT / PER_BYTE) Codes {
    uchar at[UNIT / PER_BYTE];
};

kernel void quantize(const device element* input [[buffer(0)]], device uchar* stored [[buffer(1)]],
                     device float* scales [[buffer(2)]], constant QuantizeArgs& args [[buffer(3)]],
                     uint threadgroup_number [[threadgroup_position_in_grid]],
                     ushort thread_index [[thread_index_in_threadgroup]],
                     ushort simdgroup [[simdgroup_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup accum unused[SCRATCH];
    const long team = long(threadgroup_number) * ROWS + thread_index / ROW_THREADS, row = team / args.groups;
    const int begin = team % args.groups * args.group_columns;
    const int end = row < args.rows ? min(begin + int(args.group_columns), int(args.columns)) : begin;
    const int first = begin + thread_index % ROW_THREADS * UNIT;
    input += offset_of<ROW_RANK>(row, args.sizes, args.read_rows);

    accum values[HOLD][UNIT];
    accum largest = 0;
    const Max join = Max();
    for (short step = 0; step < HOLD; step++) {
        for (short i = 0; i < UNIT; i += PACK) {
            const int column = first + step * ROW_THREADS * UNIT + i;
            const Pack<accum> pack = column < end ? load_values(input + column) : fill_pack<accum>(0);
            for (short n = 0; n < PACK; n++) {
                values[step][i + n] = pack.at[n];
                largest = join(largest, abs(pack.at[n]));
            }
        }
    }
    const float scale = scale_of(reduce(largest, join, unused, simdgroup, lane));
    if (row < args.rows && thread_index % ROW_THREADS == 0) scales[team] = scale;

    for (short step = 0; step < HOLD; step++) {
        const int column = first + step * ROW_THREADS * UNIT;
        Codes codes;
        for (short n = 0; n < UNIT / PER_BYTE; n++) codes.at[n] = 0;
        for (short i = 0; i < UNIT; i++)
            codes.at[i / PER_BYTE] |= stored_code(scale > 0 ? float(values[step][i] / scale) : 0)
                                      << (i % PER_BYTE * STORED_BITS);
        if (column < end) *(device Codes*)(stored + row * args.row_bytes + column / PER_BYTE) = codes;
    }
}
