/* rope_store.cu - qkv += bias; q, k normed per head; q, k rotated; k, v into the paged cache      op: backend.rope_store
 * Shapes    qkv [T, (H + 2 Hk) D] elem, q in place; bias [(H + 2 Hk) D], q_norm, k_norm [D] f32; cos_sin [positions, D] f32: D/2
 *           cosines, D/2 sines; k, v [num_blocks, Hk, block_size, D] elem. D in {64, 80, 96, 128, 256}; fp32 inside.
 * Traffic   T*(H + 2 Hk)*D*2 read and as much written.  T=8192 H=32 Hk=8 D=128: 201 MB.
 * Roofline  memory bound: 47 us at 4.27 TB/s (H200 copy); at T <= 64 the launch and two trips to L2 (position, then its cosines).
 * Launch    grid T ctas; LANES lanes per head, each with eight elements of the lower and the eight of the upper half that they
 *           are rotated with; a lane group takes every `groups`-th head: one head each when T is small, a few when there are
 *           ctas enough, so that the cosines stay in registers.
 * Order     a head's sum is a fixed tree over its lanes: the result does not depend on T.
 * Oracle    plain loops, tests/kernels/rope_store_test.c.  Figures: kernels/README.md.
 * Why       four ops in one: each of them alone would read and write qkv again. */
#include "common.cuh"

namespace {

constexpr int ROPE_FEW_TOKENS = 256;       /* up to here one head per lane group */
constexpr int ROPE_MANY_HEADS = 3;         /* beyond: heads per lane group */
constexpr int ROPE_MAX_THREADS = 1024;

struct rope_args {
    elem *qkv;
    const float *bias, *q_norm, *k_norm, *cos_sin;
    const int32_t *positions;
    const int64_t *slot_mapping;
    elem *k, *v;
    int num_heads, num_kv_heads, block_size;
    float eps;
};

/* Lanes that work on one head: D / 16 of them have elements, rounded up to a power of two for the shuffles. */
constexpr int rope_lanes(int head_dim) { return head_dim <= 64 ? 4 : head_dim <= 128 ? 8 : 16; }

static __device__ __forceinline__ void load8(float *to, const float *from)
{
    *(float4 *)to = __ldg((const float4 *)from);
    *(float4 *)(to + 4) = __ldg((const float4 *)(from + 4));
}

static __device__ __forceinline__ void unpack8(float *to, uint4 raw)
{
    elem8 x;
    x.raw = raw;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = to_finite2(x.pair[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}

static __device__ __forceinline__ uint4 pack8(const float *from)
{
    elem8 x;
#pragma unroll
    for (int i = 0; i < 4; i++) x.pair[i] = to_elem2(from[2 * i], from[2 * i + 1]);
    return x.raw;
}

template <int D>
__global__ void rope_store_token(const struct rope_args a)
{
    constexpr int LANES = rope_lanes(D), HALF = D / 2;
    int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, groups = blockDim.x / LANES;
    int heads = a.num_heads + 2 * a.num_kv_heads, t = blockIdx.x;
    bool has_elements = lane * 8 < HALF;
    int low_at = has_elements ? lane * 8 : 0, high_at = low_at + HALF;     /* idle lanes read what lane 0 reads, store nothing */

    /* What the step's own kernels do not write: positions and slots are there since its first kernel, which triggers last. Their trips to
     * the L2, and that of the cosines behind them, are over when the product is. */
    pdl_trigger();
    elem *row = a.qkv + (int64_t)t * heads * D;
    const float *cosines = a.cos_sin + (int64_t)a.positions[t] * D;
    int64_t slot = a.slot_mapping[t];
    /* Slots of one layer's cache fit 32 bits; a 64-bit division is far slower. */
    uint32_t block = (uint32_t)slot / (uint32_t)a.block_size, offset = (uint32_t)slot - block * (uint32_t)a.block_size;
    float c[8], s[8];
    load8(c, cosines + low_at);
    load8(s, cosines + high_at);
    if (a.q_norm && group < a.num_heads + a.num_kv_heads) {
        const float *weight = group < a.num_heads ? a.q_norm : a.k_norm;
        prefetch_l1(weight + low_at);
        prefetch_l1(weight + high_at);
    }
    pdl_wait();

    /* Every lane of a warp makes the same number of rounds: the shuffles below need all of them. */
    for (int first = 0; first < heads; first += groups) {
        int head = first + group;
        bool active = head < heads && has_elements;
        int h = head < heads ? head : 0;
        float low[8], high[8];
        uint4 raw_low = *(const uint4 *)(row + h * D + low_at), raw_high = *(const uint4 *)(row + h * D + high_at);
        unpack8(low, raw_low);
        unpack8(high, raw_high);
        if (a.bias) {
            float b[8];
            load8(b, a.bias + h * D + low_at);
#pragma unroll
            for (int i = 0; i < 8; i++) low[i] += b[i];
            load8(b, a.bias + h * D + high_at);
#pragma unroll
            for (int i = 0; i < 8; i++) high[i] += b[i];
        }
        if (a.q_norm) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) sum += low[i] * low[i] + high[i] * high[i];
            if (!has_elements) sum = 0.0f;
#pragma unroll
            for (int other = LANES / 2; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
            if (h < a.num_heads + a.num_kv_heads) {
                const float *weight = h < a.num_heads ? a.q_norm : a.k_norm;
                float scale = rsqrtf(sum / (float)D + a.eps), w[8];
                load8(w, weight + low_at);
#pragma unroll
                for (int i = 0; i < 8; i++) low[i] *= scale * w[i];
                load8(w, weight + high_at);
#pragma unroll
                for (int i = 0; i < 8; i++) high[i] *= scale * w[i];
            }
        }
        if (h < a.num_heads + a.num_kv_heads) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float x = low[i], y = high[i];
                low[i] = x * c[i] - y * s[i];
                high[i] = y * c[i] + x * s[i];
            }
        }
        elem *to = row + h * D;
        if (h >= a.num_heads) {
            int kv_head = h - a.num_heads;
            bool is_v = kv_head >= a.num_kv_heads;
            if (is_v) kv_head -= a.num_kv_heads;
            to = (is_v ? a.v : a.k) + (((int64_t)block * a.num_kv_heads + kv_head) * a.block_size + offset) * D;
            active = active && slot >= 0;
        }
        if (active) {
            *(uint4 *)(to + low_at) = pack8(low);
            *(uint4 *)(to + high_at) = pack8(high);
        }
    }
}

template <int D>
static int launch_head_dim(const struct rope_store_kernel *a, const struct launch *l)
{
    int heads = a->num_heads + 2 * a->num_kv_heads, rounds = a->num_tokens <= ROPE_FEW_TOKENS ? 1 : ROPE_MANY_HEADS;
    int threads = (heads + rounds - 1) / rounds * rope_lanes(D);
    threads = (threads + WARP - 1) / WARP * WARP;
    if (threads > ROPE_MAX_THREADS) threads = ROPE_MAX_THREADS;
    struct rope_args args = { (elem *)a->qkv, a->bias, a->q_norm, a->k_norm, a->cos_sin, a->positions, a->slot_mapping,
                              (elem *)a->k, (elem *)a->v, a->num_heads, a->num_kv_heads, a->block_size, a->eps };
    return launch_kernel(l, rope_store_token<D>, dim3(a->num_tokens), dim3(threads), 0, args);
}

} // namespace

extern "C" int ELEM_NAME(launch_rope_store)(const struct rope_store_kernel *a, const struct launch *l)
{
    if (a->num_tokens < 1 || a->num_heads < 1 || a->num_kv_heads < 1 || a->block_size < 1) return ERR_UNSUPPORTED;
    if (!a->q_norm != !a->k_norm) return ERR_UNSUPPORTED;
    switch (a->head_dim) {
    case 64:  return launch_head_dim<64>(a, l);
    case 80:  return launch_head_dim<80>(a, l);
    case 96:  return launch_head_dim<96>(a, l);
    case 128: return launch_head_dim<128>(a, l);
    case 256: return launch_head_dim<256>(a, l);
    default:  return ERR_UNSUPPORTED;
    }
}

ELEM_DOOR(launch_rope_store, rope_store_kernel)
