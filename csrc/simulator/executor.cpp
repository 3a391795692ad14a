#include "executor.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "fault.h"
#include "interruption.h"
#include "memory_counter.h"
#include "scheduler.h"
#include "transaction_counter.h"
#include "worker.h"

namespace simt {
namespace {

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

void accumulate(Transactions& total, const Transactions& part) {
    total.device_accesses += part.device_accesses;
    total.device_segments += part.device_segments;
    total.threadgroup_accesses += part.threadgroup_accesses;
    total.threadgroup_passes += part.threadgroup_passes;
    total.threadgroup_conflicts += part.threadgroup_conflicts;
}

// A launch in progress: workers take the next threadgroup until none is left or one of them has failed.
class Progress {
  public:
    // `transactions`: where they are added up, null unless they are to be counted.
    Progress(const Launch& launch, const MemoryCounter* counter, Transactions* transactions)
        : launch_(launch), counter_(counter), transactions_(transactions), groups_(count(grid_of(launch))) {}

    uint64_t groups() const { return groups_; }
    const Counters& counters() const { return counters_; }

    // Never throws: it is the whole life of an OS thread.
    void work(bool is_calling_thread) noexcept {
        try {
            InterruptionCheck check_interruption(launch_);
            const BorrowedWorker worker;
            worker->prepare(launch_, counter_ != nullptr ? counting_api() : fast_api(), nullptr, counter_);
            TransactionCounter transactions;
            if (transactions_ != nullptr) worker->group().transactions = &transactions;
            const FaultGuard guard(worker->group());
            for (uint64_t next = next_.fetch_add(1); next < groups_; next = next_.fetch_add(1)) {
                if (!worker->run(next)) {
                    throw LaunchError("kernel '" + std::string(launch_.kernel_name) + "': " + worker->group().error);
                }
                transactions.finish();
                if (is_calling_thread) check_interruption();
            }
            const std::lock_guard<std::mutex> lock(mutex_);
            accumulate(counters_, worker->group().counters);
            if (transactions_ != nullptr) accumulate(*transactions_, transactions.total());
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
    Transactions* const transactions_;
    const uint64_t groups_;
    std::atomic<uint64_t> next_{0};
    std::mutex mutex_;
    Counters counters_{};
    std::exception_ptr failure_;
};

Counters run(const Launch& launch, const MemoryCounter* counter, Transactions* transactions) {
    Progress progress(launch, counter, transactions);
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

}  // namespace

void run_launch(const Launch& launch) { run(launch, nullptr, nullptr); }

Counters count_launch(const Launch& launch, const std::vector<Buffer>& memory, Transactions* transactions) {
    std::vector<MemoryCounter::Range> ranges;
    for (const Buffer& buffer : memory) {
        const auto* const begin = static_cast<const char*>(buffer.address);
        if (!buffer.is_constant) ranges.emplace_back(begin, begin + buffer.bytes);
    }
    const MemoryCounter counter(std::move(ranges));
    return run(launch, &counter, transactions);
}

}  // namespace simt
