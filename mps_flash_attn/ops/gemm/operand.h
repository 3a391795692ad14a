// An operand of a product on its way from device memory to the matrix layer.
#pragma once

#include "msl/copy.h"
#include "msl/tile.h"

// EXTENT rows of A, or columns of B, and all of their depth. They are staged in threadgroup memory in blocks of BK of
// the depth, as they lie in device memory: [EXTENT][BK] with DEPTH_LAST, where neighbours in depth are neighbours in
// memory, else [BK][EXTENT].
template <short EXTENT, bool DEPTH_LAST>
struct Source {
    const device element* first;  // at depth 0
    long stride;
    int extent, depth;  // what is left of the matrix; beyond, elements are 0

    void start(const device element* matrix, long stride, int begin, int end, int depth) thread {
        first = matrix + begin * (DEPTH_LAST ? stride : 1);
        this->stride = stride;
        extent = end - begin;
        this->depth = depth;
    }
    void stage_at(int k, threadgroup chunk* block, ushort thread_index) const thread {
        if (DEPTH_LAST)
            stage<EXTENT, BK, THREADS>(block, first + k, stride, extent, depth - k, thread_index);
        else
            stage<BK, EXTENT, THREADS>(block, first + k * stride, stride, depth - k, extent, thread_index);
    }
#if WGMMA
    // The staged block from row i of A, or column i of B, and depth d of the block on.
    ulong at(const threadgroup chunk* block, short i, short d) const thread {
        const Staged<(DEPTH_LAST ? EXTENT : BK)> staged{(const threadgroup element*)block};
        return DEPTH_LAST ? staged.at(i, d) : staged.at(d, i);
    }
#else
    // The 16 x 16 tile of a staged block of A at row i and depth d of the block.
    void load(thread TileA<element>& tile, const threadgroup chunk* block, short i, short d) const thread {
        constexpr short LD = staged_stride<(DEPTH_LAST ? BK : EXTENT)>();
        const threadgroup element* elements = (const threadgroup element*)block;
        if (DEPTH_LAST)
            load_a<LD>(tile, elements + i * LD + d);
        else
            load_at<LD>(tile, elements + d * LD + i);
    }
    // The same of a block of B at column j.
    void load(thread TileB<element>& tile, const threadgroup chunk* block, short j, short d) const thread {
        constexpr short LD = staged_stride<(DEPTH_LAST ? BK : EXTENT)>();
        const threadgroup element* elements = (const threadgroup element*)block;
        if (DEPTH_LAST)
            load_bt<LD>(tile, elements + j * LD + d);
        else
            load_b<LD>(tile, elements + d * LD + j);
    }
#endif
};

// Chunks of a block of it.
template <short EXTENT, bool DEPTH_LAST>
constexpr short block_chunks() {
    return DEPTH_LAST ? staged_chunks<EXTENT, BK>() : staged_chunks<BK, EXTENT>();
}
