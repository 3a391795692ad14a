// What one OS thread needs to run threadgroups: stacks for the fibers, threadgroup memory, the lanes' logs.
#pragma once

#include <memory>

#include "reservation.h"
#include "threadgroup.h"

namespace simt {

class Worker {
  public:
    Worker();

    // Makes ready to run threadgroups of a launch with the services of `api`. `checker` and `counter` may be null.
    void prepare(const Launch& launch, const Api& api, Checker* checker, const MemoryCounter* counter);

    // Runs one threadgroup; `index` counts along x first. Returns false when `group().error` says that the launch is
    // given up.
    bool run(uint64_t index);

    Threadgroup& group() { return *group_; }

  private:
    Thread* thread(uint32_t index) const;
    void make_startable(uint32_t threads);
    void lay_out(Size size);

    Reservation stacks_;
    Reservation logs_;
    Reservation arena_;
    std::unique_ptr<Threadgroup> group_;
    uint32_t guarded_ = 0;    // stacks whose guard page is in place
    uint32_t startable_ = 0;  // fibers that wait for the start of their thread
};

// A Worker from the process's free list, or a new one; goes back to the list in the end. Launches are frequent, and
// mapping and touching stacks anew costs more than a small kernel.
class BorrowedWorker {
  public:
    BorrowedWorker();
    ~BorrowedWorker();
    BorrowedWorker(const BorrowedWorker&) = delete;
    BorrowedWorker& operator=(const BorrowedWorker&) = delete;

    Worker* operator->() const { return worker_.get(); }
    Worker& operator*() const { return *worker_; }

  private:
    std::unique_ptr<Worker> worker_;
};

}  // namespace simt
