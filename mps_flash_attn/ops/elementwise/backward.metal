// From the gradient of out = COMBINE(f(x), y), f being ACTIVATION, those of x and y for each element:
//     dx = grad COMBINE'(y) f'(x)     dy = grad COMBINE'(f(x))
// A broadcast operand's gradient has still to be summed.
//
// Grid: ceil(count / PACK) threads. Defines: X_GRADIENT and Y_GRADIENT, 1 for those that are wanted.
#include "ops/elementwise/elements.h"
#include "ops/elementwise/operation.h"

kernel void elementwise_backward(const device element* grad [[buffer(0)]], const device element_x* x [[buffer(1)]],
                                 const device element_y* y [[buffer(2)]], device element_dy* dy [[buffer(3)]],
                                 device element_dx* dx [[buffer(4)]], constant ElementwiseArgs& args [[buffer(5)]],
                                 uint position [[thread_position_in_grid]]) {
    Elements elements;
    elements.start(args, position);
    const Pack<accum> g = elements.load(grad, args, args.out_stride), a = elements.load(x, args, args.x_stride);
    const Pack<accum> b = load_second(elements, y, args);
    const ACTIVATION activation = ACTIVATION();
    const COMBINE combine = COMBINE();
    Pack<accum> result;
#if X_GRADIENT
    for (short i = 0; i < PACK; i++) result.at[i] = g.at[i] * combine.by_first(b.at[i]) * activation.slope(a.at[i]);
    elements.store(result, dx, args, args.dx_stride);
#endif
#if Y_GRADIENT
    for (short i = 0; i < PACK; i++) result.at[i] = g.at[i] * combine.by_second(activation.value(a.at[i]));
    elements.store(result, dy, args, args.dy_stride);
#endif
}
