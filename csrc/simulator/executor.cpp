#include "executor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "fault.h"
#include "memory_counter.h"
#include "scheduler.h"
#include "worker.h"

namespace simt {
namespace {

uint32_t groups_along(uint32_t threads, uint32_t group_size) {
    return static_cast<uint32_t>((uint64_t{threads} + group_size - 1) / group_size);
}

Size grid_of(const Launch& launch) {
    return {groups_along(launch.threads.x, launch.group_size.x), groups_along(launch.threads.y, launch.group_size.y),
            groups_along(launch.threads.z, launch.group_size.z)};
}

uint64_t count(const Size& size) { return uint64_t{size.x} * size.y * size.z; }

Size position_in(const Size& grid, uint64_t index) {
    return {static_cast<uint32_t>(index % grid.x), static_cast<uint32_t>(index / grid.x % grid.y),
            static_cast<uint32_t>(index / grid.x / grid.y)};
}

// Sets up the part of a worker's state that belongs to the launch.
void prepare(Worker& worker, const Launch& launch, const Api& api, Checker* checker, const MemoryCounter* counter) {
    Threadgroup& group = worker.group();
    group.kernel = launch.kernel;
    group.buffers = launch.buffers;
    group.memory_limit = launch.threadgroup_bytes;
    group.grid = grid_of(launch);
    group.checker = checker;
    group.memory_counter = counter;
    worker.prepare(api, static_cast<uint32_t>(count(launch.group_size)));
}

void accumulate(Counters& total, const Counters& part) {
    total.matrix_products += part.matrix_products;
    total.exponentials += part.exponentials;
    total.threadgroup_barriers += part.threadgroup_barriers;
    total.simdgroup_barriers += part.simdgroup_barriers;
    total.device_bytes_read += part.device_bytes_read;
    total.device_bytes_written += part.device_bytes_written;
    total.threadgroup_bytes_read += part.threadgroup_bytes_read;
    total.threadgroup_bytes_written += part.threadgroup_bytes_written;
}

// Asks a launch's `interrupted` at intervals that nobody waits through impatiently.
class InterruptionCheck {
  public:
    explicit InterruptionCheck(const Launch& launch) : launch_(launch) {}

    void operator()() {
        const auto now = Clock::now();
        if (now < next_) return;
        if (launch_.interrupted()) throw LaunchInterrupted();
        next_ = now + kInterval;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds kInterval{100};

    const Launch& launch_;
    Clock::time_point next_ = Clock::now() + kInterval;
};

// A launch in progress: workers take the next threadgroup until none is left or one of them has failed.
class Progress {
  public:
    Progress(const Launch& launch, const MemoryCounter* counter)
        : launch_(launch), counter_(counter), grid_(grid_of(launch)), groups_(count(grid_)) {}

    uint64_t groups() const { return groups_; }
    const Counters& counters() const { return counters_; }

    // Never throws: it is the whole life of an OS thread.
    void work(bool is_calling_thread) noexcept {
        try {
            InterruptionCheck check_interruption(launch_);
            const BorrowedWorker worker;
            prepare(*worker, launch_, counter_ != nullptr ? counting_api() : fast_api(), nullptr, counter_);
            const FaultGuard guard(worker->group());
            for (uint64_t next = next_.fetch_add(1); next < groups_; next = next_.fetch_add(1)) {
                if (!worker->run(position_in(grid_, next), launch_.threads, launch_.group_size)) {
                    throw LaunchError("kernel '" + std::string(launch_.kernel_name) + "': " + worker->group().error);
                }
                if (is_calling_thread) check_interruption();
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            accumulate(counters_, worker->group().counters);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (failure_ == nullptr) failure_ = std::current_exception();
            next_ = groups_;
        }
    }

    void rethrow_failure() const {
        if (failure_ != nullptr) std::rethrow_exception(failure_);
    }

  private:
    const Launch& launch_;
    const MemoryCounter* const counter_;
    const Size grid_;
    const uint64_t groups_;
    std::atomic<uint64_t> next_{0};
    std::mutex mutex_;
    Counters counters_{};
    std::exception_ptr failure_;
};

Counters run(const Launch& launch, const MemoryCounter* counter) {
    Progress progress(launch, counter);
    // Made for each launch: a pool would not survive fork.
    std::vector<std::thread> helpers;
    const uint64_t wanted = std::min<uint64_t>(launch.os_threads, progress.groups());
    try {
        for (uint64_t i = 1; i < wanted; ++i) helpers.emplace_back([&] { progress.work(false); });
    } catch (const std::system_error&) {
        // The system has no more threads to give: the ones there are do all the work.
    }
    progress.work(true);
    for (std::thread& helper : helpers) helper.join();
    progress.rethrow_failure();
    return progress.counters();
}

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

}  // namespace

void run_launch(const Launch& launch) { run(launch, nullptr); }

Counters count_launch(const Launch& launch, const std::vector<Buffer>& memory) {
    std::vector<MemoryCounter::Range> ranges;
    for (const Buffer& buffer : memory) {
        const auto* const begin = static_cast<const char*>(buffer.address);
        if (!buffer.is_constant) ranges.emplace_back(begin, begin + buffer.bytes);
    }
    const MemoryCounter counter(std::move(ranges));
    return run(launch, &counter);
}

std::vector<std::string> check_launch(const Launch& launch, const std::vector<Argument>& arguments,
                                      LibraryRange library, uint64_t seed, unsigned random_schedules) {
    // Arrays of addresses are rewritten for the copies of what they lead to.
    std::vector<Buffer> buffers;
    for (const Argument& argument : arguments) buffers.push_back(argument.buffer);
    for (const Argument& argument : arguments)
        buffers.insert(buffers.end(), argument.targets.begin(), argument.targets.end());
    GuardedMemory memory(std::move(buffers));
    std::array<void*, kMaxBuffers> slots{};
    std::size_t target = arguments.size();
    std::vector<std::pair<void**, void*>> addresses;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        slots[i] = memory.translated(i);
        for (std::size_t j = 0; j < arguments[i].targets.size(); ++j) {
            addresses.emplace_back(static_cast<void**>(slots[i]) + j, memory.translated(target++));
        }
    }
    Launch copied = launch;
    copied.buffers = slots.data();

    Findings findings;
    std::vector<Expectation> expectations;
    const Size grid = grid_of(launch);
    InterruptionCheck check_interruption(launch);
    for (unsigned pass = 0; pass < 2 + random_schedules; ++pass) {
        const Schedule schedule = pass == 0 ? Schedule::forward : pass == 1 ? Schedule::backward : Schedule::random;
        const uint64_t pass_seed = seed + (pass < 2 ? 0 : pass - 2);
        for (Region& region : memory.regions()) region.copy_in();
        for (const auto& [slot, address] : addresses) *slot = address;

        Checker checker(memory, library, schedule, pass_seed, findings);
        const BorrowedWorker worker;
        prepare(*worker, copied, checked_api(), &checker, nullptr);
        const FaultGuard guard(worker->group());
        for (const uint64_t index : checker.order(count(grid))) {
            if (!worker->run(position_in(grid, index), launch.threads, launch.group_size)) {
                findings.add(worker->group().error);
                return findings.texts();
            }
            check_interruption();
        }
        checker.finish();
        for (const Expectation& expectation : expectations) expectation.compare(schedule, pass_seed, findings);
        if (pass == 0) {
            for (Region& region : memory.regions()) expectations.emplace_back(region);
        }
    }
    if (findings.texts().empty()) {
        for (const Expectation& expectation : expectations) expectation.restore();
        for (std::size_t i = 0; i < memory.regions().size(); ++i) {
            if (!memory.regions()[i].is_constant()) memory.regions()[i].copy_out();
        }
    }
    return findings.texts();
}

}  // namespace simt
