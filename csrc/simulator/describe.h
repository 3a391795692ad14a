// Words for positions, threads and lanes.
#pragma once

#include <string>

#include "threadgroup.h"

namespace simt {

inline std::string describe(const Size& size) {
    return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

// "0-31, 40": the numbers below `count` for which `member` says yes.
template <class Member>
std::string describe_members(uint32_t count, Member member) {
    std::string text;
    for (uint32_t first = 0; first < count; ++first) {
        if (!member(first)) continue;
        uint32_t last = first;
        while (last + 1 < count && member(last + 1)) ++last;
        text += (text.empty() ? "" : ", ") + std::to_string(first);
        if (last != first) text += "-" + std::to_string(last);
        first = last;
    }
    return text;
}

inline std::string describe_lanes(uint32_t mask) {
    return describe_members(kLanes, [&](uint32_t lane) { return (mask >> lane & 1) != 0; });
}

}  // namespace simt
