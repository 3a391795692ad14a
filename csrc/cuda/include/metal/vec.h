// Vectors of 2, 3 and 4 elements. A swizzle of several components is a call here: the translator writes
// v.template swizzle<0, 2>() for v.xz, and swizzle_target where the swizzle is assigned to.
#pragma once

#include "scalar.h"

namespace metal_text {
namespace metal {

template <class T, int N>
struct vec;
template <class T, int N>
struct packed_vec;
template <class T>
struct is_vec : false_type {};
template <class T, int N>
struct is_vec<vec<T, N>> : true_type {};
template <class T, int N>
struct is_vec<packed_vec<T, N>> : true_type {};
template <class T>
constexpr bool is_vec_v = is_vec<remove_cv_t<T>>::value;

}  // namespace metal
}  // namespace metal_text

namespace simt {

// The vector of f(0) ... f(N - 1).
template <int N, class F>
SIMT_INLINE auto generate(F f) {
    metal::vec<decltype(f(0)), N> result;
#pragma unroll
    for (int i = 0; i < N; ++i) result.data[i] = f(i);
    return result;
}

// What v.xz = ... assigns to: components I... of a vector.
template <class V, int... I>
struct SwizzleTarget {
    using Value = metal::vec<typename V::element, sizeof...(I)>;
    V& vector;

    SIMT_INLINE operator Value() const { return Value(vector.data[I]...); }
    SIMT_INLINE Value operator=(Value value) {
        int next = 0;
        ((vector.data[I] = value.data[next++]), ...);
        return value;
    }
#define SIMT_COMPOUND(op)                         \
    template <class U>                            \
    SIMT_INLINE Value operator op## = (U value) { \
        return *this = Value(*this) op value;     \
    }
    SIMT_COMPOUND(+)
    SIMT_COMPOUND(-)
    SIMT_COMPOUND(*)
    SIMT_COMPOUND(/)
#undef SIMT_COMPOUND
};

// Components by name and by index, aligned to kAlignment elements.
template <class T, int N, int kAlignment>
struct Components;
#define SIMT_LIST(...) __VA_ARGS__
#define SIMT_COMPONENTS(N, names, colours)                                \
    template <class T, int kAlignment>                                    \
    struct alignas(kAlignment * sizeof(T)) Components<T, N, kAlignment> { \
        union {                                                           \
            T data[N];                                                    \
            struct {                                                      \
                T names;                                                  \
            };                                                            \
            struct {                                                      \
                T colours;                                                \
            };                                                            \
        };                                                                \
        Components() = default;                                           \
    };
SIMT_COMPONENTS(2, SIMT_LIST(x, y), SIMT_LIST(r, g))
SIMT_COMPONENTS(3, SIMT_LIST(x, y, z), SIMT_LIST(r, g, b))
SIMT_COMPONENTS(4, SIMT_LIST(x, y, z, w), SIMT_LIST(r, g, b, a))
#undef SIMT_LIST
#undef SIMT_COMPONENTS

}  // namespace simt

namespace metal_text {
namespace metal {

// What vec and packed_vec share.
#define SIMT_VECTOR_MEMBERS(V)                                                                           \
    using element = T;                                                                                   \
    static constexpr int width_of_vector = N;                                                            \
    V() = default;                                                                                       \
    /* All elements alike. */                                                                            \
    template <class U, enable_if_t<is_arithmetic_v<U>, int> = 0>                                         \
    SIMT_INLINE V(U value) {                                                                             \
        for (int i = 0; i < N; ++i) this->data[i] = static_cast<T>(value);                               \
    }                                                                                                    \
    /* From scalars and vectors that have N elements together; what a list leaves out is 0. */           \
    template <class A, class B, class... Rest>                                                           \
    SIMT_INLINE V(A a, B b, Rest... rest) {                                                              \
        int next = 0;                                                                                    \
        append(next, a);                                                                                 \
        append(next, b);                                                                                 \
        (append(next, rest), ...);                                                                       \
        for (; next < N; ++next) this->data[next] = T(0);                                                \
    }                                                                                                    \
    SIMT_INLINE const T& operator[](int i) const { return this->data[i]; }                               \
    SIMT_INLINE T& operator[](int i) { return this->data[i]; }                                           \
    template <int... I>                                                                                  \
    SIMT_INLINE vec<T, sizeof...(I)> swizzle() const {                                                   \
        return vec<T, sizeof...(I)>(this->data[I]...);                                                   \
    }                                                                                                    \
    template <int... I>                                                                                  \
    SIMT_INLINE simt::SwizzleTarget<V, I...> swizzle_target() {                                          \
        return {*this};                                                                                  \
    }                                                                                                    \
                                                                                                         \
  private:                                                                                               \
    template <class A>                                                                                   \
    SIMT_INLINE void append(int& next, const A& a) {                                                     \
        if constexpr (is_vec_v<A>) {                                                                     \
            for (int i = 0; i < A::width_of_vector; ++i) this->data[next++] = static_cast<T>(a.data[i]); \
        } else {                                                                                         \
            this->data[next++] = static_cast<T>(a);                                                      \
        }                                                                                                \
    }                                                                                                    \
                                                                                                         \
  public:

template <class T, int N>
struct vec : simt::Components<T, N, N == 2 ? 2 : 4> {
    SIMT_VECTOR_MEMBERS(vec)
    template <class U, enable_if_t<!is_same_v<T, U>, int> = 0>
    SIMT_INLINE explicit vec(vec<U, N> other) {
        for (int i = 0; i < N; ++i) this->data[i] = static_cast<T>(other.data[i]);
    }
    SIMT_INLINE vec(packed_vec<T, N> other) {
        for (int i = 0; i < N; ++i) this->data[i] = other.data[i];
    }
#define SIMT_COMPOUND(op)                               \
    template <class U>                                  \
    SIMT_INLINE vec& operator op## = (const U& other) { \
        return *this = *this op other;                  \
    }
    SIMT_COMPOUND(+)
    SIMT_COMPOUND(-)
    SIMT_COMPOUND(*)
    SIMT_COMPOUND(/)
    SIMT_COMPOUND(%)
    SIMT_COMPOUND(&)
    SIMT_COMPOUND(|)
    SIMT_COMPOUND(^)
    SIMT_COMPOUND(<<)
    SIMT_COMPOUND(>>)
#undef SIMT_COMPOUND
};

// A vector without padding, aligned like its elements. It computes as a vector.
template <class T, int N>
struct packed_vec : simt::Components<T, N, 1> {
    SIMT_VECTOR_MEMBERS(packed_vec)
    SIMT_INLINE packed_vec(vec<T, N> value) {
        for (int i = 0; i < N; ++i) this->data[i] = value.data[i];
    }
};
#undef SIMT_VECTOR_MEMBERS

// Metal converts the scalar operand to the vector's elements.
#define SIMT_BINARY(op, Result)                                                                               \
    template <class T, int N>                                                                                 \
    SIMT_INLINE auto operator op(vec<T, N> a, vec<T, N> b) {                                                  \
        return simt::generate<N>([&](int i) { return static_cast<Result>(a.data[i] op b.data[i]); });         \
    }                                                                                                         \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                              \
    SIMT_INLINE auto operator op(vec<T, N> a, S b) {                                                          \
        return simt::generate<N>([&](int i) { return static_cast<Result>(a.data[i] op static_cast<T>(b)); }); \
    }                                                                                                         \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                              \
    SIMT_INLINE auto operator op(S a, vec<T, N> b) {                                                          \
        return simt::generate<N>([&](int i) { return static_cast<Result>(static_cast<T>(a) op b.data[i]); }); \
    }
SIMT_BINARY(+, T)
SIMT_BINARY(-, T)
SIMT_BINARY(*, T)
SIMT_BINARY(/, T)
SIMT_BINARY(%, T)
SIMT_BINARY(&, T)
SIMT_BINARY(|, T)
SIMT_BINARY(^, T)
SIMT_BINARY(<<, T)
SIMT_BINARY(>>, T)
SIMT_BINARY(==, bool)
SIMT_BINARY(!=, bool)
SIMT_BINARY(<, bool)
SIMT_BINARY(<=, bool)
SIMT_BINARY(>, bool)
SIMT_BINARY(>=, bool)
SIMT_BINARY(&&, bool)
SIMT_BINARY(||, bool)
#undef SIMT_BINARY

#define SIMT_UNARY(op)                                                                 \
    template <class T, int N>                                                          \
    SIMT_INLINE vec<T, N> operator op(vec<T, N> a) {                                   \
        return simt::generate<N>([&](int i) { return static_cast<T>(op a.data[i]); }); \
    }
SIMT_UNARY(+)
SIMT_UNARY(-)
SIMT_UNARY(~)
SIMT_UNARY(!)
#undef SIMT_UNARY

}  // namespace metal

#define SIMT_NAME_VECTORS(T)                       \
    using T##2 = metal::vec<T, 2>;                 \
    using T##3 = metal::vec<T, 3>;                 \
    using T##4 = metal::vec<T, 4>;                 \
    using packed_##T##2 = metal::packed_vec<T, 2>; \
    using packed_##T##3 = metal::packed_vec<T, 3>; \
    using packed_##T##4 = metal::packed_vec<T, 4>;
SIMT_NAME_VECTORS(bool)
SIMT_NAME_VECTORS(char)
SIMT_NAME_VECTORS(uchar)
SIMT_NAME_VECTORS(short)
SIMT_NAME_VECTORS(ushort)
SIMT_NAME_VECTORS(int)
SIMT_NAME_VECTORS(uint)
SIMT_NAME_VECTORS(long)
SIMT_NAME_VECTORS(ulong)
SIMT_NAME_VECTORS(half)
SIMT_NAME_VECTORS(bfloat)
SIMT_NAME_VECTORS(float)
SIMT_NAME_VECTORS(double)
#undef SIMT_NAME_VECTORS

}  // namespace metal_text
