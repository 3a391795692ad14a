// Metal's type traits; the run-time compiler has no header of its own for them.
#pragma once

namespace metal_text {
namespace metal {

template <class T, T kValue>
struct integral_constant {
    static constexpr T value = kValue;
    using type = integral_constant;
    constexpr operator T() const { return kValue; }
};
template <bool kValue>
using bool_constant = integral_constant<bool, kValue>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool kCondition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
    using type = T;
};
template <bool kCondition, class T = void>
using enable_if_t = typename enable_if<kCondition, T>::type;

template <bool kCondition, class T, class F>
struct conditional {
    using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
    using type = F;
};
template <bool kCondition, class T, class F>
using conditional_t = typename conditional<kCondition, T, F>::type;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <class T>
struct remove_reference {
    using type = T;
};
template <class T>
struct remove_reference<T&> {
    using type = T;
};
template <class T>
struct remove_reference<T&&> {
    using type = T;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;

template <class T>
struct remove_cv {
    using type = T;
};
template <class T>
struct remove_cv<const T> : remove_cv<T> {};
template <class T>
struct remove_cv<volatile T> : remove_cv<T> {};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
using remove_const_t = typename remove_cv<T>::type;

template <class T>
struct remove_pointer {
    using type = T;
};
template <class T>
struct remove_pointer<T*> {
    using type = T;
};
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
struct is_pointer : bool_constant<!is_same_v<remove_pointer_t<remove_cv_t<T>>, remove_cv_t<T>>> {};
template <class T>
constexpr bool is_pointer_v = is_pointer<T>::value;

template <class T, class... Choices>
constexpr bool is_one_of = (is_same_v<remove_cv_t<T>, Choices> || ...);
template <class T>
struct is_integral : bool_constant<is_one_of<T, bool, char, signed char, unsigned char, short, unsigned short, int,
                                             unsigned int, long, unsigned long, long long, unsigned long long>> {};
template <class T>
constexpr bool is_integral_v = is_integral<T>::value;
template <class T>
struct is_floating_point : bool_constant<is_one_of<T, float, double>> {};
template <class T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
constexpr bool is_cpp_arithmetic_v = is_integral_v<T> || is_one_of<T, float, double>;
template <class T>
struct is_arithmetic : bool_constant<is_integral_v<T> || is_floating_point_v<remove_cv_t<T>>> {};
template <class T>
constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T>
constexpr bool is_unsigned_v = is_one_of<T, bool, unsigned char, unsigned short, unsigned int, unsigned long>;
template <class T>
constexpr bool is_signed_v = is_arithmetic_v<T> && !is_unsigned_v<T>;

template <class T>
struct make_unsigned {
    using type = conditional_t<
        sizeof(T) == 1, unsigned char,
        conditional_t<sizeof(T) == 2, unsigned short, conditional_t<sizeof(T) == 4, unsigned int, unsigned long>>>;
};
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;

}  // namespace metal
}  // namespace metal_text
