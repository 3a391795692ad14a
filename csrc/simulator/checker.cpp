#include "checker.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "describe.h"

namespace simt {
namespace {

// Threadgroup arrays are mostly accessed in units of at least this.
constexpr uint32_t kThreadgroupElement = 4;

// Of uninitialised memory: a NaN in every floating-point type.
constexpr int kPoison = 0xff;

const char* verb(Access kind) {
    switch (kind) {
        case Access::read:
            return "read";
        case Access::write:
            return "write";
        case Access::atomic:
        case Access::atomic_read:
            break;
    }
    return "atomic access";
}

std::string describe_place(uint32_t pc) { return "<pc:" + std::to_string(pc) + ">"; }

std::string describe_thread(const Thread& thread) {
    return "thread " + describe(thread.thread_position_in_threadgroup) + " of threadgroup " +
           describe(thread.threadgroup_position_in_grid);
}

Size unravel(uint32_t index, const Size& size) {
    return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

std::string describe_range(std::size_t offset, std::size_t bytes) {
    return bytes == 1 ? "byte " + std::to_string(offset)
                      : "bytes " + std::to_string(offset) + "-" + std::to_string(offset + bytes - 1);
}

// Where bytes that are not all inside [0, size) lie.
std::string describe_outside(std::ptrdiff_t offset, std::size_t bytes, std::size_t size) {
    const auto limit = static_cast<std::ptrdiff_t>(size);
    const auto end = offset + static_cast<std::ptrdiff_t>(bytes);
    std::string text = std::to_string(bytes) + " bytes ";
    if (offset < 0) {
        text += "that begin " + std::to_string(-offset) + " bytes before";
    } else if (offset < limit) {
        text += "that reach " + std::to_string(end - limit) + " bytes beyond the end of";
    } else if (offset == limit) {
        text += "that begin at the end of";
    } else {
        text += "that begin " + std::to_string(offset - limit) + " bytes beyond the end of";
    }
    return text;
}

}  // namespace

void Findings::add(const char* kind, uint64_t first_place, uint64_t second_place, const std::string& text) {
    if (texts_.size() < kMost && seen_.emplace(kind, first_place, second_place).second) texts_.push_back(text);
}

void Checker::Epochs::advance(uint32_t memory_flags) {
    if ((memory_flags & kMemDevice) != 0) ++device;
    if ((memory_flags & kMemThreadgroup) != 0) ++threadgroup;
}

Checker::Checker(GuardedMemory& memory, LibraryRange library, Schedule schedule, uint64_t seed, Findings& findings)
    : memory_(memory), library_(library), schedule_(schedule), findings_(findings), random_state_(seed) {
    for (const Region& region : memory.regions()) {
        device_shadows_.push_back(std::make_unique<Shadow>(region.bytes(), region.element()));
    }
}

// splitmix64
uint64_t Checker::random() {
    uint64_t value = random_state_ += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

uint32_t Checker::pick(uint32_t candidates) {
    switch (schedule_) {
        case Schedule::forward:
            break;
        case Schedule::backward:
            return 31 - static_cast<uint32_t>(__builtin_clz(candidates));
        case Schedule::random:
            for (auto skip = random() % static_cast<uint64_t>(__builtin_popcount(candidates)); skip > 0; --skip) {
                candidates &= candidates - 1;
            }
            break;
    }
    return static_cast<uint32_t>(__builtin_ctz(candidates));
}

std::vector<uint64_t> Checker::order(uint64_t count) {
    std::vector<uint64_t> order(count);
    std::iota(order.begin(), order.end(), uint64_t{0});
    if (schedule_ == Schedule::backward) std::reverse(order.begin(), order.end());
    if (schedule_ == Schedule::random) {
        for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    }
    return order;
}

void Checker::start(const Threadgroup& group) {
    settle();
    std::memset(group.arena, kPoison, Threadgroup::kArenaBytes);
    for (const auto& shadow : threadgroup_shadows_) shadow->clear();
    group_size_ = group.size;
    threadgroups_ = group.grid;
    threadgroup_index_ = (group.position.z * group.grid.y + group.position.y) * group.grid.x + group.position.x;
    epochs_ = {};
    simdgroup_epochs_.fill({});
}

void Checker::complete_collective(const Simdgroup& simdgroup, const Request& request, uint32_t mask) {
    const Threadgroup& group = *simdgroup.group;
    const auto index = static_cast<std::size_t>(&simdgroup - group.simdgroup.data());
    simdgroup_epochs_[index].advance(request.memory_flags);
    if (mask == simdgroup.all) return;
    std::map<std::string, uint32_t> elsewhere;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t bit = uint32_t{1} << lane;
        if ((simdgroup.all & ~mask & bit) == 0) continue;
        const Request& other = simdgroup.requests[lane];
        elsewhere[(simdgroup.live & bit) == 0
                      ? "have returned from the kernel"
                      : "wait at " + std::string(other.what) + " at line " + std::to_string(other.line)] |= bit;
    }
    std::string text = "divergence: " + std::string(request.what) + " at line " + std::to_string(request.line) +
                       " is reached by lanes " + describe_lanes(mask) + " of simdgroup " + std::to_string(index) +
                       " of threadgroup " + describe(group.position) + " only";
    for (const auto& [where, lanes] : elsewhere) text += "; lanes " + describe_lanes(lanes) + " " + where;
    findings_.add("divergent collective", static_cast<uint64_t>(request.line), 0, text);
}

void Checker::complete_barrier(const Threadgroup& group) {
    uint32_t memory_flags = ~uint32_t{0};
    std::map<int, uint32_t> lines;  // and the first thread that waits there
    for (uint32_t thread = 0; thread < group.threads; ++thread) {
        const Request& request = group.simdgroup[thread / kLanes].requests[thread % kLanes];
        memory_flags &= request.memory_flags;
        lines.emplace(request.line, thread);
    }
    epochs_.advance(memory_flags);
    if (lines.size() == 1) return;
    std::string text =
        "divergence: the threads of threadgroup " + describe(group.position) + " meet at different barriers:";
    for (const auto& entry : lines) {
        const int line = entry.first;
        text += std::string(line == lines.begin()->first ? "" : ",") + " threads " +
                describe_members(group.threads,
                                 [&](uint32_t thread) {
                                     return group.simdgroup[thread / kLanes].requests[thread % kLanes].line == line;
                                 }) +
                " at line " + std::to_string(line);
    }
    findings_.add("divergent barrier", static_cast<uint64_t>(lines.begin()->first),
                  static_cast<uint64_t>(lines.rbegin()->first), text);
}

Stamp Checker::stamp(const Thread& thread, Access kind, const void* pc, uint32_t Epochs::* memory) const {
    return {place(pc),
            threadgroup_index_,
            epochs_.*memory,
            simdgroup_epochs_[thread.simdgroup].*memory,
            static_cast<uint16_t>(thread.thread_index),
            static_cast<uint16_t>(kind)};
}

void Checker::judge_conflict(const std::string& memory, const char* flag, const Shadow::Conflict& conflict,
                             const Stamp& later, const char* address, uint32_t bytes) {
    const Stamp& earlier = conflict.earlier;
    const auto describe_access = [&](const Stamp& stamp) {
        return std::string(verb(static_cast<Access>(stamp.kind))) + " by thread " +
               describe(unravel(stamp.thread, group_size_)) + " of threadgroup " +
               describe(unravel(stamp.threadgroup, threadgroups_)) + " at " + describe_place(stamp.pc);
    };
    std::string text =
        "data race: " + describe_range(conflict.offset, conflict.bytes) + " of " + memory + ", " +
        describe_access(later) + " and " + describe_access(earlier) +
        (earlier.threadgroup == later.threadgroup ? std::string(" with no barrier with ") + flag + " between them"
                                                  : std::string(", and nothing orders threadgroups"));
    const auto is_write = [](const Stamp& stamp) { return stamp.kind == static_cast<uint16_t>(Access::write); };
    if (is_write(earlier) && is_write(later) && earlier.pc == later.pc && earlier.same_simdgroup(later)) {
        rewrite_ = Rewrite{address, std::string(address, bytes), std::move(text), later.pc};
        return;
    }
    findings_.add("race", std::min(earlier.pc, later.pc), std::max(earlier.pc, later.pc), text);
}

void Checker::settle() {
    if (!rewrite_) return;
    if (rewrite_->before.compare(0, std::string::npos, rewrite_->address, rewrite_->before.size()) != 0) {
        findings_.add("race", rewrite_->place, rewrite_->place, rewrite_->text);
    }
    rewrite_.reset();
}

std::optional<std::string> Checker::access_threadgroup(const Thread& thread, const Threadgroup& group,
                                                       std::size_t offset, uint32_t bytes, Access kind,
                                                       const void* pc) {
    const ThreadgroupArray* nearest = nullptr;
    const auto distance = [&](const ThreadgroupArray& array) {
        const std::size_t end = array.offset + array.bytes;
        return offset < array.offset ? array.offset - offset : offset >= end ? offset - end : 0;
    };
    for (uint32_t i = 0; i < group.array_count; ++i) {
        const ThreadgroupArray& array = group.arrays[i];
        if (nearest == nullptr || distance(array) < distance(*nearest)) nearest = &array;
    }
    if (nearest == nullptr) return "out of bounds: access to threadgroup memory of which none is declared";
    const auto name = [&] {
        return "threadgroup array '" + std::string(nearest->name) + "' (line " + std::to_string(nearest->line) + ")";
    };
    const auto relative = static_cast<std::ptrdiff_t>(offset) - static_cast<std::ptrdiff_t>(nearest->offset);
    if (relative < 0 || relative + static_cast<std::ptrdiff_t>(bytes) > static_cast<std::ptrdiff_t>(nearest->bytes)) {
        return std::string("out of bounds: ") + verb(kind) + " of " +
               describe_outside(relative, bytes, nearest->bytes) + " " + name() + ", " +
               std::to_string(nearest->bytes) + " bytes long, by " + describe_thread(thread) + " at " +
               describe_place(place(pc));
    }

    const auto index = static_cast<std::size_t>(nearest - group.arrays.data());
    while (threadgroup_shadows_.size() <= index) {
        threadgroup_shadows_.push_back(
            std::make_unique<Shadow>(group.arrays[threadgroup_shadows_.size()].bytes, kThreadgroupElement));
    }
    Shadow& shadow = *threadgroup_shadows_[index];
    const auto begin = static_cast<std::size_t>(relative);
    const Stamp now = stamp(thread, kind, pc, &Epochs::threadgroup);
    if (kind != Access::write) {
        if (const auto first = shadow.unwritten(begin, bytes)) {
            findings_.add("uninitialised", now.pc, 0,
                          "uninitialised: " + std::string(verb(kind)) + " of " + describe_range(begin, bytes) + " of " +
                              name() + ", of which byte " + std::to_string(*first) +
                              " was not written by any thread of the threadgroup, by " + describe_thread(thread) +
                              " at " + describe_place(now.pc));
        }
    }
    if (const auto conflict = shadow.access(begin, bytes, kind, now)) {
        judge_conflict(name(), "mem_threadgroup", *conflict, now, group.arena + offset, bytes);
    }
    return std::nullopt;
}

// The region that holds all of an access, or the number of regions when none does. Most accesses are to the same one
// as the last.
std::size_t Checker::region_of(const char* address, uint32_t bytes) {
    const std::vector<Region>& regions = memory_.regions();
    if (last_region_ < regions.size() && regions[last_region_].contains(address, bytes)) return last_region_;
    for (std::size_t index = 0; index < regions.size(); ++index) {
        if (regions[index].contains(address, bytes)) return last_region_ = index;
    }
    return regions.size();
}

// Whether an address is of the kernel library itself or of what the executor provides for its code.
bool Checker::is_service_memory(const Thread& thread, const Threadgroup& group, const char* address) const {
    const auto within = [&](const void* begin, std::size_t bytes) {
        return address >= static_cast<const char*>(begin) && address < static_cast<const char*>(begin) + bytes;
    };
    return within(reinterpret_cast<const void*>(library_.begin), library_.end - library_.begin) ||
           within(group.logs_begin, static_cast<std::size_t>(group.logs_end - group.logs_begin)) ||
           within(group.launch->buffers, kMaxBuffers * sizeof(void*)) || within(thread.api, sizeof(Api));
}

std::optional<std::string> Checker::access(const Thread& thread, const Threadgroup& group, const void* address,
                                           uint32_t bytes, Access kind, const void* pc) {
    settle();
    const auto* const byte = static_cast<const char*>(address);
    if (byte >= group.arena && byte < group.arena + Threadgroup::kArenaBytes) {
        return access_threadgroup(thread, group, static_cast<std::size_t>(byte - group.arena), bytes, kind, pc);
    }

    const std::size_t index = region_of(byte, bytes);
    if (index < memory_.regions().size()) {
        const Region& region = memory_.regions()[index];
        if (!region.owns(byte, bytes)) {
            return std::string("out of bounds: ") + verb(kind) + " of " +
                   describe_range(static_cast<std::size_t>(byte - region.begin()), bytes) +
                   ", which lie between the elements of " + region.name() + ", by " + describe_thread(thread) + " at " +
                   describe_place(place(pc));
        }
        if (region.is_constant() && kind == Access::read) return std::nullopt;
        const Stamp now = stamp(thread, kind, pc, &Epochs::device);
        const auto conflict =
            device_shadows_[index]->access(static_cast<std::size_t>(byte - region.begin()), bytes, kind, now);
        if (conflict) judge_conflict(region.name(), "mem_device", *conflict, now, byte, bytes);
        return std::nullopt;
    }
    if (combining_ || is_service_memory(thread, group, byte)) return std::nullopt;
    for (const Region& region : memory_.regions()) {
        if (region.is_nearest(byte)) {
            return std::string("out of bounds: ") + verb(kind) + " of " +
                   describe_outside(byte - region.begin(), bytes, region.bytes()) + " " + region.name() + ", " +
                   std::to_string(region.bytes()) + " bytes long, by " + describe_thread(thread) + " at " +
                   describe_place(place(pc));
        }
    }
    const char* const owner = byte >= group.stacks_begin && byte < group.stacks_end
                                  ? " of another thread's private memory by "
                                  : " through a pointer that leads to no memory of the kernel by ";
    return std::string("out of bounds: ") + verb(kind) + " of " + std::to_string(bytes) + " bytes" + owner +
           describe_thread(thread) + " at " + describe_place(place(pc));
}

std::string Checker::describe_private(const Thread& thread, int64_t index, const char* type, const void* pc) {
    return "out of bounds: index " + std::to_string(index) + " of an array of type " + type + " by " +
           describe_thread(thread) + " at " + describe_place(place(pc));
}

}  // namespace simt
