// Barriers and what they order.
#pragma once

#include "../simt.h"
#include "products.h"

namespace metal {

enum class mem_flags : uint32_t {
    mem_none = simt::kMemNone,
    mem_device = simt::kMemDevice,
    mem_threadgroup = simt::kMemThreadgroup,
    mem_texture = simt::kMemTexture,
    mem_threadgroup_imageblock = 8,
    mem_object_data = 16,
};
SIMT_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
    return static_cast<mem_flags>(static_cast<uint32_t>(a) | static_cast<uint32_t>(b));
}
SIMT_INLINE constexpr mem_flags operator&(mem_flags a, mem_flags b) {
    return static_cast<mem_flags>(static_cast<uint32_t>(a) & static_cast<uint32_t>(b));
}

enum memory_order {
    memory_order_relaxed,
    memory_order_acquire,
    memory_order_release,
    memory_order_acq_rel,
    memory_order_seq_cst
};
enum thread_scope {
    thread_scope_thread,
    thread_scope_simdgroup,
    thread_scope_threadgroup,
    thread_scope_device,
    thread_scope_system,
};
using memory_scope = thread_scope;
inline constexpr memory_scope memory_scope_simdgroup = thread_scope_simdgroup;
inline constexpr memory_scope memory_scope_threadgroup = thread_scope_threadgroup;
inline constexpr memory_scope memory_scope_device = thread_scope_device;

SIMT_INLINE void threadgroup_barrier(mem_flags flags, memory_scope = memory_scope_threadgroup,
                                     int line = __builtin_LINE()) {
    simt::flush_products();
    simt::Thread* const thread = simt::self();
    thread->api->barrier(thread, simt::Scope::threadgroup, static_cast<uint32_t>(flags), line);
}
SIMT_INLINE void simdgroup_barrier(mem_flags flags, memory_scope = memory_scope_threadgroup,
                                   int line = __builtin_LINE()) {
    simt::flush_products();
    simt::Thread* const thread = simt::self();
    thread->api->barrier(thread, simt::Scope::simdgroup, static_cast<uint32_t>(flags), line);
}

// Orders memory without waiting. Threads of one threadgroup share an OS thread, so a compiler and CPU fence is all.
SIMT_INLINE void atomic_thread_fence(mem_flags, memory_order = memory_order_seq_cst,
                                     thread_scope = thread_scope_device) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

}  // namespace metal
