/* The C ABI between the side that knows PyTorch (C++) and the side that knows Metal (Swift).
 *
 * Objects of Metal travel as opaque pointers: `device` is an id<MTLDevice>, `encoder` an id<MTLComputeCommandEncoder>,
 * `buffer` an id<MTLBuffer>, each borrowed for the call. Every function but mfa_last_error returns an MFAStatus; unless
 * it is MFA_OK, mfa_last_error() has the words. All functions may be called from several threads at once.
 */
#ifndef MFA_H
#define MFA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MFA_ABI_VERSION 2

typedef int32_t MFAStatus;
enum {
    MFA_OK = 0,
    MFA_INVALID = 1, /* an argument that Metal does not allow, named in the error */
    MFA_COMPILE = 2, /* the text or a function of it; the error holds the compile log */
    MFA_LAUNCH = 3   /* a launch beyond the limits of the pipeline or the device */
};
/* There is no status for memory: all that is allocated for the GPU, buffers and command buffers, is PyTorch's. */

typedef struct {
    char name[128];
    char os_build[64];
    int32_t gpu_family; /* of MTLGPUFamily.apple1 ...: 7 for M1, 8 for M2, 9 for M3; 0 if unknown */
    int32_t gpu_cores;  /* 0 if unknown */
    int32_t has_unified_memory;
    int32_t supports_bfloat;
    uint32_t max_threads_per_threadgroup;
    uint32_t max_threadgroup_bytes;
    uint64_t max_buffer_bytes;
    uint64_t recommended_working_set_bytes;
} MFADeviceInfo;

typedef struct {
    void* buffer;
    uint64_t offset; /* bytes */
    uint32_t index;
} MFABuffer;

typedef struct {
    const void* data;
    uint64_t length; /* at most 4096 */
    uint32_t index;
} MFABytes;

typedef struct {
    int64_t kernel; /* from mfa_kernel */
    const MFABuffer* buffers;
    const MFABytes* bytes;
    uint32_t buffer_count;
    uint32_t bytes_count;
    uint32_t threads[3];    /* of the whole grid; threadgroups at its far edges may be smaller */
    uint32_t group_size[3]; /* threads of a threadgroup */
    int32_t waits;          /* 1: a memory barrier comes first, because this launch reads what one before it wrote */
} MFALaunch;

typedef struct {
    uint64_t memory_hits;     /* pipelines found in memory */
    uint64_t libraries;       /* texts given to the front end of Metal's compiler: once for each of the next two */
    uint64_t archive_hits;    /* pipelines whose machine code was taken from the archive on disk */
    uint64_t compiled;        /* pipelines whose machine code was compiled */
    uint64_t evicted;         /* pipelines dropped because there were too many */
    uint64_t archive_repairs; /* archives that could not be read and were made anew */
    uint64_t pipelines;       /* in memory now */
    uint64_t kernels;         /* that have a number now, and their texts in memory */
} MFACacheStats;

/* MFA_ABI_VERSION of the library that was loaded. */
int32_t mfa_abi_version(void);

/* What went wrong in this thread's last call that failed; valid until its next call. Never null. */
const char* mfa_last_error(void);

MFAStatus mfa_device_info(void* device, MFADeviceInfo* info);

/* Where pipelines are kept: the folder of the archives, the version that keys them, how many pipelines stay in memory
 * and how many bytes on disk. A null folder keeps none on disk. Takes effect for pipelines made afterwards. */
MFAStatus mfa_configure(const char* folder, const char* package_version, uint32_t most_pipelines, uint64_t most_bytes);

/* A number for one kernel of a Metal text, compiling it unless it is in memory or on disk. The caller holds it until
 * mfa_release_kernel, as often as it asked for it; that long the same text and function give the same number, and the
 * pipeline behind it may be evicted and made again. */
MFAStatus mfa_kernel(void* device, const char* source, const char* function, int64_t* kernel);

/* Gives up one hold. A kernel that nobody holds stays for as long as its pipeline is in memory. */
MFAStatus mfa_release_kernel(int64_t kernel);

/* The limits of a kernel's pipeline. */
MFAStatus mfa_kernel_limits(int64_t kernel, uint32_t* max_threads, uint32_t* simd_width, uint32_t* threadgroup_bytes);

/* Encodes launches in order on an encoder that stays open; nothing is committed and nothing waited for. On failure none
 * of them has been dispatched. */
MFAStatus mfa_encode(void* encoder, const MFALaunch* launches, uint32_t count);

MFAStatus mfa_cache_stats(MFACacheStats* stats);

#ifdef __cplusplus
}
#endif

#endif
