// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/types.h"

struct alignas(8) KvCacheArgs {
    // Elements between neighbours in batch, row and head, or in page, row of the page and head; the last dimension has
    // stride 1.
    long key_stride[3];
    long value_stride[3];
    long k_cache_stride[3];
    long v_cache_stride[3];
    long heads;          // Hkv
    long columns;        // D
    long value_columns;  // Dv, or 0 where there are only keys
    long batches;        // of the cache, or its pages
    long rows;           // of the cache for each of its batches, or of a page
    long max_pages;      // of a sequence
    long table_stride;   // between the sequences of the table of pages
    long rotary_pairs;   // R / 2, 0 where keys are not turned
    long positions;      // rows of the tables of cosines and sines
    long angle_stride;   // between them
    long step;           // 1, or 0 where all new rows of a sequence are turned as its first one
};
static_assert(sizeof(KvCacheArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");
