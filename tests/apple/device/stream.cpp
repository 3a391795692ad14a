// PyTorch's MPSDevice and MPSStream, as its headers declare them, over the objects of the stand-in for Metal.
#include <ATen/mps/MPSDevice.h>
#include <ATen/mps/MPSStream.h>
#include <c10/util/Exception.h>

#include <string>

#include "allocator.h"
#include "faults.h"
#include "objects.h"

namespace at::mps {

MPSDevice* MPSDevice::_device = nullptr;

MPSDevice::MPSDevice() : _mtl_device(pretend::metal().device()) {}
MPSDevice::~MPSDevice() = default;

MPSDevice* MPSDevice::getInstance() {
    static MPSDevice instance;
    return &instance;
}

Allocator* GetMPSAllocator() { return pretend::allocator(); }

bool is_available() { return true; }

MPSStream::MPSStream(Stream stream) : _stream(stream), _serialQueue(new dispatch_queue_s) {
    _commandQueue = pretend::metal().device();
}

MPSStream::~MPSStream() { delete _serialQueue; }

MTLDevice_t MPSStream::device() const { return MPSDevice::getInstance()->device(); }

MTLComputeCommandEncoder_t MPSStream::commandEncoder() {
    TORCH_CHECK(dispatch_is_on(_serialQueue), "MPSStream::commandEncoder() was called off the stream's queue");
    TORCH_CHECK(!pretend::next_encoder_fails.exchange(false), "planted: no encoder");
    if (pretend::next_encoder_is_null.exchange(false)) return nullptr;
    if (_commandEncoder == nullptr) _commandEncoder = pretend::metal().make_encoder();
    return _commandEncoder;
}

void MPSStream::endKernelCoalescing() {
    if (_commandEncoder == nullptr) return;
    void* const encoder = _commandEncoder;
    _commandEncoder = nullptr;
    const char* const fault = pretend::metal().end_encoding(encoder);
    const std::string words = fault == nullptr ? "" : fault;
    pretend::metal().release(encoder);
    TORCH_CHECK(fault == nullptr, words);
}

// There is no GPU to commit to: work is done when its encoding ends.
void MPSStream::synchronize(SyncType) {
    std::exception_ptr failure;
    struct Context {
        MPSStream* stream;
        std::exception_ptr* failure;
    } context{this, &failure};
    dispatch_sync_f(_serialQueue, &context, [](void* opaque) {
        const auto& [stream, failed] = *static_cast<Context*>(opaque);
        try {
            stream->endKernelCoalescing();
        } catch (...) {
            *failed = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

MPSStream* getDefaultMPSStream() {
    // Never freed: Python threads may still launch while the process ends.
    static auto* const stream = new MPSStream(Stream(Stream::DEFAULT, Device(DeviceType::MPS, 0)));
    return stream;
}

MPSStream* getCurrentMPSStream() { return getDefaultMPSStream(); }

}  // namespace at::mps
