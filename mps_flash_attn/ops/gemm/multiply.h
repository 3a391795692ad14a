// The product of a step's staged blocks. Defines: those of gemm.metal.
#pragma once

#include "ops/gemm/steps.h"

constant constexpr short TM = BM / WM / TILE, TN = BN / WN / TILE;  // tiles that a simdgroup keeps

#if WGMMA
// Steps of the depth that are staged ahead: the products of one step go on while those of the next are started, so that
// of STAGES blocks two are being read.
constant constexpr short AHEAD = STAGES - 2;
static_assert(TM == 1 && WN == 1 && WM % 4 == 0, "a warpgroup takes 64 rows");

// acc += the product of a step's blocks, which goes on; that of the step before is finished.
inline void multiply(thread TileC (&acc)[TM][TN], thread const Steps& steps, int step, short own_row,
                     short own_column) {
    const threadgroup chunk* a_block = steps.a_block(step);
    const threadgroup chunk* b_block = steps.b_block(step);
    simt::begin_products();
    for (short d = 0; d < BK; d += TILE)
        simt::multiply_group<element, !A_DEPTH_LAST, !B_DEPTH_LAST>(acc[0], steps.a.at(a_block, own_row / 64 * 64, d),
                                                                    steps.b.at(b_block, 0, d));
    simt::end_products();
    simt::finish_products<1>();
}
inline void finish_products() { simt::finish_products<0>(); }
#else
constant constexpr short AHEAD = STAGES - 1;

// acc += the product of a step's blocks.
inline void multiply(thread TileC (&acc)[TM][TN], thread const Steps& steps, int step, short own_row,
                     short own_column) {
    const threadgroup chunk* a_block = steps.a_block(step);
    const threadgroup chunk* b_block = steps.b_block(step);
    for (short d = 0; d < BK; d += TILE) {
        TileA<element> left[TM];
        TileB<element> right[TN];
        for (short m = 0; m < TM; m++) steps.a.load(left[m], a_block, own_row + m * TILE, d);
        for (short n = 0; n < TN; n++) steps.b.load(right[n], b_block, own_column + n * TILE, d);
        for (short m = 0; m < TM; m++)
            for (short n = 0; n < TN; n++) mma(acc[m][n], left[m], right[n]);
    }
}
inline void finish_products() {}
#endif
