// Activations and their derivatives: structs that kernels take by name, in a define ACTIVATION.
#pragma once

#include "msl/erf.h"

constant constexpr accum SQRT_HALF = accum(0.70710678118654752440);
constant constexpr accum GELU_SCALE = accum(1.59576912160573071176);  // 2 sqrt(2 / pi)
constant constexpr accum GELU_CUBE = accum(0.044715);

// 1 / (1 + exp(-x)) and its derivative, for any x without overflow.
struct Sigmoid {
    accum value, slope;
};
inline Sigmoid sigmoid(accum x) {
    const accum e = exp(-abs(x)), inverse = 1 / (1 + e);
    Sigmoid s;
    s.value = x < 0 ? e * inverse : inverse;
    s.slope = e * inverse * inverse;
    return s;
}

struct Identity {
    accum value(accum x) const thread { return x; }
    accum slope(accum) const thread { return 1; }
};
// NaN stays NaN, and its gradient is that of a positive number: as in PyTorch.
struct Relu {
    accum value(accum x) const thread { return x <= 0 ? 0 : x; }
    accum slope(accum x) const thread { return x <= 0 ? 0 : 1; }
};
struct ReluSquared {
    accum value(accum x) const thread { return x <= 0 ? 0 : x * x; }
    accum slope(accum x) const thread { return x <= 0 ? 0 : 2 * x; }
};
struct Silu {
    accum value(accum x) const thread { return x * sigmoid(x).value; }
    accum slope(accum x) const thread {
        const Sigmoid s = sigmoid(x);
        return s.value + x * s.slope;
    }
};
// x times the normal distribution's function; by erfc, so that it keeps its digits where it is small.
struct Gelu {
    accum share(accum x) const thread { return error_function_complement(-x * SQRT_HALF) / 2; }
    accum value(accum x) const thread { return x * share(x); }
    accum slope(accum x) const thread {
        const accum density = exp_minus_square(abs(x) * SQRT_HALF) * INVERSE_SQRT_PI * SQRT_HALF;
        return share(x) + x * density;
    }
};
// The same with (1 + tanh(u / 2)) / 2 = sigmoid(u) in the place of the normal distribution's function.
struct GeluTanh {
    accum inner(accum x) const thread { return GELU_SCALE * (x + GELU_CUBE * x * x * x); }
    accum value(accum x) const thread { return x * sigmoid(inner(x)).value; }
    accum slope(accum x) const thread {
        const Sigmoid s = sigmoid(inner(x));
        const accum derivative = GELU_SCALE * (1 + 3 * GELU_CUBE * x * x);
        return s.slope == 0 ? s.value : s.value + x * s.slope * derivative;  // not 0 * infinity
    }
};
