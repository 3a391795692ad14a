// value = scale * number for every stored number of some rows. A thread writes a pack of a row.
//
// Grid: (packs of a row, rows). Defines: those of msl/stored.h and msl/pack.h.
#include "msl/pack.h"
#include "ops/quantize/args.h"

kernel void dequantize(const device uchar* stored [[buffer(0)]], const device float* scales [[buffer(1)]],
                       device element* output [[buffer(2)]], constant QuantizeArgs& args [[buffer(3)]],
                       uint2 position [[thread_position_in_grid]]) {
    const long row = position.y;
    const int column = position.x * PACK;
    stored += offset_of<ROW_RANK>(row, args.sizes, args.read_rows);
    scales += offset_of<ROW_RANK>(row, args.sizes, args.scale_rows);

    Pack<accum> values;
    const accum scale = stored_scale(scales, column);  // groups are whole packs
    for (short i = 0; i < PACK; i++) values.at[i] = scale * stored_value(stored, column + i);
    store_values(output + row * args.columns + column, values);
}
