// Deferred products of 8 x 8 matrices.
//
// A product needs the elements of all lanes, and waiting for them costs a switch of fibers for every lane. So a lane
// that comes to a product only notes the values of its own elements in a log that the lanes of its simdgroup share,
// and goes on. When a lane needs a result, or the log is full, it waits, and the last lane to arrive computes all
// products of the log. All lanes come to the same products in the same order; some may have noted more of them than
// others when they wait, and keep what the others have yet to note.
#pragma once

#include "../simt.h"
#include "scalar.h"

namespace simt {

constexpr uint32_t kTile = 8;  // rows and columns of a matrix
constexpr uint32_t kTileElements = kTile * kTile;

// Where in the matrix, row by row, the first of a lane's two adjacent elements is.
SIMT_INLINE constexpr uint32_t lane_position(uint32_t lane) {
    const uint32_t quad = lane / 4;
    const uint32_t row = (quad & 4) + lane / 2 % 4, column = (quad & 2) * 2 + lane % 2 * 2;
    return row * kTile + column;
}

// The running lane's. Declared const, so that a kernel asks once however many matrices it touches.
__attribute__((const, noinline)) SIMT_UNCHECKED inline Thread* own_thread() { return self(); }
__attribute__((const, noinline)) SIMT_UNCHECKED inline uint32_t own_position() { return lane_position(self()->lane); }

// What the log knows of a lane's matrix: a matrix that waits for products names, counted from 1, the entry of the log
// where the first of them is.
struct Waiting {
    uint32_t chain = 0;
};

struct Product;

// What is done with products of certain element types, for the lanes of a mask.
struct ProductKind {
    void (*gather)(Product& chain, uint32_t lanes);   // the matrices' elements into chain.sum
    void (*scatter)(Product& chain, uint32_t lanes);  // and back
    void (*multiply)(Product& chain, const Product& product);
    void (*multiply_avx2)(Product& chain, const Product& product);
    void (*clear)(Product& product, uint32_t lanes);  // makes operands 0
};

// One entry of the log. Products into the same matrix form a chain and are summed in the chain's first entry.
struct alignas(64) Product {
    const ProductKind* kind;  // null while no lane has noted the product; the executor clears an abandoned log
    uint32_t chain;           // as in Waiting
    int32_t line;             // of the Metal text; any entry may come to be the log's first, at whose line lanes wait
    Waiting* result[kLanes];  // in a chain's first entry: each lane's matrix
    alignas(64) char sum[kTileElements * sizeof(double)];
    alignas(64) char left[kTileElements * sizeof(double)];
    alignas(64) char right[kTileElements * sizeof(double)];
};

constexpr uint32_t kMaxProducts = kDeferredBytes / sizeof(Product);

SIMT_INLINE Product* log_of(const Thread* thread) { return static_cast<Product*>(thread->deferred); }
SIMT_INLINE Product* log_end(const Thread* thread) { return reinterpret_cast<Product*>(thread->deferred_end); }
SIMT_INLINE uint32_t log_size(const Thread* thread) { return static_cast<uint32_t>(log_end(thread) - log_of(thread)); }

SIMT_INLINE void clear_log(Thread* thread) { thread->deferred_end = static_cast<char*>(thread->deferred); }

// What a lane must do before it runs a kernel.
SIMT_INLINE void start_log(Thread* thread) {
    clear_log(thread);
    thread->deferred_limit = reinterpret_cast<char*>(log_of(thread) + kMaxProducts);
}

template <class F>
SIMT_INLINE void for_each_lane(uint32_t lanes, F f) {
    for (; lanes != 0; lanes &= lanes - 1) f(static_cast<uint32_t>(__builtin_ctz(lanes)));
}

// Moves to the front of the log the products from `done` on, which some of the lanes have noted already.
SIMT_UNCHECKED inline void keep_rest(void* const* slots, uint32_t arrived, Product* log, uint32_t done) {
    const auto noted = [&](uint32_t i) {
        uint32_t lanes = 0;
        for_each_lane(arrived, [&](uint32_t lane) {
            if (i < log_size(static_cast<Thread*>(slots[lane]))) lanes |= uint32_t{1} << lane;
        });
        return lanes;
    };
    uint32_t chains[kMaxProducts];
    uint32_t size = done;
    for (; size < kMaxProducts && noted(size) != 0; ++size) {
        uint32_t first = done;
        while (log[first].chain != log[size].chain) ++first;
        chains[size] = first - done + 1;
        if (first != size) continue;
        const Product& start = log[log[size].chain - 1];
        for_each_lane(noted(size), [&](uint32_t lane) { log[size].result[lane] = start.result[lane]; });
    }
    for (uint32_t i = done; i < size; ++i) {
        log[i - done] = log[i];
        log[i - done].chain = chains[i];
        log[i].kind = i < size - done ? log[i].kind : nullptr;
    }
    for_each_lane(arrived,
                  [&](uint32_t lane) { static_cast<Thread*>(slots[lane])->deferred_end -= done * sizeof(Product); });
}

SIMT_INLINE bool has_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

// Computes the products that all of the lanes have noted. slots[lane] is that lane's Thread.
SIMT_UNCHECKED inline void compute_products(void* const* slots, uint32_t arrived) {
    Product* log = nullptr;
    uint32_t size = kMaxProducts, longest = 0;
    for_each_lane(arrived, [&](uint32_t lane) {
        const auto* const thread = static_cast<const Thread*>(slots[lane]);
        log = log_of(thread);
        const uint32_t own = log_size(thread);
        size = own < size ? own : size;
        longest = own > longest ? own : longest;
    });
    const bool avx2 = has_avx2();
    for (uint32_t i = 0; i < size; ++i) {
        Product& product = log[i];
        if (~arrived != 0) product.kind->clear(product, ~arrived);
        if (product.chain == i + 1) product.kind->gather(product, arrived);
        (avx2 ? product.kind->multiply_avx2 : product.kind->multiply)(log[product.chain - 1], product);
    }
    for (uint32_t i = 0; i < size; ++i) {
        if (log[i].chain != i + 1) continue;
        for_each_lane(arrived, [&](uint32_t lane) { log[i].result[lane]->chain = 0; });
        log[i].kind->scatter(log[i], arrived);
    }
#if defined(SIMT_CHECKED)
    const Thread* const any = static_cast<const Thread*>(slots[__builtin_ctz(arrived)]);
    if (any->counters != nullptr) any->counters->matrix_products += size;
#endif
    for (uint32_t i = 0; i < size; ++i) log[i].kind = nullptr;
    if (longest != size) {
        keep_rest(slots, arrived, log, size);
    } else {
        for_each_lane(arrived, [&](uint32_t lane) { clear_log(static_cast<Thread*>(slots[lane])); });
    }
}

#if defined(SIMT_CHECKED)
// A product must be the one that other lanes noted in its entry before: if it is not, this lane waits at its own line,
// where no other lane will come. `chain` is that of the matrix that is added to.
SIMT_INLINE void check_product(const ProductKind* kind, uint32_t chain, int line) {
    Thread* const thread = self();
    const Product& other = *log_end(thread);
    const uint32_t own_chain = chain != 0 ? chain : log_size(thread) + 1;
    if (other.kind != nullptr && (other.kind != kind || other.chain != own_chain || other.line != line)) {
        thread->api->collective(thread, compute_products, thread, "simdgroup_multiply_accumulate", line);
    }
}
#endif

// Waits until the lane has no product in the log. All lanes wait at the line of its first product.
__attribute__((noinline)) inline void wait_for_products() {
    Thread* const thread = self();
    while (thread->deferred_end != thread->deferred) {
        thread->api->collective(thread, compute_products, thread, "simdgroup_multiply_accumulate",
                                log_of(thread)->line);
    }
}

// To be called before anything else that the lanes do together.
SIMT_INLINE void flush_products() {
    const Thread* const thread = own_thread();
    if (__builtin_expect(thread->deferred_end != thread->deferred, 0)) wait_for_products();
}

}  // namespace simt
