/* Serial dispatch queues in the little that PyTorch's stream needs of them, for machines without Apple's libdispatch.
 *
 * It fails as Apple's does: an exception that leaves the work ends the process, and so does waiting for the queue that
 * the caller is on.
 */
#ifndef DISPATCH_DISPATCH_H
#define DISPATCH_DISPATCH_H

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

struct dispatch_queue_s {
    std::mutex running;
    std::atomic<std::thread::id> owner{};  // the thread whose work is running
};

typedef dispatch_queue_s* dispatch_queue_t;
typedef void (*dispatch_function_t)(void*);

inline bool dispatch_is_on(dispatch_queue_t queue) { return queue->owner.load() == std::this_thread::get_id(); }

inline void dispatch_sync_f(dispatch_queue_t queue, void* context, dispatch_function_t work) noexcept {
    if (dispatch_is_on(queue)) {
        std::fputs("dispatch_sync_f: called on a queue that the current thread is already on\n", stderr);
        std::abort();
    }
    const std::lock_guard<std::mutex> turn(queue->running);
    queue->owner = std::this_thread::get_id();
    work(context);
    queue->owner = std::thread::id();
}

#endif
