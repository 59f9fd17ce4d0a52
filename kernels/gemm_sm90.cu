/* gemm_sm90.cu - out[t,:] = w x[t,:] for many rows t, by wgmma and TMA                           op: backend.matmul, T >= 96, sm_90a
 * Shapes    kernels.h, struct gemm_kernel.
 * Work      2 T N K operations; T = 256, N = 28672, K = 4096: 60 G and 235 MB of weights.
 * Roofline  matrix bound from T of about 200: 4096 operations a clock and multiprocessor, 811 TFLOP/s at the 1.5 GHz that an H200
 *           keeps under this load.
 * Launch    persistent: clusters of 1, 2 or 4 blocks (gemm_sm90_plan.h), one block per multiprocessor; one producer warp, then GROUPS
 *           warpgroups of TALL times 64 rows each. Shared memory: a ring of stages of [ROWS + COLS, 64], 200 KB.
 * Order     K ascending in steps of 16; with a split the parts in order of K. So it depends on the plan: on shapes alone.
 * Oracle    a double loop, tests/kernels/gemm_sm90_test.c.  Figures: kernels/README.md.
 * Why       The weights are the N side of the product, so that the sums lie as out does. What limits a tile of 128 x 256 is not the
 *           matrix unit alone: what the tile loads has to come from the L2. Blocks of a cluster load half each and send it to both.
 *           The widths 192 and 224 exist because tiles come in waves of 132: N = 28672 is 128 tiles of 224.
 *           A warpgroup in its epilogue leaves the matrix unit to the other one: the ring lets it run ahead by some stages.
 *           A split's parts meet in the L2, not in a cluster: each of the blocks adds up a slice of the columns of all parts. */
#include "common.cuh"
#include "gemm_sm90_plan.h"
#include "hopper.cuh"

#include <algorithm>

namespace {

constexpr int SMEM_MAX = 227 << 10;
constexpr int BLOCK_K = PANEL;           /* a stage's share of K: one panel */
constexpr int WGMMA_ROWS = 64;
constexpr int L2_ROWS = 2048;            /* tokens whose tiles are worked on together, so that x stays in the L2 while w passes */

template <int GROUPS_, int TALL_, int COLS_> struct config {
    static constexpr int GROUPS = GROUPS_, TALL = TALL_, COLS = COLS_, ROWS = WGMMA_ROWS * TALL * GROUPS, SUMS = COLS / 2, THREADS = WARPGROUP * (GROUPS + 1);
    static constexpr int CONSUMER_WARPS = GROUPS * (WARPGROUP / WARP);
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 24 : 32, CONSUMER_REGISTERS = GROUPS == 2 ? 240 : 160;
    static constexpr int STAGE_BYTES = (ROWS + COLS) * PANEL_ROW_BYTES, STAGES = (SMEM_MAX - 256) / STAGE_BYTES;
};

template <class C> struct shared_memory {
    struct { elem x[C::ROWS * PANEL], w[C::COLS * PANEL]; } stage[C::STAGES];
    uint64_t full[C::STAGES], empty[C::STAGES];
};

struct params {
    void *out;
    float *partials;
    uint32_t *flags;
    int num_tokens, width;               /* of out */
    int up;                              /* silu_mul: the first up row of w, else 0 */
    int k_blocks, split, cluster_m, cluster_n;
    int clusters_m, clusters_n;          /* the output in clusters of tiles */
    int group;                           /* clusters along M that are worked on together */
    bool out_f32;
};

/* ---- which tile is whose ---- */

struct work { int m, n, tile, split, first, last; };     /* tile m, n; part of K: stages first .. last - 1 */

__device__ __forceinline__ bool find_work(const params &p, int round, uint32_t rank, work *w)
{
    int clusters = gridDim.x / (p.cluster_m * p.cluster_n), item = blockIdx.x / (p.cluster_m * p.cluster_n) + round * clusters;
    int cluster = item / p.split, per_group = p.group * p.clusters_n, rest = cluster % per_group, begin = cluster / per_group * p.group;
    int high = min(p.group, p.clusters_m - begin);

    if (cluster >= p.clusters_m * p.clusters_n) return false;
    w->split = item % p.split;
    w->first = (int)((int64_t)p.k_blocks * w->split / p.split);
    w->last = (int)((int64_t)p.k_blocks * (w->split + 1) / p.split);
    w->m = (begin + rest % high) * p.cluster_m + (int)rank % p.cluster_m;
    w->n = rest / high * p.cluster_n + (int)rank / p.cluster_m;
    w->tile = cluster * p.cluster_m * p.cluster_n + (int)rank;
    return true;
}

/* ---- producer: one thread ---- */

/* An operand's tile comes as two halves of its rows. In a cluster that shares it each of two blocks loads one half, for both. */
struct operand { const CUtensorMap *map; int row, second, half; uint32_t blocks; };      /* first rows; half: the one to load, -1: both and alone */

template <int HALF_ROWS> __device__ __forceinline__ void load(const operand &o, elem *tile, int k, uint64_t *full)
{
    if (o.half >= 0) {
        tma_load_2d_multicast(tile + o.half * HALF_ROWS * PANEL, o.map, k, o.half ? o.second : o.row, full, o.blocks);
    } else {
        tma_load_2d(tile, o.map, k, o.row, full);
        tma_load_2d(tile + HALF_ROWS * PANEL, o.map, k, o.second, full);
    }
}

template <class C> __device__ __forceinline__ void produce(shared_memory<C> &s, const params &p, const CUtensorMap *x_map, const CUtensorMap *w_map)
{
    uint32_t rank = p.cluster_m * p.cluster_n > 1 ? cluster_rank() : 0;
    int stage = 0, phase = 0, w_half = p.up ? C::COLS / 2 : C::COLS;
    operand x = {}, w = {};
    work job;

    x.map = x_map;
    w.map = w_map;
    x.half = p.cluster_n > 1 ? (int)rank / p.cluster_m : -1;
    w.half = p.cluster_m > 1 ? (int)rank % p.cluster_m : -1;
    x.blocks = (1u | 1u << p.cluster_m) << rank % p.cluster_m;
    w.blocks = 3u << rank / p.cluster_m * p.cluster_m;
    for (int round = 0; find_work(p, round, rank, &job); round++) {
        int k = job.first;
        x.row = job.m * C::ROWS;
        x.second = x.row + C::ROWS / 2;
        w.row = job.n * w_half;
        w.second = w.row + (p.up ? p.up : C::COLS / 2);
        if (round == 0) {                                    /* weights do not wait for the predecessor, tokens do */
            int ahead = min(job.last - k, C::STAGES);
            for (int i = 0; i < ahead; i++) {
                mbar_expect(&s.full[i], C::STAGE_BYTES);
                load<C::COLS / 2>(w, s.stage[i].w, (k + i) * BLOCK_K, &s.full[i]);
            }
            pdl_wait();
            for (int i = 0; i < ahead; i++) load<C::ROWS / 2>(x, s.stage[i].x, (k + i) * BLOCK_K, &s.full[i]);
            k += ahead;
            stage = ahead % C::STAGES;
            phase = ahead / C::STAGES;
        }
        for (; k < job.last; k++) {
            mbar_wait(&s.empty[stage], phase ^ 1);
            mbar_expect(&s.full[stage], C::STAGE_BYTES);
            load<C::COLS / 2>(w, s.stage[stage].w, k * BLOCK_K, &s.full[stage]);
            load<C::ROWS / 2>(x, s.stage[stage].x, k * BLOCK_K, &s.full[stage]);
            if (++stage == C::STAGES) stage = 0, phase ^= 1;
        }
    }
}

/* ---- consumers: a warpgroup has 64 TALL rows of the tile, 64 to a set of sums ---- */

/* Groups of eight columns as they lie in the sums, to out. Where four groups are left the four lanes of a row exchange pairs, so that
 * each stores 16 bytes. row: of this thread's first; the other one is 8 below. */
template <int GROUPS> __device__ __forceinline__ void store_groups(const float (&v)[4 * GROUPS], const params &p, int row, int col)
{
    int quad = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool mine = row + 8 * r < p.num_tokens;
        int64_t at = (int64_t)(row + 8 * r) * p.width + col;
        if (p.out_f32) {
#pragma unroll
            for (int j = 0; j < GROUPS; j++)
                if (mine && col + 8 * j < p.width) *(float2 *)((float *)p.out + at + 8 * j + 2 * quad) = make_float2(v[4 * j + 2 * r], v[4 * j + 2 * r + 1]);
            continue;
        }
#pragma unroll
        for (int j = 0; j < GROUPS / 4 * 4; j += 4) {        /* lane q of the four ends with columns 8 (j + q) .. + 7 */
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = pack_elem(v[4 * (j + i) + 2 * r], v[4 * (j + i) + 2 * r + 1]);
#pragma unroll
            for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (i & bit) continue;
                    uint32_t give = quad & bit ? x[i] : x[i | bit], got = __shfl_xor_sync(0xffffffffu, give, bit);
                    if (quad & bit) x[i] = got; else x[i | bit] = got;
                }
            if (mine && col + 8 * (j + quad) < p.width) *(uint4 *)((elem *)p.out + at + 8 * (j + quad)) = make_uint4(x[0], x[1], x[2], x[3]);
        }
#pragma unroll
        for (int j = GROUPS / 4 * 4; j < GROUPS; j++)
            if (mine && col + 8 * j < p.width) *(uint32_t *)((elem *)p.out + at + 8 * j + 2 * quad) = pack_elem(v[4 * j + 2 * r], v[4 * j + 2 * r + 1]);
    }
}

/* The first half of v is gate, the second up. */
template <int N> __device__ __forceinline__ void gate(float (&v)[N / 2], const float (&sums)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) v[i] = __fdividef(sums[i], 1.0f + __expf(-sums[i])) * sums[i + N / 2];
}

template <class C> __device__ __forceinline__ void store_tile(const float (&sums)[C::SUMS], const params &p, const work &job, int row)
{
    if (p.up) {
        float v[C::SUMS / 2];
        gate(v, sums);
        store_groups<C::COLS / 16>(v, p, row, job.n * (C::COLS / 2));
    } else {
        store_groups<C::COLS / 8>(sums, p, row, job.n * C::COLS);
    }
}

/* All threads of the warpgroup: every part of the tile has come to this point with the same rows. flag: 0 .. split while they come,
 * up to 2 split while they leave; the last one out sets it to 0 again. */
__device__ __forceinline__ void meet(uint32_t *flag, uint32_t parts, int barrier)
{
    __threadfence();
    named_sync(barrier, WARPGROUP);
    if (threadIdx.x % WARPGROUP == 0) {
        uint32_t seen;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(flag) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory"); while (seen < parts);
    }
    named_sync(barrier, WARPGROUP);
}
__device__ __forceinline__ void leave(uint32_t *flag, uint32_t parts, int barrier)
{
    named_sync(barrier, WARPGROUP);
    if (threadIdx.x % WARPGROUP == 0 && atomicAdd(flag, 1) == 2 * parts - 1) *(volatile uint32_t *)flag = 0;
}

/* Slice d of SPLIT: the d-th piece of the first and of the second half of the tile's columns, so that gate and up stay together. */
template <class C, int SPLIT> __device__ __forceinline__ void add_parts(const float (&sums)[C::SUMS], const params &p, const work &job, int row, int set)
{
    constexpr int SETS = C::GROUPS * C::TALL, PIECE = C::SUMS / (2 * SPLIT), SLICE = 2 * PIECE, WIDTH = C::COLS / (2 * SPLIT);
    float mine[SLICE], total[SLICE];
    int barrier = threadIdx.x / WARPGROUP;
    uint32_t *flag = p.flags + job.tile * SETS + set;
    /* [tile][slice][part][set][SLICE / 4][thread] of four floats */
    float4 *at = (float4 *)p.partials + ((int64_t)job.tile * SPLIT * SPLIT * SETS + set) * (SLICE / 4 * WARPGROUP) + threadIdx.x % WARPGROUP;
    constexpr int64_t PART = (int64_t)SETS * (SLICE / 4 * WARPGROUP);

#pragma unroll
    for (int d = 0; d < SPLIT; d++) {
        float slice[SLICE];
#pragma unroll
        for (int i = 0; i < SLICE; i++) slice[i] = sums[i / PIECE * (C::SUMS / 2) + d * PIECE + i % PIECE];
        if (d == job.split) {
#pragma unroll
            for (int i = 0; i < SLICE; i++) mine[i] = slice[i];
        } else {
#pragma unroll
            for (int i = 0; i < SLICE / 4; i++)
                __stcg(at + (d * SPLIT + job.split) * PART + i * WARPGROUP, make_float4(slice[4 * i], slice[4 * i + 1], slice[4 * i + 2], slice[4 * i + 3]));
        }
    }
    meet(flag, SPLIT, barrier);
#pragma unroll
    for (int part = 0; part < SPLIT; part++) {
#pragma unroll
        for (int i = 0; i < SLICE / 4; i++) {
            float4 v = make_float4(mine[4 * i], mine[4 * i + 1], mine[4 * i + 2], mine[4 * i + 3]);
            if (part != job.split) v = __ldcg(at + (job.split * SPLIT + part) * PART + i * WARPGROUP);
            if (part == 0) total[4 * i] = v.x, total[4 * i + 1] = v.y, total[4 * i + 2] = v.z, total[4 * i + 3] = v.w;
            else total[4 * i] += v.x, total[4 * i + 1] += v.y, total[4 * i + 2] += v.z, total[4 * i + 3] += v.w;
        }
    }
    leave(flag, SPLIT, barrier);
    if (p.up) {
        float v[PIECE];
        gate(v, total);
        store_groups<WIDTH / 8>(v, p, row, job.n * (C::COLS / 2) + job.split * WIDTH);
    } else {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float v[PIECE];
#pragma unroll
            for (int i = 0; i < PIECE; i++) v[i] = total[half * PIECE + i];
            store_groups<WIDTH / 8>(v, p, row, job.n * C::COLS + half * (C::COLS / 2) + job.split * WIDTH);
        }
    }
}

template <class C> __device__ __forceinline__ void consume(shared_memory<C> &s, const params &p)
{
    uint32_t rank = p.cluster_m * p.cluster_n > 1 ? cluster_rank() : 0;
    int group = threadIdx.x / WARPGROUP - 1, lane = threadIdx.x % WARP, stage = 0, phase = 0;
    int first_row = group * C::TALL * WGMMA_ROWS + threadIdx.x % WARPGROUP / WARP * 16 + lane / 4;
    /* A stage is empty for all who write it: the blocks that load w for this one and those that load x. Lane i tells peer i. */
    int peers = p.cluster_m + p.cluster_n - 1;
    uint32_t peer = lane < p.cluster_m ? rank / p.cluster_m * p.cluster_m + lane : rank % p.cluster_m + (1 - rank / p.cluster_m) * p.cluster_m;
    work job;
    auto release = [&](int at) {
        if (peers == 1) { if (lane == 0) mbar_arrive(&s.empty[at]); }
        else if (lane < peers) mbar_arrive_cluster(&s.empty[at], peer);
    };

    pdl_wait();                                              /* out and partials may be in use until then */
    for (int round = 0; find_work(p, round, rank, &job); round++) {
        float sums[C::TALL][C::SUMS];
        int before = 0;
        for (int k = job.first; k < job.last; k++) {
            mbar_wait(&s.full[stage], phase);
            uint64_t x = wgmma_desc_k(s.stage[stage].x + group * C::TALL * WGMMA_ROWS * PANEL), w = wgmma_desc_k(s.stage[stage].w);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < BLOCK_K / 16; i++)
#pragma unroll
                for (int t = 0; t < C::TALL; t++)
                    wgmma_shape<C::COLS>::template ss<0>(sums[t], x + t * (WGMMA_ROWS * PANEL_ROW_BYTES / 16) + 2 * i, w + 2 * i, k > job.first || i > 0);
            wgmma_commit();
            if (k > job.first) {
                wgmma_wait<1>();
                release(before);
            }
            before = stage;
            if (++stage == C::STAGES) stage = 0, phase ^= 1;
        }
        wgmma_wait<0>();
#pragma unroll
        for (int t = 0; t < C::TALL; t++) wgmma_hold(sums[t]);
        release(before);
#pragma unroll
        for (int t = 0; t < C::TALL; t++) {
            int row = job.m * C::ROWS + first_row + t * WGMMA_ROWS, set = group * C::TALL + t;
            if (p.split == 1) store_tile<C>(sums[t], p, job, row);
            else if (p.split == 2) add_parts<C, 2>(sums[t], p, job, row, set);
            else if constexpr (C::COLS % 64 == 0) add_parts<C, 4>(sums[t], p, job, row, set);
        }
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) gemm_wgmma(const __grid_constant__ params p, const __grid_constant__ CUtensorMap x_map,
                                                            const __grid_constant__ CUtensorMap w_map)
{
#ifdef HOPPER_CODE
    extern __shared__ __align__(TILE_ALIGN) unsigned char shared[];
    shared_memory<C> &s = *reinterpret_cast<shared_memory<C> *>(shared);

    pdl_trigger();
    if (threadIdx.x == 0) {
        tma_prefetch(&x_map);
        tma_prefetch(&w_map);
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(&s.full[i], 1);
            mbar_init(&s.empty[i], C::CONSUMER_WARPS * (p.cluster_m + p.cluster_n - 1));
        }
        mbar_init_fence();
    }
    if (p.cluster_m * p.cluster_n > 1) cluster_sync(); else __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_down<C::PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<C>(s, p, &x_map, &w_map);
        __syncwarp();
    } else {
        registers_up<C::CONSUMER_REGISTERS>();
        consume<C>(s, p);
    }
    if (p.cluster_m * p.cluster_n > 1) cluster_sync();       /* a peer's last arrivals come here */
#endif
}

/* ---- host ---- */

/* Clusters of this size that run at once; 0: none, or the device cannot tell. It decides: a cluster has to fit into a group of 16 or
 * 18 multiprocessors. */
template <class C> static int resident_clusters(int cluster, int num_sms)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    int n = 0;

    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)(num_sms / cluster * cluster));
    config.blockDim = dim3(C::THREADS);
    config.dynamicSmemBytes = sizeof(shared_memory<C>);
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaFuncSetAttribute(gemm_wgmma<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(shared_memory<C>)) == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&n, gemm_wgmma<C>, &config) == cudaSuccess) return std::min(n, num_sms / cluster);
    cudaGetLastError();                                      /* not the caller's */
    return 0;
}

template <class C> static int launch_config(const struct gemm_kernel *a, const struct gemm_sm90_plan *plan, const struct launch *l)
{
    int rows = a->num_tokens, width = a->silu_mul ? a->n / 2 : a->n, tile_width = a->silu_mul ? C::COLS / 2 : C::COLS;
    int cluster = plan->cluster_m * plan->cluster_n, smem = (int)sizeof(shared_memory<C>);
    uint64_t x_dims[2] = { (uint64_t)a->k, (uint64_t)rows }, w_dims[2] = { (uint64_t)a->k, (uint64_t)a->n }, strides[1] = { (uint64_t)a->k * sizeof(elem) };
    uint32_t x_box[2] = { PANEL, C::ROWS / 2 }, w_box[2] = { PANEL, C::COLS / 2 };
    CUtensorMap x_map, w_map;
    struct params p = {};

    if (tensor_map_elem(&x_map, a->x, 2, x_dims, strides, x_box) < 0 || tensor_map_elem(&w_map, a->w, 2, w_dims, strides, w_box) < 0) return ERR_INTERNAL;
    p.out = a->out;
    p.partials = a->partials;
    p.flags = a->flags;
    p.num_tokens = rows;
    p.width = width;
    p.up = a->silu_mul ? width : 0;
    p.k_blocks = (a->k + BLOCK_K - 1) / BLOCK_K;
    p.split = plan->split;
    p.cluster_m = plan->cluster_m;
    p.cluster_n = plan->cluster_n;
    p.clusters_m = (rows + C::ROWS * plan->cluster_m - 1) / (C::ROWS * plan->cluster_m);
    p.clusters_n = (width + tile_width * plan->cluster_n - 1) / (tile_width * plan->cluster_n);
    p.group = std::max(1, L2_ROWS / (C::ROWS * plan->cluster_m));
    p.out_f32 = a->out_f32;

    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    int64_t items = (int64_t)p.clusters_m * p.clusters_n * p.split;
    config.blockDim = dim3(C::THREADS);
    config.dynamicSmemBytes = smem;
    config.stream = (cudaStream_t)l->stream;
    config.attrs = attributes;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = (unsigned)cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = l->pdl ? 2 : 1;
    if (cudaFuncSetAttribute(gemm_wgmma<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem) != cudaSuccess) return ERR_INTERNAL;

    static const int resident[3] = { resident_clusters<C>(1, l->num_sms), resident_clusters<C>(2, l->num_sms), resident_clusters<C>(4, l->num_sms) };
    int at_once = resident[cluster / 2];
    if (at_once < 1 || (p.split > 1 && items > at_once)) return ERR_UNSUPPORTED;
    config.gridDim = dim3((unsigned)(std::min<int64_t>(items, at_once) * cluster));
    return cudaLaunchKernelEx(&config, gemm_wgmma<C>, p, x_map, w_map) == cudaSuccess ? 0 : ERR_INTERNAL;
}

} // namespace

extern "C" int ELEM_NAME(launch_gemm_planned)(const struct gemm_kernel *a, const struct gemm_sm90_plan *plan, const struct launch *l)
{
    if (l->sm != 90 || !gemm_sm90_plan_valid(plan, a, l->num_sms)) return ERR_UNSUPPORTED;
    switch (plan->rows << 16 | plan->cols) {
    case 128 << 16 | 128: return launch_config<config<2, 1, 128>>(a, plan, l);
    case 128 << 16 | 192: return launch_config<config<2, 1, 192>>(a, plan, l);
    case 128 << 16 | 224: return launch_config<config<2, 1, 224>>(a, plan, l);
    case 128 << 16 | 256: return launch_config<config<2, 1, 256>>(a, plan, l);
    case 192 << 16 | 128: return launch_config<config<3, 1, 128>>(a, plan, l);
    case 192 << 16 | 192: return launch_config<config<3, 1, 192>>(a, plan, l);
    case 256 << 16 | 128: return launch_config<config<2, 2, 128>>(a, plan, l);
    case 256 << 16 | 192: return launch_config<config<2, 2, 192>>(a, plan, l);
    default: return ERR_UNSUPPORTED;
    }
}

extern "C" int ELEM_NAME(launch_gemm)(const struct gemm_kernel *a, const struct launch *l)
{
    struct gemm_sm90_plan plan;

    if (l->sm != 90 || !gemm_sm90_plan_at(&plan, 0, a, l->num_sms)) return ERR_UNSUPPORTED;
    return ELEM_NAME(launch_gemm_planned)(a, &plan, l);
}

ELEM_PLANNED_DOOR(launch_gemm_planned, gemm_kernel, gemm_sm90_plan)
ELEM_DOOR(launch_gemm, gemm_kernel)
