// What varies from call to call. Every field is 8 bytes wide, so that the struct travels as a list of words.
#pragma once

#include "msl/dropout.h"
#include "msl/mask.h"

struct alignas(8) AttentionArgs {
    // Elements between neighbours in batch, head and row; the last dimension has stride 1.
    long q_stride[3];
    long k_stride[3];
    long v_stride[3];
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
    long queries;                  // Lq
    long keys;                     // Lk
    long head_size;                // D, of queries and keys
    long value_head_size;          // Dv, of values and outputs
    long causal_offset;            // the last key that query i sees is i + causal_offset
    long window_offset;            // the first one is i + window_offset
    long diagonal;                 // query i stands at key i + diagonal
    long splits;                   // S: the parts that the forward pass cuts the keys into
    long split_keys;               // of each part but perhaps the last, a multiple of BK
    long split_rows;               // of a part's output, B Hq Lq
    long rotary_pairs;             // R / 2
    long query_position;           // of the first query; the first key's is 0
    long drop_below;               // of 2^32: the share of weights that are dropped
    alignas(8) accum keep_factor;  // 1 / (1 - dropout_p)
    alignas(8) accum softcap;
    alignas(8) accum scale;
};
static_assert(sizeof(AttentionArgs) == ARGS_BYTES, "args.h and the packing in launch.py disagree");

// The scores' scale and masks for one head.
inline ScoreMask score_mask(constant AttentionArgs& args, const device mask_element* values, const device accum* slopes,
                            int batch, int head) {
    ScoreMask mask;
    mask.set_scale(SOFTCAP ? accum(1) : args.scale);  // the cap takes it
    mask.queries = args.queries;
    mask.keys = args.keys;
    mask.causal_offset = args.causal_offset;
    mask.window_offset = args.window_offset;
    mask.diagonal = args.diagonal;
    mask.slope = ALIBI ? slopes[batch * args.query_heads + head] : 0;
    mask.values = values + batch * args.mask_stride[0] + head * args.mask_stride[1];
    mask.row_stride = args.mask_stride[2];
    mask.column_stride = args.mask_stride[3];
    return mask;
}

// The weights that are dropped of one head.
inline Dropout dropout_of(constant AttentionArgs& args, const device uint* seed, int batch, int head) {
    Dropout dropout;
    dropout.key = DROPOUT ? uint2(seed[0], seed[1]) : uint2(0);
    dropout.head = batch * args.query_heads + head;
    dropout.below = args.drop_below;
    dropout.kept = args.keep_factor;
    return dropout;
}

// Where the matrix of one batch and head begins; `stride` is one of the struct's.
inline long matrix_offset(constant long (&stride)[3], int batch, int head) {
    return batch * stride[0] + head * stride[1];
}
