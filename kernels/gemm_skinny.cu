/* gemm_skinny.cu - out[t,:] = w x[t,:] for 9..128 rows t, operands swapped                op: backend.matmul, T <= 128, sm_90a
 * Shapes    as gemv.cu: x [T, K] elem, w [N, K] elem, out [T, N] elem or f32, or silu_mul with w [2F, K], F % 8 == 0; K % 8 == 0.
 *           Sums in fp32.
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
 *           everything else: there a cluster shares a tile, and each cta adds up some rows of it. With silu_mul a tile takes eight
 *           gate rows, their eight up rows, and so on: a thread then holds both. */
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
    int tiles, steps, stages, cluster;
    bool out_f32, silu_mul;
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
        for (int i = 0; i < 4; i++) store(p, t, n + i, y[i]);
    } else if (n < p.N && t < p.T) {
        if (p.out_f32) *(float4 *)((float *)p.out + (size_t)t * p.N + n) = make_float4(y[0], y[1], y[2], y[3]);
        else {
            *(uint2 *)((elem *)p.out + (size_t)t * p.N + n) = make_uint2(pack_elem(y[0], y[1]), pack_elem(y[2], y[3]));
        }
    }
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

/* The steps first .. last - 1 are a cta's, counted over all tiles. */
template <int HOW> __device__ __forceinline__ void steps_of(const skinny_params &p, int *first, int *last)
{
    const long long all = (long long)p.tiles * p.steps;
    const int cta = blockIdx.x, tile = cta / p.cluster, rank = cta % p.cluster;
    if (HOW == SKINNY_SPLIT) {
        *first = tile * p.steps + p.steps * rank / p.cluster;
        *last = tile * p.steps + p.steps * (rank + 1) / p.cluster;
    } else {
        *first = (int)(all * cta / gridDim.x);
        *last = (int)(all * (cta + 1) / gridDim.x);
    }
}

/* SKINNY_SPLIT: the sums of all ctas meet; `sums` [ROWS][PITCH] lies at the same place in each, and each writes a share of the rows. */
template <int ROWS, int GROUPS, int PITCH>
__device__ __forceinline__ void add_up(const skinny_params &p, const float *sums, int tile, int rank)
{
    constexpr int MAX_CLUSTER = 8;
    const int wide = GROUPS * GROUP_ROWS, outs = p.silu_mul ? wide / 2 : wide, rows = ROWS / p.cluster;
    auto gather = [&](const float *at, float (&sum)[4]) {
        float4 v[MAX_CLUSTER];
#pragma unroll
        for (int c = 0; c < MAX_CLUSTER; c++)
            if (c < p.cluster) v[c] = *(const float4 *)cluster_map(at, c);
#pragma unroll
        for (int c = 0; c < MAX_CLUSTER; c++) {
            if (c >= p.cluster) break;
            sum[0] += v[c].x;
            sum[1] += v[c].y;
            sum[2] += v[c].z;
            sum[3] += v[c].w;
        }
    };
    for (int i = threadIdx.x; i < rows * (outs / 4); i += GROUPS * WARPGROUP) {
        const int t = rank * rows + i / (outs / 4), c = i % (outs / 4) * 4;
        const float *at = sums + t * PITCH + (p.silu_mul ? c / 8 * 16 + c % 8 : c);
        float y[4] = {}, up[4] = {};
        if (t >= p.T) continue;
        gather(at, y);
        if (p.silu_mul) {
            gather(at + 8, up);
#pragma unroll
            for (int j = 0; j < 4; j++) y[j] = silu_mul(y[j], up[j]);
        }
        store_4(p, t, tile * outs + c, y);
    }
}

/* ROWS: of x, padded. GROUPS: consumer warpgroups; the warp after them is the producer. PANELS, HOW: gemm_skinny_plan.h.
 * A stage: of each group eight rows of w in all panels, then the next eight (with one panel that is the panel), then x panel by panel. */
template <int ROWS, int GROUPS, int PANELS, int HOW>
__global__ void __launch_bounds__(GROUPS * WARPGROUP + WARP, 1)
gemm_skinny(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map, const skinny_params p)
{
#ifdef HOPPER_CODE
    extern __shared__ unsigned char smem_raw[];
    constexpr int W_BYTES = PANELS * GROUP_ROWS * PANEL_ROW_BYTES, X_PANEL_BYTES = ROWS * PANEL_ROW_BYTES, STAGE_BYTES = GROUPS * W_BYTES + PANELS * X_PANEL_BYTES;
    constexpr int CONSUMERS = GROUPS * WARPGROUP, PITCH = GROUPS * GROUP_ROWS + 4, EIGHT_ROWS = 8 * PANEL_ROW_BYTES;
    unsigned char *const ring = (unsigned char *)(((uintptr_t)smem_raw + TILE_ALIGN - 1) & ~(uintptr_t)(TILE_ALIGN - 1));
    __shared__ uint64_t full[RING_MAX], empty[RING_MAX];

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, cta = blockIdx.x;
    const bool producer = warp == CONSUMERS / WARP;
    int begin, end;

    pdl_trigger();
    steps_of<HOW>(p, &begin, &end);

    auto load_w = [&](int u) {
        const int s = (u - begin) % p.stages, tile = u / p.steps, k = u % p.steps * PANELS;
        mbar_expect(&full[s], STAGE_BYTES);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            unsigned char *to = ring + (size_t)s * STAGE_BYTES + g * W_BYTES;
            const int row = (tile * GROUPS + g) * GROUP_ROWS;
            if (PANELS > 1) {
                if (p.silu_mul) tma_load_5d(to, &w_map, 0, 0, k, 0, row / 16, &full[s]);
                else tma_load_4d(to, &w_map, 0, 0, k, row / 8, &full[s]);
            } else {
                if (p.silu_mul) tma_load_4d(to, &w_map, k * PANEL, 0, 0, row / 16, &full[s]);
                else tma_load_2d(to, &w_map, k * PANEL, row, &full[s]);
            }
        }
    };
    auto load_x = [&](int u) {
        const int s = (u - begin) % p.stages;
#pragma unroll
        for (int i = 0; i < PANELS; i++)
            tma_load_2d(ring + (size_t)s * STAGE_BYTES + GROUPS * W_BYTES + i * X_PANEL_BYTES, &x_map, (u % p.steps * PANELS + i) * PANEL, 0, &full[s]);
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
        __syncwarp();
        if (HOW == SKINNY_SPLIT) {                         /* as the others do */
            cluster_sync();
            cluster_sync();
        }
        return;
    }

    const int group = threadIdx.x / WARPGROUP, in_group = threadIdx.x % WARPGROUP;
    constexpr int QUADS = ROWS / 8;                        /* float4 of a thread */
    const int row = in_group / WARP * 16 + lane / 4, col = lane % 4 * 2;
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
            const uint64_t w = wgmma_desc_k(stage + group * W_BYTES, PANELS * EIGHT_ROWS), x = wgmma_desc_k(stage + GROUPS * W_BYTES);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < PANELS; i++)
#pragma unroll
                for (int k = 0; k < PANEL / 16; k++)
                    wgmma_shape<ROWS>::template ss<0>(acc, w + i * (EIGHT_ROWS / 16) + 2 * k, x + i * (X_PANEL_BYTES / 16) + 2 * k, 1);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0) mbar_arrive(&empty[s]);
        }
        wgmma_hold(acc);

        if (HOW == SKINNY_SPLIT) {
            float *const sums = (float *)ring;
            named_sync(1, CONSUMERS);                      /* all are through with the ring */
#pragma unroll
            for (int j = 0; j < QUADS; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[(8 * j + col + i % 2) * PITCH + group * GROUP_ROWS + row + i / 2 * 8] = acc[4 * j + i];
            cluster_sync();
            add_up<ROWS, GROUPS, PITCH>(p, sums, tile, cta % p.cluster);
            continue;
        }
        if (!first_part) {                                 /* sums for the cta that began this tile */
            float4 *to = p.partial + ((size_t)cta * GROUPS + group) * QUADS * WARPGROUP + in_group;
#pragma unroll
            for (int j = 0; j < QUADS; j++) to[j * WARPGROUP] = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
            named_sync(1, CONSUMERS);
            if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" :: "l"(p.ready + cta) : "memory");
            continue;
        }
        if (stop < tile_end) {                             /* others have the rest of this tile: add their sums */
            const long long all = (long long)p.tiles * p.steps;
            const int others = (int)(((long long)tile_end * gridDim.x + all - 1) / all) - cta - 1;     /* ctas that begin before tile_end */
            if ((int)threadIdx.x < others) {
                unsigned *ready = p.ready + cta + 1 + threadIdx.x, there = 0;
                while (!there) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(ready) : "memory");
                *ready = 0;
            }
            named_sync(1, CONSUMERS);
            constexpr size_t NEXT = (size_t)GROUPS * QUADS * WARPGROUP;
            const float4 *from = p.partial + ((size_t)(cta + 1) * GROUPS + group) * QUADS * WARPGROUP + in_group;
            constexpr int BATCH = QUADS <= 8 ? QUADS : QUADS / 2; /* loads in flight; the next batch's are, while this one is added */
            float4 v[BATCH], next[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++) next[j] = __ldcg(from + j * WARPGROUP);
            for (int other = 0; other < others; other++, from += NEXT) {
#pragma unroll
                for (int part = 0; part < QUADS / BATCH; part++) {
#pragma unroll
                    for (int j = 0; j < BATCH; j++) v[j] = next[j];
                    const bool last_part = part + 1 == QUADS / BATCH;
                    const float4 *then = from + (last_part ? NEXT : (size_t)(part + 1) * BATCH * WARPGROUP);
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
        if (p.silu_mul) {
            const int f = (tile * GROUPS + group) * (GROUP_ROWS / 2) + in_group / WARP * 8 + lane / 4;
#pragma unroll
            for (int j = 0; j < QUADS; j++) {
                store(p, 8 * j + col, f, silu_mul(acc[4 * j], acc[4 * j + 2]));
                store(p, 8 * j + col + 1, f, silu_mul(acc[4 * j + 1], acc[4 * j + 3]));
            }
        } else {
            const int n = (tile * GROUPS + group) * GROUP_ROWS + row;
#pragma unroll
            for (int j = 0; j < QUADS; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) store(p, 8 * j + col + i % 2, n + i / 2 * 8, acc[4 * j + i]);
        }
    }
    if (HOW == SKINNY_SPLIT) cluster_sync();               /* nobody leaves while others may still read its shared memory */
#endif
}

template <int ROWS, int GROUPS, int PANELS, int HOW>
static int launch_one(const CUtensorMap &w_map, const CUtensorMap &x_map, const skinny_params &p, const struct gemm_skinny_plan &plan, const struct launch *l)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    auto kernel = gemm_skinny<ROWS, GROUPS, PANELS, HOW>;

    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GEMM_SKINNY_SMEM_MAX) != cudaSuccess) return ERR_INTERNAL;
    config.gridDim = dim3(plan.ctas);
    config.blockDim = dim3(GROUPS * WARPGROUP + WARP);
    config.dynamicSmemBytes = gemm_skinny_smem(&plan, plan.stages);
    config.stream = (cudaStream_t)l->stream;
    config.attrs = attributes;
    if (HOW == SKINNY_SPLIT) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs].val.clusterDim.x = plan.cluster;
        attributes[config.numAttrs].val.clusterDim.y = 1;
        attributes[config.numAttrs++].val.clusterDim.z = 1;
    }
    if (l->pdl) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, w_map, x_map, p) == cudaSuccess ? 0 : ERR_INTERNAL;
}

template <int ROWS>
static int launch_rows(const CUtensorMap &w_map, const CUtensorMap &x_map, const skinny_params &p, const struct gemm_skinny_plan &plan, const struct launch *l)
{
    if (plan.how == SKINNY_DEALT) {
        switch (plan.groups * 10 + plan.panels) {
        case 11: return launch_one<ROWS, 1, 1, SKINNY_DEALT>(w_map, x_map, p, plan, l);
        case 12: return launch_one<ROWS, 1, 2, SKINNY_DEALT>(w_map, x_map, p, plan, l);
        case 14: return launch_one<ROWS, 1, 4, SKINNY_DEALT>(w_map, x_map, p, plan, l);
        case 21: return launch_one<ROWS, 2, 1, SKINNY_DEALT>(w_map, x_map, p, plan, l);
        case 22: return launch_one<ROWS, 2, 2, SKINNY_DEALT>(w_map, x_map, p, plan, l);
        }
    } else {
        switch (plan.groups * 10 + plan.panels) {
        case 11: return launch_one<ROWS, 1, 1, SKINNY_SPLIT>(w_map, x_map, p, plan, l);
        case 12: return launch_one<ROWS, 1, 2, SKINNY_SPLIT>(w_map, x_map, p, plan, l);
        case 14: return launch_one<ROWS, 1, 4, SKINNY_SPLIT>(w_map, x_map, p, plan, l);
        case 22: return launch_one<ROWS, 2, 2, SKINNY_SPLIT>(w_map, x_map, p, plan, l);
        }
    }
    return ERR_UNSUPPORTED;
}

/* w as the copy engine sees it: [N, K], or with silu_mul [F / 8, 2, 8, K]: eight gate rows, their eight up rows, the next eight.
 * With several panels it takes eight rows of all of them before the next eight, so that the memory gives neighbouring bytes together:
 * [N / 8, K / 64, 8, 64] or [F / 8, 2, K / 64, 8, 64]. */
static int map_weights(CUtensorMap *map, const struct gemv_kernel *a, uint32_t panels)
{
    const uint64_t k = (uint64_t)a->k, n = (uint64_t)a->n, f = n / 2, bytes = 2 * k;

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
    if (plan->how != SKINNY_SPLIT && (plan->ctas * 4 + 64 > MATMUL_COUNTER_BYTES ||
        (size_t)plan->ctas * plan->groups * GROUP_ROWS * plan->rows * sizeof(float) > GEMM_SKINNY_WORKSPACE_BYTES)) return ERR_UNSUPPORTED;
    if (map_weights(&w_map, a, (uint32_t)plan->panels) < 0 || tensor_map_elem(&x_map, a->x, 2, x_dims, x_strides, x_box) < 0) return ERR_INTERNAL;
    p.out = a->out;
    p.partial = (float4 *)a->workspace;
    p.ready = (unsigned *)a->counters + 16;
    p.T = a->num_tokens;
    p.N = a->silu_mul ? a->n / 2 : a->n;
    p.tiles = plan->tiles;
    p.steps = plan->steps;
    p.stages = plan->stages;
    p.cluster = plan->cluster;
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

    if (l->sm != 90 || a->cut < 0 || a->cut > GEMM_SKINNY_CUTS || a->num_tokens < 1 || a->num_tokens > GEMM_SKINNY_MAX_ROWS || a->n < 1 || a->k < 8 || a->k % 8 != 0) return ERR_UNSUPPORTED;
    if (!a->counters || !a->workspace || (a->silu_mul && (a->out_f32 || a->n % 16 != 0))) return ERR_UNSUPPORTED;
    plan = gemm_skinny_plan_for(a->num_tokens, a->n, a->k, a->cut, l->num_sms);
    return ELEM_NAME(launch_gemm_skinny_planned)(a, &plan, l);
}

ELEM_PLANNED_DOOR(launch_gemm_skinny_planned, gemv_kernel, gemm_skinny_plan)
ELEM_DOOR(launch_gemm_skinny, gemv_kernel)
