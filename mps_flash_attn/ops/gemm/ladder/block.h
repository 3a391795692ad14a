// The TM x TN elements of C that a thread keeps, in quads: from tiles A^T [BK][A_LD] and B [BK][B_LD]. TM and TN are
// multiples of 4.
//
// INTERLEAVED: whether the thread's quads lie side by side in its own run of TM or TN elements, or apart, next to the
// same quads of its neighbours; there a simdgroup is 4 x 8 threads, so that the quads it reads at a time touch every
// bank of threadgroup memory as seldom as can be.
#pragma once

#include "ops/gemm/ladder/tiles.h"

template <bool INTERLEAVED, short A_LD, short B_LD>
struct ThreadBlock {
    short row, column;  // of the thread among the threads
    accum sums[TM][TN];

    void start(ushort thread_index) thread {
        const short simdgroup = thread_index / 32, lane = thread_index % 32;
        row = INTERLEAVED ? simdgroup / (BN / TN / 8) * 4 + lane / 8 : thread_index / (BN / TN);
        column = INTERLEAVED ? simdgroup % (BN / TN / 8) * 8 + lane % 8 : thread_index % (BN / TN);
        for (short m = 0; m < TM; m++)
            for (short n = 0; n < TN; n++) sums[m][n] = 0;
    }
    // Where in the tile a quad of the thread begins.
    short row_of(short m) const thread { return INTERLEAVED ? m * (BM / TM) + row * 4 : row * TM + m; }
    short column_of(short n) const thread { return INTERLEAVED ? n * (BN / TN) + column * 4 : column * TN + n; }

    // sums += A B over the BK steps of two tiles.
    void multiply(const threadgroup element* a_tile, const threadgroup element* b_tile) thread {
        for (short d = 0; d < BK; d++) {
            quad left[TM / 4], right[TN / 4];
            for (short m = 0; m < TM; m += 4) left[m / 4] = *(const threadgroup quad*)(a_tile + d * A_LD + row_of(m));
            for (short n = 0; n < TN; n += 4)
                right[n / 4] = *(const threadgroup quad*)(b_tile + d * B_LD + column_of(n));
            for (short m = 0; m < TM; m++)
                for (short n = 0; n < TN; n++) sums[m][n] += accum(left[m / 4][m % 4]) * accum(right[n / 4][n % 4]);
        }
    }
    // Writes the sums to C, of which `rows` x `columns` elements are left.
    void write(device element* c, long stride, int rows, int columns) const thread {
        for (short m = 0; m < TM; m++)
            for (short n = 0; n < TN; n += 4) {
                quad value;
                for (short e = 0; e < 4; e++) value[e] = element(sums[m][n + e]);
                const short i = row_of(m / 4 * 4) + m % 4;
                if (i < rows) write_quad(c + i * stride, column_of(n), columns, value);
            }
    }
};
