#include "worker.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <system_error>
#include <vector>

#include "scheduler.h"

namespace simt {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 17;  // threadgroup memory, with room for the checks' red zones

std::size_t page_size() {
    static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

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

Reservation::Reservation(std::size_t bytes, std::size_t alignment) : mapped_bytes_(bytes + alignment) {
    void* const mapping = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        throw std::system_error(errno, std::generic_category(),
                                "reserving " + std::to_string(mapped_bytes_) + " bytes for the simulator");
    }
    mapping_ = static_cast<char*>(mapping);
    const auto address = reinterpret_cast<uintptr_t>(mapping_);
    begin_ = mapping_ + (round_up(address, alignment) - address);
}

Reservation::~Reservation() { munmap(mapping_, mapped_bytes_); }

Worker::Worker()
    : stacks_(kMaxThreads * kStackBytes, kStackBytes),
      logs_(kMaxThreads / kLanes * kDeferredBytes, page_size()),
      arena_(kArenaBytes, page_size()),
      group_(std::make_unique<Threadgroup>()) {}

Thread* Worker::thread(uint32_t index) const {
    return thread_of_stack(reinterpret_cast<uintptr_t>(stacks_.begin()) + index * kStackBytes);
}

void Worker::prepare(const Api& api, uint32_t threads) {
    // Best effort: a process has a limit on mappings, and each guard page adds two.
    for (; guarded_ < threads; ++guarded_) mprotect(stacks_.begin() + guarded_ * kStackBytes, page_size(), PROT_NONE);
    for (; startable_ < threads; ++startable_) {
        const uint32_t index = startable_;
        Thread* const self = thread(index);
        Simdgroup& simdgroup = group_->simdgroup[index / kLanes];
        simdgroup.group = group_.get();
        std::memset(self, 0, sizeof(Thread));
        self->executor = &simdgroup;
        self->deferred = logs_.begin() + index / kLanes * kDeferredBytes;
        self->thread_index = index;
        self->lane = index % kLanes;
        self->simdgroup = index / kLanes;
        prepare_fiber(simdgroup.fibers[self->lane], stacks_.begin() + index * kStackBytes + page_size(), self, run_thread,
                      self);
    }
    for (uint32_t index = 0; index < threads; ++index) thread(index)->api = &api;

    Threadgroup& group = *group_;
    group.arena = arena_.begin();
    group.arena_used = group.array_count = 0;
    group.size = {0, 0, 0};
    group.error.clear();
}

// Tells every thread its place in threadgroups of `size`.
void Worker::lay_out(Size size, Size grid, Size threads_per_grid, Size group_size) {
    Threadgroup& group = *group_;
    group.size = size;
    group.threads = size.x * size.y * size.z;
    group.simdgroups = (group.threads + kLanes - 1) / kLanes;
    for (uint32_t i = 0; i < group.simdgroups; ++i) {
        group.simdgroup[i].all = mask_of(std::min(kLanes, group.threads - i * kLanes));
    }
    for (uint32_t index = 0; index < group.threads; ++index) {
        Thread& self = *thread(index);
        self.thread_position_in_threadgroup = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
        self.threads_per_threadgroup = size;
        self.dispatch_threads_per_threadgroup = group_size;
        self.threads_per_grid = threads_per_grid;
        self.threadgroups_per_grid = grid;
        self.simdgroups = group.simdgroups;
        self.lanes = std::min(kLanes, group.threads - index / kLanes * kLanes);
    }
}

bool Worker::run(Size position, Size grid, Size threads_per_grid, Size group_size) {
    Threadgroup& group = *group_;
    const Size size = {std::min(group_size.x, threads_per_grid.x - position.x * group_size.x),
                       std::min(group_size.y, threads_per_grid.y - position.y * group_size.y),
                       std::min(group_size.z, threads_per_grid.z - position.z * group_size.z)};
    if (std::memcmp(&size, &group.size, sizeof size) != 0) lay_out(size, grid, threads_per_grid, group_size);
    group.position = position;
    for (uint32_t index = 0; index < group.threads; ++index) thread(index)->threadgroup_position_in_grid = position;
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
