// Fibers: stacks of execution that hand over to each other explicitly, on one OS thread.
//
// x86-64 and aarch64 switch in a dozen instructions; any other CPU, and any build with SIMT_FIBER_UCONTEXT, uses
// <ucontext.h>, which costs two system calls a switch.
#pragma once

#include <cstddef>

#if !defined(SIMT_FIBER_UCONTEXT) && !((defined(__x86_64__) || defined(__aarch64__)) && defined(__LP64__))
#define SIMT_FIBER_UCONTEXT 1
#endif

#if defined(SIMT_FIBER_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

#if defined(SIMT_FIBER_UCONTEXT)
struct Fiber {
    ucontext_t context;
};
#else
struct Fiber {
    void* stack_pointer;
};
extern "C" __attribute__((visibility("hidden"))) void simt_switch_stack(void** save, void* load);
#endif

using FiberEntry = void (*)(void* argument);

// Makes `fiber` start in entry(argument) on the memory [bottom, top) when it is first switched to. `entry` must not
// return.
void prepare_fiber(Fiber& fiber, void* bottom, void* top, FiberEntry entry, void* argument);

// Leaves the running fiber, remembering in `from` where it was, and resumes `to`.
inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(SIMT_FIBER_UCONTEXT)
    swapcontext(&from.context, &to.context);
#else
    simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

}  // namespace simt
