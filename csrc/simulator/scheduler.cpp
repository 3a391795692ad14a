#include "scheduler.h"

#include <cstring>

namespace simt {
namespace {

Simdgroup& simdgroup_of(const Thread* thread) { return *static_cast<Simdgroup*>(thread->executor); }

// The first of `candidates` (not empty) after `lane`, in a ring. Lanes go round in the order in which they arrived
// at the last collective, so that the lane that completed it carries on without a switch.
uint32_t next_in_ring(uint32_t candidates, uint32_t lane) {
    const uint32_t later = candidates & (~uint32_t{1} << lane);
    return static_cast<uint32_t>(__builtin_ctz(later != 0 ? later : candidates));
}

// "0-31, 40": the threads of a threadgroup for which `member` says yes.
template <class Member>
std::string ranges(const Threadgroup& group, Member member) {
    std::string text;
    for (uint32_t first = 0; first < group.threads; ++first) {
        if (!member(first)) continue;
        uint32_t last = first;
        while (last + 1 < group.threads && member(last + 1)) ++last;
        text += (text.empty() ? "" : ", ") + std::to_string(first);
        if (last != first) text += "-" + std::to_string(last);
        first = last;
    }
    return text;
}

std::string describe(const Size& size) {
    return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

// Gives the launch up: the fibers are abandoned where they stand.
[[noreturn]] void abandon(Threadgroup& group, Fiber& from, std::string why) {
    group.error = "kernel '" + std::string(group.kernel_name) + "', threadgroup " + describe(group.position) + ": " +
                  std::move(why);
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
    return "threadgroup_barrier at line " + std::to_string(line) + " can never be completed: of " +
           std::to_string(group.threads) + " threads, " + ranges(group, waits) + " wait at it and " +
           ranges(group, [&](uint32_t thread) { return !waits(thread); }) + " have returned from the kernel";
}

// Lets the lanes of `mask`, which wait at `request`, pass.
void complete(Simdgroup& simdgroup, const Request& request, uint32_t mask) {
    if (request.combine != nullptr) {
        if (mask == ~uint32_t{0}) {
            request.combine(simdgroup.slots.data(), mask);
        } else {
            std::array<void*, kLanes> slots;
            for (uint32_t lane = 0; lane < kLanes; ++lane) slots[lane] = mask >> lane & 1 ? simdgroup.slots[lane] : nullptr;
            request.combine(slots.data(), mask);
        }
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
void complete_divergent(Simdgroup& simdgroup) {
    scatter(simdgroup);
    const Request* request = nullptr;
    for (uint32_t rest = simdgroup.diverged; rest != 0; rest &= rest - 1) {
        const Request& candidate = simdgroup.requests[static_cast<uint32_t>(__builtin_ctz(rest))];
        if (request == nullptr || candidate.line < request->line) request = &candidate;
    }
    uint32_t mask = 0;
    for (uint32_t rest = simdgroup.diverged; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<uint32_t>(__builtin_ctz(rest));
        if (simdgroup.requests[lane].matches(*request)) mask |= uint32_t{1} << lane;
    }
    simdgroup.diverged &= ~mask;
    complete(simdgroup, *request, mask);
}

// All threads of the threadgroup can go on: at its start, or because all of them have reached its barrier.
void release(Threadgroup& group) {
    for (uint32_t i = 0; i < group.simdgroups; ++i) {
        group.simdgroup[i].runnable = group.simdgroup[i].all;
        group.simdgroup[i].at_barrier = 0;
    }
    group.ready = mask_of(group.simdgroups);
}

// The running lane, whose fiber is `from`, cannot go on before others have: runs those.
void yield(Simdgroup& simdgroup, uint32_t lane) {
    Fiber& from = simdgroup.fibers[lane];
    if (simdgroup.runnable == 0 && (simdgroup.arrived | simdgroup.diverged) != 0) complete_divergent(simdgroup);
    if (simdgroup.runnable != 0) {
        const uint32_t next = next_in_ring(simdgroup.runnable, lane);
        if (next != lane) switch_fiber(from, simdgroup.fibers[next]);
        return;
    }

    Threadgroup& group = *simdgroup.group;
    const auto index = static_cast<uint32_t>(&simdgroup - group.simdgroup.data());
    group.ready &= ~(uint32_t{1} << index);
    if (group.ready == 0) {
        if (group.finished == group.threads) {
            switch_fiber(from, group.worker);
            return;
        }
        if (group.finished != 0) abandon(group, from, describe_stuck_barrier(group));
        release(group);
        return;
    }
    Simdgroup& next = group.simdgroup[next_in_ring(group.ready, index)];
    switch_fiber(from, next.fibers[static_cast<uint32_t>(__builtin_ctz(next.runnable))]);
}

// A lane comes to a collective while others wait elsewhere.
void arrive_divergent(Simdgroup& simdgroup, uint32_t lane, const Request& request) {
    scatter(simdgroup);
    simdgroup.requests[lane] = request;
    simdgroup.diverged |= uint32_t{1} << lane;
    simdgroup.runnable &= ~(uint32_t{1} << lane);
    yield(simdgroup, lane);
}

void collective(Thread* thread, Combine combine, void* slot, const char* what, int line) {
    Simdgroup& simdgroup = simdgroup_of(thread);
    const uint32_t lane = thread->lane;
    const uint32_t bit = uint32_t{1} << lane;
    simdgroup.slots[lane] = slot;
    if ((simdgroup.arrived | simdgroup.diverged) == 0) {
        simdgroup.request = {combine, what, line};
    } else if (simdgroup.diverged != 0 || simdgroup.request.combine != combine || simdgroup.request.line != line) {
        arrive_divergent(simdgroup, lane, {combine, what, line});
        return;
    }
    const uint32_t arrived = simdgroup.arrived | bit;
    if (arrived == simdgroup.live) {
        simdgroup.arrived = 0;
        complete(simdgroup, simdgroup.request, arrived);
        return;
    }
    simdgroup.arrived = arrived;
    simdgroup.runnable &= ~bit;
    if (simdgroup.runnable == 0) {
        yield(simdgroup, lane);
        return;
    }
    switch_fiber(simdgroup.fibers[lane], simdgroup.fibers[next_in_ring(simdgroup.runnable, lane)]);
}

void barrier(Thread* thread, Scope scope, uint32_t memory_flags, int line) {
    if (scope == Scope::simdgroup) {
        if (memory_flags != kMemNone) collective(thread, nullptr, nullptr, "simdgroup_barrier", line);
        return;
    }
    Simdgroup& simdgroup = simdgroup_of(thread);
    const uint32_t bit = uint32_t{1} << thread->lane;
    simdgroup.requests[thread->lane] = {nullptr, "threadgroup_barrier", line};
    simdgroup.at_barrier |= bit;
    simdgroup.runnable &= ~bit;
    yield(simdgroup, thread->lane);
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
        const std::size_t offset = (group.arena_used + alignment - 1) / alignment * alignment;
        if (bytes > group.memory_limit || offset + bytes > group.memory_limit || index == Threadgroup::kMaxArrays) {
            abandon(group, simdgroup.fibers[thread->lane],
                    "threadgroup array '" + std::string(name) + "' at line " + std::to_string(line) + " brings the total to " +
                        std::to_string(offset + bytes) + " bytes of threadgroup memory; at most " +
                        std::to_string(group.memory_limit) + " bytes in " + std::to_string(Threadgroup::kMaxArrays) +
                        " arrays are available");
        }
        group.arrays[index] = {name, line, static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes)};
        group.arena_used = static_cast<uint32_t>(offset + bytes);
        ++group.array_count;
    }
    simdgroup.declared[thread->lane] = static_cast<uint8_t>(index + 1);
    return group.arena + group.arrays[index].offset;
}

}  // namespace

const Api& fast_api() {
    static constexpr Api api{barrier, collective, threadgroup_memory, nullptr, nullptr};
    return api;
}

void run_thread(void* argument) {
    const auto* const thread = static_cast<const Thread*>(argument);
    for (;;) {
        Simdgroup& simdgroup = simdgroup_of(thread);
        Threadgroup& group = *simdgroup.group;
        group.kernel(group.buffers);
        const uint32_t bit = uint32_t{1} << thread->lane;
        simdgroup.live &= ~bit;
        simdgroup.runnable &= ~bit;
        ++group.finished;
        yield(simdgroup, thread->lane);
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
    switch_fiber(group.worker, group.simdgroup[0].fibers[0]);
}

}  // namespace simt
