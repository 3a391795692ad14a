// 8 x 8 matrices whose elements the lanes of a simdgroup share out among themselves.
#pragma once

#include "products.h"
#include "vec.h"

namespace metal {

template <class T, int Cols, int Rows = Cols>
struct simdgroup_matrix;

// Two adjacent elements a lane. `chain` is set while products into this matrix wait in the log: then `elements` is
// what they are added to.
template <class T>
struct simdgroup_matrix<T, 8, 8> {
    using element_type = T;
    vec<T, 2> elements;
    simt::Product* chain = nullptr;

    SIMT_INLINE simdgroup_matrix() {}
    // A diagonal of `value`.
    SIMT_INLINE explicit simdgroup_matrix(T value) {
        const uint32_t position = simt::lane_position(simt::self()->lane);
        const uint32_t row = position / 8, column = position % 8;
        elements = vec<T, 2>(row == column ? value : T(0), row == column + 1 ? value : T(0));
    }
    SIMT_INLINE explicit simdgroup_matrix(vec<T, 2> own) : elements(own) {}
    SIMT_INLINE simdgroup_matrix(const simdgroup_matrix& other) : elements(other.settled()) {}
    SIMT_INLINE simdgroup_matrix& operator=(const simdgroup_matrix& other) {
        const vec<T, 2> value = other.settled();
        settle();
        elements = value;
        return *this;
    }
    SIMT_INLINE ~simdgroup_matrix() { settle(); }

    SIMT_INLINE vec<T, 2>& thread_elements() {
        settle();
        return elements;
    }
    SIMT_INLINE const vec<T, 2>& thread_elements() const { return settled(); }

    // The elements once no product into this matrix waits any more.
    SIMT_INLINE void settle() const {
        if (__builtin_expect(chain != nullptr, 0)) simt::wait_for_products();
    }
    SIMT_INLINE const vec<T, 2>& settled() const {
        settle();
        return elements;
    }
};

using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;
using simdgroup_double8x8 = simdgroup_matrix<double, 8, 8>;

}  // namespace metal

namespace simt {

template <class T>
using Matrix = metal::simdgroup_matrix<T, 8, 8>;

// Eight of a type, as the compiler's vector: one row of a matrix.
template <class T>
struct RowOf;
template <>
struct RowOf<float> {
    typedef float type __attribute__((vector_size(32)));
};
template <>
struct RowOf<double> {
    typedef double type __attribute__((vector_size(64)));
};
template <>
struct RowOf<uint16_t> {
    typedef uint16_t type __attribute__((vector_size(16)));
};
template <>
struct RowOf<uint32_t> {
    typedef uint32_t type __attribute__((vector_size(32)));
};
template <class T>
using row_t = typename RowOf<T>::type;

template <class D, class A, class B>
struct ProductOf {
    using Sum = wide_t<D>;
    static_assert(sizeof(Sum) >= sizeof(wide_t<A>) && sizeof(Sum) >= sizeof(wide_t<B>),
                  "the result of a matrix product must be as wide as its operands");

    static SIMT_UNCHECKED void load(Product& chain, uint32_t lane) {
        const auto& own = static_cast<const Matrix<D>*>(chain.result[lane])->elements;
        Sum* const sum = reinterpret_cast<Sum*>(chain.sum) + lane_position(lane);
        sum[0] = widen(own[0]);
        sum[1] = widen(own[1]);
    }

    static SIMT_UNCHECKED void store(Product& chain, uint32_t lane) {
        auto& matrix = *static_cast<Matrix<D>*>(chain.result[lane]);
        const Sum* const sum = reinterpret_cast<const Sum*>(chain.sum) + lane_position(lane);
        matrix.elements[0] = narrow<D>(sum[0]);
        matrix.elements[1] = narrow<D>(sum[1]);
        matrix.chain = nullptr;
    }

    static SIMT_UNCHECKED void forget_operands(Product& product, uint32_t lane) {
        A* const left = reinterpret_cast<A*>(product.left) + lane_position(lane);
        B* const right = reinterpret_cast<B*>(product.right) + lane_position(lane);
        left[0] = left[1] = A(0);
        right[0] = right[1] = B(0);
    }

    // The elements of an operand, widened.
    template <class T>
    static SIMT_INLINE SIMT_UNCHECKED void widen_all(const char* from, Sum* to) {
        const T* const elements = reinterpret_cast<const T*>(from);
        for (int i = 0; i < kTileElements; ++i) to[i] = static_cast<Sum>(widen(elements[i]));
    }

    template <int kRows>
    static SIMT_INLINE SIMT_UNCHECKED void multiply_rows(Sum* sum, const Sum* left, const row_t<Sum>* right) {
        using Row = row_t<Sum>;
        Row* const sums = reinterpret_cast<Row*>(sum);
        Row row[kRows];
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) row[i] = sums[i];
#pragma GCC unroll 8
        for (int k = 0; k < kTile; ++k) {
            const Row b = right[k];
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) row[i] += left[i * kTile + k] * b;
        }
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) sums[i] = row[i];
    }

    template <int kRows>
    static SIMT_INLINE SIMT_UNCHECKED void multiply_with(Product& chain, const Product& product) {
        alignas(64) Sum wide_left[kTileElements], wide_right[kTileElements];
        const Sum* left = reinterpret_cast<const Sum*>(product.left);
        const Sum* right = reinterpret_cast<const Sum*>(product.right);
        if constexpr (!std::is_same_v<A, Sum>) widen_all<A>(product.left, wide_left), left = wide_left;
        if constexpr (!std::is_same_v<B, Sum>) widen_all<B>(product.right, wide_right), right = wide_right;
        Sum* const sum = reinterpret_cast<Sum*>(chain.sum);
        for (int row = 0; row < kTile; row += kRows) {
            multiply_rows<kRows>(sum + row * kTile, left + row * kTile, reinterpret_cast<const row_t<Sum>*>(right));
        }
        if constexpr (!std::is_same_v<D, Sum>) {
            for (int i = 0; i < kTileElements; ++i) sum[i] = widen(narrow<D>(sum[i]));
        }
    }

    static SIMT_UNCHECKED void multiply(Product& chain, const Product& product) {
        multiply_with<sizeof(Sum) == 4 ? 4 : 2>(chain, product);
    }

    static constexpr ProductKind kind{load, multiply, store, forget_operands};
};

// Notes d += a b; with another matrix than d to be added to, d holds a copy of it already.
template <class D, class A, class B>
SIMT_INLINE void defer_product(Matrix<D>& d, const Matrix<A>& a, const Matrix<B>& b, int line) {
    Thread* const thread = self();
    const auto left = a.settled();
    const auto right = b.settled();
    Product* const product = reinterpret_cast<Product*>(thread->deferred_end);
    const uint32_t position = lane_position(thread->lane);
    product->kind = &ProductOf<D, A, B>::kind;
    product->line = line;
    *reinterpret_cast<metal::vec<A, 2>*>(reinterpret_cast<A*>(product->left) + position) = left;
    *reinterpret_cast<metal::vec<B, 2>*>(reinterpret_cast<B*>(product->right) + position) = right;
    if (d.chain == nullptr) {
        d.chain = product;
        product->result[thread->lane] = &d;
    }
    product->chain = d.chain;
    thread->deferred_end = reinterpret_cast<char*>(product + 1);
#if !defined(SIMT_EAGER)
    if (__builtin_expect(thread->deferred_end == log_begin(thread) + kLogBytes, 0))
#endif
        wait_for_products();
}

}  // namespace simt

namespace metal {

template <class T, int Cols, int Rows>
SIMT_INLINE simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T value) {
    return simdgroup_matrix<T, Cols, Rows>(vec<T, 2>(value));
}
template <class T, int Cols, int Rows>
SIMT_INLINE simdgroup_matrix<T, Cols, Rows> make_diagonal_simdgroup_matrix(T value) {
    return simdgroup_matrix<T, Cols, Rows>(value);
}

// Row r, column c of the matrix is at (origin.y + r) * elements_per_row + origin.x + c; transposed, at
// (origin.y + c) * elements_per_row + origin.x + r. Each lane touches its own two elements.
template <class T>
SIMT_INLINE void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const T* source, ulong elements_per_row = 8,
                                ulong2 origin = 0, bool transpose = false) {
    const uint32_t position = simt::lane_position(simt::self()->lane);
    const ulong row = position / 8, column = position % 8;
    source += origin.y * elements_per_row + origin.x;
    d.settle();
    if (transpose) {
        d.elements.x = source[column * elements_per_row + row];
        d.elements.y = source[(column + 1) * elements_per_row + row];
    } else {
        d.elements.x = source[row * elements_per_row + column];
        d.elements.y = source[row * elements_per_row + column + 1];
    }
}
template <class T>
SIMT_INLINE void simdgroup_store(const simdgroup_matrix<T, 8, 8>& a, T* target, ulong elements_per_row = 8,
                                 ulong2 origin = 0, bool transpose = false) {
    const uint32_t position = simt::lane_position(simt::self()->lane);
    const ulong row = position / 8, column = position % 8;
    target += origin.y * elements_per_row + origin.x;
    const vec<T, 2> own = a.settled();
    if (transpose) {
        target[column * elements_per_row + row] = own.x;
        target[(column + 1) * elements_per_row + row] = own.y;
    } else {
        target[row * elements_per_row + column] = own.x;
        target[row * elements_per_row + column + 1] = own.y;
    }
}

// d = a b + c
template <class D, class A, class B, class C>
SIMT_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                               const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c,
                                               int line = __builtin_LINE()) {
    if constexpr (is_same_v<C, D>) {
        if (&c == &d && static_cast<const void*>(&a) != &d && static_cast<const void*>(&b) != &d) {
            simt::defer_product(d, a, b, line);
            return;
        }
    }
    const simdgroup_matrix<A, 8, 8> left = a;
    const simdgroup_matrix<B, 8, 8> right = b;
    const vec<D, 2> addend(c.settled());
    d.settle();
    d.elements = addend;
    simt::defer_product(d, left, right, line);
}

// d = a b
template <class D, class A, class B>
SIMT_INLINE void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                    const simdgroup_matrix<B, 8, 8>& b, int line = __builtin_LINE()) {
    const simdgroup_matrix<A, 8, 8> left = a;
    const simdgroup_matrix<B, 8, 8> right = b;
    d.settle();
    d.elements = vec<D, 2>(0);
    simt::defer_product(d, left, right, line);
}

template <class T>
SIMT_INLINE simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
    simdgroup_matrix<T, 8, 8> result;
    simdgroup_multiply(result, a, b);
    return result;
}
template <class T>
SIMT_INLINE simdgroup_matrix<T, 8, 8> operator+(const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
    return simdgroup_matrix<T, 8, 8>(a.settled() + b.settled());
}
template <class T>
SIMT_INLINE simdgroup_matrix<T, 8, 8> operator-(const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
    return simdgroup_matrix<T, 8, 8>(a.settled() - b.settled());
}

}  // namespace metal
