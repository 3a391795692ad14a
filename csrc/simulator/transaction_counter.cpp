#include "transaction_counter.h"

#include <algorithm>

namespace simt {
namespace {

constexpr uintptr_t kSegmentBytes = 128;
constexpr uintptr_t kWordBytes = 4;
constexpr uint32_t kBanks = 32;

}  // namespace

void TransactionCounter::add(const Thread& thread, const void* pc, Location location, uint32_t bytes) {
    const Space space = location.space;
    if (space == Space::other) return;
    Place& place = places_[space == Space::device ? 0 : 1][thread.simdgroup][pc];
    const uint32_t visit = place.visits[thread.lane]++ - place.counted;
    if (visit >= place.visits_under_way.size()) place.visits_under_way.emplace_back().reserve(kLanes);
    std::vector<Access>& lanes = place.visits_under_way[visit];
    lanes.push_back({location.offset, bytes});
    while (!place.visits_under_way.empty() && place.visits_under_way.front().size() == thread.lanes) {
        count(place.visits_under_way.front(), space);
        place.visits_under_way.pop_front();
        ++place.counted;
    }
}

void TransactionCounter::finish() {
    for (const Space space : {Space::device, Space::threadgroup}) {
        for (auto& simdgroup : places_[space == Space::device ? 0 : 1]) {
            for (const auto& [pc, place] : simdgroup) {
                for (const std::vector<Access>& lanes : place.visits_under_way) count(lanes, space);
            }
            simdgroup.clear();
        }
    }
}

void TransactionCounter::count(const std::vector<Access>& lanes, Space space) {
    const uintptr_t unit = space == Space::device ? kSegmentBytes : kWordBytes;
    units_.clear();
    for (const Access& access : lanes) {
        const uintptr_t last = (access.offset + access.bytes - 1) / unit;
        for (uintptr_t i = access.offset / unit; i <= last; ++i) units_.push_back(i);
    }
    std::sort(units_.begin(), units_.end());
    units_.erase(std::unique(units_.begin(), units_.end()), units_.end());
    if (space == Space::device) {
        ++total_.device_accesses;
        total_.device_segments += units_.size();
        return;
    }
    std::array<uint32_t, kBanks> words{};
    for (const uintptr_t word : units_) ++words[word % kBanks];
    const uint64_t passes = *std::max_element(words.begin(), words.end());
    const uint64_t fewest = (units_.size() + kBanks - 1) / kBanks;
    ++total_.threadgroup_accesses;
    total_.threadgroup_passes += passes;
    total_.threadgroup_conflicts += passes - fewest;
}

}  // namespace simt
