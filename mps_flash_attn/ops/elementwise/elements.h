// The elements of one thread: a pack of the innermost dimension, of tensors that may each have their own type.
//
// Defines: DIMS, dimensions that elements are counted over; PACK, those that a thread takes, at least 16 bytes of each
// tensor; ELEMENT_X, ELEMENT_Y, ELEMENT_DX and ELEMENT_DY, what those tensors hold. ELEMENT is that of the result.
#pragma once

#include "msl/pack.h"
#include "msl/strides.h"
#include "ops/elementwise/args.h"

using element_x = ELEMENT_X;
using element_y = ELEMENT_Y;
using element_dx = ELEMENT_DX;
using element_dy = ELEMENT_DY;

struct Elements {
    long first;   // the number of the first
    short valid;  // how many there are: fewer than PACK at the end of a whole that PACK does not divide

    void start(constant ElementwiseArgs& args, uint position) thread {
        first = long(position) * PACK;
        valid = min(args.count - first, long(PACK));
    }
    template <typename T>
    Pack<accum> load(const device T* source, constant ElementwiseArgs& args, constant long (&strides)[8]) const thread {
        source += offset_of<DIMS>(first, args.sizes, strides);
        const long stride = strides[DIMS - 1];
        if (PACK > 1 && stride == 1 && valid == PACK) return load_values(source);
        Pack<accum> values;
        for (short i = 0; i < PACK; i++) values.at[i] = i < valid ? accum(source[i * stride]) : 0;
        return values;
    }
    template <typename T>
    void store(Pack<accum> values, device T* target, constant ElementwiseArgs& args,
               constant long (&strides)[8]) const thread {
        target += offset_of<DIMS>(first, args.sizes, strides);
        const long stride = strides[DIMS - 1];
        if (PACK > 1 && stride == 1 && valid == PACK) {
            store_values(target, values);
        } else {
            for (short i = 0; i < valid; i++) target[i * stride] = T(values.at[i]);
        }
    }
};

// The second operand: a tensor, a number, or neither. Define: SECOND, one of these.
#define SECOND_NONE 0
#define SECOND_TENSOR 1
#define SECOND_NUMBER 2
inline Pack<accum> load_second(Elements elements, const device element_y* y, constant ElementwiseArgs& args) {
#if SECOND == SECOND_TENSOR
    return elements.load(y, args, args.y_stride);
#else
    return fill_pack(args.number);
#endif
}
