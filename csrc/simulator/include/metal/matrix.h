// Matrices of one thread, stored by columns.
#pragma once

#include "geometric.h"

namespace metal {

template <class T, int Cols, int Rows>
struct matrix {
    vec<T, Rows> columns[Cols];

    matrix() = default;
    // A diagonal of `value`.
    SIMT_INLINE explicit matrix(T value) {
        for (int c = 0; c < Cols; ++c) {
            for (int r = 0; r < Rows; ++r) columns[c][r] = r == c ? value : T(0);
        }
    }
    template <class... A, enable_if_t<sizeof...(A) == Cols && (is_vec_v<A> && ...), int> = 0>
    SIMT_INLINE matrix(A... column) : columns{column...} {}
    template <class... A, enable_if_t<sizeof...(A) == Cols * Rows && (is_arithmetic_v<A> && ...), int> = 0>
    SIMT_INLINE matrix(A... element) {
        const T elements[] = {static_cast<T>(element)...};
        for (int c = 0; c < Cols; ++c) {
            for (int r = 0; r < Rows; ++r) columns[c][r] = elements[c * Rows + r];
        }
    }
    SIMT_INLINE vec<T, Rows>& operator[](int column) { return columns[column]; }
    SIMT_INLINE const vec<T, Rows>& operator[](int column) const { return columns[column]; }
};

template <class T, int Cols, int Rows>
SIMT_INLINE matrix<T, Cols, Rows> operator+(const matrix<T, Cols, Rows>& a, const matrix<T, Cols, Rows>& b) {
    matrix<T, Cols, Rows> result;
    for (int c = 0; c < Cols; ++c) result[c] = a[c] + b[c];
    return result;
}
template <class T, int Cols, int Rows>
SIMT_INLINE matrix<T, Cols, Rows> operator-(const matrix<T, Cols, Rows>& a, const matrix<T, Cols, Rows>& b) {
    matrix<T, Cols, Rows> result;
    for (int c = 0; c < Cols; ++c) result[c] = a[c] - b[c];
    return result;
}
template <class T, int Cols, int Rows>
SIMT_INLINE matrix<T, Cols, Rows> operator*(const matrix<T, Cols, Rows>& a, T b) {
    matrix<T, Cols, Rows> result;
    for (int c = 0; c < Cols; ++c) result[c] = a[c] * b;
    return result;
}
template <class T, int Cols, int Rows>
SIMT_INLINE matrix<T, Cols, Rows> operator*(T a, const matrix<T, Cols, Rows>& b) {
    return b * a;
}
template <class T, int Cols, int Rows>
SIMT_INLINE vec<T, Rows> operator*(const matrix<T, Cols, Rows>& a, vec<T, Cols> b) {
    vec<T, Rows> result = a[0] * b[0];
    for (int c = 1; c < Cols; ++c) result += a[c] * b[c];
    return result;
}
template <class T, int Cols, int Rows>
SIMT_INLINE vec<T, Cols> operator*(vec<T, Rows> a, const matrix<T, Cols, Rows>& b) {
    return simt::generate<Cols>([&](int c) { return dot(a, b[c]); });
}
template <class T, int K, int Rows, int Cols>
SIMT_INLINE matrix<T, Cols, Rows> operator*(const matrix<T, K, Rows>& a, const matrix<T, Cols, K>& b) {
    matrix<T, Cols, Rows> result;
    for (int c = 0; c < Cols; ++c) result[c] = a * b[c];
    return result;
}
template <class T, int Cols, int Rows>
SIMT_INLINE matrix<T, Rows, Cols> transpose(const matrix<T, Cols, Rows>& a) {
    matrix<T, Rows, Cols> result;
    for (int c = 0; c < Cols; ++c) {
        for (int r = 0; r < Rows; ++r) result[r][c] = a[c][r];
    }
    return result;
}

}  // namespace metal

#define SIMT_NAME_MATRICES(T)              \
    using T##2x2 = metal::matrix<T, 2, 2>; \
    using T##2x3 = metal::matrix<T, 2, 3>; \
    using T##2x4 = metal::matrix<T, 2, 4>; \
    using T##3x2 = metal::matrix<T, 3, 2>; \
    using T##3x3 = metal::matrix<T, 3, 3>; \
    using T##3x4 = metal::matrix<T, 3, 4>; \
    using T##4x2 = metal::matrix<T, 4, 2>; \
    using T##4x3 = metal::matrix<T, 4, 3>; \
    using T##4x4 = metal::matrix<T, 4, 4>; \
    namespace metal {                      \
    using ::T##2x2;                        \
    using ::T##2x3;                        \
    using ::T##2x4;                        \
    using ::T##3x2;                        \
    using ::T##3x3;                        \
    using ::T##3x4;                        \
    using ::T##4x2;                        \
    using ::T##4x3;                        \
    using ::T##4x4;                        \
    }
SIMT_NAME_MATRICES(float)
SIMT_NAME_MATRICES(half)
#undef SIMT_NAME_MATRICES
