// Runs the threads of a threadgroup and serves their barriers, collectives and threadgroup arrays.
#pragma once

#include "threadgroup.h"

namespace simt {

// The services of uninstrumented kernels: the fastest order of threads, divergent collectives run with the active
// lanes as on the GPU, nothing is counted.
const Api& fast_api();

// The services of instrumented kernels whose work is counted, and of those that are checked.
const Api& counting_api();
const Api& checked_api();

// The life of every fiber: runs one thread of a threadgroup each time it is started. `argument` is its Thread.
[[noreturn]] void run_thread(void* argument);

// Runs all threads of a threadgroup whose state is set up, from the OS thread's own stack, until the last of them
// has returned or `group.error` says why not.
void run_threadgroup(Threadgroup& group);

}  // namespace simt
