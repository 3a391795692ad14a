// The error function, which Metal lacks, by Cody's rational approximations: right to the last digits of float and of
// double (W. J. Cody, Rational Chebyshev Approximations for the Error Function, Math. Comp. 23, 1969; coefficients of
// his CALERF in SPECFUN, netlib.org/specfun/erf).
#pragma once

#include "msl/types.h"

// For |x| up to 0.46875, erf(x) = x P(x^2) / Q(x^2).
constant constexpr accum ERF_P[] = {1.85777706184603153e-1, 3.16112374387056560e00, 1.13864154151050156e02,
                                    3.77485237685302021e02, 3.20937758913846947e03};
constant constexpr accum ERF_Q[] = {1.0, 2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03,
                                    2.84423683343917062e03};
// Up to 4, erfc(x) = exp(-x^2) P(x) / Q(x).
constant constexpr accum MIDDLE_P[] = {2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0,
                                       6.61191906371416295e01, 2.98635138197400131e02, 8.81952221241769090e02,
                                       1.71204761263407058e03, 2.05107837782607147e03, 1.23033935479799725e03};
constant constexpr accum MIDDLE_Q[] = {1.0,
                                       1.57449261107098347e01,
                                       1.17693950891312499e02,
                                       5.37181101862009858e02,
                                       1.62138957456669019e03,
                                       3.29079923573345963e03,
                                       4.36261909014324716e03,
                                       3.43936767414372164e03,
                                       1.23033935480374942e03};
// Above, erfc(x) = exp(-x^2) / x (1 / sqrt(pi) - P(1 / x^2) / Q(1 / x^2) / x^2).
constant constexpr accum TAIL_P[] = {1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
                                     1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4};
constant constexpr accum TAIL_Q[] = {1.0,
                                     2.56852019228982242e00,
                                     1.87295284992346725e00,
                                     5.27905102951428412e-1,
                                     6.05183413124413191e-2,
                                     2.33520497626869185e-3};
constant constexpr accum INVERSE_SQRT_PI = accum(5.6418958354775628695e-1);

// A polynomial; `Array` holds its coefficients from the highest power down.
template <typename Array>
inline accum horner(accum x, constant Array& coefficients) {
    accum value = coefficients[0];
    for (short n = 1; n < short(sizeof(Array) / sizeof(accum)); n++) value = value * x + coefficients[n];
    return value;
}

// exp(-x^2) for x >= 0 without the rounding of x^2: the square is split in a part that is exact and a small rest.
inline accum exp_minus_square(accum x) {
    x = x > 30 ? 30 : x;  // 0 in double too, as from infinity; written so that a NaN passes
    const accum coarse = trunc(x * 16) / 16;
    return exp(-coarse * coarse) * exp(-(x - coarse) * (x + coarse));
}

// 1 - erf(x); where that is small, right in its own last digits.
inline accum error_function_complement(accum x) {
    const accum y = abs(x), square = y * y;
    if (y <= accum(0.46875)) return 1 - x * (horner(square, ERF_P) / horner(square, ERF_Q));
    accum ratio;
    if (y <= 4) {
        ratio = horner(y, MIDDLE_P) / horner(y, MIDDLE_Q);
    } else {
        const accum inverse = 1 / square;
        ratio = (INVERSE_SQRT_PI - inverse * (horner(inverse, TAIL_P) / horner(inverse, TAIL_Q))) / y;
    }
    const accum upper = exp_minus_square(y) * ratio;
    return x < 0 ? 2 - upper : upper;
}

inline accum error_function(accum x) {
    if (abs(x) > accum(0.46875)) return 1 - error_function_complement(x);
    return x * (horner(x * x, ERF_P) / horner(x * x, ERF_Q));
}
