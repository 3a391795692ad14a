// Vectors of 2, 3 and 4 elements. A swizzle of several components is a call here: the translator writes
// v.template swizzle<0, 2>() for v.xz, and swizzle_target where the swizzle is assigned to.
#pragma once

#include "traits.h"

namespace metal {

template <class T, int N>
struct vec;
template <class T, int N>
struct packed_vec;

template <class T>
struct is_vec : false_type {};
template <class T, int N>
struct is_vec<vec<T, N>> : true_type {};
template <class T>
inline constexpr bool is_vec_v = is_vec<T>::value;

}  // namespace metal

namespace simt {

// The vector of f(0) ... f(N - 1).
template <int N, class F>
SIMT_INLINE constexpr auto generate(F f) {
    using Result = metal::vec<decltype(f(0)), N>;
    if constexpr (N == 2) {
        return Result(f(0), f(1));
    } else if constexpr (N == 3) {
        return Result(f(0), f(1), f(2));
    } else {
        return Result(f(0), f(1), f(2), f(3));
    }
}

// What v.xz = ... assigns to: components I... of a vector.
template <class V, int... I>
struct SwizzleTarget {
    using Value = metal::vec<typename V::element, sizeof...(I)>;
    V& vector;

    SIMT_INLINE constexpr operator Value() const { return Value(vector[I]...); }
    SIMT_INLINE constexpr Value operator=(Value value) {
        int next = 0;
        ((vector[I] = value[next++]), ...);
        return value;
    }
#define SIMT_COMPOUND(op)                                   \
    template <class U>                                      \
    SIMT_INLINE constexpr Value operator op## = (U value) { \
        return *this = Value(*this) op value;               \
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

// Components by name and by index, aligned to kAlignment elements. There are 2, 3 or 4: what overload resolution looks
// at in passing, such as a vector of 8 for a kernel's own rotate<float, 8>, has no names.
template <class T, int N, int kAlignment>
struct Components {
    T data[N];
};

#define SIMT_LIST(...) __VA_ARGS__
#define SIMT_COMPONENTS(N, names, colours, initialiser, list)             \
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
        SIMT_INLINE constexpr Components list : initialiser {}            \
    };
SIMT_COMPONENTS(2, SIMT_LIST(x, y), SIMT_LIST(r, g), SIMT_LIST(x(a), y(b)), (T a, T b))
SIMT_COMPONENTS(3, SIMT_LIST(x, y, z), SIMT_LIST(r, g, b), SIMT_LIST(x(a), y(b), z(c)), (T a, T b, T c))
SIMT_COMPONENTS(4, SIMT_LIST(x, y, z, w), SIMT_LIST(r, g, b, a), SIMT_LIST(x(a), y(b), z(c), w(d)),
                (T a, T b, T c, T d))
#undef SIMT_LIST
#undef SIMT_COMPONENTS

}  // namespace simt

namespace metal {

template <class T, int N>
struct vec : simt::Components<T, N, N == 2 ? 2 : 4> {
    using element = T;
    using Base = simt::Components<T, N, N == 2 ? 2 : 4>;

    vec() = default;

    // All elements alike.
    template <class U, enable_if_t<is_arithmetic_v<U>, int> = 0>
    SIMT_INLINE constexpr vec(U value) : vec(simt::generate<N>([&](int) { return static_cast<T>(value); })) {}

    // Element by element, from scalars and vectors that have N elements together.
    template <class A, class B, class... Rest>
    SIMT_INLINE constexpr vec(A a, B b, Rest... rest) : Base(join(a, b, rest...)) {}

    template <class U, enable_if_t<!is_same_v<T, U>, int> = 0>
    SIMT_INLINE constexpr explicit vec(vec<U, N> other)
        : vec(simt::generate<N>([&](int i) { return static_cast<T>(other[i]); })) {}
    SIMT_INLINE constexpr vec(packed_vec<T, N> other) : vec(simt::generate<N>([&](int i) { return other[i]; })) {}

    // Written so that a constant index names a member, which a constant expression may read.
    SIMT_INLINE constexpr const T& operator[](int i) const {
        if (!__builtin_constant_p(i) && !__builtin_is_constant_evaluated()) return this->data[i];
        if (i == 0) return this->x;
        if constexpr (N > 2) {
            if (i == 2) return this->z;
        }
        if constexpr (N > 3) {
            if (i == 3) return this->w;
        }
        return this->y;
    }
    SIMT_INLINE constexpr T& operator[](int i) { return const_cast<T&>(static_cast<const vec&>(*this)[i]); }

    template <int... I>
    SIMT_INLINE constexpr vec<T, sizeof...(I)> swizzle() const {
        return vec<T, sizeof...(I)>((*this)[I]...);
    }
    template <int... I>
    SIMT_INLINE constexpr simt::SwizzleTarget<vec, I...> swizzle_target() {
        return {*this};
    }

  private:
    template <class A>
    static constexpr int width() {
        if constexpr (is_arithmetic_v<A>) {
            return 1;
        } else {
            return A::width_of_vector;
        }
    }
    template <class A>
    static SIMT_INLINE constexpr T pick(const A& a, int i) {
        if constexpr (is_arithmetic_v<A>) {
            return static_cast<T>(a);
        } else {
            return static_cast<T>(a[i]);
        }
    }
    static SIMT_INLINE constexpr T nth(int) { return T(0); }
    template <class A, class... Rest>
    static SIMT_INLINE constexpr T nth(int i, const A& a, const Rest&... rest) {
        return i < width<A>() ? pick(a, i) : nth(i - width<A>(), rest...);
    }
    // What a list in braces leaves out is 0.
    template <class... A>
    static SIMT_INLINE constexpr Base join(const A&... parts) {
        static_assert((width<A>() + ...) <= N, "the parts of a vector have more elements than the vector");
        if constexpr (N == 2) {
            return Base(nth(0, parts...), nth(1, parts...));
        } else if constexpr (N == 3) {
            return Base(nth(0, parts...), nth(1, parts...), nth(2, parts...));
        } else {
            return Base(nth(0, parts...), nth(1, parts...), nth(2, parts...), nth(3, parts...));
        }
    }

  public:
    static constexpr int width_of_vector = N;

#define SIMT_COMPOUND(op)                                         \
    template <class U>                                            \
    SIMT_INLINE constexpr vec& operator op## = (const U& other) { \
        return *this = *this op other;                            \
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
    SIMT_INLINE constexpr vec& operator++() { return *this = *this + T(1); }
    SIMT_INLINE constexpr vec& operator--() { return *this = *this - T(1); }
};

// A vector without padding, aligned like its elements. It computes as a vector.
template <class T, int N>
struct packed_vec : simt::Components<T, N, 1> {
    using element = T;
    static constexpr int width_of_vector = N;

    packed_vec() = default;
    SIMT_INLINE constexpr packed_vec(vec<T, N> value) {
        for (int i = 0; i < N; ++i) this->data[i] = value[i];
    }
    template <class... A, enable_if_t<(sizeof...(A) > 1), int> = 0>
    SIMT_INLINE constexpr packed_vec(A... parts) : packed_vec(vec<T, N>(parts...)) {}
    template <class U, enable_if_t<is_arithmetic_v<U>, int> = 0>
    SIMT_INLINE constexpr packed_vec(U value) : packed_vec(vec<T, N>(value)) {}

    SIMT_INLINE constexpr const T& operator[](int i) const { return this->data[i]; }
    SIMT_INLINE constexpr T& operator[](int i) { return this->data[i]; }
    template <int... I>
    SIMT_INLINE constexpr vec<T, sizeof...(I)> swizzle() const {
        return vec<T, sizeof...(I)>(this->data[I]...);
    }
    template <int... I>
    SIMT_INLINE constexpr simt::SwizzleTarget<packed_vec, I...> swizzle_target() {
        return {*this};
    }
};

// Metal converts the scalar operand to the vector's elements.
#define SIMT_BINARY(op)                                                                             \
    template <class T, int N>                                                                       \
    SIMT_INLINE constexpr auto operator op(vec<T, N> a, vec<T, N> b) {                              \
        return simt::generate<N>([&](int i) { return static_cast<T>(a[i] op b[i]); });              \
    }                                                                                               \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                    \
    SIMT_INLINE constexpr auto operator op(vec<T, N> a, S b) {                                      \
        return simt::generate<N>([&](int i) { return static_cast<T>(a[i] op static_cast<T>(b)); }); \
    }                                                                                               \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>                    \
    SIMT_INLINE constexpr auto operator op(S a, vec<T, N> b) {                                      \
        return simt::generate<N>([&](int i) { return static_cast<T>(static_cast<T>(a) op b[i]); }); \
    }
#define SIMT_PACKED(op)                                                                         \
    template <class T, int N, class U>                                                          \
    SIMT_INLINE constexpr auto operator op(packed_vec<T, N> a, U b) {                           \
        return vec<T, N>(a) op b;                                                               \
    }                                                                                           \
    template <class T, int N, class U, enable_if_t<is_arithmetic_v<U> || is_vec_v<U>, int> = 0> \
    SIMT_INLINE constexpr auto operator op(U a, packed_vec<T, N> b) {                           \
        return a op vec<T, N>(b);                                                               \
    }                                                                                           \
    template <class T, int N, class U>                                                          \
    SIMT_INLINE constexpr packed_vec<T, N>& operator op## = (packed_vec<T, N> & a, U b) {       \
        return a = vec<T, N>(a) op b;                                                           \
    }
SIMT_PACKED(+)
SIMT_PACKED(-)
SIMT_PACKED(*)
SIMT_PACKED(/)
#undef SIMT_PACKED

SIMT_BINARY(+)
SIMT_BINARY(-)
SIMT_BINARY(*)
SIMT_BINARY(/)
SIMT_BINARY(%)
SIMT_BINARY(&)
SIMT_BINARY(|)
SIMT_BINARY(^)
SIMT_BINARY(<<)
SIMT_BINARY(>>)
#undef SIMT_BINARY

#define SIMT_COMPARISON(op)                                                                 \
    template <class T, int N>                                                               \
    SIMT_INLINE constexpr vec<bool, N> operator op(vec<T, N> a, vec<T, N> b) {              \
        return simt::generate<N>([&](int i) -> bool { return a[i] op b[i]; });              \
    }                                                                                       \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>            \
    SIMT_INLINE constexpr vec<bool, N> operator op(vec<T, N> a, S b) {                      \
        return simt::generate<N>([&](int i) -> bool { return a[i] op static_cast<T>(b); }); \
    }                                                                                       \
    template <class T, int N, class S, enable_if_t<is_arithmetic_v<S>, int> = 0>            \
    SIMT_INLINE constexpr vec<bool, N> operator op(S a, vec<T, N> b) {                      \
        return simt::generate<N>([&](int i) -> bool { return static_cast<T>(a) op b[i]; }); \
    }
SIMT_COMPARISON(==)
SIMT_COMPARISON(!=)
SIMT_COMPARISON(<)
SIMT_COMPARISON(<=)
SIMT_COMPARISON(>)
SIMT_COMPARISON(>=)
SIMT_COMPARISON(&&)
SIMT_COMPARISON(||)
#undef SIMT_COMPARISON

#define SIMT_UNARY(op)                                                            \
    template <class T, int N>                                                     \
    SIMT_INLINE constexpr vec<T, N> operator op(vec<T, N> a) {                    \
        return simt::generate<N>([&](int i) { return static_cast<T>(op a[i]); }); \
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
    using packed_##T##4 = metal::packed_vec<T, 4>; \
    namespace metal {                              \
    using ::T##2;                                  \
    using ::T##3;                                  \
    using ::T##4;                                  \
    using ::packed_##T##2;                         \
    using ::packed_##T##3;                         \
    using ::packed_##T##4;                         \
    }
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
