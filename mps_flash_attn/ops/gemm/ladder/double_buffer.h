// The loop of rungs 7 to 9: two places for tiles. While one step is multiplied, the next is on its way from device
// memory into registers, and goes to the other place afterwards: the latency is hidden, and one barrier a step is
// enough.
#pragma once

#include "ops/gemm/ladder/block.h"

// Of one block of C. `a_tiles` holds two tiles [BK][A_LD], `b_tiles` two [BK][B_LD].
template <bool INTERLEAVED, short A_LD, short B_LD>
inline void double_buffered(const device element* a, const device element* b, device element* c,
                            constant LadderArgs& args, uint2 group, ushort thread_index, threadgroup element* a_tiles,
                            threadgroup element* b_tiles) {
    const int M = args.rows, N = args.columns, K = args.depth, i0 = group.y * BM, j0 = group.x * BN;
    a += i0 * args.depth;
    b += j0;

    Share<BM, BK> a_share;
    Share<BK, BN> b_share;
    ThreadBlock<INTERLEAVED, A_LD, B_LD> block;
    block.start(thread_index);
    a_share.fetch(a, K, M - i0, K, thread_index);
    b_share.fetch(b, N, K, N - j0, thread_index);
    a_share.template put_transposed<A_LD>(a_tiles, thread_index);
    b_share.template put<B_LD>(b_tiles, thread_index);
    for (int k = 0, now = 0; k < K; k += BK, now = 1 - now) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const int next = k + BK;
        if (next < K) {
            a_share.fetch(a + next, K, M - i0, K - next, thread_index);
            b_share.fetch(b + next * args.columns, N, K - next, N - j0, thread_index);
        }
        block.multiply(a_tiles + now * BK * A_LD, b_tiles + now * BK * B_LD);
        if (next < K) {
            a_share.template put_transposed<A_LD>(a_tiles + (1 - now) * BK * A_LD, thread_index);
            b_share.template put<B_LD>(b_tiles + (1 - now) * BK * B_LD, thread_index);
        }
    }
    block.write(c + i0 * args.columns + j0, N, M - i0, N - j0);
}
