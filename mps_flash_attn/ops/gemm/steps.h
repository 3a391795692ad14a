// The walk over the depth of a product. Defines: those of gemm.metal.
#pragma once

#include "ops/gemm/operand.h"

// The steps over the depth from `begin` to `end`: a block of A and one of B each, in a ring of STAGES blocks.
struct Steps {
    Source<BM, A_DEPTH_LAST> a;
    Source<BN, B_DEPTH_LAST> b;
    threadgroup chunk* a_blocks;
    threadgroup chunk* b_blocks;
    int begin, count;
    ushort thread_index;

    void start(threadgroup chunk* a_blocks, threadgroup chunk* b_blocks, int begin, int end,
               ushort thread_index) thread {
        this->a_blocks = a_blocks;
        this->b_blocks = b_blocks;
        this->begin = begin;
        count = (end - begin + BK - 1) / BK;
        this->thread_index = thread_index;
    }
    threadgroup chunk* a_block(int step) const thread {
        return a_blocks + uint(step) % STAGES * block_chunks<BM, A_DEPTH_LAST>();
    }
    threadgroup chunk* b_block(int step) const thread {
        return b_blocks + uint(step) % STAGES * block_chunks<BN, B_DEPTH_LAST>();
    }
    // A group of copies, of nothing past the last step.
    void stage(int step) const thread {
        if (step < count) {
            a.stage_at(begin + step * BK, a_block(step), thread_index);
            b.stage_at(begin + step * BK, b_block(step), thread_index);
        }
        end_copies();
    }
};
