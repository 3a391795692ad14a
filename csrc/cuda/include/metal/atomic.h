// Atomics, relaxed as all of Metal's.
#pragma once

#include "barrier.h"

namespace metal_text {
namespace metal {

template <class T>
struct atomic {
    T value;
};

using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;

}  // namespace metal

using metal::atomic_float;
using metal::atomic_int;
using metal::atomic_uint;
using metal::atomic_ulong;

}  // namespace metal_text

namespace simt {

// CUDA's atomics know 64 bits as long long.
template <class T>
SIMT_INLINE auto* address_of(volatile metal::atomic<T>* object) {
    using Known = metal::conditional_t<metal::is_same_v<T, ulong>, unsigned long long, T>;
    return reinterpret_cast<Known*>(const_cast<T*>(&object->value));
}

}  // namespace simt

namespace metal_text {
namespace metal {

template <class T>
SIMT_INLINE T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
    return object->value;
}
template <class T, class U>
SIMT_INLINE void atomic_store_explicit(volatile atomic<T>* object, U desired, memory_order) {
    object->value = static_cast<T>(desired);
}
// Each returns the value before.
#define SIMT_ATOMIC(name, function)                                                           \
    template <class T, class U>                                                               \
    SIMT_INLINE T name(volatile atomic<T>* object, U operand, memory_order) {                 \
        return static_cast<T>(::function(simt::address_of(object), static_cast<T>(operand))); \
    }
SIMT_ATOMIC(atomic_exchange_explicit, atomicExch)
SIMT_ATOMIC(atomic_fetch_add_explicit, atomicAdd)
SIMT_ATOMIC(atomic_fetch_min_explicit, atomicMin)
SIMT_ATOMIC(atomic_fetch_max_explicit, atomicMax)
SIMT_ATOMIC(atomic_fetch_and_explicit, atomicAnd)
SIMT_ATOMIC(atomic_fetch_or_explicit, atomicOr)
SIMT_ATOMIC(atomic_fetch_xor_explicit, atomicXor)
#undef SIMT_ATOMIC
template <class T, class U>
SIMT_INLINE T atomic_fetch_sub_explicit(volatile atomic<T>* object, U operand, memory_order order) {
    return atomic_fetch_add_explicit(object, static_cast<T>(-static_cast<T>(operand)), order);
}
template <class T, class U>
SIMT_INLINE bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected, U desired, memory_order,
                                                       memory_order) {
    auto* const address = simt::address_of(object);
    const T before = *expected;
    *expected = static_cast<T>(::atomicCAS(address, before, static_cast<T>(desired)));
    return *expected == before;
}

}  // namespace metal
}  // namespace metal_text
