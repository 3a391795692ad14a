// 8 x 8 matrices whose elements the lanes of a simdgroup share out among themselves.
#pragma once

#include "products.h"
#include "vec.h"

namespace metal {

template <class T, int Cols, int Rows = Cols>
struct simdgroup_matrix;

// Two adjacent elements a lane. While products into the matrix wait, `elements` is what they will be added to.
template <class T>
struct simdgroup_matrix<T, 8, 8> : simt::Waiting {
    using element_type = T;
    vec<T, 2> elements;

    SIMT_INLINE simdgroup_matrix() {}
    // A diagonal of `value`.
    SIMT_INLINE explicit simdgroup_matrix(T value) {
        const uint32_t row = simt::own_position() / 8, column = simt::own_position() % 8;
        elements = vec<T, 2>(row == column ? value : T(0), row == column + 1 ? value : T(0));
    }
    SIMT_INLINE explicit simdgroup_matrix(vec<T, 2> own) : elements(own) {}
    SIMT_INLINE simdgroup_matrix(const simdgroup_matrix& other) : simt::Waiting(), elements(other.settled()) {}
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

    // Until this returns, products into the matrix wait.
    SIMT_INLINE void settle() const {
        if (__builtin_expect(chain != 0, 0)) simt::wait_for_products();
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

// Eight of a type, one row of a matrix, as a vector of the compiler's.
template <class T>
struct RowOf {
    typedef T type __attribute__((vector_size(kTile * sizeof(T))));
};
template <class T>
using Row = typename RowOf<T>::type;

// Eight elements of an operand, in the type that they are computed in.
template <class T>
SIMT_INLINE Row<wide_t<T>> widen_row(const T* from) {
    using Wide = Row<wide_t<T>>;
    if constexpr (sizeof(T) != 2) {
        return *reinterpret_cast<const Wide*>(from);
    } else {
        using Bits = Row<int32_t>;
        const Bits bits = __builtin_convertvector(*reinterpret_cast<const Row<int16_t>*>(from), Bits);
        if constexpr (std::is_same_v<T, bfloat>) {
            return (Wide)(bits << 16);
        } else {
            // As HalfFormat::decode.
            const Bits magnitude = bits << 13 & 0x0fffe000;
            const Wide finite = (Wide)magnitude * float_from_bits(0x77800000);
            const Bits special = (magnitude >= 0x0f800000) & 0x7f800000;
            return (Wide)((Bits)finite | special | (bits & 0x8000) << 16);
        }
    }
}

template <class D, class A, class B>
struct ProductOf {
    using Sum = wide_t<D>;
    static_assert(sizeof(Sum) >= sizeof(wide_t<A>) && sizeof(Sum) >= sizeof(wide_t<B>),
                  "the result of a matrix product must be as wide as its operands");

    static SIMT_UNCHECKED void gather(Product& chain, uint32_t lanes) {
        for_each_lane(lanes, [&](uint32_t lane) SIMT_UNCHECKED {
            const auto& own = static_cast<const Matrix<D>*>(chain.result[lane])->elements;
            Sum* const sum = reinterpret_cast<Sum*>(chain.sum) + lane_position(lane);
            sum[0] = widen(own.x);
            sum[1] = widen(own.y);
        });
        if (~lanes != 0) {
            for_each_lane(~lanes, [&](uint32_t lane) SIMT_UNCHECKED { clear_elements<Sum>(chain.sum, lane); });
        }
    }

    static SIMT_UNCHECKED void scatter(Product& chain, uint32_t lanes) {
        for_each_lane(lanes, [&](uint32_t lane) SIMT_UNCHECKED {
            auto& own = static_cast<Matrix<D>*>(chain.result[lane])->elements;
            const Sum* const sum = reinterpret_cast<const Sum*>(chain.sum) + lane_position(lane);
            own.x = narrow<D>(sum[0]);
            own.y = narrow<D>(sum[1]);
        });
    }

    static SIMT_UNCHECKED void clear(Product& product, uint32_t lanes) {
        for_each_lane(lanes, [&](uint32_t lane) SIMT_UNCHECKED {
            clear_elements<A>(product.left, lane);
            clear_elements<B>(product.right, lane);
        });
    }
    template <class T>
    static SIMT_UNCHECKED void clear_elements(char* matrix, uint32_t lane) {
        T* const own = reinterpret_cast<T*>(matrix) + lane_position(lane);
        own[0] = own[1] = T(0);
    }

    // Sums over k in ascending order, kRows rows at a time: as many as the CPU has registers for.
    template <uint32_t kRows>
    static SIMT_INLINE SIMT_UNCHECKED void multiply_by(Product& chain, const Product& product) {
        alignas(64) Sum left[kTileElements];
        Row<Sum> right[kTile];
#pragma GCC unroll 8
        for (uint32_t i = 0; i < kTile; ++i) {
            *reinterpret_cast<Row<Sum>*>(left + i * kTile) =
                __builtin_convertvector(widen_row(reinterpret_cast<const A*>(product.left) + i * kTile), Row<Sum>);
            right[i] =
                __builtin_convertvector(widen_row(reinterpret_cast<const B*>(product.right) + i * kTile), Row<Sum>);
        }
        Row<Sum>* const sums = reinterpret_cast<Row<Sum>*>(chain.sum);
        for (uint32_t first = 0; first < kTile; first += kRows) {
            Row<Sum> row[kRows];
#pragma GCC unroll 8
            for (uint32_t i = 0; i < kRows; ++i) row[i] = sums[first + i];
#pragma GCC unroll 8
            for (uint32_t k = 0; k < kTile; ++k) {
#pragma GCC unroll 8
                for (uint32_t i = 0; i < kRows; ++i) row[i] += left[(first + i) * kTile + k] * right[k];
            }
#pragma GCC unroll 8
            for (uint32_t i = 0; i < kRows; ++i) sums[first + i] = row[i];
        }
        if constexpr (sizeof(D) == 2) {
            Sum* const sum = reinterpret_cast<Sum*>(chain.sum);
            for (uint32_t i = 0; i < kTileElements; ++i) sum[i] = widen(narrow<D>(sum[i]));
        }
    }

    static SIMT_UNCHECKED void multiply(Product& chain, const Product& product) {
        multiply_by<16 / sizeof(Sum)>(chain, product);
    }
#if defined(__x86_64__)
    __attribute__((target("avx2")))
#endif
    static SIMT_UNCHECKED void multiply_avx2(Product& chain, const Product& product) {
        multiply_by<32 / sizeof(Sum)>(chain, product);
    }

    static constexpr ProductKind kind{gather, scatter, multiply, multiply_avx2, clear};
};

// Notes d += a b.
template <class D, class A, class B>
SIMT_INLINE void defer_product(Matrix<D>& d, const Matrix<A>& a, const Matrix<B>& b, int line) {
    Thread* const thread = own_thread();
    const metal::vec<A, 2> left = a.settled();
    const metal::vec<B, 2> right = b.settled();
    const ProductKind* const kind = &ProductOf<D, A, B>::kind;
#if defined(SIMT_CHECKED)
    check_product(kind, d.chain, line);
#endif
    Product* const product = log_end(thread);
    *reinterpret_cast<metal::vec<A, 2>*>(reinterpret_cast<A*>(product->left) + own_position()) = left;
    *reinterpret_cast<metal::vec<B, 2>*>(reinterpret_cast<B*>(product->right) + own_position()) = right;
    if (d.chain == 0) {
        d.chain = log_size(thread) + 1;
        product->result[thread->lane] = &d;
    }
    product->line = line;
    product->kind = kind;
    product->chain = d.chain;
    thread->deferred_end = reinterpret_cast<char*>(product + 1);
#if !defined(SIMT_EAGER)
    if (__builtin_expect(thread->deferred_end == thread->deferred_limit, 0))
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
    const ulong row = simt::own_position() / 8, column = simt::own_position() % 8;
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
    const ulong row = simt::own_position() / 8, column = simt::own_position() % 8;
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
SIMT_INLINE simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8>& a,
                                                const simdgroup_matrix<T, 8, 8>& b) {
    simdgroup_matrix<T, 8, 8> result;
    simdgroup_multiply(result, a, b);
    return result;
}
template <class T>
SIMT_INLINE simdgroup_matrix<T, 8, 8> operator+(const simdgroup_matrix<T, 8, 8>& a,
                                                const simdgroup_matrix<T, 8, 8>& b) {
    return simdgroup_matrix<T, 8, 8>(a.settled() + b.settled());
}
template <class T>
SIMT_INLINE simdgroup_matrix<T, 8, 8> operator-(const simdgroup_matrix<T, 8, 8>& a,
                                                const simdgroup_matrix<T, 8, 8>& b) {
    return simdgroup_matrix<T, 8, 8>(a.settled() - b.settled());
}

}  // namespace metal
