// Kernels as people write them. The strict parse passes this file; without any one of its address spaces it does not.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>

using namespace metal;

constant bool USE_BIAS [[function_constant(0)]];
constant constexpr uint SIMD_SIZE = 32;
constant float3 LUMA = float3(0.2126f, 0.7152f, 0.0722f);

#define BLOCK 16
#define MAKE_PAIR(a, b) float2(a, b)

enum class Mode : uint { plain, squared };

struct Shape {
    uint rows, columns;
    packed_float3 origin;
};

union Bits {
    uint word;
    uchar4 bytes;
};

// A running mean and sum of squares that threads combine through threadgroup memory.
struct Moments {
    float mean = 0, m2 = 0, count = 0;

    Moments() = default;
    Moments(float value) : mean(value), m2(0), count(1) {}
    static Moments combine(Moments a, Moments b) {
        Moments result;
        result.count = a.count + b.count;
        const float delta = b.mean - a.mean;
        result.mean = a.mean + delta * b.count / max(result.count, 1.0f);
        result.m2 = a.m2 + b.m2 + delta * delta * a.count * b.count / max(result.count, 1.0f);
        return result;
    }
    float variance() const { return m2 / count; }
};

template <typename T>
struct Square {
    T operator()(T value) const { return value * value; }
};

inline float sum_of(const thread float4& v) { return dot(v, float4(1)); }

template <int N>
inline int power(int base) {
    return base * power<N - 1>(base);
}
template <>
inline int power<0>(int) {
    return 1;
}

kernel void reduce(device const float* input [[buffer(0)]], device atomic_float* total [[buffer(1)]],
                   constant Shape& shape [[buffer(2)]], threadgroup float* partial [[threadgroup(0)]],
                   uint gid [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]], uint groups [[simdgroups_per_threadgroup]]) {
    float value = gid < shape.rows * shape.columns ? input[gid] : 0.0;
    value = simd_sum(value);
    if (lane == 0) {
        partial[simdgroup] = value;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0) {
        value = simd_sum(lane < groups ? partial[lane] : 0.0f);
        if (simd_is_first()) atomic_fetch_add_explicit(total, value, memory_order_relaxed);
    }
}

template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void softmax(
    const device T* in [[buffer(0)]], device T* out [[buffer(1)]], constant uint& columns [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]], uint tid [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup float scratch[SIMD_SIZE];
    in += ulong(row) * columns;
    out += ulong(row) * columns;
    float highest = -INFINITY;
    for (uint j = tid; j < columns; j += threads) highest = max(highest, static_cast<float>(in[j]));
    highest = simd_max(highest);
    if (lane == 0) scratch[simdgroup] = highest;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    highest = simd_max(lane * SIMD_SIZE < threads ? scratch[lane] : -INFINITY);
    float sum = 0;
    for (uint j = tid; j < columns; j += threads) sum += fast::exp(float(in[j]) - highest);
    sum = simd_sum(sum);
    for (uint j = tid; j < columns; j += threads) out[j] = T(precise::exp(float(in[j]) - highest) / sum);
}

template [[host_name("softmax_float")]] [[kernel]] decltype(softmax<float>) softmax<float>;
template [[host_name("softmax_half")]] [[kernel]] decltype(softmax<half>) softmax<half>;
template [[host_name("softmax_bfloat")]] kernel void softmax<bfloat>(
    const device bfloat* in [[buffer(0)]], device bfloat* out [[buffer(1)]], constant uint& columns [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]], uint tid [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]);

kernel void matmul(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]],
                   device float* c [[buffer(2)]], constant uint3& size [[buffer(3)]],
                   device const float* bias [[buffer(4)]], uint2 group [[threadgroup_position_in_grid]],
                   ushort2 local [[thread_position_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]]) {
    threadgroup half a_tile[BLOCK][BLOCK], b_tile[BLOCK * BLOCK];
    simdgroup_float8x8 acc = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < size.z; k += BLOCK) {
        const uint row = group.y * BLOCK + local.y, column = group.x * BLOCK + local.x;
        a_tile[local.y][local.x] = row < size.x ? a[row * size.z + k + local.x] : half(0);
        b_tile[local.y * BLOCK + local.x] = column < size.y ? b[(k + local.y) * size.y + column] : 0.0h;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_half8x8 left, right;
        simdgroup_load(left, &a_tile[0][0], BLOCK);
        simdgroup_load(right, b_tile, BLOCK, ulong2(0, 8), true);
        simdgroup_multiply_accumulate(acc, left, right, acc);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    thread float2& own = acc.thread_elements();
    if (USE_BIAS && is_function_constant_defined(USE_BIAS)) own += float2(bias[lane % 8], bias[lane % 8 + 1]);
    simdgroup_store(acc, c + group.y * BLOCK * size.y + group.x * BLOCK, size.y);
}

kernel void histogram(device const uchar4* pixels, device atomic_uint* bins, uint gid [[thread_position_in_grid]],
                      ushort tid [[thread_index_in_threadgroup]]) {
    threadgroup atomic_uint counts[256];
    if (tid < 256) atomic_store_explicit(&counts[tid], 0, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    const float3 color = float3(pixels[gid].xyz) / 255;
    const uint bin = uint(clamp(dot(color, LUMA), 0.0f, 1.0f) * 255);
    atomic_fetch_add_explicit(&counts[bin], 1, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup atomic_uint* mine = counts + tid;
    const uint count = atomic_load_explicit(mine, memory_order_relaxed);
    if (tid < 256 && count > 0) atomic_fetch_add_explicit(bins + tid, count, memory_order_relaxed);
}

kernel void moments(device const float* in [[buffer(0)]], device Moments* out [[buffer(1)]],
                    constant Shape* shapes [[buffer(2)]], constant Mode& mode [[buffer(3)]],
                    uint3 position [[thread_position_in_grid]], uint3 extent [[threads_per_grid]],
                    uint tid [[thread_index_in_threadgroup]]) {
    threadgroup Moments shared[64];
    const Shape shape = shapes[position.y];
    const float3 origin = shape.origin;
    Square<float> square;
    const float value = in[position.x * shape.columns] - origin.x;
    shared[tid] = mode == Mode::squared ? Moments(square(value)) : value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint stride = 32; stride > 0; stride >>= 1) {
        if (tid < stride) shared[tid] = Moments::combine(shared[tid], shared[tid + stride]);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    Moments total = shared[0];
    total.mean += total.variance() * power<2>(2) + extent.x;
    if (tid == 0) out[position.y] = total;
}

kernel void vectors(device float4* x [[buffer(0)]], device half4* h [[buffer(1)]], device bool* flags [[buffer(2)]],
                    constant float4x4& transform [[buffer(3)]], uint i [[thread_position_in_grid]]) {
    float4 v = transform * x[i];
    v.xy = v.yx + MAKE_PAIR(v.z, 1);
    v.w = sum_of(v) + sum_of(float4(v.zzz, 2));
    const bool4 negative = v < 0.0f;
    v = select(v, -v, negative);
    if (any(negative) && !all(isnan(v))) v = mix(v, rsqrt(v), 0.5f);
    half4 narrow = half4(v) * 0.5h;
    narrow *= half(2) * as_type<half2>(i).x;
    Bits bits;
    bits.word = as_type<uint>(v.x) ^ popcount(i);
    array<float, 4> list = {{v.x, v.y, v.z, v.w}};
    for (ushort n = 0; n < 4; ++n) list[n] += numeric_limits<float>::epsilon() + float(bits.bytes[n]);
    thread float* first = &list[0];
    const auto bits_of_lane = simd_ballot(*first > M_PI_F);
    flags[i] = static_cast<simd_vote::vote_t>(bits_of_lane) != 0;
    x[i] = v + float4(narrow) + float4(list[0], first[1], float2(bfloat(1.5bf), 2.0));
    h[i] = narrow;
}
