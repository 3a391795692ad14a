// Where the pretend device's buffers and encoders come from: a stand-in for Metal, or plain memory without encoders.
#pragma once

#include <cstdint>

namespace pretend {

struct MetalObjects {
    void* (*device)();
    void* (*make_buffer)(uint64_t bytes);
    void* (*buffer_contents)(void* buffer);
    void* (*make_encoder)();
    const char* (*end_encoding)(void* encoder);
    void (*release)(void* object);
};

// The functions of metal_objects.h in the library that the environment variable PRETEND_MPS_METAL names; where it is
// not set, buffers of plain memory and no encoders.
const MetalObjects& metal();

}  // namespace pretend
