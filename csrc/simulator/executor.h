// Launches kernels: the simulator's interface to the rest of the package. Knows nothing of Python.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "checker.h"
#include "guarded_memory.h"
#include "simt.h"

namespace simt {

struct Launch {
    Kernel kernel;
    const char* kernel_name;
    void* const* buffers;  // kMaxBuffers slots
    Size threads;          // of the grid; threadgroups at its edges may be smaller than `group_size`
    Size group_size;
    std::size_t threadgroup_bytes;  // the most threadgroup memory that the kernel may use
    unsigned os_threads;            // to spread threadgroups over, the calling one included
    bool (*interrupted)();          // asked by the calling thread now and then: whether to give the launch up
};

// A launch that had to be given up.
class LaunchError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A launch that was given up because `interrupted` said so.
class LaunchInterrupted : public std::exception {};

// Each of these runs a kernel to its end. They throw LaunchError, LaunchInterrupted, or
// std::system_error when the system refuses memory.

void run_launch(const Launch& launch);

// Of an instrumented kernel. `memory` is what the launch's buffers lead to.
Counters count_launch(const Launch& launch, const std::vector<Buffer>& memory);

// An argument of a checked launch.
struct Argument {
    Buffer buffer;
    // Non-empty when `buffer` holds an array of addresses, passed by value: the memory each leads to.
    std::vector<Buffer> targets;
};

// Runs an instrumented kernel on copies of its arguments, forward, backward and `random_schedules` times in random
// order, and returns what was found wrong. Only when that is nothing, the arguments take the result.
std::vector<std::string> check_launch(const Launch& launch, const std::vector<Argument>& arguments,
                                      LibraryRange library, uint64_t seed, unsigned random_schedules);

}  // namespace simt
