// Rows of new keys and values go to their places in a cache, row i of batch b at position lengths[b] + i of its
// sequence, and keys are turned by the angles of that position on their way (rotary position embedding,
// arXiv:2104.09864).
//
// A thread takes PACK pairs of a key, or a pack that is only copied, and a pack of the value. A row that has no place
// in the cache, or no angles in the tables, is left out; the operator raises before it comes to that. Grid: (threads of
// a row, new rows, batches * heads). Defines: PLACE; TABLE, what the tables hold; those of msl/turn_pack.h.
#include "msl/turn_pack.h"
#include "ops/kv_cache/place.h"

inline long row_offset(constant long (&stride)[3], long batch, long row, long head) {
    return batch * stride[0] + row * stride[1] + head * stride[2];
}

kernel void kv_cache_store(const device element* key [[buffer(0)]], const device element* value [[buffer(1)]],
                           const device TABLE* cosines [[buffer(2)]], const device TABLE* sines [[buffer(3)]],
                           const device int* lengths [[buffer(4)]], const device int* numbers [[buffer(5)]],
                           device element* k_cache [[buffer(6)]], device element* v_cache [[buffer(7)]],
                           constant KvCacheArgs& args [[buffer(8)]], uint3 index [[thread_position_in_grid]]) {
    const long batch = index.z / args.heads, head = index.z % args.heads, row = index.y, first = index.x * PACK;
    const Place place = place_of(args, numbers, batch, row, lengths[batch] + row);
    const long position = lengths[batch] + row * args.step, pairs = args.rotary_pairs;
    if (!place.exists || (pairs > 0 && (position < 0 || position >= args.positions))) return;

    key += row_offset(args.key_stride, batch, row, head);
    k_cache += row_offset(args.k_cache_stride, place.batch, place.row, head);
    if (first < pairs) {
        Turn turns[PACK];
        for (short i = 0; i < PACK; i++) {
            turns[i].cosine = cosines[position * args.angle_stride + first + i];
            turns[i].sine = sines[position * args.angle_stride + first + i];
        }
        turn_pairs(key, k_cache, first, pairs, turns);
    } else if (pairs + first < args.columns) {
        store_pack(k_cache + pairs + first, load_pack(key + pairs + first));
    }
    if (first < args.value_columns) {
        value += row_offset(args.value_stride, batch, row, head);
        v_cache += row_offset(args.v_cache_stride, place.batch, place.row, head);
        store_pack(v_cache + first, load_pack(value + first));
    }
}
