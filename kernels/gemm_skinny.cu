/* gemm_skinny.cu - out[t,:] = w x[t,:] for 9..128 rows t, operands swapped                op: backend.matmul, T <= 128, sm_90a
 * Shapes    as gemv.cu: x [T, K] elem, w [N, K] elem, out [T, N] elem or f32, or silu_mul with w [2F, K], F % 8 == 0; K % 8 == 0.
 *           Sums in fp32. norm_add: N % 4 == 0, no silu_mul, no f32; a piece of squares is a tile's columns, 64 or 128.
 *           rope: the cuts of gemm_skinny_rotates(); with a norm of heads of 128 those of two groups.
 * Traffic   N*K*2 read once from memory; x comes from the L2, T / (64 groups) times the bytes of w; partial sums of
 *           groups * 64 * T floats go through the L2 where a tile is shared (split: through shared memory).
 * Roofline  memory bound below T = 180: 7.5 us for N = K = 4096 at 4.45 TB/s (H200).
 * Launch    gemm_skinny_plan.h: up to one cta per multiprocessor (split: up to two waves of clusters), groups * 128 + 32 threads, all
 *           of its shared memory as a ring (split: what its steps need).
 * Order     k ascending inside a cta's share, then the ctas of a tile in the order of k: fixed by N, K, the cut, the bucket of T and
 *           the device.
 * Oracle    a double loop, tests/kernels/gemm_skinny_test.c.  Figures: kernels/README.md.
 * Why       The weights are the 64-row operand of wgmma and x is the narrow one, so that few rows waste nothing. One thread keeps a
 *           deep ring of bulk copies in flight; the first copies of w go out before the wait for the predecessor. Whole tiles do not
 *           divide evenly over 132 multiprocessors (a seventh of the time was lost), so the steps of all tiles are dealt out. The cta
 *           with a tile's first step writes it; the others of that tile come to their part of it first, leave their sums in the
 *           workspace and go on, so mostly nobody waits. Where w is a few MB the way of the sums through the L2 is longer than
 *           everything else: there a cluster shares a tile, and each cta adds up some rows of it; the parts come as one-sided stores that
 *           a barrier of the receiver counts, so nobody waits for who only sends. With silu_mul a tile takes eight gate rows, their
 *           eight up rows, and so on: a thread then holds both.
 *           What follows the loop is rolled up, and its registers move: with it unrolled, and divisions by numbers known at run time
 *           only, a chain of an 8B layer's products took 138.7 us, so 128.1. Probable cause, not isolated: code that runs once in a launch
 *           is fetched for longer than it runs. For the same reason rope is an instantiation of its own: as a branch it made all
 *           other products slower (4 us a layer of the 8B).
 *           Residual, norm weights and squares are asked for before the loop and looked at behind it.
 *           With rope a tile takes rows as with silu_mul, of the two halves of a head, so that a thread holds what is rotated together. */
#include "common.cuh"
#include "fused_norm.cuh"
#include "hopper.cuh"
#include "gemm_skinny_plan.h"

namespace {

constexpr int GROUP_ROWS = 64;     /* weight rows of a warpgroup */
constexpr int RING_MAX = 16;
#ifndef SLUICE_ELEM_F16
constexpr bool NORMS = true;
#else
constexpr bool NORMS = false;      /* kernels.h says why */
#endif

struct skinny_params {
    void *out;
    float4 *partial;               /* [cta][group][ROWS / 8][WARPGROUP]: sums of a cta that began inside a tile */
    unsigned *ready;               /* [cta] 1: they are there; the reader puts it back to 0 */
    int T, N;                      /* N: outputs (F with silu_mul) */
    int K, tiles, steps, stages;
    int cluster_log2;
    bool out_f32, silu_mul;
    norm_add add;
    norm_scale scale;
    rope_store_kernel rope;
    int half_log2;                 /* rope: of half a head */
};

__device__ __forceinline__ void store(const skinny_params &p, int t, int n, float y)
{
    if (n >= p.N || t >= p.T) return;
    if (p.out_f32) ((float *)p.out)[(size_t)t * p.N + n] = y;
    else ((elem *)p.out)[(size_t)t * p.N + n] = to_elem(y);
}

/* Four neighbours in one access where the rows of out allow it. */
__device__ __forceinline__ void store_4(const skinny_params &p, int t, int n, const float (&y)[4])
{
    if (p.N % 4 != 0) {
#pragma unroll 1
        for (int i = 0; i < 4; i++) store(p, t, n + i, i == 0 ? y[0] : i == 1 ? y[1] : i == 2 ? y[2] : y[3]);
    } else if (n < p.N && t < p.T) {
        if (p.out_f32) *(float4 *)((float *)p.out + (size_t)t * p.N + n) = make_float4(y[0], y[1], y[2], y[3]);
        else {
            *(uint2 *)((elem *)p.out + (size_t)t * p.N + n) = make_uint2(pack_elem(y[0], y[1]), pack_elem(y[2], y[3]));
        }
    }
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

/* The steps first .. last - 1 are a cta's, counted over all tiles. The launch has seen to it that tiles * steps * ctas fits. */
template <int HOW> __device__ __forceinline__ void steps_of(const skinny_params &p, int *first, int *last)
{
    const unsigned all = p.tiles * p.steps, cta = blockIdx.x;
    if (HOW == SKINNY_SPLIT) {
        const int rank = cta & ((1 << p.cluster_log2) - 1), begin = (int)(cta >> p.cluster_log2) * p.steps;
        *first = begin + (p.steps * rank >> p.cluster_log2);
        *last = begin + (p.steps * (rank + 1) >> p.cluster_log2);
    } else {
        *first = (int)(all * cta / gridDim.x);
        *last = (int)(all * (cta + 1) / gridDim.x);
    }
}

/* A quad of sums as wgmma leaves it (hopper.cuh: two rows of x by columns c and c + 8) becomes four neighbouring columns of one row: four
 * lanes exchange. Lane l then has row l % 4 * 2 + l / 4 % 2 of the eight, and columns l / 8 % 2 * 8 + l / 16 * 4 and so on of sixteen. */
__device__ __forceinline__ void turn(float (&v)[4], int lane)
{
    const bool odd = lane & 4, high = lane & 8;
    const float a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 4), b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 4);
    (odd ? v[0] : v[1]) = a;
    (odd ? v[2] : v[3]) = b;
    const float c = __shfl_xor_sync(~0u, high ? v[0] : v[2], 8), d = __shfl_xor_sync(~0u, high ? v[1] : v[3], 8);
    (high ? v[0] : v[2]) = c;
    (high ? v[1] : v[3]) = d;
}

/* norm_scales() in two halves: loads that nobody waits for yet, and what is made of them. Up to SIDE * 4 pieces a row; with more pieces
 * the second half does it all. */
template <int ROWS, int CONSUMERS> struct row_scales {
    static constexpr int SIDE = 16, HELD = (ROWS * SIDE + CONSUMERS - 1) / CONSUMERS;
    float4 held[HELD];
    int side_log2, row, per_pass;          /* lanes of a row; row of this thread's first load; rows from one load to the next */

    __device__ __forceinline__ void fetch(const norm_scale &s, int rows)
    {
        side_log2 = s.num_pieces <= 16 ? 2 : s.num_pieces <= 32 ? 3 : 4;
        row = threadIdx.x >> side_log2;
        per_pass = CONSUMERS >> side_log2;
        const float4 *from = (const float4 *)(s.squares + (size_t)row * NORM_PIECES) + (threadIdx.x & ((1 << side_log2) - 1));
#pragma unroll
        for (int h = 0; h < HELD; h++)
            if (row + h * per_pass < rows) held[h] = __ldcg(from + (size_t)h * per_pass * (NORM_PIECES / 4));
    }
    __device__ __forceinline__ void finish(const norm_scale &s, int rows, int hidden, float *scales)
    {
        if (s.num_pieces > SIDE * 4) {
            norm_scales(s, rows, hidden, scales, threadIdx.x, CONSUMERS);
            return;
        }
        const int lane = threadIdx.x & ((1 << side_log2) - 1), left = s.num_pieces - 4 * lane;
#pragma unroll 1
        for (int first = 0, r = row; first < rows; first += per_pass, r += per_pass) {
            const float4 v = held[0];
            float sum = ((left > 0 ? v.x : 0.0f) + (left > 1 ? v.y : 0.0f)) + ((left > 2 ? v.z : 0.0f) + (left > 3 ? v.w : 0.0f));
            for (int over = 1 << side_log2 >> 1; over > 0; over /= 2) sum += __shfl_xor_sync(~0u, sum, over);
            if (r < rows && lane == 0) scales[r] = rsqrtf(sum / (float)hidden + s.eps);
#pragma unroll
            for (int h = 0; h + 1 < HELD; h++) held[h] = held[h + 1];
        }
    }
};

/* ROWS: of x, padded. GROUPS: consumer warpgroups; the warp after them is the producer. PANELS, HOW: gemm_skinny_plan.h.
 * A stage: of each group eight rows of w in all panels, then the next eight (with one panel that is the panel), then x panel by panel.
 * Behind the ring: split, what the ctas of the cluster send, [sender][quad][consumer]; squares of each warp's columns [warp][ROWS]; scales [ROWS]. */
template <int ROWS, int GROUPS, int PANELS, int HOW, bool ROPE>
__global__ void __launch_bounds__(GROUPS * WARPGROUP + WARP, 1)
gemm_skinny(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map, const __grid_constant__ skinny_params p)
{
#ifdef HOPPER_CODE
    extern __shared__ unsigned char smem_raw[];
    constexpr bool SPLIT = HOW == SKINNY_SPLIT;
    constexpr int W_BYTES = PANELS * GROUP_ROWS * PANEL_ROW_BYTES, X_PANEL_BYTES = ROWS * PANEL_ROW_BYTES, STAGE_BYTES = GROUPS * W_BYTES + PANELS * X_PANEL_BYTES;
    constexpr int CONSUMERS = GROUPS * WARPGROUP, EIGHT_ROWS = 8 * PANEL_ROW_BYTES;
    constexpr int QUADS = ROWS / 8;                        /* a thread has four sums of each eight rows */
    constexpr int OWN = SPLIT ? QUADS / 2 : QUADS;         /* the most quads whose sums a thread completes */
    constexpr int BATCH = OWN <= 8 ? OWN : OWN / 2;        /* loads in flight */
    unsigned char *const ring = smem_raw + (-smem_address(smem_raw) & (TILE_ALIGN - 1));
    __shared__ uint64_t full[RING_MAX], empty[RING_MAX], met;

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, cta = blockIdx.x;
    const bool producer = warp == CONSUMERS / WARP, adds = NORMS && !ROPE && p.add.residual, scaled = NORMS && p.scale.squares;
    const bool silu = !ROPE && p.silu_mul, norms_heads = ROPE && p.rope.q_norm;
    const int half = 1 << p.half_log2, rotated_heads = p.rope.num_heads + p.rope.num_kv_heads;
    /* split: the quads whose sums meet here */
    const int cluster = 1 << p.cluster_log2, rank = SPLIT ? cta & (cluster - 1) : 0, most = SPLIT ? (QUADS + cluster - 1) >> p.cluster_log2 : 0;
    const int first_quad = SPLIT ? QUADS * rank >> p.cluster_log2 : 0, last_quad = SPLIT ? QUADS * (rank + 1) >> p.cluster_log2 : QUADS;
    float4 *const parts = (float4 *)(ring + p.stages * STAGE_BYTES);
    float *const squares = (float *)(parts + (SPLIT ? most * CONSUMERS << p.cluster_log2 : 0)), *const scales = squares + CONSUMERS / WARP * ROWS;
    int begin, end;

    pdl_trigger();
    steps_of<HOW>(p, &begin, &end);

    /* Of step k of a tile, into stage s. */
    auto load_w = [&](int s, int tile, int k) {
        k *= PANELS;
        mbar_expect(&full[s], STAGE_BYTES);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            unsigned char *to = ring + s * STAGE_BYTES + g * W_BYTES;
            const int row = (tile * GROUPS + g) * GROUP_ROWS, pair = row / 2;
            if (ROPE) {                                 /* panel by panel: a map has five dimensions */
#pragma unroll
                for (int i = 0; i < PANELS; i++)
                    tma_load_5d(to + i * GROUP_ROWS * PANEL_ROW_BYTES, &w_map, (k + i) * PANEL, 0, 0, (pair & (half - 1)) / 8, pair >> p.half_log2, &full[s]);
            } else if (PANELS > 1) {
                if (silu) tma_load_5d(to, &w_map, 0, 0, k, 0, row / 16, &full[s]);
                else tma_load_4d(to, &w_map, 0, 0, k, row / 8, &full[s]);
            } else {
                if (silu) tma_load_4d(to, &w_map, k * PANEL, 0, 0, row / 16, &full[s]);
                else tma_load_2d(to, &w_map, k * PANEL, row, &full[s]);
            }
        }
    };
    auto load_x = [&](int s, int k) {
#pragma unroll
        for (int i = 0; i < PANELS; i++)
            tma_load_2d(ring + s * STAGE_BYTES + GROUPS * W_BYTES + i * X_PANEL_BYTES, &x_map, (k * PANELS + i) * PANEL, 0, &full[s]);
    };
    const int ahead = min(end - begin, p.stages), first_tile = begin / p.steps, first_k = begin - first_tile * p.steps;
    int tile = first_tile, k = first_k;                    /* of the next step */
    auto next = [&] { if (++k == p.steps) { k = 0; tile++; } };
    if (producer && lane == 0) {
        tma_prefetch(&w_map);
        tma_prefetch(&x_map);
        for (int s = 0; s < p.stages; s++) {
            mbar_init(&full[s], 1);
            mbar_init(&empty[s], CONSUMERS / WARP);
        }
        if (SPLIT) {
            mbar_init(&met, 1);
            mbar_expect(&met, (cluster - 1) * (last_quad - first_quad) * CONSUMERS * (int)sizeof(float4));
        }
        mbar_init_fence();
#pragma unroll 1
        for (int s = 0; s < ahead; s++, next()) load_w(s, tile, k);
    }
    __syncthreads();
    if (SPLIT) cluster_arrive();                           /* the others may send */

    if (producer) {
        pdl_wait();
        if (lane == 0) {
            int k_x = first_k, s = 0;
            uint32_t phase = 0;
#pragma unroll 1
            for (int i = 0; i < ahead; i++) {
                load_x(i, k_x);
                if (++k_x == p.steps) k_x = 0;
            }
#pragma unroll 1
            for (int u = begin + ahead; u < end; u++, next()) {
                mbar_wait(&empty[s], phase);
                load_w(s, tile, k);
                load_x(s, k);
                if (++s == p.stages) { s = 0; phase ^= 1; }
            }
        }
        __syncwarp();
        if (SPLIT) cluster_wait();
        return;
    }

    const int group = threadIdx.x / WARPGROUP, in_group = threadIdx.x % WARPGROUP;
    const int col = lane % 4 * 2, turned = col + lane / 4 % 2;           /* rows of a quad: as summed, as stored */
    auto column = [&](int of_tile) {
        const int at = (of_tile * GROUPS + group) * (WARPGROUP / WARP) + in_group / WARP, four = lane / 16 * 4;
        if (ROPE) return (at * 8 >> p.half_log2) * 2 * half + (at * 8 & (half - 1)) + (lane & 8 ? half : 0) + four;
        return (silu ? at * 8 : at * 16 + (lane & 8)) + four;
    };
    /* What the way out of column n, and of a quad of its rows, wants besides the sums; asked for early. */
    auto weight_at = [&](int n) -> float4 {
        if (n >= p.N) return make_float4(0, 0, 0, 0);
        if (adds) return __ldg((const float4 *)(p.add.weight + n));
        if (ROPE) {                                     /* of the sums' two columns: bias, weight of the head's norm */
            const int low = n - (lane & 8 ? half : 0) - lane / 16 * 4 + lane / 4, head = low >> (p.half_log2 + 1);
            const float *bias = p.rope.bias, *norm = head < p.rope.num_heads ? p.rope.q_norm : p.rope.k_norm;
            const int d = low & (half - 1);
            return make_float4(bias ? __ldcg(bias + low) : 0.0f, bias ? __ldcg(bias + low + half) : 0.0f, norms_heads ? __ldcg(norm + d) : 1.0f,
                               norms_heads ? __ldcg(norm + d + half) : 1.0f);
        }
        return make_float4(0, 0, 0, 0);
    };
    struct row_extra { float4 v; int slot; };
    auto extra_at = [&](int quad, int n) -> row_extra {
        const int t = 8 * quad + turned;
        row_extra x = { make_float4(0, 0, 0, 0), -1 };
        if (n >= p.N) return x;
        if (adds && t < p.T) x.v = __ldcg((const float4 *)(p.add.residual + (size_t)t * p.N + n));
        if (ROPE) {                                     /* cosines of the sums' two rows, their sines; the stored row's slot */
            const int d = (n - (lane & 8 ? half : 0) - lane / 16 * 4 + lane / 4) & (half - 1), row = 8 * quad + col;
            const bool first = row < p.T, second = row + 1 < p.T;
            const float *a = p.rope.cos_sin + (size_t)(first ? __ldcg(p.rope.positions + row) : 0) * 2 * half + d;
            const float *b = p.rope.cos_sin + (size_t)(second ? __ldcg(p.rope.positions + row + 1) : 0) * 2 * half + d;
            x.v = make_float4(__ldcg(a), __ldcg(b), __ldcg(a + half), __ldcg(b + half));
            if (t < p.T) x.slot = (int)__ldcg((const long long *)p.rope.slot_mapping + t);
        }
        return x;
    };
    auto prepare = [&](int quad, float (&y)[4], const float4 &weight) {
        if (scaled) {
            const float2 scale = *(const float2 *)(scales + 8 * quad + col);
            y[0] *= scale.x;
            y[1] *= scale.y;
            y[2] *= scale.x;
            y[3] *= scale.y;
        }
        if (ROPE) {
            y[0] += weight.x;
            y[1] += weight.x;
            y[2] += weight.y;
            y[3] += weight.y;
        }
    };
    /* norms_heads, before put(): the squares of a warp's sixteen columns of a head. */
    auto square_heads = [&](int quad, float (&y)[4], const float4 &weight) {
        prepare(quad, y, weight);
        float a = y[0] * y[0] + y[2] * y[2], b = y[1] * y[1] + y[3] * y[3];
#pragma unroll
        for (int over = 4; over < WARP; over *= 2) {
            a += __shfl_xor_sync(~0u, a, over);
            b += __shfl_xor_sync(~0u, b, over);
        }
        if (lane < 4) *(float2 *)(squares + warp * ROWS + 8 * quad + col) = make_float2(a, b);
    };
    /* y [4]: columns d and d + half of two rows. */
    auto rotate = [&](int quad, int head, float (&y)[4], const float4 &turns, const float4 &weight) {
        if (head >= rotated_heads) return;
        if (norms_heads) {
            const int warps = half / 8, first = warp - (warp & (warps - 1));
            float a = 0.0f, b = 0.0f;
#pragma unroll 4
            for (int w = first; w < first + warps; w++) {
                const float2 square = *(const float2 *)(squares + w * ROWS + 8 * quad + col);
                a += square.x;
                b += square.y;
            }
            a = rsqrtf(a / (float)(2 * half) + p.rope.eps);
            b = rsqrtf(b / (float)(2 * half) + p.rope.eps);
            y[0] *= a * weight.z;
            y[1] *= b * weight.z;
            y[2] *= a * weight.w;
            y[3] *= b * weight.w;
        }
        const float low_a = y[0], low_b = y[1];
        y[0] = low_a * turns.x - y[2] * turns.z;
        y[1] = low_b * turns.y - y[3] * turns.w;
        y[2] = y[2] * turns.x + low_a * turns.z;
        y[3] = y[3] * turns.y + low_b * turns.w;
    };
    /* Four columns of a rotated row: q in place, k and v to their slot. */
    auto store_head = [&](int t, int n, int head, int slot, const float (&y)[4]) {
        elem *to = (elem *)p.rope.qkv + (size_t)t * p.N + n;
        if (t >= p.T || n >= p.N) return;
        if (head >= p.rope.num_heads) {
            if (slot < 0) return;
            const bool is_v = head >= rotated_heads;
            const uint32_t block = (uint32_t)slot / (uint32_t)p.rope.block_size, offset = (uint32_t)slot - block * (uint32_t)p.rope.block_size;
            const int kv_head = head - (is_v ? rotated_heads : p.rope.num_heads);
            to = (elem *)(is_v ? p.rope.v : p.rope.k) + (((size_t)block * p.rope.num_kv_heads + kv_head) * p.rope.block_size + offset) * 2 * half + (n & (2 * half - 1));
        }
        *(uint2 *)to = make_uint2(pack_elem(y[0], y[1]), pack_elem(y[2], y[3]));
    };
    /* Complete and prepared sums of a quad on their way out. */
    auto put = [&](int quad, int n, float (&y)[4], const row_extra &extra, const float4 &weight) {
        const int t = 8 * quad + turned, head = n >> (p.half_log2 + 1);
        const float4 &before = extra.v;
        if (silu) {
            y[0] = silu_mul(y[0], y[2]);
            y[1] = silu_mul(y[1], y[3]);
        }
        if (ROPE) rotate(quad, head, y, extra.v, weight);
        turn(y, lane);
        if (ROPE) {
            store_head(t, n, head, extra.slot, y);
            return;
        }
        if (adds) {
            const float4 r = make_float4(before.x + y[0], before.y + y[1], before.z + y[2], before.w + y[3]);
            const bool inside = t < p.T && n < p.N;
            if (inside) *(float4 *)(p.add.residual + (size_t)t * p.N + n) = r;
            float square = inside ? (r.x * r.x + r.y * r.y) + (r.z * r.z + r.w * r.w) : 0.0f;
            square += __shfl_xor_sync(~0u, square, 8);
            square += __shfl_xor_sync(~0u, square, 16);
            if (lane < 8) squares[warp * ROWS + t] = square;
            y[0] = r.x * weight.x;
            y[1] = r.y * weight.y;
            y[2] = r.z * weight.z;
            y[3] = r.w * weight.w;
        }
        if (!silu || (lane & 8) == 0) store_4(p, t, n, y);         /* silu leaves half as many columns */
    };
    /* The squares of a tile's columns, the warps in order. */
    auto put_squares = [&](int of_tile) {
        const int t = 8 * first_quad + (int)threadIdx.x;
        named_sync(1, CONSUMERS);
        if (t < 8 * last_quad && t < p.T) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < CONSUMERS / WARP; w++) sum += squares[w * ROWS + t];
            p.add.squares[(size_t)t * NORM_PIECES + of_tile] = sum;
        }
    };

    row_scales<8 * OWN, CONSUMERS> norm;
    const int norm_rows = min(p.T, 8 * last_quad) - 8 * first_quad;
    const norm_scale norm_from = { p.scale.squares + (size_t)8 * first_quad * NORM_PIECES, p.scale.num_pieces, p.scale.eps };
    bool scales_wanted = scaled;
    row_extra extra[BATCH];
    float4 weight;
    if (!SPLIT || !ROPE) pdl_wait();
    if (SPLIT) {                                           /* here long before the sums are */
        const int n = column(tile);
        weight = weight_at(n);
#pragma unroll
        for (int i = 0; i < OWN; i++)
            if (first_quad + i < last_quad) extra[i] = extra_at(first_quad + i, n);
    }
    if (SPLIT && ROPE) pdl_wait();                      /* positions and slots are there since the step's begin */
    if (scaled) norm.fetch(norm_from, norm_rows);

    float acc[ROWS / 2];
    uint32_t phase = 0;
    int s = 0;
    for (int u = begin; u < end; tile++, k = 0) {
        const int stop = min(end, u + p.steps - k);
        const bool first_part = k == 0, last_part = stop == u + p.steps - k;
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) acc[i] = 0.0f;
#pragma unroll 1
        for (; u < stop; u++) {
            const unsigned char *stage = ring + s * STAGE_BYTES;
            mbar_wait(&full[s], phase);
            const uint64_t w = wgmma_desc_k(stage + group * W_BYTES, ROPE ? EIGHT_ROWS : PANELS * EIGHT_ROWS), x = wgmma_desc_k(stage + GROUPS * W_BYTES);
            constexpr int W_PANEL = (ROPE ? GROUP_ROWS * PANEL_ROW_BYTES : EIGHT_ROWS) / 16;
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < PANELS; i++)
#pragma unroll
                for (int j = 0; j < PANEL / 16; j++)
                    wgmma_shape<ROWS>::template ss<0>(acc, w + i * W_PANEL + 2 * j, x + i * (X_PANEL_BYTES / 16) + 2 * j, 1);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0) mbar_arrive(&empty[s]);
            if (++s == p.stages) { s = 0; phase ^= 1; }
            if (!SPLIT && scales_wanted) {                 /* the first step is done, so what they are made of is here too */
                norm.finish(norm_from, norm_rows, p.K, scales);
                scales_wanted = false;
            }
        }
        wgmma_hold(acc);

        const int n = column(tile);
        if (SPLIT) {
            cluster_wait();
#pragma unroll
            for (int j = 0; j < QUADS; j++) {
                const int owner = ((j + 1) * cluster - 1) / QUADS;
                float4 *to = parts + (rank * most + j - (QUADS * owner >> p.cluster_log2)) * CONSUMERS + threadIdx.x;
                const float4 v = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
                if (owner == rank) *to = v;
                else cluster_store(cluster_address(to, owner), v, cluster_address(&met, owner));
            }
            if (first_quad == last_quad) return;
            if (scaled) {
                norm.finish(norm_from, norm_rows, p.K, scales + 8 * first_quad);
                named_sync(1, CONSUMERS);
            }
            mbar_wait(&met, 0);
            float4 *const from = parts - first_quad * CONSUMERS + threadIdx.x;
            auto sum_up = [&](int quad, float (&y)[4]) {
                y[0] = y[1] = y[2] = y[3] = 0.0f;
#pragma unroll 4
                for (int c = 0; c < cluster; c++) {
                    const float4 v = from[(c * most + quad) * CONSUMERS];
                    y[0] += v.x;
                    y[1] += v.y;
                    y[2] += v.z;
                    y[3] += v.w;
                }
            };
            float y[4];
            if (norms_heads) {
#pragma unroll 1
                for (int quad = first_quad; quad < last_quad; quad++) {
                    sum_up(quad, y);
                    square_heads(quad, y, weight);
                    from[quad * CONSUMERS] = make_float4(y[0], y[1], y[2], y[3]);
                }
                named_sync(1, CONSUMERS);
            }
#pragma unroll 1
            for (int quad = first_quad; quad < last_quad; quad++) {
                if (norms_heads) {
                    const float4 v = from[quad * CONSUMERS];
                    y[0] = v.x, y[1] = v.y, y[2] = v.z, y[3] = v.w;
                } else {
                    sum_up(quad, y);
                    prepare(quad, y, weight);
                }
                put(quad, n, y, extra[0], weight);
#pragma unroll
                for (int i = 0; i + 1 < OWN; i++) extra[i] = extra[i + 1];
            }
            if (adds) put_squares(tile);
            return;
        }
        if (!first_part) {                                 /* sums for the cta that began this tile */
            float4 *to = p.partial + ((size_t)cta * GROUPS + group) * QUADS * WARPGROUP + in_group;
#pragma unroll
            for (int j = 0; j < QUADS; j++) to[j * WARPGROUP] = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
            named_sync(1, CONSUMERS);
            if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(p.ready + cta) : "memory");
            continue;
        }
        weight = weight_at(n);
        if (!last_part) {                                  /* others have the rest of this tile: add their sums */
            const unsigned all = p.tiles * p.steps;
            /* ctas that begin before its end */
            const int others = (int)(((unsigned)((tile + 1) * p.steps) * gridDim.x + all - 1) / all) - cta - 1;
            if ((int)threadIdx.x < others) {
                unsigned *ready = p.ready + cta + 1 + threadIdx.x, there = 0;
                while (!there) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(ready) : "memory");
                *ready = 0;
            }
            named_sync(1, CONSUMERS);
            constexpr size_t NEXT = (size_t)GROUPS * QUADS * WARPGROUP;
            const float4 *from = p.partial + ((size_t)(cta + 1) * GROUPS + group) * QUADS * WARPGROUP + in_group;
            float4 v[BATCH], then[BATCH];                  /* the next batch is on its way while this one is added */
#pragma unroll
            for (int j = 0; j < BATCH; j++) then[j] = __ldcg(from + j * WARPGROUP);
#pragma unroll 1
            for (int other = 0; other < others; other++, from += NEXT) {
#pragma unroll
                for (int part = 0; part < QUADS / BATCH; part++) {
#pragma unroll
                    for (int j = 0; j < BATCH; j++) v[j] = then[j];
                    const bool last_batch = part + 1 == QUADS / BATCH;
                    if (!last_batch || other + 1 < others) {
#pragma unroll
                        for (int j = 0; j < BATCH; j++)
                            then[j] = __ldcg(from + (last_batch ? NEXT : (size_t)(part + 1) * BATCH * WARPGROUP) + j * WARPGROUP);
                    }
#pragma unroll
                    for (int j = 0; j < BATCH; j++) {
                        float *sum = acc + 4 * (part * BATCH + j);
                        sum[0] += v[j].x;
                        sum[1] += v[j].y;
                        sum[2] += v[j].z;
                        sum[3] += v[j].w;
                    }
                }
            }
        }
        if (scaled || adds || norms_heads) named_sync(1, CONSUMERS);     /* scales are there, squares of the tile before have been read */
        if (norms_heads) {
#pragma unroll 1
            for (int quad = 0; quad < QUADS; quad++) {     /* once around: then the sums lie as before */
                float y[4] = { acc[0], acc[1], acc[2], acc[3] }, head[4] = { acc[0], acc[1], acc[2], acc[3] };
                square_heads(quad, y, weight);
#pragma unroll
                for (int i = 0; i + 4 < ROWS / 2; i++) acc[i] = acc[i + 4];
#pragma unroll
                for (int i = 0; i < 4; i++) acc[ROWS / 2 - 4 + i] = head[i];
            }
            named_sync(1, CONSUMERS);
        }
#pragma unroll
        for (int part = 0; part < QUADS / BATCH; part++) {
            float *const sums = acc + 4 * part * BATCH;
#pragma unroll
            for (int j = 0; j < BATCH; j++) extra[j] = extra_at(part * BATCH + j, n);
#pragma unroll 1
            for (int quad = part * BATCH; quad < (part + 1) * BATCH; quad++) {
                float y[4] = { sums[0], sums[1], sums[2], sums[3] };
                prepare(quad, y, weight);
                put(quad, n, y, extra[0], weight);
#pragma unroll
                for (int j = 0; j + 1 < BATCH; j++) {
                    extra[j] = extra[j + 1];
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[4 * j + i] = sums[4 * j + 4 + i];
                }
            }
        }
        if (adds) put_squares(tile);
    }
#endif
}

template <int ROWS, int GROUPS, int PANELS, int HOW, bool ROPE>
static int launch_one(const CUtensorMap &w_map, const CUtensorMap &x_map, const skinny_params &p, const struct gemm_skinny_plan &plan, const struct launch *l)
{
    auto kernel = gemm_skinny<ROWS, GROUPS, PANELS, HOW, ROPE>;

    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GEMM_SKINNY_SMEM_MAX) != cudaSuccess) return ERR_INTERNAL;
    return launch_clusters(l, HOW == SKINNY_SPLIT ? plan.cluster : 1, kernel, dim3(plan.ctas), dim3(GROUPS * WARPGROUP + WARP),
                           (size_t)gemm_skinny_smem(&plan, plan.stages), w_map, x_map, p);
}

template <int ROWS>
static int launch_rows(const CUtensorMap &w_map, const CUtensorMap &x_map, const skinny_params &p, const struct gemm_skinny_plan &plan, const struct launch *l)
{
    if (p.rope.qkv) {
        switch (plan.groups * 10 + plan.panels + (plan.how == SKINNY_DEALT ? 100 : 0)) {
        case 11:  return launch_one<ROWS, 1, 1, SKINNY_SPLIT, true>(w_map, x_map, p, plan, l);
        case 12:  return launch_one<ROWS, 1, 2, SKINNY_SPLIT, true>(w_map, x_map, p, plan, l);
        case 21:  return launch_one<ROWS, 2, 1, SKINNY_SPLIT, true>(w_map, x_map, p, plan, l);
        case 22:  return launch_one<ROWS, 2, 2, SKINNY_SPLIT, true>(w_map, x_map, p, plan, l);
        case 121: return launch_one<ROWS, 2, 1, SKINNY_DEALT, true>(w_map, x_map, p, plan, l);
        case 122: return launch_one<ROWS, 2, 2, SKINNY_DEALT, true>(w_map, x_map, p, plan, l);
        }
    } else if (plan.how == SKINNY_DEALT) {
        switch (plan.groups * 10 + plan.panels) {
        case 11: return launch_one<ROWS, 1, 1, SKINNY_DEALT, false>(w_map, x_map, p, plan, l);
        case 12: return launch_one<ROWS, 1, 2, SKINNY_DEALT, false>(w_map, x_map, p, plan, l);
        case 14: return launch_one<ROWS, 1, 4, SKINNY_DEALT, false>(w_map, x_map, p, plan, l);
        case 21: return launch_one<ROWS, 2, 1, SKINNY_DEALT, false>(w_map, x_map, p, plan, l);
        case 22: return launch_one<ROWS, 2, 2, SKINNY_DEALT, false>(w_map, x_map, p, plan, l);
        }
    } else {
        switch (plan.groups * 10 + plan.panels) {
        case 11: return launch_one<ROWS, 1, 1, SKINNY_SPLIT, false>(w_map, x_map, p, plan, l);
        case 12: return launch_one<ROWS, 1, 2, SKINNY_SPLIT, false>(w_map, x_map, p, plan, l);
        case 14: return launch_one<ROWS, 1, 4, SKINNY_SPLIT, false>(w_map, x_map, p, plan, l);
        case 21: return launch_one<ROWS, 2, 1, SKINNY_SPLIT, false>(w_map, x_map, p, plan, l);
        case 22: return launch_one<ROWS, 2, 2, SKINNY_SPLIT, false>(w_map, x_map, p, plan, l);
        }
    }
    return ERR_UNSUPPORTED;
}

/* w as the copy engine sees it: [N, K], or with silu_mul [F / 8, 2, 8, K]: eight gate rows, their eight up rows, the next eight.
 * With several panels it takes eight rows of all of them before the next eight, so that the memory gives neighbouring bytes together:
 * [N / 8, K / 64, 8, 64] or [F / 8, 2, K / 64, 8, 64]. With rope [heads, D / 16, 2, 8, K]: eight rows of a head's first half, the eight
 * that they are rotated with. */
static int map_weights(CUtensorMap *map, const struct gemv_kernel *a, uint32_t panels)
{
    const uint64_t k = (uint64_t)a->k, n = (uint64_t)a->n, f = n / 2, bytes = 2 * k;

    if (a->rope.qkv) {
        const uint64_t half = (uint64_t)a->rope.head_dim / 2;
        uint64_t dims[5] = { k, 8, 2, half / 8, n / (2 * half) }, strides[4] = { bytes, bytes * half, 8 * bytes, 2 * half * bytes };
        uint32_t box[5] = { PANEL, 8, 2, GROUP_ROWS / 16, 1 };
        return tensor_map_elem(map, a->w, 5, dims, strides, box);
    }
    if (panels > 1 && a->silu_mul) {
        uint64_t dims[5] = { PANEL, 8, k / PANEL, 2, f / 8 }, strides[4] = { bytes, PANEL_ROW_BYTES, bytes * f, 8 * bytes };
        uint32_t box[5] = { PANEL, 8, panels, 2, GROUP_ROWS / 16 };
        return tensor_map_elem(map, a->w, 5, dims, strides, box);
    }
    if (panels > 1) {
        uint64_t dims[4] = { PANEL, 8, k / PANEL, n / 8 }, strides[3] = { bytes, PANEL_ROW_BYTES, 8 * bytes };
        uint32_t box[4] = { PANEL, 8, panels, GROUP_ROWS / 8 };
        return tensor_map_elem(map, a->w, 4, dims, strides, box);
    }
    if (a->silu_mul) {
        uint64_t dims[4] = { k, 8, 2, f / 8 }, strides[3] = { bytes, bytes * f, 8 * bytes };
        uint32_t box[4] = { PANEL, 8, 2, GROUP_ROWS / 16 };
        return tensor_map_elem(map, a->w, 4, dims, strides, box);
    }
    uint64_t dims[2] = { k, n }, strides[1] = { bytes };
    uint32_t box[2] = { PANEL, GROUP_ROWS };
    return tensor_map_elem(map, a->w, 2, dims, strides, box);
}

} // namespace

extern "C" int ELEM_NAME(launch_gemm_skinny_planned)(const struct gemv_kernel *a, const struct gemm_skinny_plan *plan, const struct launch *l)
{
    CUtensorMap w_map, x_map;
    uint64_t x_dims[2] = { (uint64_t)a->k, (uint64_t)a->num_tokens }, x_strides[1] = { (uint64_t)a->k * 2 };
    uint32_t x_box[2] = { PANEL, (uint32_t)plan->rows };
    skinny_params p = {};

    if (plan->stages < 2 || plan->stages > RING_MAX) return ERR_UNSUPPORTED;
    if (a->add.residual && (a->silu_mul || a->out_f32 || a->n % 4 != 0 || plan->tiles > NORM_PIECES)) return ERR_UNSUPPORTED;
    if (!NORMS && (a->add.residual || a->scale.squares)) return ERR_UNSUPPORTED;
    if (plan->how != SKINNY_SPLIT && (plan->ctas * 4 + 64 > MATMUL_COUNTER_BYTES ||
        (size_t)plan->ctas * plan->groups * GROUP_ROWS * plan->rows * sizeof(float) > GEMM_SKINNY_WORKSPACE_BYTES)) return ERR_UNSUPPORTED;
    if (a->rope.qkv) {
        const struct rope_store_kernel *r = &a->rope;
        if (a->silu_mul || a->out_f32 || a->add.residual || (r->head_dim != 64 && r->head_dim != 128) || a->n != (r->num_heads + 2 * r->num_kv_heads) * r->head_dim ||
            !r->q_norm != !r->k_norm || (r->q_norm && plan->groups * GROUP_ROWS < r->head_dim) || r->block_size < 1) return ERR_UNSUPPORTED;
    }
    if ((uint64_t)plan->tiles * plan->steps * (plan->ctas + 1) >> 31) return ERR_UNSUPPORTED;
    if (map_weights(&w_map, a, (uint32_t)plan->panels) < 0 || tensor_map_elem(&x_map, a->x, 2, x_dims, x_strides, x_box) < 0) return ERR_INTERNAL;
    p.out = a->out;
    p.partial = (float4 *)a->workspace;
    p.ready = (unsigned *)a->counters + 16;
    p.T = a->num_tokens;
    p.N = a->silu_mul ? a->n / 2 : a->n;
    p.K = a->k;
    p.tiles = plan->tiles;
    p.steps = plan->steps;
    p.stages = plan->stages;
    while (1 << p.cluster_log2 < plan->cluster) p.cluster_log2++;
    p.out_f32 = a->out_f32;
    p.silu_mul = a->silu_mul;
    p.add = a->add;
    p.scale = a->scale;
    p.rope = a->rope;
    p.half_log2 = a->rope.head_dim == 128 ? 6 : 5;
    if (a->add.residual) *a->add.num_pieces = plan->tiles;
    switch (plan->rows) {
    case 16:  return launch_rows<16>(w_map, x_map, p, *plan, l);
    case 32:  return launch_rows<32>(w_map, x_map, p, *plan, l);
    case 48:  return launch_rows<48>(w_map, x_map, p, *plan, l);
    case 64:  return launch_rows<64>(w_map, x_map, p, *plan, l);
    case 96:  return launch_rows<96>(w_map, x_map, p, *plan, l);
    case 128: return launch_rows<128>(w_map, x_map, p, *plan, l);
    }
    return ERR_UNSUPPORTED;
}

extern "C" int ELEM_NAME(launch_gemm_skinny)(const struct gemv_kernel *a, const struct launch *l)
{
    struct gemm_skinny_plan plan;

    if (l->sm != 90 || a->cut < 0 || a->cut > GEMM_SKINNY_CUTS || a->num_tokens < 1 || a->num_tokens > GEMM_SKINNY_MAX_ROWS || a->n < 1 || a->k < 8 || a->k % 8 != 0) return ERR_UNSUPPORTED;
    if (!a->counters || !a->workspace || (a->silu_mul && (a->out_f32 || a->n % 16 != 0))) return ERR_UNSUPPORTED;
    plan = gemm_skinny_plan_for(a->num_tokens, a->n, a->k, a->cut == 0 && a->rope.qkv ? 2 : a->cut, l->num_sms);
    return ELEM_NAME(launch_gemm_skinny_planned)(a, &plan, l);
}

ELEM_PLANNED_DOOR(launch_gemm_skinny_planned, gemv_kernel, gemm_skinny_plan)
ELEM_DOOR(launch_gemm_skinny, gemv_kernel)
