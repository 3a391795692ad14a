// The matrix layer on NVIDIA's GPUs, over the matrix instructions mma.sync (lane layouts: PTX ISA, "Matrix fragments
// for mma"). 16-bit elements take m16n8k16. A float takes m16n8k8 three times: it is split into two TF32 numbers, whose
// products but for the smallest add up to float's accuracy (Ootomo and Yokota, arXiv:2203.03341). double, which is for
// checks, takes fused multiply-adds.
#pragma once

struct TileC {
    accum value[2][2][2];  // column half, row slot, column of the pair

    thread accum& at(short row, short column) thread { return value[column / 2][row][column % 2]; }
};

// Where in the tile the lane's first element lies: four lanes share a row.
inline short tile_row(ushort lane) { return lane / 4; }
inline short tile_col(ushort lane) { return lane % 4 * 2; }

inline void clear(thread TileC& c) {
    for (short part = 0; part < 2; part++)
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 2; column++) c.value[part][row][column] = 0;
}

constant constexpr bool B_TRANSPOSED = true;

// Half of the 32 bits that hold two 16-bit elements.
template <typename T>
inline void set_half(thread uint& pair, short half_of_it, T value) {
    const uint shift = half_of_it * 16;
    pair = (pair & (0xffff0000 >> shift)) | (uint)as_type<ushort>(value) << shift;
}

// Right operand of 16-bit elements: pairs of rows, [column half][row half].
template <typename T>
struct TileB {
    uint pair[2][2];

    void set(short row, short column, T value) thread { set_half(pair[row][column / 2], column % 2, value); }

    template <short LD>
    void load(const threadgroup T* source) thread {
        const ushort lane = simt::own_lane();
        simt::load_matrices_transposed(pair, source + lane % 16 * LD + lane / 16 * 8);
    }
    template <short LD>
    void load_transposed(const threadgroup T* source) thread {
        const ushort lane = simt::own_lane();
        simt::load_matrices(pair, source + (lane / 16 * 8 + lane % 8) * LD + lane / 8 % 2 * 8);
    }
};
// Left operand of 16-bit elements: pairs of columns, [column half][row slot].
template <typename T>
struct TileA {
    uint pair[2][2];

    void set(short row, short column, T value) thread { set_half(pair[column / 2][row], column % 2, value); }
    void take(thread TileC& c) thread {
        for (short part = 0; part < 2; part++)
            for (short row = 0; row < 2; row++)
                pair[part][row] = simt::pack<T>(c.value[part][row][0], c.value[part][row][1]);
    }
    template <short LD>
    void load(const threadgroup T* source) thread {
        const ushort lane = simt::own_lane();
        simt::load_matrices(pair, source + lane % 16 * LD + lane / 16 * 8);
    }
    template <short LD>
    void load_transposed(const threadgroup T* source) thread {
        const ushort lane = simt::own_lane();
        simt::load_matrices_transposed(pair, source + (lane / 16 * 8 + lane % 8) * LD + lane / 8 % 2 * 8);
    }
    void multiply(thread TileC& c, thread const TileB<T>& b) const thread {
        for (short part = 0; part < 2; part++) simt::multiply<T>(c.value[part], pair, b.pair[part]);
    }
};

// float: the same elements as in an accumulator, so that a sum over k takes them in the order in which lanes hold them:
// of each 8, first those of even k, then of odd k.
template <>
struct TileB<float> {
    float2 pair[2][2];  // [column half][row half], two adjacent rows

    void set(short row, short column, float value) thread { pair[row][column / 2][column % 2] = value; }

    template <short LD>
    void load(const threadgroup float* source) thread {
        const ushort lane = simt::own_lane();
        for (short part = 0; part < 2; part++)
            for (short k = 0; k < 2; k++)
                for (short row = 0; row < 2; row++)
                    pair[part][k][row] = source[(k * 8 + lane % 4 * 2 + row) * LD + part * 8 + lane / 4];
    }
    template <short LD>
    void load_transposed(const threadgroup float* source) thread {
        const ushort lane = simt::own_lane();
        for (short part = 0; part < 2; part++)
            for (short k = 0; k < 2; k++)
                pair[part][k] =
                    *(const threadgroup float2*)(source + (part * 8 + lane / 4) * LD + k * 8 + lane % 4 * 2);
    }
};
template <>
struct TileA<float> {
    float2 pair[2][2];  // [column half][row slot], two adjacent columns

    void set(short row, short column, float value) thread { pair[column / 2][row][column % 2] = value; }
    void take(thread TileC& c) thread {
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 4; column++) set(row, column, c.at(row, column));
    }
    template <short LD>
    void load(const threadgroup float* source) thread {
        const ushort lane = simt::own_lane();
        for (short row = 0; row < 2; row++)
            for (short part = 0; part < 2; part++)
                pair[part][row] =
                    *(const threadgroup float2*)(source + (row * 8 + lane / 4) * LD + part * 8 + lane % 4 * 2);
    }
    template <short LD>
    void load_transposed(const threadgroup float* source) thread {
        const ushort lane = simt::own_lane();
        for (short row = 0; row < 2; row++)
            for (short part = 0; part < 2; part++)
                for (short k = 0; k < 2; k++)
                    pair[part][row][k] = source[(part * 8 + lane % 4 * 2 + k) * LD + row * 8 + lane / 4];
    }
    void multiply(thread TileC& c, thread const TileB<float>& b) const thread {
        const simt::Split<4> left[2] = {{{pair[0][0].x, pair[0][1].x, pair[0][0].y, pair[0][1].y}},
                                        {{pair[1][0].x, pair[1][1].x, pair[1][0].y, pair[1][1].y}}};
        for (short part = 0; part < 2; part++) {
            // The matrix unit truncates its sums, so only the 16 products of a tile are summed there.
            float sum[2][2] = {{0, 0}, {0, 0}};
            for (short k = 0; k < 2; k++) simt::multiply_split(sum, left[k], {{b.pair[part][k].x, b.pair[part][k].y}});
            for (short row = 0; row < 2; row++)
                for (short column = 0; column < 2; column++) c.value[part][row][column] += sum[row][column];
        }
    }
};

// double: a lane fetches what it multiplies from the lanes that hold it.
template <>
struct TileB<double> {
    double value[2][4];  // of the transpose, as in an accumulator

    void set(short row, short column, double x) thread { value[row][column] = x; }
    template <short LD>
    void load(const threadgroup double* source) thread {
        read(source, 1, LD);
    }
    template <short LD>
    void load_transposed(const threadgroup double* source) thread {
        read(source, LD, 1);
    }
    void read(const threadgroup double* source, short row_step, short column_step) thread {
        const ushort lane = simt::own_lane();
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 4; column++) {
                const short i = tile_row(lane) + row * 8, j = tile_col(lane) + column / 2 * 8 + column % 2;
                value[row][column] = source[i * row_step + j * column_step];
            }
    }
};
template <>
struct TileA<double> {
    double value[2][4];

    void set(short row, short column, double x) thread { value[row][column] = x; }
    void take(thread TileC& c) thread {
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 4; column++) value[row][column] = c.at(row, column);
    }
    template <short LD>
    void load(const threadgroup double* source) thread {
        read(source, LD, 1);
    }
    template <short LD>
    void load_transposed(const threadgroup double* source) thread {
        read(source, 1, LD);
    }
    void read(const threadgroup double* source, short row_step, short column_step) thread {
        const ushort lane = simt::own_lane();
        for (short row = 0; row < 2; row++)
            for (short column = 0; column < 4; column++) {
                const short i = tile_row(lane) + row * 8, j = tile_col(lane) + column / 2 * 8 + column % 2;
                value[row][column] = source[i * row_step + j * column_step];
            }
    }
    // The four lanes that hold a slot's elements of 8 are gone through in a loop: one that is unrolled takes ten times
    // as long to compile.
    void multiply(thread TileC& c, thread const TileB<double>& b) const thread {
        const ushort lane = simt::own_lane();
        for (short slot = 0; slot < 4; slot++) {
#pragma unroll 1
            for (int owner = 0; owner < 4; owner++) {
                const double left[2] = {simt::shuffle(value[0][slot], lane / 4 * 4 + owner),
                                        simt::shuffle(value[1][slot], lane / 4 * 4 + owner)};
                for (short column = 0; column < 4; column++) {
                    const ushort right_row = tile_col(lane) + column % 2;
                    const double right = simt::shuffle(b.value[column / 2][slot], right_row * 4 + owner);
                    for (short row = 0; row < 2; row++) c.at(row, column) += left[row] * right;
                }
            }
        }
    }
};

// c += a b
template <typename T>
inline void mma(thread TileC& c, thread const TileA<T>& a, thread const TileB<T>& b) {
    a.multiply(c, b);
}
// The left operand from 16 rows of threadgroup memory, LD elements apart.
template <short LD>
inline void load_a(thread TileA<element>& a, const threadgroup element* source) {
    a.template load<LD>(source);
}
// The same transposed: row k of the memory is column k of the operand.
template <short LD>
inline void load_at(thread TileA<element>& a, const threadgroup element* source) {
    a.template load_transposed<LD>(source);
}
// The right operand from 16 rows: row k of the memory is row k of the operand.
template <short LD>
inline void load_b(thread TileB<element>& b, const threadgroup element* source) {
    b.template load<LD>(source);
}
// The same transposed: row n of the memory is column n of the operand.
template <short LD>
inline void load_bt(thread TileB<element>& b, const threadgroup element* source) {
    b.template load_transposed<LD>(source);
}
// A whole right operand from 16 rows of device memory: row k of the memory is row k of the operand, or with TRANSPOSED
// its column k.
template <bool TRANSPOSED>
inline void load_right(thread TileB<element>& b, const device element* source, long row_stride) {
    const ushort lane = simt::own_lane();
    for (short row = 0; row < 2; row++)
        for (short column = 0; column < 4; column++) {
            const short r = tile_row(lane) + row * 8, c = tile_col(lane) + column / 2 * 8 + column % 2;
            b.set(row, column, TRANSPOSED ? source[r * row_stride + c] : source[c * row_stride + r]);
        }
}

// An accumulator as the left operand of the next product, rounded to `element`.
inline void to_a(thread TileA<element>& a, thread TileC& c) { a.take(c); }

// Writes two neighbours, the first of which lies at a multiple of two elements.
template <typename T>
inline void store_pair(device T* place, T first, T second) {
    simt::store_together(place, first, second);
}

// Reduces what each lane found in its own columns over the lanes that share its rows.
inline rows_t reduce_max(rows_t value) {
    value = max(value, simd_shuffle_xor(value, 1));
    return max(value, simd_shuffle_xor(value, 2));
}
inline rows_t reduce_sum(rows_t value) {
    value += simd_shuffle_xor(value, 1);
    return value + simd_shuffle_xor(value, 2);
}
