#include "shadow.h"

#include <algorithm>

namespace simt {

void Witnesses::add(const Stamp& stamp) {
    for (Stamp& kept : stamps_) {
        if (kept.is_none() || kept.same_thread(stamp)) {
            kept = stamp;
            return;
        }
    }
    Stamp& a = stamps_[0];
    Stamp& b = stamps_[1];
    // Threadgroups are never ordered: any access conflicts with one of two that are of different threadgroups.
    if (a.threadgroup != b.threadgroup) return;
    if (a.threadgroup != stamp.threadgroup) {
        a = stamp;
        return;
    }
    // What a barrier of the threadgroup has ordered is of no more interest.
    for (Stamp& kept : stamps_) {
        if (kept.threadgroup_epoch < stamp.threadgroup_epoch) {
            kept = stamp;
            return;
        }
    }
    // Between two such barriers, any access conflicts with one of two that are of different simdgroups.
    if (!a.same_simdgroup(b)) return;
    if (!a.same_simdgroup(stamp)) {
        a = stamp;
        return;
    }
    Stamp& older = a.simdgroup_epoch <= b.simdgroup_epoch ? a : b;
    if (older.simdgroup_epoch < stamp.simdgroup_epoch) older = stamp;
}

const Stamp* Witnesses::conflict(const Stamp& later) const {
    const auto both_atomic = [](const Stamp& a, const Stamp& b) {
        const auto is_atomic = [](const Stamp& stamp) {
            return stamp.kind == static_cast<uint16_t>(Access::atomic) ||
                   stamp.kind == static_cast<uint16_t>(Access::atomic_read);
        };
        return is_atomic(a) && is_atomic(b);
    };
    for (const Stamp& kept : stamps_) {
        if (!kept.is_none() && !kept.is_before(later) && !both_atomic(kept, later)) return &kept;
    }
    return nullptr;
}

Shadow::Shadow(std::size_t bytes, uint32_t element)
    : bytes_(bytes), granule_(std::max(element, uint32_t{1})), cells_((bytes + granule_ - 1) / granule_) {}

std::optional<Shadow::Conflict> Shadow::access(std::size_t offset, std::size_t bytes, Access kind, const Stamp& stamp) {
    if (offset % granule_ != 0 || bytes % granule_ != 0) split();
    std::optional<Conflict> found;
    for (std::size_t index = offset / granule_; index < (offset + bytes) / granule_; ++index) {
        Cell& cell = cells_[index];
        const Stamp* earlier = nullptr;
        if (!cell.write.is_none() && !cell.write.is_before(stamp)) earlier = &cell.write;
        if (earlier == nullptr && kind != Access::atomic && kind != Access::atomic_read) {
            earlier = cell.atomics.conflict(stamp);
        }
        if (earlier == nullptr && (kind == Access::write || kind == Access::atomic))
            earlier = cell.reads.conflict(stamp);
        if (earlier != nullptr && !found) found = Conflict{*earlier, index * granule_, granule_};
        switch (kind) {
            case Access::write:
                cell.write = stamp;
                break;
            case Access::atomic:
                cell.atomics.add(stamp);
                break;
            case Access::read:
            case Access::atomic_read:
                cell.reads.add(stamp);
                break;
        }
    }
    return found;
}

std::optional<std::size_t> Shadow::unwritten(std::size_t offset, std::size_t bytes) const {
    for (std::size_t index = offset / granule_; index * granule_ < offset + bytes; ++index) {
        if (cells_[index].write.is_none() && cells_[index].atomics.is_empty()) {
            return std::max(index * granule_, offset);
        }
    }
    return std::nullopt;
}

void Shadow::clear() { std::fill(cells_.begin(), cells_.end(), Cell{}); }

// From here on a cell is one byte.
void Shadow::split() {
    if (granule_ == 1) return;
    std::vector<Cell> finer(bytes_);
    for (std::size_t i = 0; i < bytes_; ++i) finer[i] = cells_[i / granule_];
    cells_ = std::move(finer);
    granule_ = 1;
}

}  // namespace simt
