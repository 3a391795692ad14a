// What the translator writes around a kernel: its arguments, its thread's place, and its threadgroup memory.
#pragma once

#include "metal/vec.h"

// What a kernel promises of its launches; nothing unless the compiler is told otherwise.
#if !defined(SIMT_BOUNDS)
#define SIMT_BOUNDS
#endif

namespace simt {

using metal_text::uint;

constexpr uint kLanes = 32;

struct Size {
    uint x, y, z;
};

// An argument of a kernel that takes a pointer, and one that takes a reference to device memory.
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

// The type of parameter i of a function, without const and reference: what travels by value for it.
template <int i, class First, class... Rest>
struct Nth : Nth<i - 1, Rest...> {};
template <class First, class... Rest>
struct Nth<0, First, Rest...> {
    using type = First;
};
template <int i, class F>
struct ParameterOf;
template <int i, class... A>
struct ParameterOf<i, void(A...)> {
    using type = metal_text::metal::remove_cv_t<metal_text::metal::remove_reference_t<typename Nth<i, A...>::type>>;
};
template <int i, class F>
struct ParameterOf<i, F*> : ParameterOf<i, F> {};
template <int i, class F>
using Parameter = typename ParameterOf<i, F>::type;

// A position or an extent, as the kernel wants it: x alone or a vector, of any integers.
struct Extent {
    Size size;
    template <class T, metal_text::metal::enable_if_t<metal_text::metal::is_integral_v<T>, int> = 0>
    SIMT_INLINE operator T() const {
        return static_cast<T>(size.x);
    }
    template <class T>
    SIMT_INLINE operator metal_text::metal::vec<T, 2>() const {
        return metal_text::metal::vec<T, 2>(size.x, size.y);
    }
    template <class T>
    SIMT_INLINE operator metal_text::metal::vec<T, 3>() const {
        return metal_text::metal::vec<T, 3>(size.x, size.y, size.z);
    }
};

// Where a thread is. Threadgroups at the far edges of the grid are smaller where their size does not divide it; blocks
// are all alike, so their surplus threads end before the kernel starts.
struct Thread {
    Size grid;

    SIMT_INLINE explicit Thread(Size threads) : grid(threads) {}

    SIMT_INLINE Extent thread_position_in_grid() const {
        return {{blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
                 blockIdx.z * blockDim.z + threadIdx.z}};
    }
    SIMT_INLINE bool is_inside() const {
        const Size own = thread_position_in_grid().size;
        return own.x < grid.x && own.y < grid.y && own.z < grid.z;
    }
    SIMT_INLINE Extent thread_position_in_threadgroup() const { return {{threadIdx.x, threadIdx.y, threadIdx.z}}; }
    SIMT_INLINE Extent threadgroup_position_in_grid() const { return {{blockIdx.x, blockIdx.y, blockIdx.z}}; }
    SIMT_INLINE Extent threadgroups_per_grid() const { return {{gridDim.x, gridDim.y, gridDim.z}}; }
    SIMT_INLINE Extent threads_per_grid() const { return {grid}; }
    SIMT_INLINE Extent dispatch_threads_per_threadgroup() const { return {{blockDim.x, blockDim.y, blockDim.z}}; }
    SIMT_INLINE Extent threads_per_threadgroup() const {
        return {{::min(blockDim.x, grid.x - blockIdx.x * blockDim.x),
                 ::min(blockDim.y, grid.y - blockIdx.y * blockDim.y),
                 ::min(blockDim.z, grid.z - blockIdx.z * blockDim.z)}};
    }
    SIMT_INLINE uint thread_index_in_threadgroup() const {
        return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    }
    SIMT_INLINE uint thread_index_in_simdgroup() const { return thread_index_in_threadgroup() % kLanes; }
    // Read from one lane, so that the compiler knows that all lanes have the same.
    SIMT_INLINE uint simdgroup_index_in_threadgroup() const {
        return __shfl_sync(0xffffffff, thread_index_in_threadgroup() / kLanes, 0);
    }
    SIMT_INLINE uint simdgroups_per_threadgroup() const { return ceil_div(volume(threads_per_threadgroup()), kLanes); }
    SIMT_INLINE uint dispatch_simdgroups_per_threadgroup() const {
        return ceil_div(blockDim.x * blockDim.y * blockDim.z, kLanes);
    }
    SIMT_INLINE uint threads_per_simdgroup() const { return kLanes; }
    SIMT_INLINE uint thread_execution_width() const { return kLanes; }
    SIMT_INLINE uint thread_index_in_quadgroup() const { return thread_index_in_threadgroup() % 4; }
    SIMT_INLINE uint quadgroup_index_in_threadgroup() const { return thread_index_in_threadgroup() / 4; }
    SIMT_INLINE uint quadgroup_index_in_simdgroup() const { return thread_index_in_simdgroup() / 4; }
    SIMT_INLINE uint quadgroups_per_threadgroup() const { return ceil_div(volume(threads_per_threadgroup()), 4); }

  private:
    static SIMT_INLINE uint volume(Extent extent) { return extent.size.x * extent.size.y * extent.size.z; }
    static SIMT_INLINE uint ceil_div(uint a, uint b) { return (a + b - 1) / b; }
};

// The threadgroup's memory is one block, in which the translator lays a kernel's variables out one behind the other. It
// starts where a swizzled panel may (wgmma.h).
extern __shared__ __align__(1024) unsigned char threadgroup_memory[];

// Where a variable of an alignment may start that comes behind `end` bytes; 16 at least, as memory is moved in chunks.
constexpr uint start_behind(uint end, uint alignment) {
    return (end + (alignment < 16 ? 16 : alignment) - 1) / (alignment < 16 ? 16 : alignment) *
           (alignment < 16 ? 16 : alignment);
}

}  // namespace simt
