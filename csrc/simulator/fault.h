// Turns a kernel's fault (a wild pointer, a division by zero, a stack that is too small) into an error of its launch
// instead of the end of the process.
#pragma once

#include <csignal>
#include <memory>

#include "threadgroup.h"

namespace simt {

// While it lives, faults of the calling OS thread's fibers end the launch: run_threadgroup() returns with
// `group.error` set. Faults of any other code go to whoever handled them before.
class FaultGuard {
  public:
    explicit FaultGuard(Threadgroup& group);
    ~FaultGuard();
    FaultGuard(const FaultGuard&) = delete;
    FaultGuard& operator=(const FaultGuard&) = delete;

  private:
    Threadgroup* outer_;
    std::unique_ptr<char[]> stack_;  // for the handler: a fiber's own may be used up
    stack_t outer_stack_{};
};

}  // namespace simt
