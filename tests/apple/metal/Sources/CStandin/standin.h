/* How tests drive the stand-in for Metal: what executes kernels, what was counted, what the validation found. The
 * functions that make its objects are in ../../../device/metal_objects.h. */
#ifndef STANDIN_H
#define STANDIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What compiles texts and runs kernels. Texts go back through `reply`, which takes `capacity` bytes with the final
 * zero: on failure the reason. */
typedef struct {
    /* The number of a library, or 0. The reply is JSON: [{"name": "k", "buffers": [{"index": 0, "bytes": 4}]}], where
     * bytes is the alignment that the buffer's type needs. */
    int64_t (*translate)(const char* source, char* reply, uint64_t capacity);
    /* The number of a kernel, or 0. */
    int64_t (*build)(int64_t library, const char* function, char* reply, uint64_t capacity);
    /* Runs a kernel to its end. addresses[n] is what buffer n points to, or null; lengths[n] the bytes from there on.
     * 0 if all went well. */
    int32_t (*launch)(int64_t kernel, void* const* addresses, const uint64_t* lengths, uint32_t count,
                      const uint32_t* threads, const uint32_t* group_size, char* reply, uint64_t capacity);
} StandinExecutor;

typedef struct {
    uint64_t libraries;          /* texts that went through makeLibrary */
    uint64_t pipelines_compiled; /* for a pipeline or for an archive */
    uint64_t pipelines_loaded;   /* taken from an archive */
    uint64_t archives_rejected;  /* files that were to be archives and are not */
    uint64_t dispatches;         /* encoded */
    uint64_t executed;           /* dispatches that ran */
    uint64_t barriers;           /* memory barriers encoded */
    uint64_t buffers;            /* alive now */
    uint64_t buffer_bytes;       /* in them */
} StandinCounts;

/* Without an executor, texts are searched for kernels by name and dispatches do nothing. */
void standin_set_executor(const StandinExecutor* executor);

/* 0: dispatches are checked and then dropped, so that the cost of encoding can be timed. */
void standin_set_execution(int32_t on);

/* An encoder that takes every call and does nothing; goes with standin_release. */
void* standin_make_idle_encoder(void);

/* Makes the next pipeline fail with those words, as Metal does where a kernel cannot be compiled for the GPU: with too
 * much threadgroup memory, for example, of which the simulator learns only when the kernel runs. */
void standin_refuse_next_pipeline(const char* words);

void standin_counts(StandinCounts* counts);

/* The oldest validation failure that was not taken yet, or null; valid until the thread's next call. */
const char* standin_take_fault(void);

#ifdef __cplusplus
}
#endif

#endif
