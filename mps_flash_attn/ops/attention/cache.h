// Keys and values as a cache keeps them: in pages that may lie anywhere, in numbers of 8 or 4 bits, or in both.
//
// Define: PAGED, 1 where a table says which page holds which rows; those of stored.h; ALIGNED, as in copy.h.
#pragma once

#include "msl/copy.h"
#include "msl/stored.h"
#include "ops/attention/args.h"
#include "ops/attention/block.h"

#define CACHED (PAGED || STORED != STORED_ELEMENTS)

#if STORED == STORED_ELEMENTS
using stored_element = element;
#else
using stored_element = uchar;
#endif

// Sixteen bytes of elements.
struct alignas(sizeof(chunk)) Elements {
    element at[CHUNK_ELEMENTS];
};

// A row of keys or values.
struct StoredRow {
    const device stored_element* values;
    const device float* scales;

    // What is in the columns from `first` on, a multiple of what a chunk holds; `columns` of them are there. With
    // ALIGNED stored numbers are read at once.
    chunk at(int first, int columns) const thread {
        Elements elements;
#if STORED == STORED_ELEMENTS
        for (short n = 0; n < CHUNK_ELEMENTS; n++) elements.at[n] = n < columns ? values[first + n] : element(0);
#else
        constexpr short BYTES = CHUNK_ELEMENTS * STORED_BITS / 8, IN_BYTE = 8 / STORED_BITS;
        struct alignas(BYTES) Bytes {
            uchar at[BYTES];
        } bytes;
        const device uchar* source = values + first / IN_BYTE;
#if ALIGNED
        bytes = *(const device Bytes*)source;
#else
        for (short n = 0; n < BYTES; n++) bytes.at[n] = n * IN_BYTE < columns ? source[n] : 0;
#endif
        const accum scale = stored_scale(scales, first);  // groups are whole chunks
        for (short n = 0; n < CHUNK_ELEMENTS; n++) {
            const accum number = stored_number(bytes.at[n / IN_BYTE] >> (n % IN_BYTE * STORED_BITS));
            elements.at[n] = n < columns ? element(number * scale) : element(0);
        }
#endif
        return *(const thread chunk*)&elements;
    }
};

// The rows of one head and sequence; strides are in stored elements, and in scales.
struct Cache {
    const device stored_element* values;
    const device float* scales;
    const device int* pages;  // of rows n * page_size to (n + 1) * page_size - 1: which of all pages
    long row_stride, scale_row_stride, page_stride, scale_page_stride;
    int first_row, page_size, last_page;

    StoredRow row(int number) const thread {
#if PAGED
        number += first_row;
        const long page = clamp(pages[number / page_size], 0, last_page), place = number % page_size;
        return StoredRow{values + page * page_stride + place * row_stride,
                         scales + page * scale_page_stride + place * scale_row_stride};
#else
        return StoredRow{values + number * row_stride, scales + number * scale_row_stride};
#endif
    }
};
inline Cache cache_of(constant AttentionArgs& args, const device stored_element* values, const device float* scales,
                      const device int* table, constant long (&stride)[3], constant long (&scale_stride)[3],
                      Sequence sequence, int head) {
    const Sequence whole = PAGED ? Sequence{0, 0, 0, 0, 0, 0, 0} : sequence;
    return Cache{values + whole.key_offset(stride, head, 0),
                 scales + whole.key_offset(scale_stride, head, 0),
                 table + sequence.k_batch * args.table_stride,
                 stride[2],
                 scale_stride[2],
                 stride[0],
                 scale_stride[0],
                 sequence.first_key,
                 int(args.page_size),
                 int(args.last_page)};
}

// COLUMNS columns of such rows, from `first_column` on, as staged blocks: what `Blocks` is for other matrices.
template <short COLUMNS>
struct CachedBlocks {
    Cache cache;
    int first_column, rows, columns;

    template <short ROWS>
    void stage_at(int row, threadgroup chunk* tile, ushort thread_index) const thread {
        constexpr short ROW_CHUNKS = COLUMNS / CHUNK_ELEMENTS;
        for (int n = thread_index; n < ROWS * ROW_CHUNKS; n += THREADS) {
            const short i = n / ROW_CHUNKS, j = n % ROW_CHUNKS * CHUNK_ELEMENTS;
            const bool inside = row + i < rows;
            const StoredRow from = cache.row(inside ? row + i : row);
            threadgroup chunk* to = tile + staged_place<ROWS, COLUMNS>(i, j) / CHUNK_ELEMENTS;
#if ALIGNED && STORED == STORED_ELEMENTS
            copy_chunk(to, (const device chunk*)(from.values + first_column + j), inside && j < columns);
#else
            *to = inside && j < columns ? from.at(first_column + j, columns - j) : chunk(0);
#endif
        }
    }
    Block<COLUMNS> at(int, const threadgroup chunk* tile, ushort) const thread {
        return Block<COLUMNS>{(const threadgroup element*)tile};
    }
};
