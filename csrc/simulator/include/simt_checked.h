// Included in front of every kernel library that is built for checks and counts: takes the calls that
// -fsanitize=thread and -fsanitize=bounds put into the code and passes them on to the executor. No sanitizer's own
// runtime is linked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt.h"

#if defined(__clang__)
#define SIMT_UNOBSERVED __attribute__((no_sanitize("thread"), disable_sanitizer_instrumentation))
#else
#define SIMT_UNOBSERVED __attribute__((no_sanitize_thread))
#endif
#define SIMT_CALLBACK extern "C" SIMT_UNOBSERVED __attribute__((visibility("hidden"), used))

// Set once the library is loaded: its static initialisers run outside of any fiber.
extern "C" {
bool simt_observed = false;
}

#define SIMT_REPORT(address, bytes, kind)                                                             \
    do {                                                                                              \
        if (simt_observed) {                                                                          \
            simt::Thread* const thread = simt::self();                                                \
            const volatile void* const place = address;                                               \
            thread->api->access(thread, const_cast<const void*>(place), static_cast<uint32_t>(bytes), \
                                simt::Access::kind, __builtin_return_address(0));                     \
        }                                                                                             \
    } while (false)

#define SIMT_ACCESS(name, bytes, kind) \
    SIMT_CALLBACK void name(const void* address) { SIMT_REPORT(address, bytes, kind); }
#define SIMT_PLAIN(bytes)                                   \
    SIMT_ACCESS(__tsan_read##bytes, bytes, read)            \
    SIMT_ACCESS(__tsan_write##bytes, bytes, write)          \
    SIMT_ACCESS(__tsan_volatile_read##bytes, bytes, read)   \
    SIMT_ACCESS(__tsan_volatile_write##bytes, bytes, write) \
    SIMT_ACCESS(__tsan_unaligned_read##bytes, bytes, read)  \
    SIMT_ACCESS(__tsan_unaligned_write##bytes, bytes, write)
SIMT_PLAIN(1)
SIMT_PLAIN(2)
SIMT_PLAIN(4)
SIMT_PLAIN(8)
SIMT_PLAIN(16)

SIMT_CALLBACK void __tsan_read_range(const void* address, std::size_t bytes) { SIMT_REPORT(address, bytes, read); }
SIMT_CALLBACK void __tsan_write_range(const void* address, std::size_t bytes) { SIMT_REPORT(address, bytes, write); }

SIMT_CALLBACK void __tsan_init() {}
SIMT_CALLBACK void __tsan_func_entry(void*) {}
SIMT_CALLBACK void __tsan_func_exit() {}
SIMT_CALLBACK void __tsan_vptr_update(void**, void*) {}
SIMT_CALLBACK void __tsan_vptr_read(void**) {}
SIMT_CALLBACK void __tsan_atomic_thread_fence(int) {}
SIMT_CALLBACK void __tsan_atomic_signal_fence(int) {}

// All fibers of a threadgroup share an OS thread and checked launches use one, so relaxed order serves every caller.
#define SIMT_ATOMIC_UPDATE(bits, type, operation)                                                   \
    SIMT_CALLBACK type __tsan_atomic##bits##_##operation(volatile type* address, type value, int) { \
        SIMT_REPORT(address, sizeof(type), atomic);                                                 \
        return __atomic_##operation(address, value, __ATOMIC_RELAXED);                              \
    }
#define SIMT_ATOMIC_COMPARE(bits, type, strength, weak)                                                           \
    SIMT_CALLBACK bool __tsan_atomic##bits##_compare_exchange_##strength(volatile type* address, type* expected,  \
                                                                         type desired, int, int) {                \
        SIMT_REPORT(address, sizeof(type), atomic);                                                               \
        return __atomic_compare_exchange_n(address, expected, desired, weak, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    }
#define SIMT_ATOMIC(bits, type)                                                                                        \
    SIMT_CALLBACK type __tsan_atomic##bits##_load(const volatile type* address, int) {                                 \
        SIMT_REPORT(address, sizeof(type), atomic_read);                                                               \
        return __atomic_load_n(address, __ATOMIC_RELAXED);                                                             \
    }                                                                                                                  \
    SIMT_CALLBACK void __tsan_atomic##bits##_store(volatile type* address, type value, int) {                          \
        SIMT_REPORT(address, sizeof(type), atomic);                                                                    \
        __atomic_store_n(address, value, __ATOMIC_RELAXED);                                                            \
    }                                                                                                                  \
    SIMT_CALLBACK type __tsan_atomic##bits##_exchange(volatile type* address, type value, int) {                       \
        SIMT_REPORT(address, sizeof(type), atomic);                                                                    \
        return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);                                                  \
    }                                                                                                                  \
    SIMT_ATOMIC_UPDATE(bits, type, fetch_add)                                                                          \
    SIMT_ATOMIC_UPDATE(bits, type, fetch_sub)                                                                          \
    SIMT_ATOMIC_UPDATE(bits, type, fetch_and)                                                                          \
    SIMT_ATOMIC_UPDATE(bits, type, fetch_or)                                                                           \
    SIMT_ATOMIC_UPDATE(bits, type, fetch_xor)                                                                          \
    SIMT_ATOMIC_UPDATE(bits, type, fetch_nand)                                                                         \
    SIMT_ATOMIC_COMPARE(bits, type, strong, false)                                                                     \
    SIMT_ATOMIC_COMPARE(bits, type, weak, true)                                                                        \
    SIMT_CALLBACK type __tsan_atomic##bits##_compare_exchange_val(volatile type* address, type expected, type desired, \
                                                                  int, int) {                                          \
        SIMT_REPORT(address, sizeof(type), atomic);                                                                    \
        __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);           \
        return expected;                                                                                               \
    }
SIMT_ATOMIC(8, uint8_t)
SIMT_ATOMIC(16, uint16_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)

// Compilers turn copies of large values into calls of memcpy and its like; clang's instrumentation renames these.
// Volatile keeps the loops from becoming such calls again.
#define SIMT_COPY(name)                                                                                  \
    SIMT_CALLBACK void* name(void* target, const void* source, std::size_t bytes) {                      \
        SIMT_REPORT(source, bytes, read);                                                                \
        SIMT_REPORT(target, bytes, write);                                                               \
        const bool upwards = reinterpret_cast<uintptr_t>(target) <= reinterpret_cast<uintptr_t>(source); \
        for (std::size_t n = 0; n < bytes; ++n) {                                                        \
            const std::size_t i = upwards ? n : bytes - 1 - n;                                           \
            static_cast<volatile char*>(target)[i] = static_cast<const volatile char*>(source)[i];       \
        }                                                                                                \
        return target;                                                                                   \
    }
#define SIMT_FILL(name)                                                                                            \
    SIMT_CALLBACK void* name(void* target, int value, std::size_t bytes) {                                         \
        SIMT_REPORT(target, bytes, write);                                                                         \
        for (std::size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(target)[i] = static_cast<char>(value); \
        return target;                                                                                             \
    }
SIMT_COPY(memcpy)
SIMT_COPY(memmove)
SIMT_COPY(__tsan_memcpy)
SIMT_COPY(__tsan_memmove)
SIMT_FILL(memset)
SIMT_FILL(__tsan_memset)

// What -fsanitize=bounds hands over; the layout is fixed by GCC and clang alike.
namespace simt {
struct BoundsType {
    uint16_t kind;
    uint16_t info;  // of an integer: bit 0 its sign, the rest the logarithm of its bits
    char name[1];
};
struct BoundsSite {
    const char* file;
    uint32_t line, column;
    const BoundsType* array;
    const BoundsType* index;
};
}  // namespace simt

#define SIMT_OUT_OF_BOUNDS(handler)                                                                                  \
    SIMT_CALLBACK void handler(const simt::BoundsSite* site, uintptr_t index) {                                      \
        const unsigned spare = 64 - (1u << (site->index->info >> 1));                                                \
        const bool is_signed = (site->index->info & 1) != 0;                                                         \
        const auto bits = static_cast<uint64_t>(index) << spare;                                                     \
        const int64_t value = is_signed ? static_cast<int64_t>(bits) >> spare : static_cast<int64_t>(bits >> spare); \
        simt::Thread* const thread = simt::self();                                                                   \
        thread->api->private_out_of_bounds(thread, value, site->array->name, __builtin_return_address(0));           \
    }
SIMT_OUT_OF_BOUNDS(__ubsan_handle_out_of_bounds)
SIMT_OUT_OF_BOUNDS(__ubsan_handle_out_of_bounds_abort)
