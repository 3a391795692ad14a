// metal::array.
#pragma once

#include "traits.h"

namespace metal {

template <class T, size_t N>
struct array {
    T elements[N];

    SIMT_INLINE constexpr const T& operator[](size_t i) const { return elements[i]; }
    SIMT_INLINE constexpr T& operator[](size_t i) { return elements[i]; }
    SIMT_INLINE constexpr T* data() { return elements; }
    SIMT_INLINE constexpr const T* data() const { return elements; }
    SIMT_INLINE constexpr T* begin() { return elements; }
    SIMT_INLINE constexpr const T* begin() const { return elements; }
    SIMT_INLINE constexpr T* end() { return elements + N; }
    SIMT_INLINE constexpr const T* end() const { return elements + N; }
    SIMT_INLINE constexpr T& front() { return elements[0]; }
    SIMT_INLINE constexpr T& back() { return elements[N - 1]; }
    static constexpr size_t size() { return N; }
    static constexpr bool empty() { return N == 0; }
    static constexpr size_t max_size() { return N; }
    SIMT_INLINE constexpr void fill(const T& value) {
        for (T& element : elements) element = value;
    }
};

}  // namespace metal
