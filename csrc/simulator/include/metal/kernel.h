// What the translator writes around a kernel: its arguments, and its threadgroup memory.
#pragma once

#include "../simt.h"
#include "products.h"
#include "vec.h"

namespace simt {

// An argument of a kernel that takes a pointer, and one that takes a reference: the kernel's own types decide to what.
struct BufferPointer {
    void* address;
    template <class T>
    SIMT_INLINE operator T*() const {
        return static_cast<T*>(address);
    }
};
struct BufferReference {
    void* address;
    template <class T>
    SIMT_INLINE operator T&() const {
        return *static_cast<T*>(address);
    }
};

// A position or an extent, as the kernel wants it: x alone or a vector, of any integers.
struct Extent {
    Size size;
    template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
    SIMT_INLINE operator T() const {
        return static_cast<T>(size.x);
    }
    template <class T>
    SIMT_INLINE operator metal::vec<T, 2>() const {
        return metal::vec<T, 2>(size.x, size.y);
    }
    template <class T>
    SIMT_INLINE operator metal::vec<T, 3>() const {
        return metal::vec<T, 3>(size.x, size.y, size.z);
    }
};

SIMT_INLINE Extent thread_position_in_grid() {
    const Thread* const t = self();
    const Size group = t->threadgroup_position_in_grid, size = t->dispatch_threads_per_threadgroup,
               own = t->thread_position_in_threadgroup;
    return {{group.x * size.x + own.x, group.y * size.y + own.y, group.z * size.z + own.z}};
}
#define SIMT_EXTENT(name) \
    SIMT_INLINE Extent name() { return {self()->name}; }
SIMT_EXTENT(thread_position_in_threadgroup)
SIMT_EXTENT(threadgroup_position_in_grid)
SIMT_EXTENT(threads_per_threadgroup)
SIMT_EXTENT(dispatch_threads_per_threadgroup)
SIMT_EXTENT(threads_per_grid)
SIMT_EXTENT(threadgroups_per_grid)
#undef SIMT_EXTENT
SIMT_INLINE uint32_t thread_index_in_threadgroup() { return self()->thread_index; }
SIMT_INLINE uint32_t thread_index_in_simdgroup() { return self()->lane; }
SIMT_INLINE uint32_t simdgroup_index_in_threadgroup() { return self()->simdgroup; }
SIMT_INLINE uint32_t simdgroups_per_threadgroup() { return self()->simdgroups; }
SIMT_INLINE uint32_t dispatch_simdgroups_per_threadgroup() {
    const Size size = self()->dispatch_threads_per_threadgroup;
    return (size.x * size.y * size.z + kLanes - 1) / kLanes;
}
SIMT_INLINE uint32_t threads_per_simdgroup() { return kLanes; }
SIMT_INLINE uint32_t thread_execution_width() { return kLanes; }
SIMT_INLINE uint32_t thread_index_in_quadgroup() { return self()->lane % 4; }
SIMT_INLINE uint32_t quadgroup_index_in_threadgroup() { return self()->thread_index / 4; }
SIMT_INLINE uint32_t quadgroup_index_in_simdgroup() { return self()->lane / 4; }
SIMT_INLINE uint32_t quadgroups_per_threadgroup() {
    const Size size = self()->threads_per_threadgroup;
    return (size.x * size.y * size.z + 3) / 4;
}

// The threadgroup variable `name` of type T, declared at `line`.
template <class T, std::size_t kAlignment = alignof(T)>
SIMT_INLINE T& threadgroup_variable(const char* name, int line) {
    Thread* const thread = self();
    return *static_cast<T*>(thread->api->threadgroup_memory(thread, sizeof(T), kAlignment, name, line));
}

}  // namespace simt
