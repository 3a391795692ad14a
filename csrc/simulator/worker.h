// What one OS thread needs to run threadgroups: stacks for the fibers, threadgroup memory, the lanes' logs.
#pragma once

#include <memory>

#include "reservation.h"
#include "threadgroup.h"

namespace simt {

class Worker {
  public:
    Worker();

    // Makes the first `threads` fibers ready to run with the services of `api`.
    void prepare(const Api& api, uint32_t threads);

    // Runs the threadgroup at `position` of a grid. The part of its state that belongs to the launch must be set.
    // Returns false when `group().error` says that the launch is given up.
    bool run(Size position, Size threads_per_grid, Size group_size);

    Threadgroup& group() { return *group_; }

  private:
    Thread* thread(uint32_t index) const;
    void lay_out(Size size, Size threads_per_grid, Size group_size);

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
