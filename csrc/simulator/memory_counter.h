// Counts the bytes that the kernels of a launch read and write.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "threadgroup.h"
#include "transaction_counter.h"

namespace simt {

class MemoryCounter {
  public:
    using Range = std::pair<const char*, const char*>;  // begin, end

    // `device`: the launch's buffers in device memory. Constants and private memory are not counted.
    explicit MemoryCounter(std::vector<Range> device) : device_(std::move(device)) {}

    // Returns what memory the access was to, and where in it.
    Location count(Threadgroup& group, const char* address, uint32_t bytes, Access kind) const {
        Counters& counters = group.counters;
        if (address >= group.arena && address < group.arena + Threadgroup::kArenaBytes) {
            add(counters.threadgroup_bytes_read, counters.threadgroup_bytes_written, bytes, kind);
            return {Space::threadgroup, static_cast<uintptr_t>(address - group.arena)};
        }
        const auto range = std::find_if(device_.begin(), device_.end(), [&](const Range& candidate) {
            return address >= candidate.first && address < candidate.second;
        });
        if (range == device_.end()) return {Space::other, 0};
        add(counters.device_bytes_read, counters.device_bytes_written, bytes, kind);
        return {Space::device, static_cast<uintptr_t>(range - device_.begin()) * kMostBufferBytes +
                                   static_cast<uintptr_t>(address - range->first)};
    }

  private:
    static constexpr uintptr_t kMostBufferBytes = uintptr_t{1} << 56;  // more than any buffer has

    static void add(uint64_t& read, uint64_t& written, uint32_t bytes, Access kind) {
        if (kind != Access::write) read += bytes;
        if (kind == Access::write || kind == Access::atomic) written += bytes;
    }

    std::vector<Range> device_;
};

}  // namespace simt
