#include "check_launch.h"

#include <algorithm>
#include <array>
#include <utility>

#include "fault.h"
#include "interruption.h"
#include "scheduler.h"
#include "worker.h"

namespace simt {
namespace {

const char* name_of(Schedule schedule) {
    switch (schedule) {
        case Schedule::forward:
            return "forward";
        case Schedule::backward:
            return "backward";
        case Schedule::random:
            break;
    }
    return "in random order";
}

// What a region held after the first schedule, to compare with what it holds after the others.
class Expectation {
  public:
    explicit Expectation(Region& region) : region_(region), bytes_(region.begin(), region.begin() + region.bytes()) {}

    void restore() const { std::copy(bytes_.begin(), bytes_.end(), region_.begin()); }

    void compare(Schedule schedule, uint64_t seed, Findings& findings) const {
        const auto difference = std::mismatch(bytes_.begin(), bytes_.end(), region_.begin());
        if (difference.first == bytes_.end()) return;
        const auto byte = static_cast<std::size_t>(difference.first - bytes_.begin());
        findings.add("schedule", reinterpret_cast<uintptr_t>(region_.begin()), static_cast<uint64_t>(schedule),
                     "order of threads: byte " + std::to_string(byte) + " (element " +
                         std::to_string(byte / region_.element()) + ") of " + region_.name() +
                         " differs after threads ran forward and " + name_of(schedule) +
                         (schedule == Schedule::random ? " of seed " + std::to_string(seed) : ""));
    }

  private:
    Region& region_;
    std::vector<char> bytes_;
};

// The arguments of a launch in guarded memory.
class GuardedArguments {
  public:
    explicit GuardedArguments(const std::vector<Argument>& arguments) : memory_(all_buffers(arguments)) {
        std::size_t target = arguments.size();
        for (std::size_t i = 0; i < arguments.size(); ++i) {
            slots_[i] = memory_.translated(i);
            for (std::size_t j = 0; j < arguments[i].targets.size(); ++j) {
                addresses_.emplace_back(static_cast<void**>(slots_[i]) + j, memory_.translated(target++));
            }
        }
    }

    GuardedMemory& memory() { return memory_; }
    void* const* slots() const { return slots_.data(); }

    // Gives the copies the arguments' contents; arrays of addresses lead to copies.
    void copy_in() {
        for (Region& region : memory_.regions()) region.copy_in();
        for (const auto& [slot, address] : addresses_) *slot = address;
    }
    void copy_out() {
        for (const Region& region : memory_.regions()) {
            if (!region.is_constant()) region.copy_out();
        }
    }

  private:
    // First what fills the launch's buffers, then what their addresses lead to.
    static std::vector<Buffer> all_buffers(const std::vector<Argument>& arguments) {
        std::vector<Buffer> buffers;
        for (const Argument& argument : arguments) buffers.push_back(argument.buffer);
        for (const Argument& argument : arguments) {
            buffers.insert(buffers.end(), argument.targets.begin(), argument.targets.end());
        }
        return buffers;
    }

    GuardedMemory memory_;
    std::array<void*, kMaxBuffers> slots_{};
    std::vector<std::pair<void**, void*>> addresses_;  // where one is stored, and which
};

// Runs all threadgroups in the checker's order. Returns false when the launch had to be given up.
bool run_schedule(const Launch& launch, Checker& checker, Findings& findings, InterruptionCheck& check_interruption) {
    const BorrowedWorker worker;
    worker->prepare(launch, checked_api(), &checker, nullptr);
    const FaultGuard guard(worker->group());
    for (const uint64_t index : checker.order(count(grid_of(launch)))) {
        if (!worker->run(index)) {
            findings.add(worker->group().error);
            return false;
        }
        check_interruption();
    }
    checker.finish();
    return true;
}

}  // namespace

std::vector<std::string> check_launch(const Launch& launch, const std::vector<Argument>& arguments,
                                      LibraryRange library, uint64_t seed, unsigned random_schedules) {
    GuardedArguments guarded(arguments);
    Launch copied = launch;
    copied.buffers = guarded.slots();

    Findings findings;
    std::vector<Expectation> expectations;
    InterruptionCheck check_interruption(launch);
    for (unsigned pass = 0; pass < 2 + random_schedules; ++pass) {
        const Schedule schedule = pass == 0 ? Schedule::forward : pass == 1 ? Schedule::backward : Schedule::random;
        const uint64_t pass_seed = seed + (pass < 2 ? 0 : pass - 2);
        guarded.copy_in();
        Checker checker(guarded.memory(), library, schedule, pass_seed, findings);
        if (!run_schedule(copied, checker, findings, check_interruption)) return findings.texts();
        for (const Expectation& expectation : expectations) expectation.compare(schedule, pass_seed, findings);
        if (pass == 0) {
            for (Region& region : guarded.memory().regions()) expectations.emplace_back(region);
        }
    }
    if (findings.texts().empty()) {
        for (const Expectation& expectation : expectations) expectation.restore();
        guarded.copy_out();
    }
    return findings.texts();
}

}  // namespace simt
