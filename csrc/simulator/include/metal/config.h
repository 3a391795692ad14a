// Attributes that every file of the shim uses.
#pragma once

#define SIMT_INLINE inline __attribute__((always_inline))
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST const
#define METAL_INTERNAL inline __attribute__((always_inline))
#define METAL_ASM(...)

// Instrumented builds report every access of kernel code. Code of the shim that touches what other lanes own is
// exempt: a kernel did not write it.
#if defined(__clang__)
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread", "bounds"), disable_sanitizer_instrumentation))
#else
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread")))
#endif
