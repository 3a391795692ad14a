// Metal's type traits: those of C++, which know of Metal's own scalar types.
#pragma once

#include <type_traits>

#include "config.h"
#include "scalar.h"

namespace metal {

using std::add_const_t;
using std::add_lvalue_reference_t;
using std::add_pointer_t;
using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::decay_t;
using std::declval;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_array_v;
using std::is_base_of_v;
using std::is_class_v;
using std::is_const_v;
using std::is_convertible;
using std::is_convertible_v;
using std::is_enum_v;
using std::is_integral;
using std::is_integral_v;
using std::is_pointer;
using std::is_pointer_v;
using std::is_reference_v;
using std::is_same;
using std::is_same_v;
using std::is_trivially_copyable_v;
using std::is_unsigned;
using std::is_unsigned_v;
using std::is_void_v;
using std::make_signed;
using std::make_signed_t;
using std::make_unsigned;
using std::make_unsigned_t;
using std::remove_const_t;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_pointer;
using std::remove_pointer_t;
using std::remove_reference;
using std::remove_reference_t;
using std::true_type;
using std::underlying_type_t;

// Metal's own headers are made of these.
template <class... T>
using _conjunction = std::conjunction<T...>;
template <class... T>
using _disjunction = std::disjunction<T...>;
template <class T>
using _negation = std::negation<T>;

// All lanes have the same value of it; Metal may then keep it once.
template <class T>
using uniform = T;
template <class T>
SIMT_INLINE constexpr T make_uniform(T value) {
    return value;
}

// There are no address spaces here.
template <class T>
struct remove_addrspace {
    using type = T;
};
template <class T>
using remove_addrspace_t = T;

template <class T>
struct is_floating_point : bool_constant<std::is_floating_point_v<T> || is_same_v<remove_cv_t<T>, half> ||
                                         is_same_v<remove_cv_t<T>, bfloat>> {};
template <class T>
inline constexpr bool is_floating_point_v = is_floating_point<T>::value;

template <class T>
struct is_arithmetic : bool_constant<is_integral_v<T> || is_floating_point_v<T>> {};
template <class T>
inline constexpr bool is_arithmetic_v = is_arithmetic<T>::value;

template <class T>
struct is_scalar : bool_constant<is_arithmetic_v<T> || std::is_scalar_v<T>> {};
template <class T>
inline constexpr bool is_scalar_v = is_scalar<T>::value;

template <class T>
struct is_signed : bool_constant<std::is_signed_v<T> || is_floating_point_v<T>> {};
template <class T>
inline constexpr bool is_signed_v = is_signed<T>::value;

}  // namespace metal
