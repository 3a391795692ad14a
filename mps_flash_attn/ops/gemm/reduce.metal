// C = activation(sum of `parts` + bias), element by element: the second half of a product whose depth was split. The
// parts are added in their order. Grid: one thread an element of C.
#include "msl/activation.h"
#include "ops/gemm/args.h"

kernel void gemm_reduce(const device accum* parts [[buffer(0)]], const device element* bias [[buffer(1)]],
                        device element* z [[buffer(2)]], device element* c [[buffer(3)]],
                        constant EpilogueArgs& args [[buffer(4)]], uint position [[thread_position_in_grid]]) {
    accum sum = 0;
    for (int part = 0; part < args.parts; part++) sum += parts[part * args.elements + position];
#if BIAS
    sum += accum(bias[position % args.columns]);
#endif
#if SAVE
    z[position] = element(sum);
#endif
    const ACTIVATION activation = ACTIVATION();
    c[position] = element(activation.value(sum));
}
