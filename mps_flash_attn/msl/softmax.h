// The softmax of rows that arrive tile by tile (Milakov and Gimelshein, arXiv:1805.02867), and what the backward pass
// makes of its result.
#pragma once

#include "msl/tile.h"

// exp(x - y) by the hardware's base-2 exponential. The difference is taken first: it is small where the result counts,
// while x and y may be large, and their rounding to base 2 would be an error of the result.
inline accum exp_difference(accum x, accum y) { return fast::exp2((x - y) * LOG2_E); }

// -inf stands for a row with no visible key: there any finite value gives weights of 0, and -inf would give NaN.
inline rows_t finite_or_zero(rows_t m) { return select(m, rows_t(0), m == rows_t(-INFINITY)); }

struct OnlineSoftmax {
    rows_t m;  // largest score so far
    rows_t l;  // sum of exp(score - m), over this lane's columns only until `finish`

    void start() thread {
        m = rows_t(-INFINITY);
        l = rows_t(0);
    }
    // Turns the scores s into weights exp(s - m) with the new m; returns the factor of everything summed before.
    template <short N>
    rows_t update(thread TileC (&s)[N]) thread {
        rows_t highest = m;
        for (short j = 0; j < N; j++)
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 4; column++) highest[row] = max(highest[row], s[j].at(row, column));
        highest = reduce_max(highest);

        const rows_t base = finite_or_zero(highest);
        const rows_t factor(exp_difference(m[0], base[0]), exp_difference(m[1], base[1]));
        m = highest;
        l *= factor;
        for (short j = 0; j < N; j++)
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 4; column++) {
                    thread accum& value = s[j].at(row, column);
                    value = exp_difference(value, base[row]);
                    l[row] += value;
                }
        return factor;
    }
    // Sums l over each row; afterwards 1 / l scales the output (0 where no key is visible).
    rows_t finish() thread {
        l = reduce_sum(l);
        return select(rows_t(1) / l, rows_t(0), l == rows_t(0));
    }
    // Natural logarithm of the sum of the exponentials of a row's scores.
    rows_t log_sum_exp() const thread { return m + log(l); }
};

// The log-sum-exp as the backward pass subtracts it: +inf for a row with no visible key, whose weights are then 0.
inline accum backward_base(accum lse) { return lse == -INFINITY ? accum(INFINITY) : lse; }

// The value of a query at an element of a tile: queries are its rows or, transposed, its columns.
inline accum of_query(rows_t values, short row, short) { return values[row]; }
inline accum of_query(columns_t values, short, short column) { return values[column]; }

// Scores s into weights p = exp(s - lse), and dp into ds = p (dp - delta); lse and delta are `rows_t` or `columns_t`.
template <typename Values>
inline void weights_and_gradient(thread TileC& s, thread TileC& dp, Values lse, Values delta) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            const accum p = exp_difference(s.at(row, column), backward_base(of_query(lse, row, column)));
            s.at(row, column) = p;
            dp.at(row, column) = p * (dp.at(row, column) - of_query(delta, row, column));
        }
}
