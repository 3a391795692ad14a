#include "scheduler.h"

#include <climits>
#include <cstring>

#include "checker.h"
#include "describe.h"
#include "memory_counter.h"

namespace simt {
namespace {

Simdgroup& simdgroup_of(const Thread* thread) { return *static_cast<Simdgroup*>(thread->executor); }

// The first of `candidates` (not empty) after `lane`, in a ring.
uint32_t next_in_ring(uint32_t candidates, uint32_t lane) {
    const uint32_t later = candidates & (~uint32_t{1} << lane);
    return static_cast<uint32_t>(__builtin_ctz(later != 0 ? later : candidates));
}

// Gives the launch up: the fibers are abandoned where they stand.
[[noreturn]] void abandon(Threadgroup& group, Fiber& from, std::string why) {
    group.error = std::move(why);
    switch_fiber(from, group.worker);
    __builtin_unreachable();
}

std::string describe_stuck_barrier(const Threadgroup& group) {
    const auto waits = [&](uint32_t thread) {
        return (group.simdgroup[thread / kLanes].at_barrier >> (thread % kLanes) & 1) != 0;
    };
    uint32_t first = 0;
    while (!waits(first)) ++first;
    const int line = group.simdgroup[first / kLanes].requests[first % kLanes].line;
    return "divergence: threadgroup_barrier at line " + std::to_string(line) + " can never be completed: of the " +
           std::to_string(group.threads) + " threads of threadgroup " + describe(group.position) + ", " +
           describe_members(group.threads, waits) + " wait at it and " +
           describe_members(group.threads, [&](uint32_t thread) { return !waits(thread); }) +
           " have returned from the kernel";
}

// Lets the lanes of `mask`, which wait at `request`, pass.
template <bool checked>
void complete(Simdgroup& simdgroup, const Request& request, uint32_t mask) {
    if constexpr (checked) simdgroup.group->checker->complete_collective(simdgroup, request, mask);
    if (request.combine == nullptr) {
        ++simdgroup.group->counters.simdgroup_barriers;
    } else {
        if constexpr (checked) simdgroup.group->checker->set_combining(true);
        if (mask == ~uint32_t{0}) {
            request.combine(simdgroup.slots.data(), mask);
        } else {
            std::array<void*, kLanes> slots;
            for (uint32_t lane = 0; lane < kLanes; ++lane) {
                slots[lane] = (mask >> lane & 1) != 0 ? simdgroup.slots[lane] : nullptr;
            }
            request.combine(slots.data(), mask);
        }
        if constexpr (checked) simdgroup.group->checker->set_combining(false);
    }
    simdgroup.runnable |= mask;
}

// Moves the lanes that wait together at `request` among those that wait each for its own.
void scatter(Simdgroup& simdgroup) {
    for (uint32_t rest = simdgroup.arrived; rest != 0; rest &= rest - 1) {
        simdgroup.requests[static_cast<uint32_t>(__builtin_ctz(rest))] = simdgroup.request;
    }
    simdgroup.diverged |= simdgroup.arrived;
    simdgroup.arrived = 0;
}

// No lane of the simdgroup can go on, yet some wait at a collective that others do not reach: like the GPU, runs it
// with the lanes that are there. Of several, takes the one at the lowest line: lanes that are still in a loop come
// before those that wait behind it.
template <bool checked>
void complete_divergent(Simdgroup& simdgroup) {
    scatter(simdgroup);
    Request request{nullptr, nullptr, INT_MAX, 0};
    for (uint32_t rest = simdgroup.diverged; rest != 0; rest &= rest - 1) {
        const Request& candidate = simdgroup.requests[static_cast<uint32_t>(__builtin_ctz(rest))];
        if (candidate.line < request.line) request = candidate;
    }
    uint32_t mask = 0;
    for (uint32_t rest = simdgroup.diverged; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<uint32_t>(__builtin_ctz(rest));
        if (simdgroup.requests[lane].matches(request)) mask |= uint32_t{1} << lane;
    }
    simdgroup.diverged &= ~mask;
    complete<checked>(simdgroup, request, mask);
}

// All threads of the threadgroup can go on: at its start, or because all of them have reached its barrier.
void release(Threadgroup& group) {
    for (uint32_t i = 0; i < group.simdgroups; ++i) {
        group.simdgroup[i].runnable = group.simdgroup[i].all;
        group.simdgroup[i].at_barrier = 0;
    }
    group.ready = mask_of(group.simdgroups);
}

// The fiber that runs next, given the running lane. Simdgroups and their lanes go round in rings; lanes in the order
// in which they arrived at the last collective, so that the lane that completed it carries on without a switch.
template <bool checked>
Fiber& next_fiber(Simdgroup& simdgroup, uint32_t lane) {
    Threadgroup& group = *simdgroup.group;
    if constexpr (checked) {
        Simdgroup& next = group.simdgroup[group.checker->pick(group.ready)];
        return next.fibers[group.checker->pick(next.runnable)];
    }
    if (simdgroup.runnable != 0) return simdgroup.fibers[next_in_ring(simdgroup.runnable, lane)];
    const auto index = static_cast<uint32_t>(&simdgroup - group.simdgroup.data());
    Simdgroup& next = group.simdgroup[next_in_ring(group.ready, index)];
    return next.fibers[static_cast<uint32_t>(__builtin_ctz(next.runnable))];
}

// Runs others until it is the turn of this lane, which has just been made to wait or has let others pass.
template <bool checked>
void yield(Simdgroup& simdgroup, uint32_t lane) {
    Fiber& self = simdgroup.fibers[lane];
    if (simdgroup.runnable == 0) {
        if ((simdgroup.arrived | simdgroup.diverged) != 0) {
            complete_divergent<checked>(simdgroup);
        } else {
            Threadgroup& group = *simdgroup.group;
            group.ready &= ~(uint32_t{1} << (&simdgroup - group.simdgroup.data()));
            if (group.ready == 0) {
                if (group.finished == group.threads) {
                    switch_fiber(self, group.worker);
                    return;
                }
                if (group.finished != 0) abandon(group, self, describe_stuck_barrier(group));
                ++group.counters.threadgroup_barriers;
                if constexpr (checked) group.checker->complete_barrier(group);
                release(group);
            }
        }
    }
    Fiber& next = next_fiber<checked>(simdgroup, lane);
    if (&next != &self) switch_fiber(self, next);
}

// A lane comes to a collective while others wait elsewhere.
template <bool checked>
void arrive_divergent(Simdgroup& simdgroup, uint32_t lane, const Request& request) {
    scatter(simdgroup);
    simdgroup.requests[lane] = request;
    simdgroup.diverged |= uint32_t{1} << lane;
    simdgroup.runnable &= ~(uint32_t{1} << lane);
    yield<checked>(simdgroup, lane);
}

template <bool checked>
void arrive(Thread* thread, void* slot, const Request& request) {
    Simdgroup& simdgroup = simdgroup_of(thread);
    const uint32_t lane = thread->lane;
    const uint32_t bit = uint32_t{1} << lane;
    simdgroup.slots[lane] = slot;
    if ((simdgroup.arrived | simdgroup.diverged) == 0) {
        simdgroup.request = request;
    } else if (simdgroup.diverged != 0 || !simdgroup.request.matches(request)) {
        arrive_divergent<checked>(simdgroup, lane, request);
        return;
    }
    const uint32_t arrived = simdgroup.arrived | bit;
    if (arrived == simdgroup.live) {
        simdgroup.arrived = 0;
        complete<checked>(simdgroup, simdgroup.request, arrived);
        if constexpr (checked) yield<checked>(simdgroup, lane);
        return;
    }
    simdgroup.arrived = arrived;
    simdgroup.runnable &= ~bit;
    if (checked || simdgroup.runnable == 0) {
        yield<checked>(simdgroup, lane);
        return;
    }
    switch_fiber(simdgroup.fibers[lane], simdgroup.fibers[next_in_ring(simdgroup.runnable, lane)]);
}

template <bool checked>
void collective(Thread* thread, Combine combine, void* slot, const char* what, int line) {
    arrive<checked>(thread, slot, {combine, what, line, kMemNone});
}

template <bool checked>
void barrier(Thread* thread, Scope scope, uint32_t memory_flags, int line) {
    if (scope == Scope::simdgroup) {
        arrive<checked>(thread, nullptr, {nullptr, "simdgroup_barrier", line, memory_flags});
        return;
    }
    Simdgroup& simdgroup = simdgroup_of(thread);
    const uint32_t bit = uint32_t{1} << thread->lane;
    simdgroup.requests[thread->lane] = {nullptr, "threadgroup_barrier", line, memory_flags};
    simdgroup.at_barrier |= bit;
    simdgroup.runnable &= ~bit;
    yield<checked>(simdgroup, thread->lane);
}

// Lanes of a simdgroup run in lockstep on the GPU: a simdgroup barrier that orders no memory has nothing to do.
void fast_barrier(Thread* thread, Scope scope, uint32_t memory_flags, int line) {
    if (scope == Scope::simdgroup && memory_flags == kMemNone) return;
    barrier<false>(thread, scope, memory_flags, line);
}

void* threadgroup_memory(Thread* thread, std::size_t bytes, std::size_t alignment, const char* name, int line) {
    Simdgroup& simdgroup = simdgroup_of(thread);
    Threadgroup& group = *simdgroup.group;
    const auto is_this = [&](const ThreadgroupArray& array) {
        return array.line == line && array.bytes == bytes && std::strcmp(array.name, name) == 0;
    };
    // Threads nearly always declare in the same order; a declaration inside a loop or a branch has to be looked up.
    uint32_t index = simdgroup.declared[thread->lane];
    if (index >= group.array_count || !is_this(group.arrays[index])) {
        index = 0;
        while (index < group.array_count && !is_this(group.arrays[index])) ++index;
    }
    if (index == group.array_count) {
        std::size_t offset = round_up(group.arena_used, alignment);
        const std::size_t limit = group.launch->threadgroup_bytes;
        if (bytes > limit || offset + bytes > limit || index == Threadgroup::kMaxArrays) {
            abandon(group, simdgroup.fibers[thread->lane],
                    "threadgroup memory: array '" + std::string(name) + "' at line " + std::to_string(line) +
                        " brings the total to " + std::to_string(offset + bytes) +
                        " bytes of threadgroup memory; at most " + std::to_string(limit) + " bytes in " +
                        std::to_string(Threadgroup::kMaxArrays) + " arrays are available");
        }
        group.arena_used = static_cast<uint32_t>(offset + bytes);
        if (group.checker != nullptr) offset += (index + 1) * Threadgroup::kRedZone;
        group.arrays[index] = {name, line, static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes)};
        ++group.array_count;
    }
    simdgroup.declared[thread->lane] = static_cast<uint8_t>(index + 1);
    return group.arena + group.arrays[index].offset;
}

// Most accesses are to the thread's own stack and of no interest.
bool is_private(const Thread* thread, const void* address) {
    return reinterpret_cast<uintptr_t>(address) / kStackBytes == reinterpret_cast<uintptr_t>(thread) / kStackBytes;
}

void check_access(Thread* thread, const void* address, uint32_t bytes, Access kind, const void* pc) {
    if (is_private(thread, address)) return;
    Simdgroup& simdgroup = simdgroup_of(thread);
    Threadgroup& group = *simdgroup.group;
    if (auto why = group.checker->access(*thread, group, address, bytes, kind, pc)) {
        abandon(group, simdgroup.fibers[thread->lane], std::move(*why));
    }
}

void check_private(Thread* thread, int64_t index, const char* type, const void* pc) {
    Simdgroup& simdgroup = simdgroup_of(thread);
    Threadgroup& group = *simdgroup.group;
    abandon(group, simdgroup.fibers[thread->lane], group.checker->describe_private(*thread, index, type, pc));
}

void count_access(Thread* thread, const void* address, uint32_t bytes, Access kind, const void* pc) {
    if (is_private(thread, address)) return;
    Threadgroup& group = *simdgroup_of(thread).group;
    const auto* const place = static_cast<const char*>(address);
    const Location location = group.memory_counter->count(group, place, bytes, kind);
    if (group.transactions != nullptr) group.transactions->add(*thread, pc, location, bytes);
}

void ignore_private(Thread*, int64_t, const char*, const void*) {}

}  // namespace

const Api& fast_api() {
    static constexpr Api api{fast_barrier, collective<false>, threadgroup_memory, nullptr, nullptr};
    return api;
}

const Api& counting_api() {
    static constexpr Api api{barrier<false>, collective<false>, threadgroup_memory, count_access, ignore_private};
    return api;
}

const Api& checked_api() {
    static constexpr Api api{barrier<true>, collective<true>, threadgroup_memory, check_access, check_private};
    return api;
}

void run_thread(void* argument) {
    const auto* const thread = static_cast<const Thread*>(argument);
    for (;;) {
        Simdgroup& simdgroup = simdgroup_of(thread);
        Threadgroup& group = *simdgroup.group;
        group.launch->kernel(group.launch->buffers);
        const uint32_t bit = uint32_t{1} << thread->lane;
        simdgroup.live &= ~bit;
        simdgroup.runnable &= ~bit;
        ++group.finished;
        if (group.checker != nullptr) {
            yield<true>(simdgroup, thread->lane);
        } else {
            yield<false>(simdgroup, thread->lane);
        }
    }
}

void run_threadgroup(Threadgroup& group) {
    for (uint32_t i = 0; i < group.simdgroups; ++i) {
        Simdgroup& simdgroup = group.simdgroup[i];
        simdgroup.live = simdgroup.all;
        simdgroup.arrived = simdgroup.diverged = 0;
        simdgroup.declared.fill(0);
    }
    group.finished = 0;
    release(group);
    if (group.checker != nullptr) {
        group.checker->start(group);
        switch_fiber(group.worker, next_fiber<true>(group.simdgroup[0], 0));
    } else {
        switch_fiber(group.worker, group.simdgroup[0].fibers[0]);
    }
}

}  // namespace simt
