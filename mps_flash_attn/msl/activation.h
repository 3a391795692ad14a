// Activations of a network and their derivatives, in float. Define: ACTIVATION, one of the values below.
#pragma once

#include "msl/types.h"

#define ACTIVATION_NONE 0
#define ACTIVATION_RELU 1
#define ACTIVATION_GELU 2
#define ACTIVATION_GELU_TANH 3
#define ACTIVATION_SILU 4

inline accum exponential(accum x) { return fast::exp2(x * LOG2_E); }
inline accum sigmoid(accum x) { return accum(1) / (accum(1) + exponential(-x)); }

// A polynomial by Horner's rule, its highest coefficient first.
template <short N>
inline accum polynomial(const thread accum (&coefficients)[N], accum x) {
    accum sum = coefficients[0];
    for (short i = 1; i < N; i++) sum = sum * x + coefficients[i];
    return sum;
}

// The error function, which Metal lacks, as quotients of polynomials: W. J. Cody, Rational Chebyshev approximations for
// the error function, Mathematics of Computation 23 (1969), its ranges below 0.46875 and below 4. The latter serves up
// to 6, as little is left of erfc there; beyond, erf(x) is +-1 even in double precision.
inline accum error_function(accum x) {
    const accum magnitude = min(fabs(x), accum(6));
    if (magnitude <= accum(0.46875)) {
        const accum p[] = {accum(1.85777706184603153e-1), accum(3.16112374387056560), accum(1.13864154151050156e2),
                           accum(3.77485237685302021e2), accum(3.20937758913846947e3)};
        const accum q[] = {accum(1), accum(2.36012909523441209e1), accum(2.44024637934444173e2),
                           accum(1.28261652607737228e3), accum(2.84423683343917062e3)};
        return x * polynomial(p, x * x) / polynomial(q, x * x);
    }
    const accum p[] = {accum(2.15311535474403846e-8), accum(5.64188496988670089e-1), accum(8.88314979438837594),
                       accum(6.61191906371416295e1),  accum(2.98635138197400131e2),  accum(8.81952221241769090e2),
                       accum(1.71204761263407058e3),  accum(2.05107837782607147e3),  accum(1.23033935479799725e3)};
    const accum q[] = {accum(1),
                       accum(1.57449261107098347e1),
                       accum(1.17693950891312499e2),
                       accum(5.37181101862009858e2),
                       accum(1.62138957456669019e3),
                       accum(3.29079923573345963e3),
                       accum(4.36261909014324716e3),
                       accum(3.43936767414372164e3),
                       accum(1.23033935480374942e3)};
    const accum erfc = exponential(-magnitude * magnitude) * polynomial(p, magnitude) / polynomial(q, magnitude);
    return isnan(x) ? x : copysign(accum(1) - erfc, x);
}

// Twice the argument of GELU's tanh: 0.5 (1 + tanh(u)) = sigmoid(2 u), which does not overflow.
inline accum gelu_tanh_argument(accum x) { return accum(1.5957691216057308) * (x + accum(0.044715) * x * x * x); }

inline accum activation(accum x) {
#if ACTIVATION == ACTIVATION_RELU
    return x < 0 ? accum(0) : x;  // a NaN stays
#elif ACTIVATION == ACTIVATION_GELU
    return accum(0.5) * x * (accum(1) + error_function(x * accum(0.70710678118654752440)));
#elif ACTIVATION == ACTIVATION_GELU_TANH
    return x * sigmoid(gelu_tanh_argument(x));
#elif ACTIVATION == ACTIVATION_SILU
    return x * sigmoid(x);
#else
    return x;
#endif
}

// d activation(x) / d x; for ReLU `x` may as well be its result.
inline accum activation_derivative(accum x) {
#if ACTIVATION == ACTIVATION_RELU
    return x <= 0 ? accum(0) : accum(1);
#elif ACTIVATION == ACTIVATION_GELU
    const accum density = accum(0.39894228040143267794) * exponential(accum(-0.5) * x * x);
    return accum(0.5) * (accum(1) + error_function(x * accum(0.70710678118654752440))) + x * density;
#elif ACTIVATION == ACTIVATION_GELU_TANH
    const accum s = sigmoid(gelu_tanh_argument(x));
    return s + x * s * (accum(1) - s) * accum(1.5957691216057308) * (accum(1) + accum(0.134145) * x * x);
#elif ACTIVATION == ACTIVATION_SILU
    const accum s = sigmoid(x);
    return s * (accum(1) + x * (accum(1) - s));
#else
    return accum(1);
#endif
}
