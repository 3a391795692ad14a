// The state of one threadgroup while its threads run as fibers on one OS thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "fiber.h"
#include "launch.h"
#include "simt.h"

namespace simt {

// What a lane that waits asks for. Two lanes meet in a collective when `combine` and `line` agree; a simdgroup
// barrier is a collective without `combine`.
struct Request {
    Combine combine;
    const char* what;
    int line;
    uint32_t memory_flags;  // of a barrier

    bool matches(const Request& other) const { return combine == other.combine && line == other.line; }
};

// One simdgroup. Each of its live lanes is in exactly one of the masks runnable, arrived, diverged and at_barrier.
struct Simdgroup {
    uint32_t live;        // lanes whose kernel has not returned
    uint32_t runnable;    // lanes that can go on
    uint32_t arrived;     // lanes that wait at `request`
    uint32_t diverged;    // lanes that wait at a request of their own, in `requests`
    uint32_t at_barrier;  // lanes that wait at a threadgroup barrier, its line in `requests`
    uint32_t all;         // lanes that the simdgroup has
    Request request;
    struct Threadgroup* group;
    std::array<void*, kLanes> slots;  // what the lanes brought to their collective
    std::array<Fiber, kLanes> fibers;
    std::array<Request, kLanes> requests;
    std::array<uint8_t, kLanes> declared;  // threadgroup arrays that each lane has asked for so far
};

// One bit for each of the first `count` (1 to 32) lanes or simdgroups.
inline uint32_t mask_of(uint32_t count) { return ~uint32_t{0} >> (32 - count); }

struct ThreadgroupArray {
    const char* name;
    int line;
    uint32_t offset, bytes;  // in the arena
};

class Checker;
class MemoryCounter;
class TransactionCounter;

struct Threadgroup {
    static constexpr uint32_t kMaxArrays = 128;
    static constexpr std::size_t kArenaBytes = std::size_t{1} << 17;  // the most memory, and the checks' red zones
    static constexpr std::size_t kRedZone = 256;                      // bytes around each array while checking

    // Of the launch.
    const Launch* launch;
    Size grid;                            // threadgroups
    Checker* checker;                     // null unless the launch is checked
    const MemoryCounter* memory_counter;  // null unless the launch is counted
    Counters counters;                    // of all threadgroups that ran here
    TransactionCounter* transactions;     // null unless they are counted too

    // Memory that the threads use without knowing it.
    const char *stacks_begin, *stacks_end;
    const char *logs_begin, *logs_end;

    // Of this threadgroup.
    Size position;
    Size size;
    uint32_t threads;
    uint32_t finished;    // threads whose kernel has returned
    uint32_t ready;       // simdgroups with a runnable lane
    uint32_t simdgroups;  // how many there are

    // Threadgroup arrays in the order in which they were first declared; the same for all threadgroups of a launch.
    char* arena;
    uint32_t arena_used;  // without red zones
    uint32_t array_count;
    std::array<ThreadgroupArray, kMaxArrays> arrays;

    Fiber worker;       // the OS thread's own stack
    std::string error;  // why the launch was given up; empty while all is well
    std::array<Simdgroup, kMaxThreads / kLanes> simdgroup;
};

}  // namespace simt
