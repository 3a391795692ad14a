// Remembers who accessed each byte of a piece of memory last, to find accesses that nothing orders.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "simt.h"

namespace simt {

// An access: by whom, when, from where. Epochs count the barriers that order the memory in question.
struct Stamp {
    uint32_t pc;  // relative to the kernel library; 0 for no access
    uint32_t threadgroup;
    uint32_t threadgroup_epoch;
    uint32_t simdgroup_epoch;
    uint16_t thread;
    uint16_t kind;

    bool is_none() const { return pc == 0; }
    bool same_thread(const Stamp& other) const { return threadgroup == other.threadgroup && thread == other.thread; }
    bool same_simdgroup(const Stamp& other) const {
        return threadgroup == other.threadgroup && thread / kLanes == other.thread / kLanes;
    }
    // Whether this access happened before `later` by the rules of the memory model, not by mere chance.
    bool is_before(const Stamp& later) const {
        return threadgroup == later.threadgroup &&
               (thread == later.thread || threadgroup_epoch < later.threadgroup_epoch ||
                (same_simdgroup(later) && simdgroup_epoch < later.simdgroup_epoch));
    }
};

// Two accesses of which enough is kept that whatever a later access conflicts with, it conflicts with one of these.
class Witnesses {
  public:
    void add(const Stamp& stamp);
    // The one that nothing orders before `later`, or null.
    const Stamp* conflict(const Stamp& later) const;
    bool is_empty() const { return stamps_[0].is_none(); }

  private:
    std::array<Stamp, 2> stamps_{};
};

class Shadow {
  public:
    // Of `bytes` bytes, of which `element` are usually accessed together.
    Shadow(std::size_t bytes, uint32_t element);

    struct Conflict {
        Stamp earlier;
        std::size_t offset, bytes;  // the first part of the range that is concerned
    };
    // Notes an access to a range. Returns an earlier one to a part of it that conflicts, if there is any.
    std::optional<Conflict> access(std::size_t offset, std::size_t bytes, Access kind, const Stamp& stamp);

    // The first byte of a range that was not written, if there is any.
    std::optional<std::size_t> unwritten(std::size_t offset, std::size_t bytes) const;

    // Forgets all accesses.
    void clear();

  private:
    struct Cell {
        Stamp write;
        Witnesses reads, atomics;
    };
    void split();

    std::size_t bytes_;
    uint32_t granule_;  // bytes of a cell
    std::vector<Cell> cells_;
};

}  // namespace simt
