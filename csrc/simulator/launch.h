// What a launch is.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>

#include "simt.h"

namespace simt {

struct Launch {
    Kernel kernel;
    const char* kernel_name;
    void* const* buffers;           // kMaxBuffers slots
    Size threads;                   // of the grid; threadgroups at its edges may be smaller than `group_size`
    Size group_size;                // at most kMaxThreads in all
    std::size_t threadgroup_bytes;  // the most threadgroup memory that the kernel may use
    unsigned os_threads;            // to spread threadgroups over, the calling one included
    bool (*interrupted)();          // asked by the calling thread now and then: whether to give the launch up
};

// Threadgroups along each side of a launch's grid.
inline Size grid_of(const Launch& launch) {
    const auto along = [](uint32_t threads, uint32_t group_size) {
        return static_cast<uint32_t>((uint64_t{threads} + group_size - 1) / group_size);
    };
    return {along(launch.threads.x, launch.group_size.x), along(launch.threads.y, launch.group_size.y),
            along(launch.threads.z, launch.group_size.z)};
}

inline uint64_t count(const Size& size) { return uint64_t{size.x} * size.y * size.z; }

// A launch that had to be given up.
class LaunchError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A launch that was given up because `interrupted` said so.
class LaunchInterrupted : public std::exception {};

}  // namespace simt
