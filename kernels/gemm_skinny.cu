/* gemm_skinny.cu - out[t,:] = w x[t,:] for 9..128 rows t, operands swapped                op: backend.matmul, T <= 128, sm_90a
 * Shapes    as gemv.cu: x [T, K] elem, w [N, K] elem, out [T, N] elem or f32, or silu_mul with w [2F, K], F % 8 == 0; K % 8 == 0.
 *           Sums in fp32.
 * Traffic   N*K*2 read once from memory; x comes from the L2, T / (64 groups) times the bytes of w; partial sums of
 *           groups * 64 * T floats go through the L2 where a tile is shared.
 * Roofline  memory bound below T = 180: 7.5 us for N = K = 4096 at 4.45 TB/s (H200).
 * Launch    one cta per multiprocessor, groups * 128 + 32 threads, all of its shared memory as a ring (gemm_skinny_plan.h).
 * Order     k ascending inside a cta's share, then the ctas of a tile in the order of k: fixed by N, K, the bucket of T, the device.
 * Oracle    a double loop, tests/kernels/gemm_skinny_test.c.  Figures: kernels/README.md.
 * Why       The weights are the 64-row operand of wgmma and x is the narrow one, so that few rows waste nothing. One thread keeps a
 *           deep ring of bulk copies in flight; the first copies of w go out before the wait for the predecessor. Whole tiles do not
 *           divide evenly over 132 multiprocessors (a seventh of the time was lost), so the steps of all tiles are dealt out. The cta
 *           with a tile's first step writes it; the others of that tile come to their part of it first, leave their sums in the
 *           workspace and go on, so mostly nobody waits. With silu_mul a tile takes eight gate rows, their eight up rows, and so on:
 *           a thread then holds both. */
#include "common.cuh"
#include "hopper.cuh"
#include "gemm_skinny_plan.h"

namespace {

constexpr int GROUP_ROWS = 64;     /* weight rows of a warpgroup */
constexpr int RING_MAX = 16;

struct skinny_params {
    void *out;
    float4 *partial;               /* [cta][group][ROWS / 8][WARPGROUP]: sums of a cta that began inside a tile */
    unsigned *ready;               /* [cta] 1: they are there; the reader puts it back to 0 */
    int T, N;                      /* N: outputs (F with silu_mul) */
    int tiles, steps, stages;
    bool out_f32, silu_mul;
};

__device__ __forceinline__ void store(const skinny_params &p, int t, int n, float y)
{
    if (n >= p.N || t >= p.T) return;
    if (p.out_f32) ((float *)p.out)[(size_t)t * p.N + n] = y;
    else ((elem *)p.out)[(size_t)t * p.N + n] = to_elem(y);
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

/* ROWS: of x, padded. GROUPS: consumer warpgroups; the warp after them is the producer. */
template <int ROWS, int GROUPS>
__global__ void __launch_bounds__(GROUPS * WARPGROUP + WARP, 1)
gemm_skinny(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map, const skinny_params p)
{
#ifdef HOPPER_CODE
    extern __shared__ unsigned char smem_raw[];
    constexpr int W_BYTES = GROUP_ROWS * PANEL_ROW_BYTES, X_BYTES = ROWS * PANEL_ROW_BYTES, STAGE_BYTES = GROUPS * W_BYTES + X_BYTES;
    constexpr int CONSUMERS = GROUPS * WARPGROUP;
    unsigned char *const ring = (unsigned char *)(((uintptr_t)smem_raw + TILE_ALIGN - 1) & ~(uintptr_t)(TILE_ALIGN - 1));
    uint64_t *const full = (uint64_t *)(ring + (size_t)p.stages * STAGE_BYTES), *const empty = full + RING_MAX;

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, cta = blockIdx.x;
    const long long all = (long long)p.tiles * p.steps;
    const int begin = (int)(all * cta / gridDim.x), end = (int)(all * (cta + 1) / gridDim.x);
    const bool producer = warp == CONSUMERS / WARP;

    pdl_trigger();

    auto load_w = [&](int u) {
        const int s = (u - begin) % p.stages, tile = u / p.steps, k = u % p.steps * PANEL;
        mbar_expect(&full[s], STAGE_BYTES);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            unsigned char *to = ring + (size_t)s * STAGE_BYTES + g * W_BYTES;
            if (p.silu_mul) tma_load_4d(to, &w_map, k, 0, 0, (tile * GROUPS + g) * (GROUP_ROWS / 16), &full[s]);
            else tma_load_2d(to, &w_map, k, (tile * GROUPS + g) * GROUP_ROWS, &full[s]);
        }
    };
    auto load_x = [&](int u) {
        const int s = (u - begin) % p.stages;
        tma_load_2d(ring + (size_t)s * STAGE_BYTES + GROUPS * W_BYTES, &x_map, u % p.steps * PANEL, 0, &full[s]);
    };
    const int ahead = min(end, begin + p.stages);
    if (producer && lane == 0) {
        for (int s = 0; s < p.stages; s++) {
            mbar_init(&full[s], 1);
            mbar_init(&empty[s], CONSUMERS / WARP);
        }
        mbar_init_fence();
        for (int u = begin; u < ahead; u++) load_w(u);
    }
    __syncthreads();
    pdl_wait();

    if (producer) {
        if (lane == 0) {
            for (int u = begin; u < ahead; u++) load_x(u);
            for (int u = ahead; u < end; u++) {
                mbar_wait(&empty[(u - begin) % p.stages], ((u - begin) / p.stages & 1) ^ 1);
                load_w(u);
                load_x(u);
            }
        }
        return;
    }

    const int group = threadIdx.x / WARPGROUP, in_group = threadIdx.x % WARPGROUP;
    constexpr int QUADS = ROWS / 8;                        /* float4 of a thread */
    float acc[ROWS / 2];
    for (int u = begin; u < end;) {
        const int tile = u / p.steps, tile_end = (tile + 1) * p.steps, stop = min(end, tile_end);
        const bool first_part = u == tile * p.steps;
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) acc[i] = 0.0f;
        for (; u < stop; u++) {
            const int s = (u - begin) % p.stages;
            const unsigned char *stage = ring + (size_t)s * STAGE_BYTES;
            mbar_wait(&full[s], (u - begin) / p.stages & 1);
            const uint64_t w = wgmma_desc_k(stage + group * W_BYTES), x = wgmma_desc_k(stage + GROUPS * W_BYTES);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < PANEL / 16; k++) wgmma_shape<ROWS>::template ss<0>(acc, w + 2 * k, x + 2 * k, 1);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0) mbar_arrive(&empty[s]);
        }
        wgmma_hold(acc);

        if (!first_part) {                                 /* sums for the cta that began this tile */
            float4 *to = p.partial + ((size_t)cta * GROUPS + group) * QUADS * WARPGROUP + in_group;
#pragma unroll
            for (int j = 0; j < QUADS; j++) to[j * WARPGROUP] = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
            named_sync(1, CONSUMERS);
            if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(p.ready + cta) : "memory");
            continue;
        }
        if (stop < tile_end) {                             /* others have the rest of this tile: add their sums */
            const int others = (int)(((long long)tile_end * gridDim.x + all - 1) / all) - cta - 1;     /* ctas that begin before tile_end */
            if ((int)threadIdx.x < others) {
                unsigned *ready = p.ready + cta + 1 + threadIdx.x, there = 0;
                while (!there) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(ready) : "memory");
                *ready = 0;
            }
            named_sync(1, CONSUMERS);
            const float4 *from = p.partial + ((size_t)(cta + 1) * GROUPS + group) * QUADS * WARPGROUP + in_group;
            constexpr int BATCH = QUADS <= 8 ? QUADS : QUADS / 2; /* loads in flight; the next batch's are, while this one is added */
            float4 v[BATCH], next[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) next[j] = __ldcg(from + j * WARPGROUP);
            for (int other = 0; other < others; other++, from += (size_t)GROUPS * QUADS * WARPGROUP) {
#pragma unroll
                for (int part = 0; part < QUADS / BATCH; part++) {
#pragma unroll
                    for (int j = 0; j < BATCH; j++) v[j] = next[j];
                    const bool last_part = part + 1 == QUADS / BATCH;
                    const float4 *then = from + (last_part ? (size_t)GROUPS * QUADS * WARPGROUP : (size_t)(part + 1) * BATCH * WARPGROUP);
                    if (!last_part || other + 1 < others) {
#pragma unroll
                        for (int j = 0; j < BATCH; j++) next[j] = __ldcg(then + j * WARPGROUP);
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
        const int row = in_group / WARP * 16 + lane / 4;
        if (p.silu_mul) {
            const int f = (tile * GROUPS + group) * (GROUP_ROWS / 2) + in_group / WARP * 8 + lane / 4;
#pragma unroll
            for (int j = 0; j < QUADS; j++) {
                store(p, 8 * j + lane % 4 * 2, f, silu_mul(acc[4 * j], acc[4 * j + 2]));
                store(p, 8 * j + lane % 4 * 2 + 1, f, silu_mul(acc[4 * j + 1], acc[4 * j + 3]));
            }
        } else {
            const int n = (tile * GROUPS + group) * GROUP_ROWS + row;
#pragma unroll
            for (int j = 0; j < QUADS; j++) {
                store(p, 8 * j + lane % 4 * 2, n, acc[4 * j]);
                store(p, 8 * j + lane % 4 * 2 + 1, n, acc[4 * j + 1]);
                store(p, 8 * j + lane % 4 * 2, n + 8, acc[4 * j + 2]);
                store(p, 8 * j + lane % 4 * 2 + 1, n + 8, acc[4 * j + 3]);
            }
        }
    }
#endif
}

template <int ROWS, int GROUPS>
static int launch_one(const CUtensorMap &w_map, const CUtensorMap &x_map, const skinny_params &p, const struct gemm_skinny_plan &plan, const struct launch *l)
{
    int smem = gemm_skinny_smem(&plan, plan.stages);

    if (cudaFuncSetAttribute(gemm_skinny<ROWS, GROUPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem) != cudaSuccess) return ERR_INTERNAL;
    return launch_kernel(l, gemm_skinny<ROWS, GROUPS>, dim3(plan.ctas), dim3(GROUPS * WARPGROUP + WARP), smem, w_map, x_map, p);
}

template <int ROWS>
static int launch_rows(const CUtensorMap &w_map, const CUtensorMap &x_map, const skinny_params &p, const struct gemm_skinny_plan &plan, const struct launch *l)
{
    switch (plan.groups) {
    case 1: return launch_one<ROWS, 1>(w_map, x_map, p, plan, l);
    case 2: return launch_one<ROWS, 2>(w_map, x_map, p, plan, l);
    }
    return ERR_UNSUPPORTED;
}

/* w as the copy engine sees it: [N, K], or with silu_mul [F / 8, 2, 8, K]: eight gate rows, their eight up rows, the next eight. */
static int map_weights(CUtensorMap *map, const struct gemv_kernel *a)
{
    uint64_t k = (uint64_t)a->k, f = (uint64_t)a->n / 2;

    if (a->silu_mul) {
        uint64_t dims[4] = { k, 8, 2, f / 8 }, strides[3] = { 2 * k, 2 * k * f, 16 * k };
        uint32_t box[4] = { PANEL, 8, 2, GROUP_ROWS / 16 };
        return tensor_map_elem(map, a->w, 4, dims, strides, box);
    }
    uint64_t dims[2] = { k, (uint64_t)a->n }, strides[1] = { 2 * k };
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

    if (plan->stages < 2 || plan->stages > RING_MAX || plan->ctas * 4 + 64 > MATMUL_COUNTER_BYTES ||
        (size_t)plan->ctas * plan->groups * GROUP_ROWS * plan->rows * sizeof(float) > GEMM_SKINNY_WORKSPACE_BYTES) return ERR_UNSUPPORTED;
    if (map_weights(&w_map, a) < 0 || tensor_map_elem(&x_map, a->x, 2, x_dims, x_strides, x_box) < 0) return ERR_INTERNAL;
    p.out = a->out;
    p.partial = (float4 *)a->workspace;
    p.ready = (unsigned *)a->counters + 16;
    p.T = a->num_tokens;
    p.N = a->silu_mul ? a->n / 2 : a->n;
    p.tiles = plan->tiles;
    p.steps = plan->steps;
    p.stages = plan->stages;
    p.out_f32 = a->out_f32;
    p.silu_mul = a->silu_mul;
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

    if (l->sm != 90 || a->num_tokens < 1 || a->num_tokens > GEMM_SKINNY_MAX_ROWS || a->n < 1 || a->k < 8 || a->k % 8 != 0) return ERR_UNSUPPORTED;
    if (!a->counters || !a->workspace || (a->silu_mul && (a->out_f32 || a->n % 16 != 0))) return ERR_UNSUPPORTED;
    plan = gemm_skinny_plan_for(a->num_tokens, a->n, a->k, a->groups, l->num_sms);
    return ELEM_NAME(launch_gemm_skinny_planned)(a, &plan, l);
}
