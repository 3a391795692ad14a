#include "fault.h"

#include <ucontext.h>

#include <array>
#include <mutex>

#include "describe.h"
#include "reservation.h"

namespace simt {
namespace {

constexpr std::array<int, 4> kSignals{SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr std::size_t kHandlerStackBytes = 1 << 16;

std::array<struct sigaction, kSignals.size()> previous_actions;

thread_local Threadgroup* guarded_group = nullptr;

// The code whose fault was passed on last. Of a handler that only lets the instruction fault again: others may have put
// theirs in front of ours, and would pass it back to us for ever.
thread_local uintptr_t passed_on = 0;

// Where the interrupted code was, and its stack pointer.
struct Place {
    uintptr_t code, stack;
};

Place place_of(const void* context) {
    const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
    const auto place = [](auto code, auto stack) {
        return Place{static_cast<uintptr_t>(code), static_cast<uintptr_t>(stack)};
    };
#if defined(__linux__) && defined(__x86_64__)
    return place(machine.gregs[REG_RIP], machine.gregs[REG_RSP]);
#elif defined(__linux__) && defined(__aarch64__)
    return place(machine.pc, machine.sp);
#elif defined(__APPLE__) && defined(__x86_64__)
    return place(machine->__ss.__rip, machine->__ss.__rsp);
#elif defined(__APPLE__) && defined(__aarch64__)
    return place(machine->__ss.__pc, machine->__ss.__sp);
#else
    (void)machine;
    return place(0, 0);
#endif
}

// The kernels are built so that a stack's growth touches every page: its guard page is never stepped over, though the
// stack pointer may be below it already.
bool is_stack_overflow(const Threadgroup& group, uintptr_t address) {
    return address >= reinterpret_cast<uintptr_t>(group.stacks_begin) &&
           address < reinterpret_cast<uintptr_t>(group.stacks_end) && address % kStackBytes < page_size();
}

bool is_fiber_stack(const Threadgroup& group, uintptr_t stack) {
    return stack >= reinterpret_cast<uintptr_t>(group.stacks_begin) &&
           stack < reinterpret_cast<uintptr_t>(group.stacks_end);
}

std::string describe_fault(int signal, bool overflow, uintptr_t stack) {
    std::string text = "fault: ";
    if (overflow) {
        text += "more than " + std::to_string((kStackBytes - page_size()) / 1024) +
                " KiB of private memory, or endless recursion,";
    } else if (signal == SIGFPE) {
        text += "integer division by zero";
    } else if (signal == SIGILL) {
        text += "illegal instruction";
    } else {
        text += "access to invalid memory";
    }
    const Thread& thread = *thread_of_stack(stack);
    return text + " by thread " + describe(thread.thread_position_in_threadgroup) + " of threadgroup " +
           describe(thread.threadgroup_position_in_grid);
}

void pass_on(int signal, siginfo_t* info, void* context) {
    std::size_t index = 0;
    while (kSignals[index] != signal) ++index;
    const struct sigaction& action = previous_actions[index];
    const uintptr_t code = place_of(context).code;
    const bool again = code == passed_on;
    passed_on = code;
    if (again) {
        std::signal(signal, SIG_DFL);
    } else if ((action.sa_flags & SA_SIGINFO) != 0) {
        action.sa_sigaction(signal, info, context);
    } else if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
        // The instruction faults again, and the system does what it does by default.
        std::signal(signal, SIG_DFL);
    } else {
        action.sa_handler(signal);
    }
}

void handle(int signal, siginfo_t* info, void* context) {
    Threadgroup* const group = guarded_group;
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    const bool overflow = group != nullptr && signal == SIGSEGV && is_stack_overflow(*group, address);
    const uintptr_t stack = overflow ? address : place_of(context).stack;
    if (group == nullptr || !is_fiber_stack(*group, stack)) {
        pass_on(signal, info, context);
        return;
    }
    // The fiber was in a kernel's own code, which neither allocates nor locks: no more care is needed than there.
    group->error = describe_fault(signal, overflow, stack);
    Fiber abandoned;
    switch_fiber(abandoned, group->worker);
}

bool is_ours(const struct sigaction& action) {
    return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == handle;
}

// Other libraries install handlers too, and some put back what they had found, ours or not: libclang on Ctrl-C.
void install_handlers() {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    struct sigaction action{};
    action.sa_sigaction = handle;
    // The handler is left by switching stacks, so its signal must not be blocked meanwhile.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
        struct sigaction current{};
        sigaction(kSignals[i], nullptr, &current);
        if (is_ours(current)) continue;
        previous_actions[i] = current;
        sigaction(kSignals[i], &action, nullptr);
    }
}

}  // namespace

FaultGuard::FaultGuard(Threadgroup& group) : outer_(guarded_group) {
    install_handlers();
    sigaltstack(nullptr, &outer_stack_);
    if ((outer_stack_.ss_flags & SS_DISABLE) != 0) {
        stack_.reset(new char[kHandlerStackBytes]);
        stack_t stack{};
        stack.ss_sp = stack_.get();
        stack.ss_size = kHandlerStackBytes;
        sigaltstack(&stack, nullptr);
    }
    guarded_group = &group;
}

FaultGuard::~FaultGuard() {
    guarded_group = outer_;
    if (stack_ != nullptr) sigaltstack(&outer_stack_, nullptr);
}

}  // namespace simt
