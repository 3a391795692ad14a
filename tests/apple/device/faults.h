// Faults that tests plant in the pretend device.
#pragma once

#include <atomic>

namespace pretend {

// Makes the next MPSStream::commandEncoder() raise.
inline std::atomic<bool> next_encoder_fails{false};

// Makes the next MPSStream::commandEncoder() return none.
inline std::atomic<bool> next_encoder_is_null{false};

}  // namespace pretend
