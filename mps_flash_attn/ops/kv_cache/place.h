// Where a row goes: into a cache of keys and values, behind the rows that its sequence has there.
//
// Define: PLACE, one of the values below.
#pragma once

#include "ops/kv_cache/args.h"

#define PLACE_SAME 0      // batch b, row i, as it came: rows are turned and not appended
#define PLACE_BATCH 1     // of batch b
#define PLACE_NUMBERED 2  // of the batch that a tensor says, [B]
#define PLACE_PAGED 3     // of the page that a table says, [B, max_pages]

struct Place {
    long batch;  // or page
    long row;
    bool exists;
};

// Of row `row` of a batch, which stands at `position` of its sequence. Whatever the tensors say, a place that does not
// exist is not touched.
inline Place place_of(constant KvCacheArgs& args, const device int* numbers, long batch, long row, long position) {
    if (PLACE == PLACE_SAME) return Place{batch, row, true};
    if (position < 0) return Place{0, 0, false};
    if (PLACE == PLACE_PAGED) {
        const long page = position / args.rows;
        if (page >= args.max_pages) return Place{0, 0, false};
        batch = numbers[batch * args.table_stride + page];
        position %= args.rows;
    }
    if (PLACE == PLACE_NUMBERED) batch = numbers[batch];
    return Place{batch, position, batch >= 0 && batch < args.batches && position < args.rows};
}
