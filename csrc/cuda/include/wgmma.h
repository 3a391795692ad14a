// Products by warpgroups, four warps that multiply together: wgmma, of compute capability 9.0 (PTX ISA, "Asynchronous
// warpgroup level matrix instructions"). They read shared memory by themselves, while the threads go on.
#pragma once

#include "matrix.h"

namespace simt {

// Says to wgmma where an operand of 16-bit elements starts in shared memory that is laid out in 128-byte rows whose
// 16-byte chunks are swizzled, eight rows after the other; `panel_bytes` lie between 64 columns and the next.
SIMT_INLINE unsigned long long operand_at(const void* start, uint panel_bytes) {
    constexpr unsigned long long kEightRows = 8 * 128, kSwizzle128 = 1;
    return shared_address(start) >> 4 | (unsigned long long)(panel_bytes >> 4) << 16 | kEightRows >> 4 << 32 |
           kSwizzle128 << 62;
}

// Has wgmma see what this thread wrote to shared memory; a barrier of all threads that wrote has to follow.
SIMT_INLINE void show_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Products are started between these two; registers that they use belong to them until they are finished.
SIMT_INLINE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SIMT_INLINE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all but the last PENDING groups of products.
template <int PENDING>
SIMT_INLINE void finish_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// c += a b, with c the warp's 16 of 64 rows, in tiles of 16 columns. `b` is in shared memory, and so is `a`, or it is
// the warp's 16 x 16 elements in registers. ACROSS: the operand's depth runs across the 128-byte rows, not along them.
#define SIMT_TILE(c)                                                                                \
    "+f"(c.value[0][0][0]), "+f"(c.value[0][0][1]), "+f"(c.value[0][1][0]), "+f"(c.value[0][1][1]), \
        "+f"(c.value[1][0][0]), "+f"(c.value[1][0][1]), "+f"(c.value[1][1][0]), "+f"(c.value[1][1][1])
#define SIMT_TILES_4(c, n) SIMT_TILE(c[n]), SIMT_TILE(c[n + 1]), SIMT_TILE(c[n + 2]), SIMT_TILE(c[n + 3])
#define SIMT_TILES_8(c, n) SIMT_TILES_4(c, n), SIMT_TILES_4(c, n + 4)
#define SIMT_TILES_16(c, n) SIMT_TILES_8(c, n), SIMT_TILES_8(c, n + 8)
#define SIMT_NUMBERS_4                                                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define SIMT_NUMBERS_8                                                                                                \
    SIMT_NUMBERS_4                                                                                                    \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53," \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SIMT_NUMBERS_16                                                                                               \
    SIMT_NUMBERS_8                                                                                                    \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85," \
    "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106," \
    "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "    \
    "%125, %126, %127"
#define SIMT_GROUP(TILES, COLUMNS, TYPE, OPERANDS, ...)                                                           \
    asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE \
                 "." TYPE " {" SIMT_NUMBERS_##TILES "}, " OPERANDS ";}"                                           \
                 : SIMT_TILES_##TILES(c, 0)                                                                       \
                 : __VA_ARGS__)
#define SIMT_GROUPS(TILES, COLUMNS, STAGED_OPERANDS, HELD_OPERANDS)                                                   \
    template <class T, bool A_ACROSS, bool B_ACROSS, class Tile>                                                      \
    SIMT_INLINE void multiply_group(Tile(&c)[TILES], unsigned long long a, unsigned long long b) {                    \
        if constexpr (metal_text::metal::is_same_v<T, half>)                                                          \
            SIMT_GROUP(TILES, COLUMNS, "f16", STAGED_OPERANDS, "l"(a), "l"(b), "n"(A_ACROSS), "n"(B_ACROSS));         \
        else                                                                                                          \
            SIMT_GROUP(TILES, COLUMNS, "bf16", STAGED_OPERANDS, "l"(a), "l"(b), "n"(A_ACROSS), "n"(B_ACROSS));        \
    }                                                                                                                 \
    template <class T, bool B_ACROSS, class Tile>                                                                     \
    SIMT_INLINE void multiply_group(Tile(&c)[TILES], const uint(&a)[2][2], unsigned long long b) {                    \
        if constexpr (metal_text::metal::is_same_v<T, half>)                                                          \
            SIMT_GROUP(TILES, COLUMNS, "f16", HELD_OPERANDS, "r"(a[0][0]), "r"(a[0][1]), "r"(a[1][0]), "r"(a[1][1]),  \
                       "l"(b), "n"(B_ACROSS));                                                                        \
        else                                                                                                          \
            SIMT_GROUP(TILES, COLUMNS, "bf16", HELD_OPERANDS, "r"(a[0][0]), "r"(a[0][1]), "r"(a[1][0]), "r"(a[1][1]), \
                       "l"(b), "n"(B_ACROSS));                                                                        \
    }
SIMT_GROUPS(4, 64, "%32, %33, p, 1, 1, %34, %35", "{%32, %33, %34, %35}, %36, p, 1, 1, %37")
SIMT_GROUPS(8, 128, "%64, %65, p, 1, 1, %66, %67", "{%64, %65, %66, %67}, %68, p, 1, 1, %69")
SIMT_GROUPS(16, 256, "%128, %129, p, 1, 1, %130, %131", "{%128, %129, %130, %131}, %132, p, 1, 1, %133")
#undef SIMT_TILE
#undef SIMT_TILES_4
#undef SIMT_TILES_8
#undef SIMT_TILES_16
#undef SIMT_NUMBERS_4
#undef SIMT_NUMBERS_8
#undef SIMT_NUMBERS_16
#undef SIMT_GROUP
#undef SIMT_GROUPS

}  // namespace simt
