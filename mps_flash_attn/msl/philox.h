// Random numbers without state: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011).
#pragma once

#include "msl/types.h"

// Four words, independent of those of every other counter under the same key.
inline uint4 philox(uint4 counter, uint2 key) {
    for (short round = 0; round < 10; round++) {
        const uint a = 0xD2511F53, b = 0xCD9E8D57;
        const uint low_a = a * counter.x, high_a = mulhi(a, counter.x);
        const uint low_b = b * counter.z, high_b = mulhi(b, counter.z);
        counter = uint4(high_b ^ counter.y ^ key.x, low_b, high_a ^ counter.w ^ key.y, low_a);
        key += uint2(0x9E3779B9, 0xBB67AE85);
    }
    return counter;
}
