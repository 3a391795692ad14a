// Counts the bytes that the kernels of a launch read and write.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "threadgroup.h"

namespace simt {

class MemoryCounter {
  public:
    using Range = std::pair<const char*, const char*>;  // begin, end

    // `device`: the launch's buffers in device memory. Constants and private memory are not counted.
    explicit MemoryCounter(std::vector<Range> device) : device_(std::move(device)) {}

    void count(Threadgroup& group, const char* address, uint32_t bytes, Access kind) const {
        Counters& counters = group.counters;
        if (address >= group.arena && address < group.arena + Threadgroup::kArenaBytes) {
            add(counters.threadgroup_bytes_read, counters.threadgroup_bytes_written, bytes, kind);
        } else if (is_device(address)) {
            add(counters.device_bytes_read, counters.device_bytes_written, bytes, kind);
        }
    }

  private:
    bool is_device(const char* address) const {
        return std::any_of(device_.begin(), device_.end(),
                           [&](const Range& range) { return address >= range.first && address < range.second; });
    }

    static void add(uint64_t& read, uint64_t& written, uint32_t bytes, Access kind) {
        if (kind != Access::write) read += bytes;
        if (kind == Access::write || kind == Access::atomic) written += bytes;
    }

    std::vector<Range> device_;
};

}  // namespace simt
