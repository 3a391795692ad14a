// The softmax of rows that arrive tile by tile (Milakov and Gimelshein, arXiv:1805.02867), and what the backward pass
// makes of its result.
#pragma once

#include "msl/tile.h"

// exp(unit * score - shift / log2 e) by the hardware's base-2 exponential, factor = unit * log2 e: the product is not
// rounded before the difference is taken, which is small where the result counts.
inline accum shifted_exp(accum score, accum factor, accum shift) { return fast::exp2(fma(score, factor, -shift)); }

// -inf stands for a row with no visible key: there any finite value gives weights of 0, and -inf would give NaN.
inline rows_t finite_or_zero(rows_t m) { return select(m, rows_t(0), m == rows_t(-INFINITY)); }

struct OnlineSoftmax {
    accum factor;  // of a score in base 2
    rows_t m;      // largest score so far
    rows_t shift;  // m in base 2, rounded once, so that all that is computed from it agrees
    rows_t l;      // sum of 2^(factor * score - shift), over this lane's columns only until `finish`

    // `unit` is what scores are still to be multiplied by. `sink` is the score, as it is, of something without a value
    // that takes its share of the weights; -inf stands for none.
    void start(accum unit, accum sink, ushort lane) thread {
        factor = unit * LOG2_E;
        m = rows_t(sink / unit);
        shift = m * factor;
        l = rows_t(sink != -INFINITY && tile_col(lane) == 0 ? 1 : 0);  // one of the lanes that share a row counts it
    }
    // Turns the scores s into weights with the new m; returns the factor of everything summed before.
    template <short N>
    rows_t update(thread TileC (&s)[N]) thread {
        for (short j = 0; j < N; j++)
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 4; column++) m[row] = max(m[row], s[j].at(row, column));
        m = reduce_max(m);

        const rows_t before = shift;
        shift = finite_or_zero(m) * factor;
        const rows_t correction(fast::exp2(before[0] - shift[0]), fast::exp2(before[1] - shift[1]));
        l *= correction;
        for (short j = 0; j < N; j++)
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 4; column++) {
                    thread accum& value = s[j].at(row, column);
                    value = shifted_exp(value, factor, shift[row]);
                    l[row] += value;
                }
        return correction;
    }
    // Sums l over each row; afterwards 1 / l scales the output (0 where no key is visible).
    rows_t finish() thread {
        l = reduce_sum(l);
        return select(rows_t(1) / l, rows_t(0), l == rows_t(0));
    }
    // Natural logarithm of the sum of the exponentials of a row's scores.
    rows_t log_sum_exp() const thread { return select(shift / LOG2_E + log(l), rows_t(-INFINITY), l == rows_t(0)); }
};

// The log-sum-exp as the backward pass subtracts it: +inf for a row with no visible key, whose weights are then 0.
inline accum backward_base(accum lse) { return lse == -INFINITY ? accum(INFINITY) : lse; }

// The value of a query at an element of a tile: queries are its rows or, transposed, its columns.
inline accum of_query(rows_t values, short row, short) { return values[row]; }
inline accum of_query(columns_t values, short, short column) { return values[column]; }

// Scores s in `unit` into weights p = exp(unit * s - lse), and dp into ds = p (dp - delta); lse and delta are `rows_t`
// or `columns_t`.
template <typename Values>
inline void weights_and_gradient(thread TileC& s, thread TileC& dp, accum unit, Values lse, Values delta) {
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            // The difference is taken before base 2: lse was rounded already, and its product would be again.
            const accum base = backward_base(of_query(lse, row, column));
            const accum p = fast::exp2(fma(s.at(row, column), unit, -base) * LOG2_E);
            s.at(row, column) = p;
            dp.at(row, column) = p * (dp.at(row, column) - of_query(delta, row, column));
        }
}
