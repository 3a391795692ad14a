// Functions that the lanes of a simdgroup, or of a quad of four, compute together. All lanes of the simdgroup take
// part; the last simdgroup of a threadgroup may have fewer than 32.
#pragma once

#include "math.h"

namespace simt {

constexpr uint kAllLanes = 0xffffffff;

SIMT_INLINE uint own_lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
// One bit for each lane that the simdgroup has; the last of a threadgroup may have fewer than 32.
SIMT_INLINE uint present_lanes() { return __ballot_sync(kAllLanes, true); }

template <int kCount>
struct Words {
    uint word[kCount];
};
// The value that `exchange` of its 32-bit words makes.
template <class T, class F>
SIMT_INLINE T by_words(T value, F exchange) {
    if constexpr (sizeof(T) == 1) {
        return __builtin_bit_cast(T, static_cast<unsigned char>(exchange(__builtin_bit_cast(unsigned char, value))));
    } else if constexpr (sizeof(T) == 2) {
        return __builtin_bit_cast(T, static_cast<ushort>(exchange(__builtin_bit_cast(ushort, value))));
    } else {
        auto words = __builtin_bit_cast(Words<sizeof(T) / 4>, value);
#pragma unroll
        for (uint& word : words.word) word = exchange(word);
        return __builtin_bit_cast(T, words);
    }
}
template <class T>
SIMT_INLINE T shuffle(T value, uint lane) {
    return by_words(value, [&](uint word) { return __shfl_sync(kAllLanes, word, lane); });
}
template <class T>
SIMT_INLINE T shuffle_xor(T value, uint mask) {
    return by_words(value, [&](uint word) { return __shfl_xor_sync(kAllLanes, word, mask); });
}

struct Sum {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return a + b;
    }
};
struct Multiply {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return a * b;
    }
};
struct Max {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return metal::max(a, b);
    }
};
struct Min {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return metal::min(a, b);
    }
};
struct And {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return a & b;
    }
};
struct Or {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return a | b;
    }
};
struct Xor {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return a ^ b;
    }
};

// Over each run of kWidth lanes, all of which get the result: in pairs of lanes half the width apart, then a quarter.
template <class Operation, uint kWidth, class T>
SIMT_INLINE T reduce(T value) {
    const uint present = present_lanes();
    if (present == kAllLanes) {
#pragma unroll
        for (uint step = kWidth / 2; step > 0; step /= 2) value = Operation::apply(value, shuffle_xor(value, step));
        return value;
    }
    // Lanes are missing at the end, so the first lane of a run meets all that are present.
    for (uint step = kWidth / 2; step > 0; step /= 2) {
        const T other = shuffle_xor(value, step);
        if (present >> (own_lane() ^ step) & 1) value = Operation::apply(value, other);
    }
    return shuffle(value, own_lane() / kWidth * kWidth);
}

// The reduction of the lanes before, from the first of the run on; with kInclusive of the own value too.
template <class Operation, uint kWidth, bool kInclusive, class T>
SIMT_INLINE T prefix(T value, T identity) {
    const uint own = own_lane() % kWidth;
#pragma unroll
    for (uint step = 1; step < kWidth; step *= 2) {
        const T other = by_words(value, [&](uint word) { return __shfl_up_sync(kAllLanes, word, step, kWidth); });
        value = own >= step ? Operation::apply(other, value) : value;
    }
    if (kInclusive) return value;
    const T before = by_words(value, [&](uint word) { return __shfl_up_sync(kAllLanes, word, 1, kWidth); });
    return own == 0 ? identity : before;
}

}  // namespace simt

namespace metal_text {
namespace metal {

#define SIMT_REDUCE(name, Operation)                     \
    template <class T>                                   \
    SIMT_INLINE T simd_##name(T value) {                 \
        return simt::reduce<simt::Operation, 32>(value); \
    }                                                    \
    template <class T>                                   \
    SIMT_INLINE T quad_##name(T value) {                 \
        return simt::reduce<simt::Operation, 4>(value);  \
    }
SIMT_REDUCE(sum, Sum)
SIMT_REDUCE(product, Multiply)
SIMT_REDUCE(max, Max)
SIMT_REDUCE(min, Min)
SIMT_REDUCE(and, And)
SIMT_REDUCE(or, Or)
SIMT_REDUCE(xor, Xor)
#undef SIMT_REDUCE

#define SIMT_PREFIX(group, width)                                       \
    template <class T>                                                  \
    SIMT_INLINE T group##_prefix_inclusive_sum(T value) {               \
        return simt::prefix<simt::Sum, width, true>(value, T(0));       \
    }                                                                   \
    template <class T>                                                  \
    SIMT_INLINE T group##_prefix_exclusive_sum(T value) {               \
        return simt::prefix<simt::Sum, width, false>(value, T(0));      \
    }                                                                   \
    template <class T>                                                  \
    SIMT_INLINE T group##_prefix_inclusive_product(T value) {           \
        return simt::prefix<simt::Multiply, width, true>(value, T(1));  \
    }                                                                   \
    template <class T>                                                  \
    SIMT_INLINE T group##_prefix_exclusive_product(T value) {           \
        return simt::prefix<simt::Multiply, width, false>(value, T(1)); \
    }
SIMT_PREFIX(simd, 32)
SIMT_PREFIX(quad, 4)
#undef SIMT_PREFIX

template <class T>
SIMT_INLINE T simd_shuffle(T value, ushort lane) {
    return simt::shuffle(value, lane);
}
template <class T>
SIMT_INLINE T simd_broadcast(T value, ushort lane) {
    return simt::shuffle(value, lane);
}
template <class T>
SIMT_INLINE T simd_broadcast_first(T value) {
    return simt::shuffle(value, 0);
}
template <class T>
SIMT_INLINE T simd_shuffle_xor(T value, ushort mask) {
    return simt::shuffle_xor(value, mask);
}
template <class T>
SIMT_INLINE T simd_shuffle_up(T value, ushort delta) {
    return simt::by_words(value, [&](uint word) { return __shfl_up_sync(simt::kAllLanes, word, delta); });
}
template <class T>
SIMT_INLINE T simd_shuffle_down(T value, ushort delta) {
    return simt::by_words(value, [&](uint word) { return __shfl_down_sync(simt::kAllLanes, word, delta); });
}
template <class T>
SIMT_INLINE T simd_shuffle_rotate_up(T value, ushort delta) {
    return simt::shuffle(value, (simt::own_lane() - delta) % 32);
}
template <class T>
SIMT_INLINE T simd_shuffle_rotate_down(T value, ushort delta) {
    return simt::shuffle(value, (simt::own_lane() + delta) % 32);
}
template <class T>
SIMT_INLINE T quad_shuffle_xor(T value, ushort mask) {
    return simt::shuffle_xor(value, mask);
}
template <class T>
SIMT_INLINE T quad_broadcast(T value, ushort lane) {
    return simt::shuffle(value, simt::own_lane() / 4 * 4 + lane);
}

// The lanes that voted yes.
struct simd_vote {
    using vote_t = ulong;
    vote_t lanes;

    SIMT_INLINE explicit simd_vote(vote_t v = 0) : lanes(v) {}
    SIMT_INLINE explicit operator vote_t() const { return lanes; }
    SIMT_INLINE bool all() const { return lanes == 0xffffffff; }
    SIMT_INLINE bool any() const { return lanes != 0; }
};
SIMT_INLINE simd_vote simd_active_threads_mask() { return simd_vote(simt::present_lanes()); }
SIMT_INLINE simd_vote simd_ballot(bool predicate) { return simd_vote(__ballot_sync(simt::kAllLanes, predicate)); }
SIMT_INLINE bool simd_any(bool predicate) { return __any_sync(simt::kAllLanes, predicate); }
SIMT_INLINE bool simd_all(bool predicate) { return __all_sync(simt::kAllLanes, predicate); }
SIMT_INLINE bool simd_is_first() { return simt::own_lane() == 0; }

}  // namespace metal
}  // namespace metal_text
