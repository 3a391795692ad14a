// What the strict parse knows of Metal's standard library: declarations, no bodies that compute.
//
// The parse runs clang in C++ for OpenCL 2021, whose address spaces are those of Metal under other names. This file
// gives them Metal's names and declares the library of Metal 3.1 on top. `strict.py` includes it in front of every
// text and rewrites what no declaration can express; the names that begin with __metal_ are its side of that.
//
// Scalars and vectors are overloaded type by type and never through templates, so that a call which is ambiguous to
// Apple's compiler, such as max(int, uint), is ambiguous here.
#pragma once
#pragma clang system_header
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

// ---- Words of the language -----------------------------------------------------------------------------------------

#define device __global
#define threadgroup __local
#define thread __private
#define constant __constant

#define __METAL_TEXT(...) #__VA_ARGS__
#define __METAL_ATTRIBUTE(...) __attribute__((annotate(__METAL_TEXT(__VA_ARGS__))))
#define __METAL_KERNEL __attribute__((annotate("kernel")))
#define kernel __METAL_KERNEL

// Words of OpenCL that are ordinary names in Metal.
#define atomic_bool __metal_name_atomic_bool
#define atomic_float __metal_name_atomic_float
#define atomic_int __metal_name_atomic_int
#define atomic_uint __metal_name_atomic_uint
#define atomic_long __metal_name_atomic_long
#define atomic_ulong __metal_name_atomic_ulong
#define atomic_flag __metal_name_atomic_flag
#define generic __metal_name_generic
#define global __metal_name_global
#define local __metal_name_local
#define memory_order __metal_name_memory_order
#define memory_scope __metal_name_memory_scope
#define pipe __metal_name_pipe
#define read_only __metal_name_read_only
#define read_write __metal_name_read_write
#define write_only __metal_name_write_only

#define __METAL__ 1
#define __METAL_VERSION__ 310
#define __METAL_MACOS__ 1
#define __HAVE_BFLOAT__ 1
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_CONST static constant constexpr const

// ---- Scalars and vectors -------------------------------------------------------------------------------------------

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __bf16 bfloat;
typedef char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef long intptr_t;
typedef ulong uintptr_t;

#define __METAL_INTEGERS(F) F(char) F(uchar) F(short) F(ushort) F(int) F(uint) F(long) F(ulong)
#define __METAL_SMALL_INTEGERS(F) F(char) F(uchar) F(short) F(ushort) F(int) F(uint)

#define __METAL_VECTOR(T, N) typedef T T##N __attribute__((ext_vector_type(N)));
#define __METAL_VECTORS(T) __METAL_VECTOR(T, 2) __METAL_VECTOR(T, 3) __METAL_VECTOR(T, 4)
__METAL_INTEGERS(__METAL_VECTORS)
__METAL_VECTORS(half)
__METAL_VECTORS(bfloat)
__METAL_VECTORS(float)

// Elements that a constructor's argument contributes.
template <typename T>
struct __metal_elements {
    enum : int { count = 1 };
};
template <typename T>
struct __metal_elements<const T> : __metal_elements<T> {};
#define __METAL_ELEMENTS(T, N)      \
    template <>                     \
    struct __metal_elements<T##N> { \
        enum : int { count = N };   \
    };
#define __METAL_ELEMENTS_OF(T) __METAL_ELEMENTS(T, 2) __METAL_ELEMENTS(T, 3) __METAL_ELEMENTS(T, 4)
__METAL_INTEGERS(__METAL_ELEMENTS_OF)
__METAL_ELEMENTS_OF(half)
__METAL_ELEMENTS_OF(bfloat)
__METAL_ELEMENTS_OF(float)

// Clang gives a comparison of vectors as a vector of integers as wide as the operands; Metal gives a vector of bool.
#define __METAL_BOOL_OPERATOR(N, op) friend bool##N operator op(bool##N, bool##N);
#define __METAL_BOOL(N, MEMBERS, ...)                     \
    struct bool##N {                                      \
        bool MEMBERS;                                     \
        bool##N() = default;                              \
        constexpr bool##N(bool) : bool##N(__VA_ARGS__) {} \
        constexpr bool##N(__METAL_BOOL_PARAMETERS##N);    \
        bool##N(char##N);                                 \
        bool##N(short##N);                                \
        bool##N(int##N);                                  \
        bool##N(long##N);                                 \
        explicit bool##N(uchar##N);                       \
        explicit bool##N(ushort##N);                      \
        explicit bool##N(uint##N);                        \
        explicit bool##N(ulong##N);                       \
        explicit operator char##N() const;                \
        explicit operator uchar##N() const;               \
        explicit operator short##N() const;               \
        explicit operator ushort##N() const;              \
        explicit operator int##N() const;                 \
        explicit operator uint##N() const;                \
        explicit operator half##N() const;                \
        explicit operator float##N() const;               \
        bool operator[](int) const;                       \
        bool& operator[](int);                            \
        friend bool##N operator!(bool##N);                \
        __METAL_BOOL_OPERATOR(N, &&)                      \
        __METAL_BOOL_OPERATOR(N, ||)                      \
        __METAL_BOOL_OPERATOR(N, &)                       \
        __METAL_BOOL_OPERATOR(N, |)                       \
        __METAL_BOOL_OPERATOR(N, ^)                       \
        __METAL_BOOL_OPERATOR(N, ==)                      \
        __METAL_BOOL_OPERATOR(N, !=)                      \
    };                                                    \
    template <>                                           \
    struct __metal_elements<bool##N> {                    \
        enum : int { count = N };                         \
    };
#define __METAL_BOOL_PARAMETERS2 bool, bool
#define __METAL_BOOL_PARAMETERS3 bool, bool, bool
#define __METAL_BOOL_PARAMETERS4 bool, bool, bool, bool
#define __METAL_MEMBERS2 x, y
#define __METAL_MEMBERS3 x, y, z
#define __METAL_MEMBERS4 x, y, z, w
__METAL_BOOL(2, __METAL_MEMBERS2, false, false)
__METAL_BOOL(3, __METAL_MEMBERS3, false, false, false)
__METAL_BOOL(4, __METAL_MEMBERS4, false, false, false, false)

// What strict.py puts between the parentheses of a vector's constructor.
template <typename... A>
struct __metal_arguments {
    template <typename V>
    constexpr operator V() const {
        static_assert((__metal_elements<A>::count + ...) == __metal_elements<V>::count,
                      "the arguments of a vector's constructor do not add up to its elements");
        return V();
    }
};
template <typename... A>
constexpr __metal_arguments<A...> __metal_construct(A...) {
    return {};
}

// A variable of a kernel in threadgroup memory: strict.py binds a reference to this.
struct __metal_threadgroup_memory {
    template <typename T>
    operator __local T&() const;
};
__metal_threadgroup_memory __metal_allocate();

// Subscripts of the classes that stand for plain memory, in each address space.
#define __METAL_SUBSCRIPT(T)                                         \
    __private T& operator[](size_t) __private;                       \
    __global T& operator[](size_t) __global;                         \
    __local T& operator[](size_t) __local;                           \
    constexpr const __private T& operator[](size_t) const __private; \
    const __global T& operator[](size_t) const __global;             \
    const __local T& operator[](size_t) const __local;               \
    constexpr const __constant T& operator[](size_t) const __constant;

#define __METAL_PACKED3(T)                                          \
    struct packed_##T##3 {                                          \
        T x, y, z;                                                  \
        packed_##T##3() = default;                                  \
        packed_##T##3(T##3);                                        \
        packed_##T##3(T, T, T);                                     \
        operator T##3() const;                                      \
        operator T##3() const __constant;                           \
        __METAL_SUBSCRIPT(T)                                        \
    };                                                              \
    typedef T##2 packed_##T##2 __attribute__((aligned(sizeof(T)))); \
    typedef T##4 packed_##T##4 __attribute__((aligned(sizeof(T))));
__METAL_SMALL_INTEGERS(__METAL_PACKED3)
__METAL_PACKED3(half)
__METAL_PACKED3(bfloat)
__METAL_PACKED3(float)

template <typename To, typename From>
To as_type(From) {
    static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
    return To();
}

#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_huge_valf()
#define HUGE_VALH ((half)__builtin_huge_valf())
#define MAXFLOAT 0x1.fffffep127f
#define MAXHALF ((half)0x1.ffcp15f)
#define FLT_DIG 6
#define FLT_MANT_DIG 24
#define FLT_MAX_EXP 128
#define FLT_MIN_EXP -125
#define FLT_RADIX 2
#define FLT_MAX 0x1.fffffep127f
#define FLT_MIN 0x1p-126f
#define FLT_EPSILON 0x1p-23f
#define HALF_MAX ((half)0x1.ffcp15f)
#define HALF_MIN ((half)0x1p-14f)
#define HALF_EPSILON ((half)0x1p-10f)
#define CHAR_BIT 8
#define CHAR_MAX 127
#define CHAR_MIN (-128)
#define SCHAR_MAX 127
#define SCHAR_MIN (-128)
#define UCHAR_MAX 255
#define SHRT_MAX 32767
#define SHRT_MIN (-32768)
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define LONG_MAX 0x7fffffffffffffffl
#define LONG_MIN (-0x7fffffffffffffffl - 1)
#define ULONG_MAX 0xfffffffffffffffful
#define __METAL_MATH_CONSTANT(NAME, VALUE)        \
    constant constexpr float NAME##_F = VALUE##f; \
    constant constexpr half NAME##_H = (half)VALUE##f;
__METAL_MATH_CONSTANT(M_E, 2.71828182845904523536)
__METAL_MATH_CONSTANT(M_LOG2E, 1.44269504088896340736)
__METAL_MATH_CONSTANT(M_LOG10E, 0.43429448190325182765)
__METAL_MATH_CONSTANT(M_LN2, 0.69314718055994530942)
__METAL_MATH_CONSTANT(M_LN10, 2.30258509299404568402)
__METAL_MATH_CONSTANT(M_PI, 3.14159265358979323846)
__METAL_MATH_CONSTANT(M_PI_2, 1.57079632679489661923)
__METAL_MATH_CONSTANT(M_PI_4, 0.78539816339744830962)
__METAL_MATH_CONSTANT(M_1_PI, 0.31830988618379067154)
__METAL_MATH_CONSTANT(M_2_PI, 0.63661977236758134308)
__METAL_MATH_CONSTANT(M_2_SQRTPI, 1.12837916709551257390)
__METAL_MATH_CONSTANT(M_SQRT2, 1.41421356237309504880)
__METAL_MATH_CONSTANT(M_SQRT1_2, 0.70710678118654752440)

#define is_function_constant_defined(NAME) (sizeof(NAME) != 0)

namespace metal {

#define __METAL_USING_VECTORS(T) \
    using ::T##2;                \
    using ::T##3;                \
    using ::T##4;                \
    using ::packed_##T##2;       \
    using ::packed_##T##3;       \
    using ::packed_##T##4;
__METAL_SMALL_INTEGERS(__METAL_USING_VECTORS)
__METAL_USING_VECTORS(half)
__METAL_USING_VECTORS(bfloat)
__METAL_USING_VECTORS(float)
using ::as_type;
using ::bool2;
using ::bool3;
using ::bool4;
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::long2;
using ::long3;
using ::long4;
using ::ptrdiff_t;
using ::size_t;
using ::uchar;
using ::uint;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;
using ::ulong;
using ::ulong2;
using ::ulong3;
using ::ulong4;
using ::ushort;

template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));

// ---- Type traits ---------------------------------------------------------------------------------------------------

template <typename T, T V>
struct integral_constant {
    METAL_CONST T value = V;
    using value_type = T;
    using type = integral_constant;
    constexpr operator T() const { return V; }
    constexpr T operator()() const { return V; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool B, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
    using type = T;
};
template <bool B, typename T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, typename T, typename F>
struct conditional {
    using type = T;
};
template <typename T, typename F>
struct conditional<false, T, F> {
    using type = F;
};
template <bool B, typename T, typename F>
using conditional_t = typename conditional<B, T, F>::type;
template <typename T>
struct type_identity {
    using type = T;
};

#define __METAL_TRANSFORM(NAME, BUILTIN) \
    template <typename T>                \
    struct NAME {                        \
        using type = BUILTIN;            \
    };                                   \
    template <typename T>                \
    using NAME##_t = typename NAME<T>::type;
template <typename T>
struct remove_const {
    using type = T;
};
template <typename T>
struct remove_const<const T> {
    using type = T;
};
template <typename T>
using remove_const_t = typename remove_const<T>::type;
template <typename T>
struct remove_volatile {
    using type = T;
};
template <typename T>
struct remove_volatile<volatile T> {
    using type = T;
};
template <typename T>
using remove_volatile_t = typename remove_volatile<T>::type;
__METAL_TRANSFORM(remove_cv, remove_const_t<remove_volatile_t<T>>)
template <typename T>
struct __remove_space {
    using type = T;
};
#define __METAL_REMOVE_SPACE(SPACE)        \
    template <typename T>                  \
    struct __remove_space<SPACE T> {       \
        using type = T;                    \
    };                                     \
    template <typename T>                  \
    struct __remove_space<const SPACE T> { \
        using type = const T;              \
    };
__METAL_REMOVE_SPACE(__private)
__METAL_REMOVE_SPACE(__global)
__METAL_REMOVE_SPACE(__local)
__METAL_REMOVE_SPACE(__constant)
template <typename T>
using remove_addrspace = __remove_space<T>;
template <typename T>
using remove_addrspace_t = typename __remove_space<T>::type;
template <typename T>
struct remove_reference {
    using type = T;
};
template <typename T>
struct remove_reference<T&> {
    using type = T;
};
template <typename T>
struct remove_reference<T&&> {
    using type = T;
};
template <typename T>
using remove_reference_t = typename remove_reference<T>::type;
template <typename T>
struct remove_pointer {
    using type = T;
};
template <typename T>
struct remove_pointer<T*> {
    using type = T;
};
template <typename T>
struct remove_pointer<T* const> {
    using type = T;
};
template <typename T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <typename T>
struct remove_extent {
    using type = T;
};
template <typename T, size_t N>
struct remove_extent<T[N]> {
    using type = T;
};
template <typename T>
using remove_extent_t = typename remove_extent<T>::type;
__METAL_TRANSFORM(remove_cvref, remove_cv_t<typename __remove_space<remove_reference_t<T>>::type>)
__METAL_TRANSFORM(decay, remove_cvref_t<T>)
__METAL_TRANSFORM(add_const, const T)
__METAL_TRANSFORM(add_volatile, volatile T)
__METAL_TRANSFORM(underlying_type, __underlying_type(T))
template <typename T>
T declval();

template <typename T>
struct __size_of {
    METAL_CONST size_t value = sizeof(T);
};
template <size_t N, bool Signed>
struct __integer;
#define __METAL_INTEGER_OF(T, N, SIGNED) \
    template <>                          \
    struct __integer<N, SIGNED> {        \
        using type = T;                  \
    };
__METAL_INTEGER_OF(char, 1, true)
__METAL_INTEGER_OF(uchar, 1, false)
__METAL_INTEGER_OF(short, 2, true)
__METAL_INTEGER_OF(ushort, 2, false)
__METAL_INTEGER_OF(int, 4, true)
__METAL_INTEGER_OF(uint, 4, false)
__METAL_INTEGER_OF(long, 8, true)
__METAL_INTEGER_OF(ulong, 8, false)
template <typename T>
struct make_signed {
    using type = typename __integer<sizeof(T), true>::type;
};
template <typename T>
struct make_unsigned {
    using type = typename __integer<sizeof(T), false>::type;
};
template <typename T>
using make_signed_t = typename make_signed<T>::type;
template <typename T>
using make_unsigned_t = typename make_unsigned<T>::type;

// The element type and count of a vector; of anything else, itself and 1.
template <typename T>
struct __element {
    using type = T;
    METAL_CONST bool is_vector = false;
};
#define __METAL_ELEMENT(T, N)              \
    template <>                            \
    struct __element<T##N> {               \
        using type = T;                    \
        METAL_CONST bool is_vector = true; \
    };
#define __METAL_ELEMENT_OF(T) __METAL_ELEMENT(T, 2) __METAL_ELEMENT(T, 3) __METAL_ELEMENT(T, 4)
__METAL_INTEGERS(__METAL_ELEMENT_OF)
__METAL_ELEMENT_OF(half)
__METAL_ELEMENT_OF(bfloat)
__METAL_ELEMENT_OF(float)
__METAL_ELEMENT_OF(bool)
template <typename T>
struct make_scalar {
    using type = typename __element<remove_cv_t<T>>::type;
};
template <typename T>
using make_scalar_t = typename make_scalar<T>::type;

template <typename A, typename B>
constant constexpr bool is_same_v = __is_same(A, B);
template <typename A, typename B>
struct is_same : bool_constant<is_same_v<A, B>> {};
#define __METAL_TRAIT(NAME, ...)                    \
    template <typename T>                           \
    constant constexpr bool NAME##_v = __VA_ARGS__; \
    template <typename T>                           \
    struct NAME : bool_constant<NAME##_v<T>> {};
#define __METAL_SCALAR make_scalar_t<remove_cv_t<T>>
__METAL_TRAIT(is_floating_point,
              is_same_v<__METAL_SCALAR, half> || is_same_v<__METAL_SCALAR, bfloat> || is_same_v<__METAL_SCALAR, float>)
__METAL_TRAIT(is_integral, __is_integral(__METAL_SCALAR))
__METAL_TRAIT(is_arithmetic, is_floating_point_v<T> || is_integral_v<T>)
__METAL_TRAIT(is_signed, is_floating_point_v<T> || __is_signed(__METAL_SCALAR))
__METAL_TRAIT(is_unsigned, __is_unsigned(__METAL_SCALAR))
__METAL_TRAIT(is_vector, __element<remove_cv_t<T>>::is_vector)
__METAL_TRAIT(is_scalar, !is_vector_v<T> && (is_arithmetic_v<T> || __is_enum(T) || __is_pointer(T)))
__METAL_TRAIT(is_pointer, __is_pointer(T))
__METAL_TRAIT(is_reference, __is_reference(T))
__METAL_TRAIT(is_lvalue_reference, __is_lvalue_reference(T))
__METAL_TRAIT(is_array, __is_array(T))
__METAL_TRAIT(is_class, __is_class(T))
__METAL_TRAIT(is_enum, __is_enum(T))
__METAL_TRAIT(is_union, __is_union(T))
__METAL_TRAIT(is_void, __is_void(T))
__METAL_TRAIT(is_const, __is_const(T))
__METAL_TRAIT(is_volatile, __is_volatile(T))
__METAL_TRAIT(is_trivial, __is_trivial(T))
__METAL_TRAIT(is_fundamental, is_arithmetic_v<T> || __is_void(T))
template <typename From, typename To>
constant constexpr bool is_convertible_v = __is_convertible_to(From, To);
template <typename From, typename To>
struct is_convertible : bool_constant<is_convertible_v<From, To>> {};
template <typename... T>
struct common_type;
template <typename T>
struct common_type<T> {
    using type = T;
};
template <typename A, typename B, typename... Rest>
struct common_type<A, B, Rest...> {
    using type = typename common_type<decltype(false ? declval<A>() : declval<B>()), Rest...>::type;
};
template <typename... T>
using common_type_t = typename common_type<T...>::type;
template <typename... T>
struct conjunction : bool_constant<(T::value && ...)> {};
template <typename... T>
struct disjunction : bool_constant<(T::value || ...)> {};
template <typename T>
struct negation : bool_constant<!T::value> {};
template <typename... T>
constant constexpr bool conjunction_v = conjunction<T...>::value;
template <typename... T>
constant constexpr bool disjunction_v = disjunction<T...>::value;
template <typename T>
constant constexpr bool negation_v = !T::value;

template <typename T>
struct numeric_limits {
    METAL_CONST bool is_specialized = false;
};
#define __METAL_LIMITS(T, MIN, LOWEST, MAX, DIGITS, INTEGER)                                       \
    template <>                                                                                    \
    struct numeric_limits<T> {                                                                     \
        METAL_CONST bool is_specialized = true;                                                    \
        METAL_CONST bool is_signed = (LOWEST) < (T)0;                                              \
        METAL_CONST bool is_integer = INTEGER;                                                     \
        METAL_CONST bool is_exact = INTEGER;                                                       \
        METAL_CONST bool has_infinity = !INTEGER;                                                  \
        METAL_CONST bool has_quiet_NaN = !INTEGER;                                                 \
        METAL_CONST int digits = DIGITS;                                                           \
        METAL_CONST int digits10 = DIGITS * 3 / 10;                                                \
        METAL_CONST int radix = 2;                                                                 \
        static constexpr T min() { return MIN; }                                                   \
        static constexpr T lowest() { return LOWEST; }                                             \
        static constexpr T max() { return MAX; }                                                   \
        static constexpr T epsilon() { return INTEGER ? (T)0 : (T)(2.0f / (1ul << DIGITS % 64)); } \
        static constexpr T infinity() { return INTEGER ? (T)0 : (T)INFINITY; }                     \
        static constexpr T quiet_NaN() { return INTEGER ? (T)0 : (T)NAN; }                         \
        static constexpr T signaling_NaN() { return INTEGER ? (T)0 : (T)NAN; }                     \
        static constexpr T denorm_min() { return MIN; }                                            \
    };
__METAL_LIMITS(bool, false, false, true, 1, true)
__METAL_LIMITS(char, CHAR_MIN, CHAR_MIN, CHAR_MAX, 7, true)
__METAL_LIMITS(uchar, 0, 0, UCHAR_MAX, 8, true)
__METAL_LIMITS(short, SHRT_MIN, SHRT_MIN, SHRT_MAX, 15, true)
__METAL_LIMITS(ushort, 0, 0, USHRT_MAX, 16, true)
__METAL_LIMITS(int, INT_MIN, INT_MIN, INT_MAX, 31, true)
__METAL_LIMITS(uint, 0, 0, UINT_MAX, 32, true)
__METAL_LIMITS(long, LONG_MIN, LONG_MIN, LONG_MAX, 63, true)
__METAL_LIMITS(ulong, 0, 0, ULONG_MAX, 64, true)
__METAL_LIMITS(half, HALF_MIN, -HALF_MAX, HALF_MAX, 11, false)
__METAL_LIMITS(bfloat, (bfloat)FLT_MIN, (bfloat)-0x1.fep127f, (bfloat)0x1.fep127f, 8, false)
__METAL_LIMITS(float, FLT_MIN, -FLT_MAX, FLT_MAX, 24, false)

// ---- Arrays and matrices -------------------------------------------------------------------------------------------

template <typename T, size_t N>
struct array {
    T __elements[N];
    constexpr size_t size() const { return N; }
    __METAL_SUBSCRIPT(T)
};
template <typename T, typename... U>
array(T, U...) -> array<T, 1 + sizeof...(U)>;

template <typename T, int C, int R = C>
struct matrix {
    using column = vec<T, R>;
    column columns[C];
    matrix() = default;
    explicit constexpr matrix(T);
    template <typename... A, typename = enable_if_t<(sizeof...(A) > 1)>>
    constexpr matrix(A...);
    matrix(const matrix&) = default;
    matrix(const __constant matrix&);
    matrix& operator=(const matrix&) = default;
    template <typename U, typename = enable_if_t<!is_same_v<T, U>>>
    explicit constexpr matrix(matrix<U, C, R>);
    __METAL_SUBSCRIPT(column)
    friend matrix operator+(matrix, matrix);
    friend matrix operator-(matrix, matrix);
    friend matrix operator-(matrix);
    friend matrix operator*(matrix, T);
    friend matrix operator*(T, matrix);
    friend vec<T, R> operator*(matrix, vec<T, C>);
    friend vec<T, C> operator*(vec<T, R>, matrix);
    friend bool operator==(matrix, matrix);
    friend bool operator!=(matrix, matrix);
};
template <typename T, int K, int R, int C>
matrix<T, C, R> operator*(matrix<T, K, R>, matrix<T, C, K>);
template <typename T, int C, int R>
matrix<T, R, C> transpose(matrix<T, C, R>);
template <typename T, int N>
T determinant(matrix<T, N, N>);

// A value that is the same for all threads.
template <typename T>
struct uniform {
    T __value;
    uniform() = default;
    explicit constexpr uniform(T value) : __value(value) {}
    constexpr operator T() const { return __value; }
};
template <typename T>
constexpr uniform<T> make_uniform(T value) {
    return uniform<T>(value);
}
#define __METAL_UNIFORM_OPERATOR(op)                               \
    template <typename T>                                          \
    constexpr uniform<T> operator op(uniform<T> a, uniform<T> b) { \
        return uniform<T>(a.__value op b.__value);                 \
    }
__METAL_UNIFORM_OPERATOR(+)
__METAL_UNIFORM_OPERATOR(-)
__METAL_UNIFORM_OPERATOR(*)
__METAL_UNIFORM_OPERATOR(/)
__METAL_UNIFORM_OPERATOR(%)

// ---- Functions -----------------------------------------------------------------------------------------------------

// F(T) for a scalar and its vectors.
#define __METAL_WIDTHS(F, T) F(T, , bool) F(T, 2, bool2) F(T, 3, bool3) F(T, 4, bool4)
#define __METAL_FLOATS(F) __METAL_WIDTHS(F, half) __METAL_WIDTHS(F, float)
#define __METAL_ALL_INTEGERS(F) \
    __METAL_WIDTHS(F, char)     \
    __METAL_WIDTHS(F, uchar)    \
    __METAL_WIDTHS(F, short)    \
    __METAL_WIDTHS(F, ushort)   \
    __METAL_WIDTHS(F, int)      \
    __METAL_WIDTHS(F, uint)     \
    __METAL_WIDTHS(F, long)     \
    __METAL_WIDTHS(F, ulong)

// Functions of math that exist in metal::, fast:: and precise::.
#define __METAL_UNARY(T) \
    T acos(T);           \
    T acosh(T);          \
    T asin(T);           \
    T asinh(T);          \
    T atan(T);           \
    T atanh(T);          \
    T ceil(T);           \
    T cos(T);            \
    T cosh(T);           \
    T cospi(T);          \
    T exp(T);            \
    T exp2(T);           \
    T exp10(T);          \
    T fabs(T);           \
    T abs(T);            \
    T floor(T);          \
    T fract(T);          \
    T log(T);            \
    T log2(T);           \
    T log10(T);          \
    T rint(T);           \
    T round(T);          \
    T rsqrt(T);          \
    T sin(T);            \
    T sinh(T);           \
    T sinpi(T);          \
    T sqrt(T);           \
    T tan(T);            \
    T tanh(T);           \
    T tanpi(T);          \
    T trunc(T);          \
    T saturate(T);       \
    T sign(T);
#define __METAL_BINARY(T)    \
    T atan2(T, T);           \
    T copysign(T, T);        \
    T divide(T, T);          \
    T fdim(T, T);            \
    T fmax(T, T);            \
    T fmin(T, T);            \
    T fmod(T, T);            \
    T nextafter(T, T);       \
    T pow(T, T);             \
    T powr(T, T);            \
    T max(T, T);             \
    T min(T, T);             \
    T step(T, T);            \
    T clamp(T, T, T);        \
    T fma(T, T, T);          \
    T fmax3(T, T, T);        \
    T fmedian3(T, T, T);     \
    T fmin3(T, T, T);        \
    T max3(T, T, T);         \
    T median3(T, T, T);      \
    T min3(T, T, T);         \
    T mix(T, T, T);          \
    T smoothstep(T, T, T);   \
    T modf(T, __private T&); \
    T sincos(T, __private T&);
#define __METAL_MATH(T, N, B) __METAL_UNARY(T##N) __METAL_BINARY(T##N)
#define __METAL_EXPONENTS(T, N, B) \
    int##N ilogb(T##N);            \
    T##N ldexp(T##N, int##N);      \
    T##N frexp(T##N, __private int##N&);
// A vector with scalar bounds or weights.
#define __METAL_MIXED(T, N) \
    T##N max(T##N, T);      \
    T##N min(T##N, T);      \
    T##N clamp(T##N, T, T);
#define __METAL_MIXED_FLOAT(T, N) \
    __METAL_MIXED(T, N)           \
    T##N fmax(T##N, T);           \
    T##N fmin(T##N, T);           \
    T##N mix(T##N, T##N, T);      \
    T##N smoothstep(T, T, T##N);  \
    T##N step(T, T##N);
#define __METAL_MIXED_WIDTHS(F, T) F(T, 2) F(T, 3) F(T, 4)
#define __METAL_GEOMETRY(T, N)          \
    T dot(T##N, T##N);                  \
    T distance(T##N, T##N);             \
    T distance_squared(T##N, T##N);     \
    T length(T##N);                     \
    T length_squared(T##N);             \
    T##N normalize(T##N);               \
    T##N faceforward(T##N, T##N, T##N); \
    T##N reflect(T##N, T##N);           \
    T##N refract(T##N, T##N, T);
#define __METAL_MATH_FUNCTIONS                       \
    __METAL_FLOATS(__METAL_MATH)                     \
    __METAL_FLOATS(__METAL_EXPONENTS)                \
    __METAL_MIXED_WIDTHS(__METAL_MIXED_FLOAT, half)  \
    __METAL_MIXED_WIDTHS(__METAL_MIXED_FLOAT, float) \
    __METAL_MIXED_WIDTHS(__METAL_GEOMETRY, half)     \
    __METAL_MIXED_WIDTHS(__METAL_GEOMETRY, float)    \
    half3 cross(half3, half3);                       \
    float3 cross(float3, float3);
// A bfloat is widened before any function sees it.
#define __METAL_MATH_BFLOAT __METAL_UNARY(bfloat) __METAL_BINARY(bfloat)
__METAL_MATH_FUNCTIONS
__METAL_MATH_BFLOAT
namespace fast {
__METAL_MATH_FUNCTIONS
__METAL_MATH_BFLOAT
}  // namespace fast
namespace precise {
__METAL_MATH_FUNCTIONS
__METAL_MATH_BFLOAT
}  // namespace precise

#define __METAL_INTEGER_FUNCTIONS(T, N, B)    \
    T##N abs(T##N);                           \
    T##N absdiff(T##N, T##N);                 \
    T##N addsat(T##N, T##N);                  \
    T##N clamp(T##N, T##N, T##N);             \
    T##N clz(T##N);                           \
    T##N ctz(T##N);                           \
    T##N extract_bits(T##N, uint, uint);      \
    T##N hadd(T##N, T##N);                    \
    T##N insert_bits(T##N, T##N, uint, uint); \
    T##N madhi(T##N, T##N, T##N);             \
    T##N madsat(T##N, T##N, T##N);            \
    T##N max(T##N, T##N);                     \
    T##N max3(T##N, T##N, T##N);              \
    T##N median3(T##N, T##N, T##N);           \
    T##N min(T##N, T##N);                     \
    T##N min3(T##N, T##N, T##N);              \
    T##N mulhi(T##N, T##N);                   \
    T##N popcount(T##N);                      \
    T##N reverse_bits(T##N);                  \
    T##N rhadd(T##N, T##N);                   \
    T##N rotate(T##N, T##N);                  \
    T##N subsat(T##N, T##N);
__METAL_ALL_INTEGERS(__METAL_INTEGER_FUNCTIONS)
#define __METAL_MIXED_INTEGER(T) __METAL_MIXED_WIDTHS(__METAL_MIXED, T)
__METAL_INTEGERS(__METAL_MIXED_INTEGER)
int mad24(int, int, int);
uint mad24(uint, uint, uint);
int mul24(int, int);
uint mul24(uint, uint);

#define __METAL_SELECT(T, N, B) T##N select(T##N, T##N, B);
__METAL_ALL_INTEGERS(__METAL_SELECT)
__METAL_FLOATS(__METAL_SELECT)
bfloat select(bfloat, bfloat, bool);
bfloat2 select(bfloat2, bfloat2, bool2);
bfloat3 select(bfloat3, bfloat3, bool3);
bfloat4 select(bfloat4, bfloat4, bool4);
bool select(bool, bool, bool);

#define __METAL_CLASSIFY(T, N, B) \
    B isfinite(T##N);             \
    B isinf(T##N);                \
    B isnan(T##N);                \
    B isnormal(T##N);             \
    B signbit(T##N);              \
    B isequal(T##N, T##N);        \
    B isnotequal(T##N, T##N);     \
    B isgreater(T##N, T##N);      \
    B isgreaterequal(T##N, T##N); \
    B isless(T##N, T##N);         \
    B islessequal(T##N, T##N);    \
    B islessgreater(T##N, T##N);  \
    B isordered(T##N, T##N);      \
    B isunordered(T##N, T##N);
__METAL_FLOATS(__METAL_CLASSIFY)
__METAL_CLASSIFY(bfloat, , bool)
#define __METAL_ALL_ANY(N) \
    bool all(bool##N);     \
    bool any(bool##N);
__METAL_ALL_ANY()
__METAL_ALL_ANY(2)
__METAL_ALL_ANY(3)
__METAL_ALL_ANY(4)

uint pack_float_to_unorm4x8(float4);
uint pack_float_to_snorm4x8(float4);
uint pack_half_to_unorm4x8(half4);
uint pack_half_to_snorm4x8(half4);
uint pack_float_to_unorm2x16(float2);
uint pack_float_to_snorm2x16(float2);
float4 unpack_unorm4x8_to_float(uint);
float4 unpack_snorm4x8_to_float(uint);
half4 unpack_unorm4x8_to_half(uint);
half4 unpack_snorm4x8_to_half(uint);
float2 unpack_unorm2x16_to_float(uint);
float2 unpack_snorm2x16_to_float(uint);

// ---- Synchronisation and atomics -----------------------------------------------------------------------------------

enum class mem_flags : uint {
    mem_none = 0,
    mem_device = 1,
    mem_threadgroup = 2,
    mem_texture = 4,
    mem_threadgroup_imageblock = 8,
    mem_object_data = 16,
    mem_device_and_threadgroup = 3
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

enum memory_order : int { memory_order_relaxed = 0 };

template <typename T>
struct atomic {
    static_assert(is_same_v<T, int> || is_same_v<T, uint> || is_same_v<T, bool> || is_same_v<T, float> ||
                      is_same_v<T, ulong>,
                  "atomic<T> exists for int, uint, bool, ulong and float");
    atomic() = default;
    atomic(const __private atomic&) = delete;
    T __value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;

#define __METAL_ATOMIC_BASIC(SPACE, T)                                      \
    void atomic_store_explicit(volatile SPACE atomic<T>*, T, memory_order); \
    T atomic_load_explicit(const volatile SPACE atomic<T>*, memory_order);  \
    T atomic_exchange_explicit(volatile SPACE atomic<T>*, T, memory_order); \
    bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>*, __private T*, T, memory_order, memory_order);
#define __METAL_ATOMIC_SUM(SPACE, T)                                         \
    T atomic_fetch_add_explicit(volatile SPACE atomic<T>*, T, memory_order); \
    T atomic_fetch_sub_explicit(volatile SPACE atomic<T>*, T, memory_order);
#define __METAL_ATOMIC_BITS(SPACE, T)                                        \
    T atomic_fetch_and_explicit(volatile SPACE atomic<T>*, T, memory_order); \
    T atomic_fetch_max_explicit(volatile SPACE atomic<T>*, T, memory_order); \
    T atomic_fetch_min_explicit(volatile SPACE atomic<T>*, T, memory_order); \
    T atomic_fetch_or_explicit(volatile SPACE atomic<T>*, T, memory_order);  \
    T atomic_fetch_xor_explicit(volatile SPACE atomic<T>*, T, memory_order);
#define __METAL_ATOMICS(SPACE)         \
    __METAL_ATOMIC_BASIC(SPACE, int)   \
    __METAL_ATOMIC_BASIC(SPACE, uint)  \
    __METAL_ATOMIC_BASIC(SPACE, bool)  \
    __METAL_ATOMIC_BASIC(SPACE, float) \
    __METAL_ATOMIC_SUM(SPACE, int)     \
    __METAL_ATOMIC_SUM(SPACE, uint)    \
    __METAL_ATOMIC_BITS(SPACE, int)    \
    __METAL_ATOMIC_BITS(SPACE, uint)
__METAL_ATOMICS(__global)
__METAL_ATOMICS(__local)
__METAL_ATOMIC_SUM(__global, float)
void atomic_max_explicit(volatile __global atomic<ulong>*, ulong, memory_order);
void atomic_min_explicit(volatile __global atomic<ulong>*, ulong, memory_order);

// ---- Simdgroups and quadgroups -------------------------------------------------------------------------------------

struct simd_vote {
    using vote_t = ulong;
    explicit constexpr simd_vote(vote_t = 0);
    explicit constexpr operator vote_t() const;
    bool all() const;
    bool any() const;
};
struct quad_vote {
    using vote_t = uint;
    explicit constexpr quad_vote(vote_t = 0);
    explicit constexpr operator vote_t() const;
    bool all() const;
    bool any() const;
};

#define __METAL_LANES(T, N, B)                                   \
    T##N simd_broadcast(T##N, ushort);                           \
    T##N simd_broadcast_first(T##N);                             \
    T##N simd_shuffle(T##N, ushort);                             \
    T##N simd_shuffle_down(T##N, ushort);                        \
    T##N simd_shuffle_up(T##N, ushort);                          \
    T##N simd_shuffle_xor(T##N, ushort);                         \
    T##N simd_shuffle_rotate_down(T##N, ushort);                 \
    T##N simd_shuffle_rotate_up(T##N, ushort);                   \
    T##N simd_shuffle_and_fill_down(T##N, T##N, ushort);         \
    T##N simd_shuffle_and_fill_down(T##N, T##N, ushort, ushort); \
    T##N simd_shuffle_and_fill_up(T##N, T##N, ushort);           \
    T##N simd_shuffle_and_fill_up(T##N, T##N, ushort, ushort);   \
    T##N quad_broadcast(T##N, ushort);                           \
    T##N quad_broadcast_first(T##N);                             \
    T##N quad_shuffle(T##N, ushort);                             \
    T##N quad_shuffle_down(T##N, ushort);                        \
    T##N quad_shuffle_up(T##N, ushort);                          \
    T##N quad_shuffle_xor(T##N, ushort);                         \
    T##N quad_shuffle_rotate_down(T##N, ushort);                 \
    T##N quad_shuffle_rotate_up(T##N, ushort);                   \
    T##N simd_max(T##N);                                         \
    T##N simd_min(T##N);                                         \
    T##N simd_product(T##N);                                     \
    T##N simd_sum(T##N);                                         \
    T##N simd_prefix_exclusive_product(T##N);                    \
    T##N simd_prefix_exclusive_sum(T##N);                        \
    T##N simd_prefix_inclusive_product(T##N);                    \
    T##N simd_prefix_inclusive_sum(T##N);                        \
    T##N quad_max(T##N);                                         \
    T##N quad_min(T##N);                                         \
    T##N quad_product(T##N);                                     \
    T##N quad_sum(T##N);                                         \
    T##N quad_prefix_exclusive_product(T##N);                    \
    T##N quad_prefix_exclusive_sum(T##N);                        \
    T##N quad_prefix_inclusive_product(T##N);                    \
    T##N quad_prefix_inclusive_sum(T##N);
#define __METAL_LANE_BITS(T, N, B) \
    T##N simd_and(T##N);           \
    T##N simd_or(T##N);            \
    T##N simd_xor(T##N);           \
    T##N quad_and(T##N);           \
    T##N quad_or(T##N);            \
    T##N quad_xor(T##N);
// The 64-bit integers are missing on purpose: no simdgroup operation takes them.
#define __METAL_LANES_OF(T) __METAL_WIDTHS(__METAL_LANES, T) __METAL_WIDTHS(__METAL_LANE_BITS, T)
__METAL_SMALL_INTEGERS(__METAL_LANES_OF)
__METAL_FLOATS(__METAL_LANES)
bool simd_all(bool);
bool simd_any(bool);
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();
bool simd_is_first();
bool simd_is_helper_thread();
bool quad_all(bool);
bool quad_any(bool);
quad_vote quad_ballot(bool);
quad_vote quad_active_threads_mask();
bool quad_is_first();
bool quad_is_helper_thread();

template <typename T, int C, int R = C>
struct simdgroup_matrix {
    static_assert(is_same_v<T, half> || is_same_v<T, bfloat> || is_same_v<T, float>,
                  "a simdgroup_matrix holds half, bfloat or float");
    static_assert(C == 8 && R == 8, "a simdgroup_matrix is 8 x 8");
    using storage_type = vec<T, 2>;
    simdgroup_matrix() = default;
    explicit constexpr simdgroup_matrix(T);
    __private storage_type& thread_elements() __private;
    const __private storage_type& thread_elements() const __private;

  private:
    storage_type __elements;
};
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

template <typename T, int C, int R = C>
simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T);
template <typename T, int C, int R = C>
simdgroup_matrix<T, C, R> make_diagonal_simdgroup_matrix(T);
#define __METAL_MATRIX_MEMORY(SPACE)                                                                                \
    template <typename T, int C, int R>                                                                             \
    void simdgroup_load(__private simdgroup_matrix<T, C, R>&, const SPACE T*, ulong = C, ulong2 = 0, bool = false); \
    template <typename T, int C, int R>                                                                             \
    void simdgroup_store(simdgroup_matrix<T, C, R>, SPACE T*, ulong = C, ulong2 = 0, bool = false);
__METAL_MATRIX_MEMORY(__global)
__METAL_MATRIX_MEMORY(__local)
template <typename D, typename A, typename B, int C, int R, int K>
void simdgroup_multiply(__private simdgroup_matrix<D, C, R>&, simdgroup_matrix<A, K, R>, simdgroup_matrix<B, C, K>);
template <typename D, typename A, typename B, typename E, int C, int R, int K>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, C, R>&, simdgroup_matrix<A, K, R>,
                                   simdgroup_matrix<B, C, K>, simdgroup_matrix<E, C, R>);
template <typename T, int C, int R, int K>
simdgroup_matrix<T, C, R> operator*(simdgroup_matrix<T, K, R>, simdgroup_matrix<T, C, K>);

}  // namespace metal

#define __METAL_MATRIX(T, C, R)                \
    typedef metal::matrix<T, C, R> T##C##x##R; \
    namespace metal {                          \
    using ::T##C##x##R;                        \
    }
#define __METAL_MATRICES(T) \
    __METAL_MATRIX(T, 2, 2) \
    __METAL_MATRIX(T, 2, 3) \
    __METAL_MATRIX(T, 2, 4) \
    __METAL_MATRIX(T, 3, 2) \
    __METAL_MATRIX(T, 3, 3) \
    __METAL_MATRIX(T, 3, 4) \
    __METAL_MATRIX(T, 4, 2) \
    __METAL_MATRIX(T, 4, 3) \
    __METAL_MATRIX(T, 4, 4)
__METAL_MATRICES(half)
__METAL_MATRICES(float)
