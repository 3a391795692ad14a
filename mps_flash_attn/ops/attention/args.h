// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
//
// Define: SEQUENCES, one of the values below.
#pragma once

#include "msl/dropout.h"
#include "msl/mask.h"

#define SEQUENCES_NONE 0  // each batch is a sequence
#define SEQUENCES_KEYS 1  // a table says which keys are one
#define SEQUENCES_ALL 2   // it says so of queries too

struct alignas(8) AttentionArgs {
    // Elements between neighbours in batch, head and row; the last dimension has stride 1.
    long q_stride[3];
    long k_stride[3];
    long v_stride[3];
    long k_scale_stride[3];
    long v_scale_stride[3];
    long o_stride[3];
    long do_stride[3];
    long dq_stride[3];
    long dk_stride[3];
    long dv_stride[3];
    long mask_stride[4];           // batch, head, query, key; 0 where broadcast
    long mask_size[4];             // likewise; 1 where broadcast
    long batches;                  // B
    long query_heads;              // Hq
    long group;                    // Hq / Hkv: query heads that share a key head
    long queries;                  // Lq, of the tensors
    long keys;                     // Lk
    long head_size;                // D, of queries and keys
    long value_head_size;          // Dv, of values and outputs
    long causal_offset;            // the last key that query i sees is i + causal_offset
    long window_offset;            // the first one is i + window_offset
    long diagonal;                 // query i stands at key i + diagonal
    long bottom_right;             // 1 where a sequence's keys - queries are to be added to all three
    long splits;                   // S: the parts that the forward pass cuts the keys into
    long split_keys;               // of each part but perhaps the last, a multiple of BK
    long split_rows;               // of a part's output, B Hq Lq
    long page_size;                // rows of a page of keys
    long last_page;                // number of the last page that there is
    long table_stride;             // entries of the table of pages for each sequence
    long rotary_pairs;             // R / 2
    long query_position;           // of the first query; the first key's is 0
    long drop_below;               // of 2^32: the share of weights that are dropped
    alignas(8) accum keep_factor;  // 1 / (1 - dropout_p)
    alignas(8) accum softcap;
    alignas(8) accum scale;
};
static_assert(sizeof(AttentionArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");

// Queries that attend to keys, by their places in the tensors.
struct Sequence {
    int number;                         // of all
    int q_batch, first_query, queries;  // of queries, outputs and their gradients
    int k_batch, first_key, keys;       // of keys, values and their gradients

    // Where the row `row` of a head begins in a tensor of queries, or of keys; `stride` is one of the struct's.
    long query_offset(constant long (&stride)[3], int head, int row) const thread {
        return q_batch * stride[0] + head * stride[1] + (first_query + row) * stride[2];
    }
    long key_offset(constant long (&stride)[3], int head, int row) const thread {
        return k_batch * stride[0] + head * stride[1] + (first_key + row) * stride[2];
    }
    // The place of a row of a query head in what has one value a row.
    long row(constant AttentionArgs& args, int head, int row) const thread {
        return (q_batch * args.query_heads + head) * args.queries + first_query + row;
    }
};
// `table` is [N][6] int32, the fields of a Sequence but its number.
inline Sequence sequence_of(constant AttentionArgs& args, const device int* table, int number) {
    const int queries = args.queries, keys = args.keys;
    if (SEQUENCES == SEQUENCES_NONE) return Sequence{number, number, 0, queries, number, 0, keys};
    table += number * 6;
    const bool all = SEQUENCES == SEQUENCES_ALL;
    return Sequence{number, table[0], all ? table[1] : 0, all ? table[2] : queries, table[3], table[4], table[5]};
}

// The scores' scale and masks for one head.
inline ScoreMask score_mask(constant AttentionArgs& args, const device mask_element* values, const device accum* slopes,
                            Sequence sequence, int head) {
    const int batch = sequence.number, added = args.bottom_right ? sequence.keys - sequence.queries : 0;
    ScoreMask mask;
    mask.set_scale(SOFTCAP ? accum(1) : args.scale);  // the cap takes it
    mask.queries = sequence.queries;
    mask.keys = sequence.keys;
    mask.causal_offset = args.causal_offset + added;
    mask.window_offset = args.window_offset + added;
    mask.diagonal = args.diagonal + added;
    mask.slope = ALIBI ? slopes[batch * args.query_heads + head] : 0;
    mask.values = values + batch * args.mask_stride[0] + head * args.mask_stride[1];
    mask.row_stride = args.mask_stride[2];
    mask.column_stride = args.mask_stride[3];
    return mask;
}

// The weights that are dropped of one head.
inline Dropout dropout_of(constant AttentionArgs& args, const device uint* seed, Sequence sequence, int head) {
    Dropout dropout;
    dropout.key = DROPOUT ? uint2(seed[0], seed[1]) : uint2(0);
    dropout.head = sequence.number * args.query_heads + head;
    dropout.below = args.drop_below;
    dropout.kept = args.keep_factor;
    return dropout;
}
