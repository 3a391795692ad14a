// Launches kernels: the simulator's interface to the rest of the package. Knows nothing of Python.
#pragma once

#include <stdexcept>
#include <string>

#include "simt.h"

namespace simt {

struct Launch {
    Kernel kernel;
    const char* kernel_name;
    void* const* buffers;           // kMaxBuffers slots
    Size threads;                   // of the grid; threadgroups at its edges may be smaller than `group_size`
    Size group_size;
    std::size_t threadgroup_bytes;  // the most threadgroup memory that the kernel may use
    unsigned os_threads;            // to spread threadgroups over, the calling one included
};

// A launch that had to be given up.
class LaunchError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Runs a kernel to its end. Throws LaunchError, or std::system_error when the system refuses memory or threads.
void run_launch(const Launch& launch);

}  // namespace simt
