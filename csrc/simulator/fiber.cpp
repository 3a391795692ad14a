#include "fiber.h"

#include <cstdint>
#include <cstring>

#if defined(SIMT_FIBER_UCONTEXT)

namespace simt {
namespace {

// makecontext passes ints alone: a pointer travels as two halves.
void start(unsigned entry_high, unsigned entry_low, unsigned argument_high, unsigned argument_low) {
    const auto join = [](unsigned high, unsigned low) {
        return static_cast<uintptr_t>((uint64_t{high} << 32) | uint64_t{low});
    };
    reinterpret_cast<FiberEntry>(join(entry_high, entry_low))(
        reinterpret_cast<void*>(join(argument_high, argument_low)));
}

}  // namespace

void prepare_fiber(Fiber& fiber, void* bottom, void* top, FiberEntry entry, void* argument) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = bottom;
    fiber.context.uc_stack.ss_size = static_cast<std::size_t>(static_cast<char*>(top) - static_cast<char*>(bottom));
    fiber.context.uc_link = nullptr;
    const auto entry_bits = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(entry));
    const auto argument_bits = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(argument));
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(start), 4, static_cast<unsigned>(entry_bits >> 32),
                static_cast<unsigned>(entry_bits), static_cast<unsigned>(argument_bits >> 32),
                static_cast<unsigned>(argument_bits));
}

}  // namespace simt

#else

#if defined(__APPLE__)
#define SIMT_SYMBOL(name) "_" #name
#define SIMT_DECLARE(name) ".globl _" #name "\n.private_extern _" #name "\n"
#else
#define SIMT_SYMBOL(name) #name
#define SIMT_DECLARE(name) ".globl " #name "\n.hidden " #name "\n.type " #name ", %function\n"
#endif

// Both routines below keep to the platform's calling convention: a switch looks to its caller like a call that
// preserves the callee-saved registers. `ret` is used on purpose: all lanes of a simdgroup wait at the same call
// site, so the return predictor is right even though the stack was exchanged under it.

#if defined(__x86_64__)

// Saved, from the stack pointer upwards: r15 r14 r13 r12 rbx rbp, return address.
asm(".text\n"
    SIMT_DECLARE(simt_switch_stack)
    SIMT_SYMBOL(simt_switch_stack) ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    SIMT_DECLARE(simt_start_stack)
    SIMT_SYMBOL(simt_start_stack) ":\n"
    "  movq %rbx, %rdi\n"
    "  callq *%r12\n"
    "  ud2\n");

namespace {
constexpr std::size_t kSavedWords = 9;  // six registers, the return address, two words that align the first call
constexpr std::size_t kEntryWord = 3, kArgumentWord = 4, kReturnWord = 6;
}  // namespace

#else  // aarch64

// Saved, from the stack pointer upwards: x19 x20 ... x28 x29 x30 d8 ... d15.
asm(".text\n.p2align 2\n"
    SIMT_DECLARE(simt_switch_stack)
    SIMT_SYMBOL(simt_switch_stack) ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    SIMT_DECLARE(simt_start_stack)
    SIMT_SYMBOL(simt_start_stack) ":\n"
    "  mov x0, x19\n"
    "  blr x20\n"
    "  brk #1\n");

namespace {
constexpr std::size_t kSavedWords = 20;
constexpr std::size_t kArgumentWord = 0, kEntryWord = 1, kReturnWord = 11;
}  // namespace

#endif

extern "C" __attribute__((visibility("hidden"))) void simt_start_stack();

namespace simt {

void prepare_fiber(Fiber& fiber, void* /*bottom*/, void* top, FiberEntry entry, void* argument) {
    auto* const words = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - kSavedWords;
    std::memset(words, 0, kSavedWords * sizeof(uintptr_t));
    words[kArgumentWord] = reinterpret_cast<uintptr_t>(argument);
    words[kEntryWord] = reinterpret_cast<uintptr_t>(entry);
    words[kReturnWord] = reinterpret_cast<uintptr_t>(&simt_start_stack);
    fiber.stack_pointer = words;
}

}  // namespace simt

#endif
