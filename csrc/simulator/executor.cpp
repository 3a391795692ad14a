#include "executor.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "scheduler.h"
#include "worker.h"

namespace simt {
namespace {

uint32_t groups_along(uint32_t threads, uint32_t group_size) {
    return static_cast<uint32_t>((uint64_t{threads} + group_size - 1) / group_size);
}

// A launch in progress: workers take the next threadgroup until none is left or one of them has failed.
class Progress {
public:
    explicit Progress(const Launch& launch)
        : launch_(launch),
          grid_{groups_along(launch.threads.x, launch.group_size.x), groups_along(launch.threads.y, launch.group_size.y),
                groups_along(launch.threads.z, launch.group_size.z)},
          groups_(uint64_t{grid_.x} * grid_.y * grid_.z) {}

    uint64_t groups() const { return groups_; }

    // Never throws: it is the whole life of an OS thread.
    void work() noexcept {
        try {
            const BorrowedWorker worker;
            worker->prepare(fast_api(), launch_.group_size.x * launch_.group_size.y * launch_.group_size.z);
            Threadgroup& group = worker->group();
            group.kernel = launch_.kernel;
            group.kernel_name = launch_.kernel_name;
            group.buffers = launch_.buffers;
            group.memory_limit = launch_.threadgroup_bytes;
            for (uint64_t next = next_.fetch_add(1); next < groups_; next = next_.fetch_add(1)) {
                const Size position = {static_cast<uint32_t>(next % grid_.x),
                                       static_cast<uint32_t>(next / grid_.x % grid_.y),
                                       static_cast<uint32_t>(next / grid_.x / grid_.y)};
                if (!worker->run(position, grid_, launch_.threads, launch_.group_size)) throw LaunchError(group.error);
            }
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
    const Size grid_;
    const uint64_t groups_;
    std::atomic<uint64_t> next_{0};
    std::mutex mutex_;
    std::exception_ptr failure_;
};

}  // namespace

void run_launch(const Launch& launch) {
    Progress progress(launch);
    // Made for each launch: a pool would not survive fork.
    std::vector<std::thread> helpers;
    const uint64_t wanted = std::min<uint64_t>(launch.os_threads, progress.groups());
    try {
        for (uint64_t i = 1; i < wanted; ++i) helpers.emplace_back([&] { progress.work(); });
    } catch (const std::system_error&) {
        // The system has no more threads to give: the ones there are do all the work.
    }
    progress.work();
    for (std::thread& helper : helpers) helper.join();
    progress.rethrow_failure();
}

}  // namespace simt
