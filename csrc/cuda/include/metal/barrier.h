// Barriers and what they order.
#pragma once

#include "scalar.h"

namespace metal_text {
namespace metal {

enum class mem_flags : uint {
    mem_none = 0,
    mem_device = 1,
    mem_threadgroup = 2,
    mem_texture = 4,
};
SIMT_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
    return static_cast<mem_flags>(static_cast<uint>(a) | static_cast<uint>(b));
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
    thread_scope_system
};

// Orders device and threadgroup memory alike for the threads of the block.
SIMT_INLINE void threadgroup_barrier(mem_flags) { __syncthreads(); }
// One that orders no memory only keeps lanes together, which no kernel can see.
SIMT_INLINE void simdgroup_barrier(mem_flags flags) {
    if (flags != mem_flags::mem_none) __syncwarp();
}
SIMT_INLINE void atomic_thread_fence(mem_flags, memory_order = memory_order_seq_cst,
                                     thread_scope = thread_scope_device) {
    __threadfence();
}

}  // namespace metal
}  // namespace metal_text
