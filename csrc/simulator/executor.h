// Runs kernels as fast as the machine can, or counts what they do. Knows nothing of Python.
#pragma once

#include <vector>

#include "guarded_memory.h"
#include "launch.h"
#include "transaction_counter.h"

namespace simt {

// Both run a kernel to its end. They throw LaunchError, LaunchInterrupted, or std::system_error when the system refuses
// memory.

void run_launch(const Launch& launch);

// Of an instrumented kernel. `memory` is what the launch's buffers lead to. Transactions are added to `transactions`,
// unless it is null: they take much longer to count.
Counters count_launch(const Launch& launch, const std::vector<Buffer>& memory, Transactions* transactions);

}  // namespace simt
