// The elements of one thread: a pack of the innermost dimension.
//
// Define: DIMS, dimensions that elements are counted over.
#pragma once

#include "msl/pack.h"
#include "msl/strides.h"
#include "ops/elementwise/args.h"

struct Elements {
    long first;   // the number of the first
    short valid;  // how many there are: fewer than PACK at the end of a whole that PACK does not divide

    void start(constant ElementwiseArgs& args, uint position) thread {
        first = long(position) * PACK;
        valid = min(args.count - first, long(PACK));
    }
    Pack<accum> load(const device element* source, constant ElementwiseArgs& args,
                     constant long (&strides)[8]) const thread {
        source += offset_of<DIMS>(first, args.sizes, strides);
        const long stride = strides[DIMS - 1];
        Pack<accum> values;
        if (PACK > 1 && stride == 1 && valid == PACK) {
            const Pack<element> loaded = load_pack(source);
            for (short i = 0; i < PACK; i++) values.at[i] = accum(loaded.at[i]);
        } else {
            for (short i = 0; i < PACK; i++) values.at[i] = i < valid ? accum(source[i * stride]) : 0;
        }
        return values;
    }
    void store(Pack<accum> values, device element* target, constant ElementwiseArgs& args,
               constant long (&strides)[8]) const thread {
        target += offset_of<DIMS>(first, args.sizes, strides);
        const long stride = strides[DIMS - 1];
        if (PACK > 1 && stride == 1 && valid == PACK) {
            Pack<element> rounded;
            for (short i = 0; i < PACK; i++) rounded.at[i] = element(values.at[i]);
            store_pack(target, rounded);
        } else {
            for (short i = 0; i < valid; i++) target[i * stride] = element(values.at[i]);
        }
    }
};

// The second operand: a tensor, a number, or neither. Define: SECOND, one of these.
#define SECOND_NONE 0
#define SECOND_TENSOR 1
#define SECOND_NUMBER 2
inline Pack<accum> load_second(Elements elements, const device element* y, constant ElementwiseArgs& args) {
#if SECOND == SECOND_TENSOR
    return elements.load(y, args, args.y_stride);
#else
    Pack<accum> values;
    for (short i = 0; i < PACK; i++) values.at[i] = args.number;
    return values;
#endif
}
