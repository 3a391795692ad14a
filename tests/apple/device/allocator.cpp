#include "allocator.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "objects.h"

namespace pretend {
namespace {

const c10::Device kDevice(c10::DeviceType::MPS, 0);

std::atomic<std::size_t> allocated{0};
std::atomic<std::size_t> limit{std::numeric_limits<std::size_t>::max()};

struct Allocation {
    void* buffer;
    std::size_t bytes;
};

void free_allocation(void* context) {
    const auto* const allocation = static_cast<Allocation*>(context);
    metal().release(allocation->buffer);
    allocated -= allocation->bytes;
    delete allocation;
}

class BufferAllocator final : public c10::Allocator {
  public:
    c10::DataPtr allocate(std::size_t bytes) override {
        if (bytes == 0) return {nullptr, nullptr, &free_nothing, kDevice};
        TORCH_CHECK_WITH(OutOfMemoryError, bytes <= limit - std::min<std::size_t>(limit, allocated),
                         "MPS backend out of memory (pretend device): ", allocated.load(), " bytes allocated, ", bytes,
                         " more asked for, limit ", limit.load());
        void* const buffer = metal().make_buffer(bytes);
        TORCH_CHECK_WITH(OutOfMemoryError, buffer != nullptr, "MPS backend out of memory: no buffer of ", bytes,
                         " bytes");
        allocated += bytes;
        return {buffer, new Allocation{buffer, bytes}, &free_allocation, kDevice};
    }

    c10::DeleterFnPtr raw_deleter() const override { return nullptr; }

    void copy_data(void* destination, const void* source, std::size_t bytes) const override {
        std::memcpy(metal().buffer_contents(destination), metal().buffer_contents(const_cast<void*>(source)), bytes);
    }

  private:
    static void free_nothing(void*) {}
};

}  // namespace

c10::Allocator* allocator() {
    static BufferAllocator instance;
    return &instance;
}

void limit_memory(std::size_t bytes) { limit = bytes; }

std::size_t allocated_bytes() { return allocated; }

}  // namespace pretend
