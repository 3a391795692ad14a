// Deferred products of 8 x 8 matrices.
//
// A product needs the elements of all lanes, and waiting for them costs a switch of fibers for every lane. So a lane
// that comes to a product only notes the values of its own elements in a log that the lanes of its simdgroup share,
// and goes on. When a lane needs a result, or the log is full, it waits, and the last lane to arrive computes all
// products of the log. All lanes come to the same products in the same order, which is checked.
#pragma once

#include "../simt.h"
#include "scalar.h"

namespace simt {

constexpr int kTile = 8;                         // rows and columns of a matrix
constexpr int kTileElements = kTile * kTile;

// Where in the matrix, row by row, the first of a lane's two adjacent elements is.
SIMT_INLINE constexpr uint32_t lane_position(uint32_t lane) {
    const uint32_t quad = lane / 4;
    const uint32_t row = (quad & 4) + lane / 2 % 4, column = (quad & 2) * 2 + lane % 2 * 2;
    return row * kTile + column;
}

struct Product;

// A matrix as one lane holds it.
template <class T>
struct LaneElements {
    T first, second;
};

// How products of certain element types are computed. `load` and `store` move one lane's elements between its matrix
// and the accumulator; `store` also ends the matrix's wait.
struct ProductKind {
    void (*load)(Product& chain, uint32_t lane);
    void (*multiply)(Product& chain, const Product& product);
    void (*store)(Product& chain, uint32_t lane);
    void (*forget_operands)(Product& product, uint32_t lane);
};

// One entry of the log. Products into the same matrix form a chain and are summed in the chain's first entry.
struct alignas(64) Product {
    const ProductKind* kind;
    Product* chain;
    int line;
    void* result[kLanes];                 // of a chain's first entry: each lane's matrix
    alignas(64) char sum[kTileElements * sizeof(double)];
    alignas(64) char left[kTileElements * sizeof(double)];
    alignas(64) char right[kTileElements * sizeof(double)];
};

constexpr std::size_t kLogBytes = kDeferredBytes / sizeof(Product) * sizeof(Product);

SIMT_INLINE char* log_begin(const Thread* thread) { return static_cast<char*>(thread->deferred); }

// What a lane must do before it runs a kernel.
SIMT_INLINE void start_log(Thread* thread) {
    thread->deferred_end = log_begin(thread);
    thread->deferred_signature = 0;
}

// Computes the log. slots[lane] is that lane's Thread.
SIMT_UNCHECKED inline void compute_products(void* const* slots, uint32_t arrived) {
    const auto thread = [&](uint32_t lane) { return static_cast<Thread*>(slots[lane]); };
    const Thread* const any = thread(static_cast<uint32_t>(__builtin_ctz(arrived)));
    Product* const begin = reinterpret_cast<Product*>(log_begin(any));
    Product* const end = reinterpret_cast<Product*>(any->deferred_end);

    for (Product* product = begin; product != end; ++product) {
        if (arrived != ~uint32_t{0}) {
            for (uint32_t lane = 0; lane < kLanes; ++lane) {
                if ((arrived >> lane & 1) == 0) product->kind->forget_operands(*product, lane);
            }
        }
        if (product->chain == product) {
            for (uint32_t rest = arrived; rest != 0; rest &= rest - 1) {
                product->kind->load(*product, static_cast<uint32_t>(__builtin_ctz(rest)));
            }
        }
        product->kind->multiply(*product->chain, *product);
    }
    for (Product* product = begin; product != end; ++product) {
        if (product->chain != product) continue;
        for (uint32_t rest = arrived; rest != 0; rest &= rest - 1) {
            product->kind->store(*product, static_cast<uint32_t>(__builtin_ctz(rest)));
        }
    }
    for (uint32_t rest = arrived; rest != 0; rest &= rest - 1) {
        Thread* const lane = thread(static_cast<uint32_t>(__builtin_ctz(rest)));
        lane->deferred_end = log_begin(lane);
    }
#if defined(SIMT_CHECKED)
    if (any->counters != nullptr) any->counters->matrix_products += static_cast<uint64_t>(end - begin);
#endif
}

// Waits for the results of all products in the log.
__attribute__((noinline)) inline void wait_for_products() {
    Thread* const thread = self();
    const int line = reinterpret_cast<const Product*>(thread->deferred_end)[-1].line;
    thread->api->collective(thread, compute_products, thread, "simdgroup_multiply_accumulate", line);
}

// To be called before anything else that the lanes do together.
SIMT_INLINE void flush_products() {
    const Thread* const thread = self();
    if (__builtin_expect(thread->deferred_end != log_begin(thread), 0)) wait_for_products();
}

}  // namespace simt
