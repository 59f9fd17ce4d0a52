/* gemm_sm90.cu - out[t,:] = w x[t,:] for many rows t, by wgmma and TMA                           op: backend.matmul, T >= 96, sm_90a
 * Shapes    kernels.h, struct gemm_kernel.
 * Work      2 T N K operations; T = 256, N = 28672, K = 4096: 60 G and 235 MB of weights.
 * Roofline  matrix bound from T of about 200: 4096 operations a clock and multiprocessor, 811 TFLOP/s at the 1.5 GHz that an H200
 *           keeps under this load.
 * Launch    persistent: clusters of 1, 2 or 4 blocks (gemm_sm90_plan.h), one block per multiprocessor; one producer warp, then GROUPS
 *           warpgroups of TALL times 64 rows each. Shared memory: a ring of stages of [ROWS + COLS, 64], and room for rows on their way
 *           out.
 * Order     K ascending in steps of 16; with a split the parts in order of K. So it depends on the plan: on shapes alone.
 * Oracle    a double loop, tests/kernels/gemm_sm90_test.c.  Figures: kernels/README.md.
 * Why       The weights are the N side of the product, so that the sums lie as out does. The loop itself keeps the matrix unit busy (a
 *           tile of 128 x 224: 910 clocks a stage of 896); what is left to win is before and behind it: the wait for x, the way out, and
 *           the waves of tiles, for which the widths 192 and 224 exist (N = 28672 is 128 tiles of 224).
 *           Where tiles are few, blocks divide their K. These are a cluster, so they run at the same time by construction, and the
 *           parts go through shared memory: an exchange through the L2 with flags took 10,000 clocks, this one 7,000, and had to
 *           rely on all blocks of the launch being resident.
 *           A cluster along M or N shares what it loads: 0 to 5 % faster. */
#include "common.cuh"
#include "gemm_sm90_plan.h"
#include "hopper.cuh"

#include <algorithm>

namespace {

constexpr int SMEM_MAX = 227 << 10;
constexpr int BLOCK_K = PANEL;           /* a stage's share of K: one panel */
constexpr int WGMMA_ROWS = 64;
constexpr int ONCE_ROWS = 512;           /* up to here the weights pass the L2 once: they go first */
constexpr int L2_ROWS = 2048;            /* tokens whose tiles are worked on together, so that x stays in the L2 while w passes */

template <int GROUPS_, int TALL_, int COLS_> struct config {
    static constexpr int GROUPS = GROUPS_, TALL = TALL_, COLS = COLS_, ROWS = WGMMA_ROWS * TALL * GROUPS, SUMS = COLS / 2, THREADS = WARPGROUP * (GROUPS + 1);
    static constexpr int CONSUMER_WARPS = GROUPS * (WARPGROUP / WARP), SETS = GROUPS * TALL;
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 40 : 32, CONSUMER_REGISTERS = GROUPS == 2 ? 232 : 160;
    /* A warp's rows on their way out: so many columns at once, 16 bytes apart from a multiple of 32 so that no two rows share banks. */
    static constexpr int OUT_COLS = COLS == 192 && GROUPS == 3 ? 64 : COLS > 128 ? COLS / 2 : COLS, OUT_STRIDE = OUT_COLS + 8;
    static constexpr int STAGE_BYTES = (ROWS + COLS) * PANEL_ROW_BYTES, STAGES = (SMEM_MAX - 512 - CONSUMER_WARPS * 16 * OUT_STRIDE * 2) / STAGE_BYTES;
};

template <class C> struct shared_memory {
    struct { elem x[C::ROWS * PANEL], w[C::COLS * PANEL]; } stage[C::STAGES];
    elem out[C::CONSUMER_WARPS][16 * C::OUT_STRIDE];
    uint64_t full[C::STAGES], empty[C::STAGES];
    uint64_t drained, parts;             /* split: the rings of all parts are free; what they sent is here */
};

struct params {
    void *out;
    int num_tokens, width;               /* of out */
    int up;                              /* silu_mul: the first up row of w, else 0 */
    int k_blocks, split, cluster_m, cluster_n;
    int clusters_m, clusters_n;          /* the output in clusters of tiles */
    int group;                           /* clusters along M that are worked on together */
    bool out_f32;
    uint64_t w_l2;                       /* how long weights stay in the L2 */
};

/* ---- which tile is whose ---- */

/* A block's place in its cluster: part of K, then the tile among the neighbours. first: rank of tile 0 of this part. */
struct place { uint32_t part, tile, first; };

__device__ __forceinline__ place find_place(const params &p)
{
    uint32_t tiles = p.cluster_m * p.cluster_n, rank = tiles * p.split > 1 ? cluster_rank() : 0;
    return { rank / tiles, rank % tiles, rank - rank % tiles };
}

struct work { int m, n, first, last; };  /* tile m, n; stages first .. last - 1 of K */

__device__ __forceinline__ bool find_work(const params &p, int round, const place &here, work *w)
{
    int size = p.cluster_m * p.cluster_n * p.split, cluster = blockIdx.x / size + round * (gridDim.x / size);
    int per_group = p.group * p.clusters_n, rest = cluster % per_group, begin = cluster / per_group * p.group;
    int high = min(p.group, p.clusters_m - begin);

    if (cluster >= p.clusters_m * p.clusters_n) return false;
    w->first = (int)((int64_t)p.k_blocks * here.part / p.split);
    w->last = (int)((int64_t)p.k_blocks * (here.part + 1) / p.split);
    w->m = (begin + rest % high) * p.cluster_m + (int)here.tile % p.cluster_m;
    w->n = rest / high * p.cluster_n + (int)here.tile / p.cluster_m;
    return true;
}

/* ---- producer: one thread ---- */

/* An operand's tile comes as two halves of its rows. In a cluster that shares it each of two blocks loads one half, for both. */
struct operand { const CUtensorMap *map; int row, second, half; uint32_t blocks; uint64_t l2; };      /* first rows; half: the one to load, -1: both and alone */

template <int HALF_ROWS> __device__ __forceinline__ void load(const operand &o, elem *tile, int k, uint64_t *full)
{
    if (o.half >= 0) {
        tma_load_2d_multicast(tile + o.half * HALF_ROWS * PANEL, o.map, k, o.half ? o.second : o.row, full, o.blocks, o.l2);
    } else {
        tma_load_2d_hinted(tile, o.map, k, o.row, full, o.l2);
        tma_load_2d_hinted(tile + HALF_ROWS * PANEL, o.map, k, o.second, full, o.l2);
    }
}

template <class C> __device__ __forceinline__ void produce(shared_memory<C> &s, const params &p, const CUtensorMap *x_map, const CUtensorMap *w_map)
{
    place here = find_place(p);
    int stage = 0, phase = 0, w_half = p.up ? C::COLS / 2 : C::COLS;
    operand x = {}, w = {};
    work job;

    x.map = x_map;
    w.map = w_map;
    x.l2 = L2_EVICT_NORMAL;
    w.l2 = p.w_l2;
    x.half = p.cluster_n > 1 ? (int)here.tile / p.cluster_m : -1;
    w.half = p.cluster_m > 1 ? (int)here.tile % p.cluster_m : -1;
    x.blocks = (1u | 1u << p.cluster_m) << here.tile % p.cluster_m << here.first;
    w.blocks = 3u << here.tile / p.cluster_m * p.cluster_m << here.first;
    for (int round = 0; find_work(p, round, here, &job); round++) {
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

/* Groups of eight columns as they lie in the sums, to out. By way of shared memory, so that a warp's 16 rows leave as whole rows. row:
 * the warp's first. */
template <class C, int GROUPS> __device__ __forceinline__ void store_groups(const float (&v)[4 * GROUPS], elem *stage, const params &p, int row, int col)
{
    int lane = threadIdx.x % WARP;

    if (p.out_f32) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int mine = row + lane / 4 + 8 * r;
#pragma unroll
            for (int j = 0; j < GROUPS; j++)
                if (mine < p.num_tokens && col + 8 * j < p.width)
                    *(float2 *)((float *)p.out + (int64_t)mine * p.width + col + 8 * j + 2 * (lane % 4)) = make_float2(v[4 * j + 2 * r], v[4 * j + 2 * r + 1]);
        }
        return;
    }
    uint32_t at = smem_address(stage + lane % 16 * C::OUT_STRIDE + lane / 16 * 8);
#pragma unroll
    for (int first = 0; first < GROUPS; first += C::OUT_COLS / 8) {
        const int units = C::OUT_COLS / 8 < GROUPS - first ? C::OUT_COLS / 8 : GROUPS - first;
        __syncwarp();                                        /* what it held before is read */
#pragma unroll
        for (int j = first; j < first + units; j += 2) {
            uint32_t a = pack_elem(v[4 * j], v[4 * j + 1]), b = pack_elem(v[4 * j + 2], v[4 * j + 3]);
            if (j + 1 < first + units) store_matrices(at + (j - first) * 16, a, b, pack_elem(v[4 * j + 4], v[4 * j + 5]), pack_elem(v[4 * j + 6], v[4 * j + 7]));
            else store_matrices(at + (j - first) * 16, a, b);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16 * units; i += WARP) {
            int r = (i + lane) / units, c = (i + lane) % units * 8;
            if (r < 16 && row + r < p.num_tokens && col + 8 * first + c < p.width)
                *(uint4 *)((elem *)p.out + (int64_t)(row + r) * p.width + col + 8 * first + c) = *(const uint4 *)(stage + r * C::OUT_STRIDE + c);
        }
    }
}

/* The first half of v is gate, the second up. Two share a reciprocal: the unit for these is the bottleneck here. */
template <int N> __device__ __forceinline__ void gate(float (&v)[N / 2], const float (&sums)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i += 2) {
        float a = 1.0f + __expf(fminf(-sums[i], 40.0f)), b = 1.0f + __expf(fminf(-sums[i + 1], 40.0f)), r = __fdividef(1.0f, a * b);
        v[i] = sums[i] * sums[i + N / 2] * (r * b);
        v[i + 1] = sums[i + 1] * sums[i + 1 + N / 2] * (r * a);
    }
}

template <class C> __device__ __forceinline__ void store_tile(const float (&sums)[C::SUMS], elem *stage, const params &p, const work &job, int row)
{
    if (p.up) {
        float v[C::SUMS / 2];
        gate(v, sums);
        store_groups<C, C::COLS / 16>(v, stage, p, row, job.n * (C::COLS / 2));
    } else {
        store_groups<C, C::COLS / 8>(sums, stage, p, row, job.n * C::COLS);
    }
}

/* The parts of a tile are a cluster: each gets slice d of all sums into its ring, adds them up in order of K and stores them. Slice d is
 * the d-th piece of the first and of the second half of the tile's columns, so that gate and up stay together. */
template <class C, int SPLIT> __device__ __forceinline__ void add_parts(const float (&sums)[C::TALL][C::SUMS], shared_memory<C> &s, const params &p, const work &job,
                                                                        const place &here, elem *stage, int row)
{
    constexpr int PIECE = C::SUMS / (2 * SPLIT), SLICE = 2 * PIECE, WIDTH = C::COLS / (2 * SPLIT), SET = SLICE / 4 * WARPGROUP, PART = C::SETS * SET;
    int lane = threadIdx.x % WARP;
    /* [part][set][SLICE / 4][thread] of four floats */
    float4 *ring = (float4 *)s.stage + (threadIdx.x / WARPGROUP - 1) * C::TALL * SET + threadIdx.x % WARPGROUP;

    static_assert(sizeof(float) * C::ROWS * C::COLS <= sizeof s.stage);
    if (lane < SPLIT) mbar_arrive_cluster(&s.drained, here.tile + lane * p.cluster_m * p.cluster_n);
    mbar_wait(&s.drained, 0);
#pragma unroll
    for (int d = 0; d < SPLIT; d++) {
        uint32_t rank = here.tile + d * p.cluster_m * p.cluster_n, bar = cluster_address(&s.parts, rank), to = cluster_address(ring + here.part * PART, rank);
        bool own = d == (int)here.part;
#pragma unroll
        for (int t = 0; t < C::TALL; t++)
#pragma unroll
            for (int i = 0; i < SLICE / 4; i++) {
                float v[4];
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] = sums[t][(4 * i + j) / PIECE * (C::SUMS / 2) + d * PIECE + (4 * i + j) % PIECE];
                if (own) ring[here.part * PART + t * SET + i * WARPGROUP] = make_float4(v[0], v[1], v[2], v[3]);
                else cluster_store(to + (t * SET + i * WARPGROUP) * 16, make_float4(v[0], v[1], v[2], v[3]), bar);
            }
    }
    mbar_wait(&s.parts, 0);
#pragma unroll
    for (int t = 0; t < C::TALL; t++) {
        float total[SLICE];
#pragma unroll
        for (int part = 0; part < SPLIT; part++)
#pragma unroll
            for (int i = 0; i < SLICE / 4; i++) {
                float4 v = ring[part * PART + t * SET + i * WARPGROUP];
                if (part == 0) total[4 * i] = v.x, total[4 * i + 1] = v.y, total[4 * i + 2] = v.z, total[4 * i + 3] = v.w;
                else total[4 * i] += v.x, total[4 * i + 1] += v.y, total[4 * i + 2] += v.z, total[4 * i + 3] += v.w;
            }
        if (p.up) {
            float v[PIECE];
            gate(v, total);
            store_groups<C, WIDTH / 8>(v, stage, p, row + t * WGMMA_ROWS, job.n * (C::COLS / 2) + here.part * WIDTH);
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float v[PIECE];
#pragma unroll
                for (int i = 0; i < PIECE; i++) v[i] = total[half * PIECE + i];
                store_groups<C, WIDTH / 8>(v, stage, p, row + t * WGMMA_ROWS, job.n * C::COLS + half * (C::COLS / 2) + here.part * WIDTH);
            }
        }
    }
}

template <class C> __device__ __forceinline__ void consume(shared_memory<C> &s, const params &p)
{
    place here = find_place(p);
    int group = threadIdx.x / WARPGROUP - 1, lane = threadIdx.x % WARP, stage = 0, phase = 0;
    int first_row = group * C::TALL * WGMMA_ROWS + threadIdx.x % WARPGROUP / WARP * 16;
    elem *out = s.out[threadIdx.x / WARP - WARPGROUP / WARP];
    /* A stage is empty for all who write it: the blocks that load w for this one and those that load x. Lane i tells peer i. */
    int peers = p.cluster_m + p.cluster_n - 1;
    uint32_t peer = here.first + (lane < p.cluster_m ? here.tile / p.cluster_m * p.cluster_m + lane : here.tile % p.cluster_m + (1 - here.tile / p.cluster_m) * p.cluster_m);
    work job;
    auto release = [&](int at) {
        if (peers == 1) { if (lane == 0) mbar_arrive(&s.empty[at]); }
        else if (lane < peers) mbar_arrive_cluster(&s.empty[at], peer);
    };

    pdl_wait();                                              /* out may be in use until then */
    for (int round = 0; find_work(p, round, here, &job); round++) {
        float sums[C::TALL][C::SUMS];
        int before = 0, row = job.m * C::ROWS + first_row;
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
        if (p.split == 1) {
#pragma unroll
            for (int t = 0; t < C::TALL; t++) store_tile<C>(sums[t], out, p, job, row + t * WGMMA_ROWS);
        } else if (p.split == 2) {
            add_parts<C, 2>(sums, s, p, job, here, out, row);
        } else if constexpr (C::COLS % 64 == 0) {
            add_parts<C, 4>(sums, s, p, job, here, out, row);
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
        mbar_init(&s.drained, C::CONSUMER_WARPS * p.split);
        mbar_init(&s.parts, 1);
        if (p.split > 1) mbar_expect(&s.parts, (uint32_t)sizeof(float) * C::ROWS * C::COLS / p.split * (p.split - 1));
        mbar_init_fence();
    }
    if (p.cluster_m * p.cluster_n * p.split > 1) cluster_sync(); else __syncthreads();
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
    int cluster = plan->cluster_m * plan->cluster_n * plan->split, smem = (int)sizeof(shared_memory<C>);
    uint64_t x_dims[2] = { (uint64_t)a->k, (uint64_t)rows }, w_dims[2] = { (uint64_t)a->k, (uint64_t)a->n }, strides[1] = { (uint64_t)a->k * sizeof(elem) };
    uint32_t x_box[2] = { PANEL, C::ROWS / 2 }, w_box[2] = { PANEL, C::COLS / 2 };
    CUtensorMap x_map, w_map;
    struct params p = {};

    if (tensor_map_elem(&x_map, a->x, 2, x_dims, strides, x_box) < 0 || tensor_map_elem(&w_map, a->w, 2, w_dims, strides, w_box) < 0) return ERR_INTERNAL;
    p.out = a->out;
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
    p.w_l2 = rows <= ONCE_ROWS && !a->out_f32 ? L2_EVICT_FIRST : L2_EVICT_NORMAL;

    int64_t items = (int64_t)p.clusters_m * p.clusters_n;
    if (cudaFuncSetAttribute(gemm_wgmma<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem) != cudaSuccess) return ERR_INTERNAL;

    static const int resident[3] = { resident_clusters<C>(1, l->num_sms), resident_clusters<C>(2, l->num_sms), resident_clusters<C>(4, l->num_sms) };
    int at_once = resident[cluster / 2];
    if (at_once < 1 || (p.split > 1 && items > at_once)) return ERR_UNSUPPORTED;
    return launch_clusters(l, cluster, gemm_wgmma<C>, dim3((unsigned)(std::min<int64_t>(items, at_once) * cluster)), dim3(C::THREADS), (size_t)smem, p, x_map, w_map);
}

} // namespace

extern "C" int ELEM_NAME(launch_gemm_planned)(const struct gemm_kernel *a, const struct gemm_sm90_plan *plan, const struct launch *l)
{
    if (l->sm != 90 || !gemm_sm90_plan_valid(plan, a, l->num_sms)) return ERR_UNSUPPORTED;
    switch (plan->rows << 16 | plan->cols) {
    case 128 << 16 | 64: return launch_config<config<2, 1, 64>>(a, plan, l);
    case 128 << 16 | 128: return launch_config<config<2, 1, 128>>(a, plan, l);
    case 128 << 16 | 192: return launch_config<config<2, 1, 192>>(a, plan, l);
    case 128 << 16 | 224: return launch_config<config<2, 1, 224>>(a, plan, l);
    case 128 << 16 | 256: return launch_config<config<2, 1, 256>>(a, plan, l);
    case 192 << 16 | 128: return launch_config<config<3, 1, 128>>(a, plan, l);
    case 192 << 16 | 192: return launch_config<config<3, 1, 192>>(a, plan, l);
    case 256 << 16 | 128: return launch_config<config<2, 2, 128>>(a, plan, l);
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
