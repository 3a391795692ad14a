// Counts what the accesses of a simdgroup cost together: memory serves its lanes at once, not one by one.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "simt.h"

namespace simt {

// Accesses of a simdgroup, and what they come to. Segments are aligned runs of 128 bytes of device memory; a pass over
// threadgroup memory gives each of its 32 banks one word of 4 bytes, and conflicts are the passes that another layout
// could do without.
struct Transactions {
    uint64_t device_accesses, device_segments;
    uint64_t threadgroup_accesses, threadgroup_passes, threadgroup_conflicts;
};

enum class Space { other, device, threadgroup };

// A byte of memory. Offsets count from the first byte of a buffer, of which a GPU's begin at multiples of a segment, or
// from that of threadgroup memory; different buffers are far apart.
struct Location {
    Space space;
    uintptr_t offset;
};

// Lanes run one after the other, so what they do together is found afterwards: the n-th time that each lane of a
// simdgroup comes to a place in the code counts as one access. Of one OS thread.
class TransactionCounter {
  public:
    void add(const Thread& thread, const void* pc, Location location, uint32_t bytes);
    // To be called after each threadgroup: counts accesses that not all of the lanes took part in.
    void finish();
    const Transactions& total() const { return total_; }

  private:
    struct Access {
        uintptr_t offset;
        uint32_t bytes;
    };
    struct Place {
        std::array<uint32_t, kLanes> visits{};  // of each lane
        uint32_t counted = 0;                   // visits that all lanes have made
        std::deque<std::vector<Access>> visits_under_way;
    };
    void count(const std::vector<Access>& lanes, Space space);

    std::array<std::array<std::unordered_map<const void*, Place>, kMaxThreads / kLanes>, 2> places_;
    std::vector<uintptr_t> units_;  // segments or words of one access
    Transactions total_{};
};

}  // namespace simt
