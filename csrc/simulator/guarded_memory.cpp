#include "guarded_memory.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace simt {
namespace {

constexpr std::size_t kGapBytes = std::size_t{1} << 28;

// Copies keep their address modulo this, so that vector accesses stay aligned.
constexpr std::size_t kAlignment = 64;

}  // namespace

Region::Region(char* source, std::size_t bytes)
    : source_(source), bytes_(bytes), element_(UINT32_MAX), is_constant_(true), owned_(bytes, 0) {
    const std::size_t room = round_up(bytes + kAlignment, page_size());
    memory_ = std::make_unique<Reservation>(kGapBytes + room + kGapBytes, page_size());
    memory_->forbid(0, kGapBytes);
    memory_->forbid(kGapBytes + room, kGapBytes);
    // As close to the far gap as alignment allows.
    char* const latest = memory_->begin() + kGapBytes + room - bytes;
    begin_ = latest - (reinterpret_cast<uintptr_t>(latest) - reinterpret_cast<uintptr_t>(source)) % kAlignment;
}

void Region::add_buffer(const Buffer& buffer) {
    name_ += (name_.empty() ? "" : " = ") + buffer.name;
    element_ = std::min(element_, buffer.element);
    is_constant_ = is_constant_ && buffer.is_constant;
    const auto begin = static_cast<std::size_t>(static_cast<char*>(buffer.address) - source_);
    for (std::size_t i = 0; i < buffer.bytes; ++i) {
        if (buffer.elements.empty() || buffer.elements[i / buffer.element] != 0) owned_[begin + i] = 1;
    }
}

bool Region::owns(const char* address, std::size_t bytes) const {
    return std::memchr(owned_.data() + (address - begin_), 0, bytes) == nullptr;
}

bool Region::is_nearest(const char* address) const {
    return address >= memory_->begin() && address < memory_->begin() + memory_->bytes();
}

void Region::copy_in() {
    if (bytes_ != 0) std::memcpy(begin_, source_, bytes_);
}

void Region::copy_out() const {
    if (bytes_ != 0) std::memcpy(source_, begin_, bytes_);
}

GuardedMemory::GuardedMemory(std::vector<Buffer> buffers) : region_of_(buffers.size()), buffers_(std::move(buffers)) {
    std::vector<std::size_t> order(buffers_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto begin_of = [&](std::size_t i) { return static_cast<char*>(buffers_[i].address); };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return std::less<char*>{}(begin_of(a), begin_of(b)); });
    for (std::size_t first = 0; first < order.size();) {
        // Buffers of which each begins before the ones so far have ended share a region.
        char* const begin = begin_of(order[first]);
        char* end = begin + buffers_[order[first]].bytes;
        std::size_t last = first + 1;
        while (last < order.size() && begin_of(order[last]) < end) {
            end = std::max(end, begin_of(order[last]) + buffers_[order[last]].bytes);
            ++last;
        }
        Region& region = regions_.emplace_back(begin, static_cast<std::size_t>(end - begin));
        // In the order of the arguments.
        std::sort(order.begin() + static_cast<std::ptrdiff_t>(first),
                  order.begin() + static_cast<std::ptrdiff_t>(last));
        for (std::size_t i = first; i < last; ++i) {
            region.add_buffer(buffers_[order[i]]);
            region_of_[order[i]] = regions_.size() - 1;
        }
        first = last;
    }
}

void* GuardedMemory::translated(std::size_t buffer) const {
    return regions_[region_of_[buffer]].translate(buffers_[buffer].address);
}

}  // namespace simt
