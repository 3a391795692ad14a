// Runs kernels under checks. Knows nothing of Python.
#pragma once

#include <string>
#include <vector>

#include "checker.h"
#include "guarded_memory.h"
#include "launch.h"

namespace simt {

// An argument of a checked launch.
struct Argument {
    Buffer buffer;
    // Non-empty when `buffer` holds an array of addresses, passed by value: the memory each leads to.
    std::vector<Buffer> targets;
};

// Runs an instrumented kernel on copies of its arguments, forward, backward and `random_schedules` times in random
// order, and returns what was found wrong. Only when that is nothing, the arguments take the result. The launch's own
// buffers are not looked at. Throws LaunchInterrupted, or std::system_error when the system refuses memory.
std::vector<std::string> check_launch(const Launch& launch, const std::vector<Argument>& arguments,
                                      LibraryRange library, uint64_t seed, unsigned random_schedules);

}  // namespace simt
