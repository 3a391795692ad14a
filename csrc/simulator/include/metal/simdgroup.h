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
            for (uint32_t lane = 0; lane < kLanes; ++lane) gathered.value[lane] = static_cast<Slot*>(slots[lane])->argument;
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

// For each lane, the reduction of the lanes before it, from the lowest on; with kInclusive its own value as well.
template <class T, class F, bool kInclusive>
struct Prefix {
    using Argument = T;
    using Result = T;

    static SIMT_UNCHECKED void run(Gathered<T>& lanes, T* results) {
        T sum = F::template identity<T>();
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
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
    static SIMT_INLINE T apply(T a, T b) { return static_cast<T>(a + b); }
    template <class T>
    static SIMT_INLINE T identity() { return T(0); }
};
struct Multiply {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) { return static_cast<T>(a * b); }
    template <class T>
    static SIMT_INLINE T identity() { return T(1); }
};
struct Max {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) { return metal::max(a, b); }
};
struct Min {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) { return metal::min(a, b); }
};
struct And {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) { return static_cast<T>(a & b); }
};
struct Or {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) { return static_cast<T>(a | b); }
};
struct Xor {
    template <class T>
    static SIMT_INLINE T apply(T a, T b) { return static_cast<T>(a ^ b); }
};

template <class T>
SIMT_INLINE T shuffle(T value, uint32_t source, const char* what, int line) {
    return Collective<Shuffle<T>>::call({value, source}, what, line);
}

}  // namespace simt

namespace metal {

#define SIMT_REDUCTION(prefix, name, operation, width)                                                         \
    template <class T>                                                                                         \
    SIMT_INLINE T prefix##_##name(T value, int line = __builtin_LINE()) {                                      \
        return simt::Collective<simt::Reduce<T, simt::operation, width>>::call(value, #prefix "_" #name, line); \
    }
#define SIMT_REDUCTIONS(prefix, width)             \
    SIMT_REDUCTION(prefix, sum, Sum, width)        \
    SIMT_REDUCTION(prefix, product, Multiply, width) \
    SIMT_REDUCTION(prefix, max, Max, width)        \
    SIMT_REDUCTION(prefix, min, Min, width)        \
    SIMT_REDUCTION(prefix, and, And, width)        \
    SIMT_REDUCTION(prefix, or, Or, width)          \
    SIMT_REDUCTION(prefix, xor, Xor, width)
SIMT_REDUCTIONS(simd, simt::kLanes)
SIMT_REDUCTIONS(quad, 4)
#undef SIMT_REDUCTIONS
#undef SIMT_REDUCTION

#define SIMT_PREFIX(name, operation, inclusive)                                                           \
    template <class T>                                                                                    \
    SIMT_INLINE T simd_##name(T value, int line = __builtin_LINE()) {                                     \
        return simt::Collective<simt::Prefix<T, simt::operation, inclusive>>::call(value, "simd_" #name, line); \
    }
SIMT_PREFIX(prefix_inclusive_sum, Sum, true)
SIMT_PREFIX(prefix_exclusive_sum, Sum, false)
SIMT_PREFIX(prefix_inclusive_product, Multiply, true)
SIMT_PREFIX(prefix_exclusive_product, Multiply, false)
#undef SIMT_PREFIX

// Shuffles within runs of `width` lanes: 32 for a simdgroup, 4 for a quad. `own` is the lane's place in its run.
#define SIMT_SHUFFLES(prefix, width)                                                                                   \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle(T value, ushort lane, int line = __builtin_LINE()) {                                \
        const uint32_t self = simt::self()->lane, own = self % width;                                                  \
        return simt::shuffle(value, lane < width ? self - own + lane : simt::kLanes, #prefix "_shuffle", line);        \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_broadcast(T value, ushort lane, int line = __builtin_LINE()) {                              \
        return prefix##_shuffle(value, lane, line);                                                                    \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {                            \
        const uint32_t self = simt::self()->lane;                                                                      \
        return simt::shuffle(value, mask < width ? self ^ mask : simt::kLanes, #prefix "_shuffle_xor", line);          \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_up(T value, ushort delta, int line = __builtin_LINE()) {                            \
        const uint32_t self = simt::self()->lane, own = self % width;                                                  \
        return simt::shuffle(value, own >= delta ? self - delta : self, #prefix "_shuffle_up", line);                  \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_down(T value, ushort delta, int line = __builtin_LINE()) {                          \
        const uint32_t self = simt::self()->lane, own = self % width;                                                  \
        return simt::shuffle(value, own + delta < width ? self + delta : self, #prefix "_shuffle_down", line);         \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_rotate_up(T value, ushort delta, int line = __builtin_LINE()) {                     \
        const uint32_t self = simt::self()->lane, own = self % width;                                                  \
        return simt::shuffle(value, self - own + (own + width - delta % width) % width, #prefix "_shuffle_rotate_up",  \
                             line);                                                                                    \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_rotate_down(T value, ushort delta, int line = __builtin_LINE()) {                   \
        const uint32_t self = simt::self()->lane, own = self % width;                                                  \
        return simt::shuffle(value, self - own + (own + delta) % width, #prefix "_shuffle_rotate_down", line);         \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_and_fill_up(T value, T fill, ushort delta, ushort modulo = width,                   \
                                               int line = __builtin_LINE()) {                                          \
        const uint32_t self = simt::self()->lane, own = self % modulo;                                                 \
        /* Lanes below delta take the last delta elements of `fill`. */                                                \
        const T wrapped = simt::shuffle(fill, self - own + (own + modulo - delta % modulo) % modulo,                   \
                                        #prefix "_shuffle_and_fill_up", line);                                         \
        const T moved = simt::shuffle(value, own >= delta ? self - delta : self, #prefix "_shuffle_and_fill_up", line); \
        return own >= delta ? moved : wrapped;                                                                         \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    SIMT_INLINE T prefix##_shuffle_and_fill_down(T value, T fill, ushort delta, ushort modulo = width,                 \
                                                 int line = __builtin_LINE()) {                                        \
        const uint32_t self = simt::self()->lane, own = self % modulo;                                                 \
        /* Lanes whose source lies beyond the end take the first delta elements of `fill`. */                          \
        const bool inside = own + delta < modulo;                                                                      \
        const T wrapped = simt::shuffle(fill, self - own + (own + delta) % modulo,                                     \
                                        #prefix "_shuffle_and_fill_down", line);                                       \
        const T moved = simt::shuffle(value, inside ? self + delta : self, #prefix "_shuffle_and_fill_down", line);    \
        return inside ? moved : wrapped;                                                                               \
    }
SIMT_SHUFFLES(simd, simt::kLanes)
SIMT_SHUFFLES(quad, 4u)
#undef SIMT_SHUFFLES

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
template <class T>
SIMT_INLINE T simd_broadcast_first(T value, int line = __builtin_LINE()) {
    const uint32_t active = simt::Collective<simt::ActiveLanes>::call(true, "simd_broadcast_first", line);
    return simd_shuffle(value, static_cast<ushort>(__builtin_ctz(active)), line);
}
SIMT_INLINE bool quad_any(bool predicate, int line = __builtin_LINE()) {
    return quad_or(static_cast<uint>(predicate), line) != 0;
}
SIMT_INLINE bool quad_all(bool predicate, int line = __builtin_LINE()) {
    return quad_and(static_cast<uint>(predicate), line) != 0;
}

}  // namespace metal
