// Groups the tokens by their row: order[starts[v] .. starts[v + 1]) are the numbers of the tokens with index v, in
// increasing order. A stable counting sort without atomics, in one launch.
//
// A threadgroup makes the part of ROWS rows and reads all N indices twice, each simdgroup its share of them: first it
// counts, then it places. Where its part begins is the number of indices before its rows, which it counts for itself,
// so threadgroups need nothing of each other. Row V has no tokens, and its start is the number of all. Grid: ceil((V +
// 1) / ROWS) threadgroups of THREADS threads; THREADS divides ROWS.
#include "ops/embedding/args.h"

constant constexpr short LANES = 32;
constant constexpr short SIMDGROUPS = THREADS / LANES;
constant constexpr short THREAD_ROWS = ROWS / THREADS;

inline uint ballot(bool value) { return uint((simd_vote::vote_t)simd_ballot(value)); }

// Counts the tokens of a simdgroup at their rows, and gives each the count that it found. The order is that of lanes. A
// lane whose token belongs to none of the rows has a negative one. Lane r % 32 alone touches the count of row r.
inline int count_in_order(threadgroup int* counts, int row, ushort lane) {
    int place = 0;
    for (uint left = ballot(row >= 0); left != 0;) {
        const int current = simd_shuffle(row, ushort(ctz(left)));
        const uint same = ballot(row == current);
        int before = 0;
        if (lane == current % LANES) {
            before = counts[current];
            counts[current] = before + popcount(same);
        }
        before = simd_shuffle(before, ushort(current % LANES));
        if (row == current) place = before + popcount(same & ((1u << lane) - 1));
        left &= ~same;
    }
    return place;
}

kernel void embedding_backward_order(const device INDEX* input [[buffer(0)]], device int* starts [[buffer(1)]],
                                     device int* order [[buffer(2)]], constant EmbeddingArgs& args [[buffer(3)]],
                                     uint block [[threadgroup_position_in_grid]],
                                     ushort thread_index [[thread_index_in_threadgroup]],
                                     ushort simdgroup [[simdgroup_index_in_threadgroup]],
                                     ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup int counts[SIMDGROUPS][ROWS];  // of the tokens in each simdgroup's share; later their next places
    threadgroup int totals[SIMDGROUPS], befores[SIMDGROUPS];

    const int tokens = args.tokens, first_row = block * ROWS;
    const int share = (tokens + THREADS - 1) / THREADS * LANES;
    const int begin = simdgroup * share, end = min(begin + share, tokens);

    for (short row = lane; row < ROWS; row += LANES) counts[simdgroup][row] = 0;
    int before = 0;
    for (int n = begin + lane; n - lane < end; n += LANES) {
        const long row = n < end ? input[token_offset(args, n)] : -1;
        const bool counted = row >= 0 && row < args.rows && row != args.padding_row;
        before += counted && row < first_row;
        const bool own = counted && row >= first_row && row < first_row + ROWS;
        count_in_order(counts[simdgroup], own ? int(row - first_row) : -1, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // A thread takes THREAD_ROWS rows: all their tokens follow those of the threads, simdgroups and blocks before.
    int total = 0;
    for (short row = thread_index * THREAD_ROWS; row < (thread_index + 1) * THREAD_ROWS; row++)
        for (short other = 0; other < SIMDGROUPS; other++) total += counts[other][row];
    int place = simd_prefix_exclusive_sum(total);
    total = simd_sum(total);
    before = simd_sum(before);
    if (lane == 0) {
        totals[simdgroup] = total;
        befores[simdgroup] = before;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (short other = 0; other < SIMDGROUPS; other++)
        place += befores[other] + (other < simdgroup ? totals[other] : 0);
    for (short row = thread_index * THREAD_ROWS; row < (thread_index + 1) * THREAD_ROWS; row++) {
        if (first_row + row <= args.rows) starts[first_row + row] = place;
        for (short other = 0; other < SIMDGROUPS; other++) {
            const int count = counts[other][row];
            counts[other][row] = place;
            place += count;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (int n = begin + lane; n - lane < end; n += LANES) {
        const long row = n < end ? input[token_offset(args, n)] : -1;
        const bool own = row >= first_row && row < first_row + ROWS && row < args.rows && row != args.padding_row;
        const int next = count_in_order(counts[simdgroup], own ? int(row - first_row) : -1, lane);
        if (own) order[next] = n;
    }
}
