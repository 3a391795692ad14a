// Watches a checked launch: judges every access to memory and every rendezvous, and decides the order of threads.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "guarded_memory.h"
#include "shadow.h"
#include "threadgroup.h"

namespace simt {

// In which order the threads that can run do so.
enum class Schedule { forward, backward, random };

// What a launch was found guilty of: one text a fault, "kind: description". Where a text refers to a place in the code
// of the kernel library, it has <pc:N>, N being the decimal address relative to the library.
class Findings {
  public:
    static constexpr std::size_t kMost = 200;

    // Notes a fault unless one of the same `kind` between the same two places was noted already.
    void add(const char* kind, uint64_t first_place, uint64_t second_place, const std::string& text);
    // Notes a fault that speaks for itself.
    void add(const std::string& text) { add(text.c_str(), 0, 0, text); }

    const std::vector<std::string>& texts() const { return texts_; }

  private:
    std::set<std::tuple<std::string, uint64_t, uint64_t>> seen_;
    std::vector<std::string> texts_;
};

// Where the kernel library lies in memory. Its debug information has addresses relative to the beginning.
struct LibraryRange {
    uintptr_t begin, end;
};

class Checker {
  public:
    Checker(GuardedMemory& memory, LibraryRange library, Schedule schedule, uint64_t seed, Findings& findings);

    // Chooses one bit of `candidates`, which is not 0.
    uint32_t pick(uint32_t candidates);
    // A permutation of 0 ... count - 1: the order of threadgroups.
    std::vector<uint64_t> order(uint64_t count);

    // Events of a threadgroup. `mask` is of the lanes that take part.
    void start(const Threadgroup& group);
    void complete_collective(const Simdgroup& simdgroup, const Request& request, uint32_t mask);
    void complete_barrier(const Threadgroup& group);

    // While a simdgroup's lanes are combined, code runs that reads and writes the stacks of all of them.
    void set_combining(bool combining) { combining_ = combining; }

    // To be called when the last thread has returned.
    void finish() { settle(); }

    // Judges an access to anything but the thread's own stack. Returns why the launch cannot go on, if it cannot.
    std::optional<std::string> access(const Thread& thread, const Threadgroup& group, const void* address,
                                      uint32_t bytes, Access kind, const void* pc);
    std::string describe_private(const Thread& thread, int64_t index, const char* type, const void* pc);

  private:
    struct Epochs {
        uint32_t device = 0, threadgroup = 0;
        void advance(uint32_t memory_flags);
    };

    // A write of what a lane of the same simdgroup wrote with the same instruction. Lanes write in lockstep, so that is
    // sound if the value is the same too: known once the write has happened.
    struct Rewrite {
        const char* address;
        std::string before;
        std::string text;  // of the finding if the value differs
        uint64_t place;
    };

    uint64_t random();
    void settle();
    uint32_t place(const void* pc) const {
        return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - library_.begin);
    }
    Stamp stamp(const Thread& thread, Access kind, const void* pc, uint32_t Epochs::* memory) const;
    void judge_conflict(const std::string& memory, const char* flag, const Shadow::Conflict& conflict,
                        const Stamp& later, const char* address, uint32_t bytes);
    std::size_t region_of(const char* address, uint32_t bytes);
    bool is_service_memory(const Thread& thread, const Threadgroup& group, const char* address) const;
    std::optional<std::string> access_threadgroup(const Thread& thread, const Threadgroup& group, std::size_t offset,
                                                  uint32_t bytes, Access kind, const void* pc);

    GuardedMemory& memory_;
    const LibraryRange library_;
    const Schedule schedule_;
    Findings& findings_;
    uint64_t random_state_;

    std::vector<std::unique_ptr<Shadow>> device_shadows_;       // one a region
    std::vector<std::unique_ptr<Shadow>> threadgroup_shadows_;  // one a threadgroup array, in order of declaration
    std::size_t last_region_ = 0;

    // Of the running threadgroup.
    uint32_t threadgroup_index_ = 0;
    Size group_size_{1, 1, 1};
    Size threadgroups_{1, 1, 1};
    Epochs epochs_;
    std::array<Epochs, kMaxThreads / kLanes> simdgroup_epochs_;
    bool combining_ = false;
    std::optional<Rewrite> rewrite_;
};

}  // namespace simt
