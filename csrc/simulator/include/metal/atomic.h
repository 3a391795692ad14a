// Atomics. Threadgroups run on several OS threads, so operations on device memory are atomic for the CPU as well.
#pragma once

#include "barrier.h"
#include "relational.h"

namespace metal {

template <class T>
struct atomic {
    T value;
};

using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<int>;
using atomic_float = atomic<float>;
using atomic_long = atomic<long>;
using atomic_ulong = atomic<ulong>;

}  // namespace metal

using metal::atomic_bool;
using metal::atomic_float;
using metal::atomic_int;
using metal::atomic_long;
using metal::atomic_uint;
using metal::atomic_ulong;

namespace metal {

template <class T>
SIMT_INLINE T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
    T result;
    __atomic_load(const_cast<T*>(&object->value), &result, __ATOMIC_RELAXED);
    return result;
}
template <class T, class U>
SIMT_INLINE void atomic_store_explicit(volatile atomic<T>* object, U desired, memory_order) {
    T value = static_cast<T>(desired);
    __atomic_store(const_cast<T*>(&object->value), &value, __ATOMIC_RELAXED);
}
template <class T, class U>
SIMT_INLINE T atomic_exchange_explicit(volatile atomic<T>* object, U desired, memory_order) {
    T value = static_cast<T>(desired), result;
    __atomic_exchange(const_cast<T*>(&object->value), &value, &result, __ATOMIC_RELAXED);
    return result;
}
template <class T, class U>
SIMT_INLINE bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected, U desired, memory_order,
                                                       memory_order) {
    T value = static_cast<T>(desired);
    return __atomic_compare_exchange(const_cast<T*>(&object->value), expected, &value, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED);
}

namespace detail {
template <class T, class F>
SIMT_INLINE T update(volatile atomic<T>* object, F change) {
    T old = atomic_load_explicit(object, memory_order_relaxed);
    while (
        !atomic_compare_exchange_weak_explicit(object, &old, change(old), memory_order_relaxed, memory_order_relaxed)) {
    }
    return old;
}
}  // namespace detail

// Each returns the value before.
#define SIMT_FETCH(name, expression)                                                                    \
    template <class T, class U>                                                                         \
    SIMT_INLINE T atomic_fetch_##name##_explicit(volatile atomic<T>* object, U operand, memory_order) { \
        const T y = static_cast<T>(operand);                                                            \
        return detail::update(object, [&](T x) -> T { return expression; });                            \
    }
SIMT_FETCH(add, x + y)
SIMT_FETCH(sub, x - y)
SIMT_FETCH(min, min(x, y))
SIMT_FETCH(max, max(x, y))
SIMT_FETCH(and, x& y)
SIMT_FETCH(or, x | y)
SIMT_FETCH(xor, x ^ y)
#undef SIMT_FETCH

}  // namespace metal
