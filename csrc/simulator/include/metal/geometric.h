// Geometric functions of vectors.
#pragma once

#include "math.h"

namespace metal {

template <class T, int N>
SIMT_INLINE constexpr T dot(vec<T, N> a, vec<T, N> b) {
    T sum = a[0] * b[0];
    for (int i = 1; i < N; ++i) sum += a[i] * b[i];
    return sum;
}
template <class T, int N>
SIMT_INLINE T length_squared(vec<T, N> a) {
    return dot(a, a);
}
template <class T, int N>
SIMT_INLINE T length(vec<T, N> a) {
    return sqrt(dot(a, a));
}
template <class T, int N>
SIMT_INLINE T distance(vec<T, N> a, vec<T, N> b) {
    return length(a - b);
}
template <class T, int N>
SIMT_INLINE T distance_squared(vec<T, N> a, vec<T, N> b) {
    return length_squared(a - b);
}
template <class T, int N>
SIMT_INLINE vec<T, N> normalize(vec<T, N> a) {
    return a * rsqrt(dot(a, a));
}
template <class T>
SIMT_INLINE vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
    return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

}  // namespace metal
