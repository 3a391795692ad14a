#include "worker.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "scheduler.h"

namespace simt {
namespace {

// The free list. A child process gets the parent's idle workers; the lock is held across fork so that it is usable
// there.
struct FreeList {
    std::mutex mutex;
    std::vector<std::unique_ptr<Worker>> workers;

    static FreeList& get() {
        static FreeList* const list = [] {
            pthread_atfork([] { get().mutex.lock(); }, [] { get().mutex.unlock(); }, [] { get().mutex.unlock(); });
            return new FreeList;  // never destroyed: launches may outlive static destruction
        }();
        return *list;
    }
};

}  // namespace

Worker::Worker()
    : stacks_(kMaxThreads * kStackBytes, kStackBytes),
      logs_(kMaxThreads / kLanes * kDeferredBytes, page_size()),
      arena_(Threadgroup::kArenaBytes, page_size()),
      group_(std::make_unique<Threadgroup>()) {
    group_->arena = arena_.begin();
    group_->stacks_begin = stacks_.begin();
    group_->stacks_end = stacks_.begin() + stacks_.bytes();
    group_->logs_begin = logs_.begin();
    group_->logs_end = logs_.begin() + logs_.bytes();
}

Thread* Worker::thread(uint32_t index) const {
    return thread_of_stack(reinterpret_cast<uintptr_t>(stacks_.begin()) + index * kStackBytes);
}

// Puts the first `threads` fibers to the start of their threads, those that are not there already.
void Worker::make_startable(uint32_t threads) {
    for (; guarded_ < threads; ++guarded_) stacks_.forbid(guarded_ * kStackBytes, page_size());
    for (; startable_ < threads; ++startable_) {
        const uint32_t index = startable_;
        Thread* const self = thread(index);
        Simdgroup& simdgroup = group_->simdgroup[index / kLanes];
        simdgroup.group = group_.get();
        if (index % kLanes == 0) std::memset(logs_.begin() + index / kLanes * kDeferredBytes, 0, kDeferredBytes);
        std::memset(self, 0, sizeof(Thread));
        self->executor = &simdgroup;
        self->deferred = logs_.begin() + index / kLanes * kDeferredBytes;
        self->thread_index = index;
        self->lane = index % kLanes;
        self->simdgroup = index / kLanes;
        prepare_fiber(simdgroup.fibers[self->lane], stacks_.begin() + index * kStackBytes + page_size(), self,
                      run_thread, self);
    }
}

void Worker::prepare(const Launch& launch, const Api& api, Checker* checker, const MemoryCounter* counter) {
    const auto threads = static_cast<uint32_t>(count(launch.group_size));
    make_startable(threads);
    Threadgroup& group = *group_;
    for (uint32_t index = 0; index < threads; ++index) {
        thread(index)->api = &api;
        thread(index)->counters = counter != nullptr ? &group.counters : nullptr;
    }
    group.launch = &launch;
    group.grid = grid_of(launch);
    group.checker = checker;
    group.memory_counter = counter;
    group.counters = {};
    group.transactions = nullptr;
    group.arena_used = group.array_count = 0;
    group.size = {0, 0, 0};
    group.error.clear();
}

// Tells every thread its place in threadgroups of `size`.
void Worker::lay_out(Size size) {
    Threadgroup& group = *group_;
    group.size = size;
    group.threads = static_cast<uint32_t>(count(size));
    group.simdgroups = (group.threads + kLanes - 1) / kLanes;
    for (uint32_t i = 0; i < group.simdgroups; ++i) {
        group.simdgroup[i].all = mask_of(std::min(kLanes, group.threads - i * kLanes));
    }
    for (uint32_t index = 0; index < group.threads; ++index) {
        Thread& self = *thread(index);
        self.thread_position_in_threadgroup = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
        self.threads_per_threadgroup = size;
        self.dispatch_threads_per_threadgroup = group.launch->group_size;
        self.threads_per_grid = group.launch->threads;
        self.threadgroups_per_grid = group.grid;
        self.simdgroups = group.simdgroups;
        self.lanes = std::min(kLanes, group.threads - index / kLanes * kLanes);
    }
}

bool Worker::run(uint64_t index) {
    Threadgroup& group = *group_;
    const Size& grid = group.grid;
    const Size& most = group.launch->group_size;
    const Size& threads = group.launch->threads;
    const Size position = {static_cast<uint32_t>(index % grid.x), static_cast<uint32_t>(index / grid.x % grid.y),
                           static_cast<uint32_t>(index / grid.x / grid.y)};
    const Size size = {std::min(most.x, threads.x - position.x * most.x),
                       std::min(most.y, threads.y - position.y * most.y),
                       std::min(most.z, threads.z - position.z * most.z)};
    if (std::memcmp(&size, &group.size, sizeof size) != 0) lay_out(size);
    group.position = position;
    for (uint32_t i = 0; i < group.threads; ++i) thread(i)->threadgroup_position_in_grid = position;
    run_threadgroup(group);
    if (group.error.empty()) return true;
    startable_ = 0;
    return false;
}

BorrowedWorker::BorrowedWorker() {
    FreeList& list = FreeList::get();
    {
        const std::lock_guard<std::mutex> lock(list.mutex);
        if (!list.workers.empty()) {
            worker_ = std::move(list.workers.back());
            list.workers.pop_back();
        }
    }
    if (worker_ == nullptr) worker_ = std::make_unique<Worker>();
}

BorrowedWorker::~BorrowedWorker() {
    FreeList& list = FreeList::get();
    const std::lock_guard<std::mutex> lock(list.mutex);
    list.workers.push_back(std::move(worker_));
}

}  // namespace simt
