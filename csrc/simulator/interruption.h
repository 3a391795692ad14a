// Lets a long launch be interrupted.
#pragma once

#include <chrono>

#include "launch.h"

namespace simt {

// Asks a launch's `interrupted`, but not each time that it is called: at intervals too short to try one's patience.
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

}  // namespace simt
