/* What the pretend MPS device asks of a stand-in for Metal: a shared library that exports these C functions.
 *
 * On a Mac the data pointer of an MPS storage is an id<MTLBuffer>, and PyTorch's stream hands out encoders of Metal.
 * The pretend device does the same with the stand-in's objects, which it knows as opaque pointers that it owns (a +1
 * reference) until it gives them to standin_release.
 */
#ifndef METAL_OBJECTS_H
#define METAL_OBJECTS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The one device; borrowed, lives for as long as the process. */
void* standin_device(void);

/* A buffer of so many bytes in shared memory; null when there is no memory for it. */
void* standin_make_buffer(uint64_t bytes);

/* Where the CPU sees the buffer's bytes. */
void* standin_buffer_contents(void* buffer);

/* An open serial compute encoder of a new command buffer. Its dispatches execute at the latest in
 * standin_end_encoding. */
void* standin_make_encoder(void);

/* Ends encoding and waits until all of the encoder's dispatches have executed. Null if all went well, else what the
 * validation or the execution found, valid until the thread's next call. */
const char* standin_end_encoding(void* encoder);

/* Gives up the reference that standin_make_buffer or standin_make_encoder returned. */
void standin_release(void* object);

#ifdef __cplusplus
}
#endif

#endif
