// The binary interface between a translated kernel library and the simulator's executor.
//
// A kernel library is compiled from Metal text on the user's machine and loaded with dlopen. It links against
// nothing: every service comes through the `Api` table that hangs off the running thread.
//
// One GPU thread is one fiber. All fibers of a threadgroup run on one OS thread and switch only inside
// `Api::barrier` and `Api::collective`, so no access in a kernel needs a lock.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

constexpr uint32_t kAbiVersion = 1;
constexpr uint32_t kLanes = 32;                            // lanes of a simdgroup
constexpr uint32_t kMaxThreads = 1024;                     // threads of a threadgroup
constexpr uint32_t kMaxBuffers = 31;                       // buffer slots of a kernel
constexpr std::size_t kStackBytes = std::size_t{1} << 17;  // of one fiber; stacks are aligned to their size
constexpr std::size_t kThreadBytes = 256;                  // room for the Thread of a stack

struct Size {
    uint32_t x, y, z;
};

enum class Scope : uint32_t { simdgroup, threadgroup };

// Bits of Metal's mem_flags: what a barrier orders.
enum MemoryFlags : uint32_t { kMemNone = 0, kMemDevice = 1, kMemThreadgroup = 2, kMemTexture = 4 };

// How an instrumented build reports an access to memory: plain, or by an atomic operation.
enum class Access : uint32_t { read, write, atomic, atomic_read };

// Per-launch counts. `exponentials` and `matrix_products` (8 x 8 x 8) are kept by the shim, one per lane and one
// per simdgroup respectively; the rest by the executor.
struct Counters {
    uint64_t matrix_products;
    uint64_t exponentials;
    uint64_t threadgroup_barriers;
    uint64_t simdgroup_barriers;
    uint64_t device_bytes_read, device_bytes_written;
    uint64_t threadgroup_bytes_read, threadgroup_bytes_written;
};

// Combines what the lanes of one simdgroup brought to a collective operation. Called once, by the last lane to
// arrive. slots[lane] is what that lane passed, or null when the lane takes no part; `arrived` has one bit a lane.
using Combine = void (*)(void* const* slots, uint32_t arrived);

struct Thread;

struct Api {
    // Waits for the threads of `scope`. `line` is the line of the Metal text.
    void (*barrier)(Thread*, Scope, uint32_t memory_flags, int line);
    // Waits for the lanes of the simdgroup, then lets one of them run `combine`. `what` names the operation.
    void (*collective)(Thread*, Combine combine, void* slot, const char* what, int line);
    // One threadgroup array; all threads call in the same order and get the same address.
    void* (*threadgroup_memory)(Thread*, std::size_t bytes, std::size_t alignment, const char* name, int line);
    // One access of `bytes` bytes from code at `pc`. Called by instrumented builds only.
    void (*access)(Thread*, const void* address, uint32_t bytes, Access kind, const void* pc);
    // An array of a known length, of type `type`, indexed outside its bounds by code at `pc`. Called by instrumented
    // builds only.
    void (*private_out_of_bounds)(Thread*, int64_t index, const char* type, const void* pc);
};

// What a fiber knows of itself. Lives near the top of its stack, where `self()` finds it.
struct Thread {
    const Api* api;
    void* executor;        // the executor's own state of this fiber
    Counters* counters;    // of the launch; null unless the build counts
    void* deferred;        // a log of matrix products, kDeferredBytes long, that the simdgroup's lanes share
    char* deferred_end;    // the shim's own: how far this lane has filled the log
    char* deferred_limit;  // the shim's own: where the log is full
    Size thread_position_in_threadgroup;
    Size threadgroup_position_in_grid;
    Size threads_per_threadgroup;  // of this threadgroup: smaller at the ragged edge of the grid
    Size dispatch_threads_per_threadgroup;
    Size threads_per_grid;
    Size threadgroups_per_grid;
    uint32_t thread_index;  // in the threadgroup, x fastest
    uint32_t lane;          // in the simdgroup
    uint32_t simdgroup;     // in the threadgroup
    uint32_t simdgroups;    // of the threadgroup
    uint32_t lanes;         // of this simdgroup: 32 but for the last of a ragged threadgroup
};

constexpr std::size_t kDeferredBytes = std::size_t{1} << 17;  // aligned to 64
static_assert(sizeof(Thread) <= kThreadBytes, "a Thread must fit above its stack");

// The Thread of the stack that `address` lies in. Neighbouring stacks keep theirs in different cache sets: 32 lanes
// switch in turn, and at equal offsets their hot lines would evict each other.
[[gnu::always_inline]] inline Thread* thread_of_stack(uintptr_t address) {
    const uintptr_t set = (address / kStackBytes) % 16 + 1;
    return reinterpret_cast<Thread*>((address | (kStackBytes - 1)) + 1 - set * kThreadBytes);
}

// The running fiber. Stacks are aligned to kStackBytes, so the frame's address is enough.
[[gnu::always_inline]] inline Thread* self() {
    return thread_of_stack(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)));
}

// What a kernel library exports, beside one `Kernel` function per kernel:
//   extern "C" const uint32_t simt_abi;                       == kAbiVersion
//   extern "C" void simt_kernel_<i>(void* const* buffers);    runs one thread; buffers[n] is [[buffer(n)]]
using Kernel = void (*)(void* const* buffers);

}  // namespace simt
