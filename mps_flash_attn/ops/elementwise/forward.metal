// out = COMBINE(ACTIVATION(x), y) for each element: sums and products, activations, and gated activations.
//
// Grid: ceil(count / PACK) threads.
#include "ops/elementwise/elements.h"
#include "ops/elementwise/operation.h"

kernel void elementwise_forward(const device element_x* x [[buffer(0)]], const device element_y* y [[buffer(1)]],
                                device element* out [[buffer(2)]], constant ElementwiseArgs& args [[buffer(3)]],
                                uint position [[thread_position_in_grid]]) {
    Elements elements;
    elements.start(args, position);
    const Pack<accum> a = elements.load(x, args, args.x_stride), b = load_second(elements, y, args);
    const ACTIVATION activation = ACTIVATION();
    const COMBINE combine = COMBINE();
    Pack<accum> result;
    for (short i = 0; i < PACK; i++) result.at[i] = combine.value(activation.value(a.at[i]), b.at[i]);
    elements.store(result, out, args, args.out_stride);
}
