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

Region::Region(std::string name, char* source, std::size_t bytes, uint32_t element, bool is_constant)
    : name_(std::move(name)), source_(source), bytes_(bytes), element_(element), is_constant_(is_constant) {
    const std::size_t room = round_up(bytes + kAlignment, page_size());
    memory_ = std::make_unique<Reservation>(kGapBytes + room + kGapBytes, page_size());
    memory_->forbid(0, kGapBytes);
    memory_->forbid(kGapBytes + room, kGapBytes);
    // As close to the far gap as alignment allows.
    char* const latest = memory_->begin() + kGapBytes + room - bytes;
    begin_ = latest - (reinterpret_cast<uintptr_t>(latest) - reinterpret_cast<uintptr_t>(source)) % kAlignment;
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
        std::string name;
        uint32_t element = buffers_[order[first]].element;
        bool is_constant = true;
        std::sort(order.begin() + static_cast<std::ptrdiff_t>(first),
                  order.begin() + static_cast<std::ptrdiff_t>(last));
        for (std::size_t i = first; i < last; ++i) {
            const Buffer& buffer = buffers_[order[i]];
            name += (name.empty() ? "" : " = ") + buffer.name;
            element = std::min(element, buffer.element);
            is_constant = is_constant && buffer.is_constant;
            region_of_[order[i]] = regions_.size();
        }
        regions_.emplace_back(std::move(name), begin, static_cast<std::size_t>(end - begin), element, is_constant);
        first = last;
    }
}

void* GuardedMemory::translated(std::size_t buffer) const {
    return regions_[region_of_[buffer]].translate(buffers_[buffer].address);
}

}  // namespace simt
