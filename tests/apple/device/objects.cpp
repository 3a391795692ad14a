#include "objects.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <cstdlib>

namespace pretend {
namespace {

// A buffer is not its contents, as with Metal: who takes one for the other reads garbage.
struct PlainBuffer {
    void* contents;
};

void* plain_device() {
    static char device;
    return &device;
}

void* make_plain_buffer(uint64_t bytes) {
    constexpr uint64_t kAlignment = 256;
    void* const contents = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    return contents == nullptr ? nullptr : new PlainBuffer{contents};
}

void* plain_contents(void* buffer) { return static_cast<PlainBuffer*>(buffer)->contents; }

void* no_encoder() {
    TORCH_CHECK(false, "the pretend device has no encoders: PRETEND_MPS_METAL names no stand-in for Metal");
}

const char* end_no_encoding(void*) { return nullptr; }

void release_plain(void* object) {
    auto* const buffer = static_cast<PlainBuffer*>(object);
    std::free(buffer->contents);
    delete buffer;
}

MetalObjects load(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library != nullptr, dlerror());
    const auto find = [&](const char* name) {
        void* const function = dlsym(library, name);
        TORCH_CHECK(function != nullptr, path, " has no ", name);
        return function;
    };
    MetalObjects objects{};
    objects.device = reinterpret_cast<decltype(objects.device)>(find("standin_device"));
    objects.make_buffer = reinterpret_cast<decltype(objects.make_buffer)>(find("standin_make_buffer"));
    objects.buffer_contents = reinterpret_cast<decltype(objects.buffer_contents)>(find("standin_buffer_contents"));
    objects.make_encoder = reinterpret_cast<decltype(objects.make_encoder)>(find("standin_make_encoder"));
    objects.end_encoding = reinterpret_cast<decltype(objects.end_encoding)>(find("standin_end_encoding"));
    objects.release = reinterpret_cast<decltype(objects.release)>(find("standin_release"));
    return objects;
}

}  // namespace

const MetalObjects& metal() {
    static const MetalObjects objects = [] {
        const char* const path = std::getenv("PRETEND_MPS_METAL");
        if (path != nullptr && *path != '\0') return load(path);
        return MetalObjects{plain_device, make_plain_buffer, plain_contents,
                            no_encoder,   end_no_encoding,   release_plain};
    }();
    return objects;
}

}  // namespace pretend
