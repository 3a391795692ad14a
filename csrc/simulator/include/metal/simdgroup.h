// Functions that the lanes of a simdgroup, or of a quad of four, compute together.
#pragma once

#include "barrier.h"
#include "integer.h"
#include "math.h"
#include "relational.h"

namespace simt {

// What the last lane finds: the values of all lanes in one array.
template <class T>
struct Gathered {
    T value[kLanes];
    uint32_t arrived;

    SIMT_INLINE bool has(uint32_t lane) const { return (arrived >> lane & 1) != 0; }
};

// Waits for the lanes; then one of them calls Operation::run(gathered, results) for all. Operation::Argument is what
// a lane brings, Operation::Result what it takes home.
template <class Operation>
struct Collective {
    using Argument = typename Operation::Argument;
    using Result = typename Operation::Result;
    struct Slot {
        Argument argument;
        Result result;
    };

    static SIMT_UNCHECKED void combine(void* const* slots, uint32_t arrived) {
        Gathered<Argument> gathered;
        Result results[kLanes];
        gathered.arrived = arrived;
        if (arrived == ~uint32_t{0}) {
            for (uint32_t lane = 0; lane < kLanes; ++lane)
                gathered.value[lane] = static_cast<Slot*>(slots[lane])->argument;
        } else {
            for (uint32_t lane = 0; lane < kLanes; ++lane) {
                if (gathered.has(lane)) gathered.value[lane] = static_cast<Slot*>(slots[lane])->argument;
            }
        }
        Operation::run(gathered, results);
        for (uint32_t rest = arrived; rest != 0; rest &= rest - 1) {
            const auto lane = static_cast<uint32_t>(__builtin_ctz(rest));
            static_cast<Slot*>(slots[lane])->result = results[lane];
        }
    }

    static SIMT_INLINE Result call(Argument argument, const char* what, int line) {
        flush_products();
        Slot slot;
        slot.argument = argument;
        Thread* const thread = self();
        thread->api->collective(thread, combine, &slot, what, line);
        return slot.result;
    }
};

// Reduces each run of kWidth lanes in a tree of fixed shape: first the lanes half the width apart, then a quarter.
template <class T, class F, uint32_t kWidth>
struct Reduce {
    using Argument = T;
    using Result = T;

    static SIMT_INLINE SIMT_UNCHECKED void run(Gathered<T>& lanes, T* results) {
        T* const value = lanes.value;
        for (uint32_t first = 0; first < kLanes; first += kWidth) {
            if (lanes.arrived == ~uint32_t{0}) {
                for (uint32_t step = kWidth / 2; step > 0; step /= 2) {
                    for (uint32_t i = first; i < first + step; ++i) value[i] = F::apply(value[i], value[i + step]);
                }
            } else {
                uint32_t present = lanes.arrived;
                for (uint32_t step = kWidth / 2; step > 0; step /= 2) {
                    for (uint32_t i = first; i < first + step; ++i) {
                        if ((present >> (i + step) & 1) == 0) continue;
                        value[i] = present >> i & 1 ? F::apply(value[i], value[i + step]) : value[i + step];
                        present |= uint32_t{1} << i;
                    }
                }
            }
            for (uint32_t i = first; i < first + kWidth; ++i) results[i] = value[first];
        }
    }
};

// For each lane, the reduction of the lanes before it in its run of kWidth, from the first on; with kInclusive its own
// value as well.
template <class T, class F, uint32_t kWidth, bool kInclusive>
struct Prefix {
    using Argument = T;
    using Result = T;

    static SIMT_UNCHECKED void run(Gathered<T>& lanes, T* results) {
        T sum = F::template identity<T>();
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            if (lane % kWidth == 0) sum = F::template identity<T>();
            if (!lanes.has(lane)) continue;
            if (!kInclusive) results[lane] = sum;
            sum = F::apply(sum, lanes.value[lane]);
            if (kInclusive) results[lane] = sum;
        }
    }
};

template <class T>
struct Indexed {
    T value;
    uint32_t source;  // the lane to read from
};

// The value of another lane. What a lane that takes no part would give is undefined: all bits are set.
template <class T>
struct Shuffle {
    using Argument = Indexed<T>;
    using Result = T;

    static SIMT_UNCHECKED void run(Gathered<Argument>& lanes, T* results) {
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            if (!lanes.has(lane)) continue;
            const uint32_t source = lanes.value[lane].source;
            if (source < kLanes && lanes.has(source)) {
                results[lane] = lanes.value[source].value;
            } else {
                __builtin_memset(static_cast<void*>(&results[lane]), 0xff, sizeof(T));
            }
        }
    }
};

struct Ballot {
    using Argument = bool;
    using Result = uint32_t;

    static SIMT_UNCHECKED void run(Gathered<bool>& lanes, uint32_t* results) {
        uint32_t ballot = 0;
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            if (lanes.has(lane) && lanes.value[lane]) ballot |= uint32_t{1} << lane;
        }
        for (uint32_t lane = 0; lane < kLanes; ++lane) results[lane] = ballot;
    }
};

struct ActiveLanes {
    using Argument = bool;
    using Result = uint32_t;

    static SIMT_UNCHECKED void run(Gathered<bool>& lanes, uint32_t* results) {
        for (uint32_t lane = 0; lane < kLanes; ++lane) results[lane] = lanes.arrived;
    }
};

struct Sum {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return static_cast<T>(a + b);
    }
    template <class T>
    static SIMT_INLINE T identity() {
        return T(0);
    }
};
struct Multiply {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return static_cast<T>(a * b);
    }
    template <class T>
    static SIMT_INLINE T identity() {
        return T(1);
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
// Bit by bit, floating-point numbers too.
template <class T>
SIMT_INLINE auto bits_of(T value) {
    using Bits = std::conditional_t<
        sizeof(T) == 1, uint8_t,
        std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;
    if constexpr (metal::is_floating_point_v<T>) {
        return __builtin_bit_cast(Bits, value);
    } else {
        return value;
    }
}
template <class T, class Bits>
SIMT_INLINE T from_bits(Bits bits) {
    if constexpr (metal::is_floating_point_v<T>) {
        return __builtin_bit_cast(T, static_cast<decltype(bits_of(T()))>(bits));
    } else {
        return static_cast<T>(bits);
    }
}
struct And {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return from_bits<T>(bits_of(a) & bits_of(b));
    }
};
struct Or {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return from_bits<T>(bits_of(a) | bits_of(b));
    }
};
struct Xor {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) {
        return from_bits<T>(bits_of(a) ^ bits_of(b));
    }
};

template <class Operation, uint32_t kWidth, class T>
SIMT_INLINE T reduce(T value, const char* what, int line) {
    return Collective<Reduce<T, Operation, kWidth>>::call(value, what, line);
}
template <class Operation, uint32_t kWidth, bool kInclusive, class T>
SIMT_INLINE T prefix(T value, const char* what, int line) {
    return Collective<Prefix<T, Operation, kWidth, kInclusive>>::call(value, what, line);
}
template <class T>
SIMT_INLINE T shuffle(T value, uint32_t source, const char* what, int line) {
    return Collective<Shuffle<T>>::call({value, source}, what, line);
}

// Of a mask of lanes, those of the lane's own quad.
SIMT_INLINE uint32_t quad_of(uint32_t lanes) { return lanes >> (self()->lane & ~3u) & 15; }

// The lane's place in its run of `width` lanes (32 of a simdgroup, 4 of a quad), and the run's first lane.
struct Place {
    uint32_t own, first;

    SIMT_INLINE explicit Place(uint32_t width) : own(self()->lane % width), first(self()->lane - own) {}
};
template <uint32_t kWidth>
SIMT_INLINE uint32_t lane_at(ushort index) {
    return index < kWidth ? Place(kWidth).first + index : kLanes;
}
template <uint32_t kWidth>
SIMT_INLINE uint32_t lane_across(ushort mask) {
    return mask < kWidth ? self()->lane ^ mask : kLanes;
}
template <uint32_t kWidth>
SIMT_INLINE uint32_t lane_above(ushort delta) {
    return self()->lane - (Place(kWidth).own >= delta ? delta : 0);
}
template <uint32_t kWidth>
SIMT_INLINE uint32_t lane_below(ushort delta) {
    return self()->lane + (Place(kWidth).own + delta < kWidth ? delta : 0);
}
SIMT_INLINE uint32_t lane_around(uint32_t width, int delta) {
    const Place place(width);
    return place.first +
           static_cast<uint32_t>(static_cast<int>(place.own + width) + delta % static_cast<int>(width)) % width;
}

template <uint32_t kWidth, class T>
SIMT_INLINE T broadcast_first(T value, const char* what, int line) {
    const uint32_t active = Collective<ActiveLanes>::call(true, what, line) >> Place(kWidth).first;
    return shuffle(value, Place(kWidth).first + static_cast<uint32_t>(__builtin_ctz(active)), what, line);
}

// Shifted by `delta` within runs of `width` lanes; what is shifted in are the elements of `fill` that would follow.
template <class T>
SIMT_INLINE T shuffle_and_fill(T value, T fill, int delta, uint32_t width, const char* what, int line) {
    const int source = static_cast<int>(Place(width).own) + delta;
    const bool inside = source >= 0 && source < static_cast<int>(width);
    const uint32_t lane = lane_around(width, delta);
    const T shifted_in = shuffle(fill, lane, what, line);
    const T shifted = shuffle(value, lane, what, line);
    return inside ? shifted : shifted_in;
}

}  // namespace simt

namespace metal {

template <class T>
SIMT_INLINE T simd_sum(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Sum, simt::kLanes>(value, "simd_sum", line);
}
template <class T>
SIMT_INLINE T simd_product(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Multiply, simt::kLanes>(value, "simd_product", line);
}
template <class T>
SIMT_INLINE T simd_max(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Max, simt::kLanes>(value, "simd_max", line);
}
template <class T>
SIMT_INLINE T simd_min(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Min, simt::kLanes>(value, "simd_min", line);
}
template <class T>
SIMT_INLINE T simd_and(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::And, simt::kLanes>(value, "simd_and", line);
}
template <class T>
SIMT_INLINE T simd_or(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Or, simt::kLanes>(value, "simd_or", line);
}
template <class T>
SIMT_INLINE T simd_xor(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Xor, simt::kLanes>(value, "simd_xor", line);
}

template <class T>
SIMT_INLINE T simd_prefix_inclusive_sum(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Sum, simt::kLanes, true>(value, "simd_prefix_inclusive_sum", line);
}
template <class T>
SIMT_INLINE T simd_prefix_exclusive_sum(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Sum, simt::kLanes, false>(value, "simd_prefix_exclusive_sum", line);
}
template <class T>
SIMT_INLINE T simd_prefix_inclusive_product(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Multiply, simt::kLanes, true>(value, "simd_prefix_inclusive_product", line);
}
template <class T>
SIMT_INLINE T simd_prefix_exclusive_product(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Multiply, simt::kLanes, false>(value, "simd_prefix_exclusive_product", line);
}

template <class T>
SIMT_INLINE T simd_shuffle(T value, ushort lane, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_at<simt::kLanes>(lane), "simd_shuffle", line);
}
template <class T>
SIMT_INLINE T simd_broadcast(T value, ushort lane, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_at<simt::kLanes>(lane), "simd_broadcast", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_across<simt::kLanes>(mask), "simd_shuffle_xor", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_up(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_above<simt::kLanes>(delta), "simd_shuffle_up", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_down(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_below<simt::kLanes>(delta), "simd_shuffle_down", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_rotate_up(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_around(simt::kLanes, -delta), "simd_shuffle_rotate_up", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_rotate_down(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_around(simt::kLanes, delta), "simd_shuffle_rotate_down", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_and_fill_up(T value, T fill, ushort delta, ushort modulo = simt::kLanes,
                                       int line = __builtin_LINE()) {
    return simt::shuffle_and_fill(value, fill, -delta, modulo, "simd_shuffle_and_fill_up", line);
}
template <class T>
SIMT_INLINE T simd_shuffle_and_fill_down(T value, T fill, ushort delta, ushort modulo = simt::kLanes,
                                         int line = __builtin_LINE()) {
    return simt::shuffle_and_fill(value, fill, delta, modulo, "simd_shuffle_and_fill_down", line);
}
template <class T>
SIMT_INLINE T simd_broadcast_first(T value, int line = __builtin_LINE()) {
    return simt::broadcast_first<simt::kLanes>(value, "simd_broadcast_first", line);
}

template <class T>
SIMT_INLINE T quad_sum(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Sum, 4>(value, "quad_sum", line);
}
template <class T>
SIMT_INLINE T quad_product(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Multiply, 4>(value, "quad_product", line);
}
template <class T>
SIMT_INLINE T quad_max(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Max, 4>(value, "quad_max", line);
}
template <class T>
SIMT_INLINE T quad_min(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Min, 4>(value, "quad_min", line);
}
template <class T>
SIMT_INLINE T quad_and(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::And, 4>(value, "quad_and", line);
}
template <class T>
SIMT_INLINE T quad_or(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Or, 4>(value, "quad_or", line);
}
template <class T>
SIMT_INLINE T quad_xor(T value, int line = __builtin_LINE()) {
    return simt::reduce<simt::Xor, 4>(value, "quad_xor", line);
}

template <class T>
SIMT_INLINE T quad_prefix_inclusive_sum(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Sum, 4, true>(value, "quad_prefix_inclusive_sum", line);
}
template <class T>
SIMT_INLINE T quad_prefix_exclusive_sum(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Sum, 4, false>(value, "quad_prefix_exclusive_sum", line);
}
template <class T>
SIMT_INLINE T quad_prefix_inclusive_product(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Multiply, 4, true>(value, "quad_prefix_inclusive_product", line);
}
template <class T>
SIMT_INLINE T quad_prefix_exclusive_product(T value, int line = __builtin_LINE()) {
    return simt::prefix<simt::Multiply, 4, false>(value, "quad_prefix_exclusive_product", line);
}

template <class T>
SIMT_INLINE T quad_shuffle(T value, ushort lane, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_at<4>(lane), "quad_shuffle", line);
}
template <class T>
SIMT_INLINE T quad_broadcast(T value, ushort lane, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_at<4>(lane), "quad_broadcast", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_across<4>(mask), "quad_shuffle_xor", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_up(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_above<4>(delta), "quad_shuffle_up", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_down(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_below<4>(delta), "quad_shuffle_down", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_rotate_up(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_around(4, -delta), "quad_shuffle_rotate_up", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_rotate_down(T value, ushort delta, int line = __builtin_LINE()) {
    return simt::shuffle(value, simt::lane_around(4, delta), "quad_shuffle_rotate_down", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_and_fill_up(T value, T fill, ushort delta, ushort modulo = 4, int line = __builtin_LINE()) {
    return simt::shuffle_and_fill(value, fill, -delta, modulo, "quad_shuffle_and_fill_up", line);
}
template <class T>
SIMT_INLINE T quad_shuffle_and_fill_down(T value, T fill, ushort delta, ushort modulo = 4,
                                         int line = __builtin_LINE()) {
    return simt::shuffle_and_fill(value, fill, delta, modulo, "quad_shuffle_and_fill_down", line);
}
template <class T>
SIMT_INLINE T quad_broadcast_first(T value, int line = __builtin_LINE()) {
    return simt::broadcast_first<4>(value, "quad_broadcast_first", line);
}

// Not as templates as well, where kernels are known to declare templates of the same name.
#define SIMT_SCALAR_FUNCTIONS(T)                                                                      \
    SIMT_INLINE T simd_sum(T value, int line = __builtin_LINE()) { return simd_sum<T>(value, line); } \
    SIMT_INLINE T simd_max(T value, int line = __builtin_LINE()) { return simd_max<T>(value, line); } \
    SIMT_INLINE T simd_min(T value, int line = __builtin_LINE()) { return simd_min<T>(value, line); } \
    SIMT_INLINE T simd_broadcast(T value, ushort lane, int line = __builtin_LINE()) {                 \
        return simd_broadcast<T>(value, lane, line);                                                  \
    }
SIMT_FOR_INTEGERS(SIMT_SCALAR_FUNCTIONS)
SIMT_FOR_FLOATS(SIMT_SCALAR_FUNCTIONS)
#undef SIMT_SCALAR_FUNCTIONS

// The lanes that voted yes.
struct simd_vote {
    using vote_t = ulong;
    vote_t lanes;

    SIMT_INLINE constexpr explicit simd_vote(vote_t v = 0) : lanes(v) {}
    SIMT_INLINE constexpr explicit operator vote_t() const { return lanes; }
    SIMT_INLINE constexpr bool all() const { return lanes == 0xffffffff; }
    SIMT_INLINE constexpr bool any() const { return lanes != 0; }
};
using quad_vote = simd_vote;

SIMT_INLINE simd_vote simd_active_threads_mask(int line = __builtin_LINE()) {
    return simd_vote(simt::Collective<simt::ActiveLanes>::call(true, "simd_active_threads_mask", line));
}
SIMT_INLINE simd_vote simd_ballot(bool predicate, int line = __builtin_LINE()) {
    return simd_vote(simt::Collective<simt::Ballot>::call(predicate, "simd_ballot", line));
}
SIMT_INLINE bool simd_any(bool predicate, int line = __builtin_LINE()) {
    return simt::Collective<simt::Ballot>::call(predicate, "simd_any", line) != 0;
}
SIMT_INLINE bool simd_all(bool predicate, int line = __builtin_LINE()) {
    return simt::Collective<simt::Ballot>::call(!predicate, "simd_all", line) == 0;
}
SIMT_INLINE bool simd_is_first(int line = __builtin_LINE()) {
    const uint32_t active = simt::Collective<simt::ActiveLanes>::call(true, "simd_is_first", line);
    return static_cast<uint32_t>(__builtin_ctz(active)) == simt::self()->lane;
}
SIMT_INLINE quad_vote quad_active_threads_mask(int line = __builtin_LINE()) {
    return quad_vote(simt::quad_of(simt::Collective<simt::ActiveLanes>::call(true, "quad_active_threads_mask", line)));
}
SIMT_INLINE quad_vote quad_ballot(bool predicate, int line = __builtin_LINE()) {
    return quad_vote(simt::quad_of(simt::Collective<simt::Ballot>::call(predicate, "quad_ballot", line)));
}
SIMT_INLINE bool quad_any(bool predicate, int line = __builtin_LINE()) {
    return simt::quad_of(simt::Collective<simt::Ballot>::call(predicate, "quad_any", line)) != 0;
}
SIMT_INLINE bool quad_all(bool predicate, int line = __builtin_LINE()) {
    return simt::quad_of(simt::Collective<simt::Ballot>::call(!predicate, "quad_all", line)) == 0;
}
SIMT_INLINE bool quad_is_first(int line = __builtin_LINE()) {
    const uint32_t active = simt::quad_of(simt::Collective<simt::ActiveLanes>::call(true, "quad_is_first", line));
    return static_cast<uint32_t>(__builtin_ctz(active)) == simt::self()->lane % 4;
}

}  // namespace metal
