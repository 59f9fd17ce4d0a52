/* gemv.cu - out[t,:] = w x[t,:] for few rows t: one path for 1..16                        op: backend.matmul, T <= 16
 * Shapes    x [T, K] elem, w [N, K] elem, out [T, N] elem or f32; K % 8 == 0, any N. silu_mul: w [2F, K] (gate rows, then up rows),
 *           out [T, F] = silu(gate) * up. Sums in fp32. norm_add and norm_scale: kernels.h; a piece of squares is a unit's 16 columns.
 * Traffic   N*K*2 read once; x and out are small beside it.  N=4096 K=4096: 33.6 MB.
 * Roofline  memory bound, T flop/byte: 7.5 us for that shape at 4.45 TB/s (H200).
 * Launch    clusters of `split` ctas, each with `warps` warps along K (gemv_plan.h); one wave, so that a successor's blocks can
 *           become resident beside it and begin to load.
 * Order     k ascending inside a warp's slice, then the warps of a cta, then the ctas of a cluster: fixed by N, K and the device.
 * Oracle    a double loop, tests/kernels/gemv_test.c.  Figures: kernels/README.md.
 * Why       The weights are the B operand (8 of their rows) and x is the A operand (16 rows) of the tensor cores' m16n8k16, so one
 *           to sixteen rows cost the same. An mma sums over k in any order as long as A and B agree: lane (row, quad) takes 8
 *           consecutive k, one 16-byte load straight from memory to registers, and these are its share of two mma steps. Each
 *           register is refilled right after its use, so a thread always has its full depth of loads in flight, across units and
 *           barriers; the first ones are issued before the wait for the predecessor, whose tail they hide.
 *           What norm_add adds to and multiplies by is on its way to shared memory while a unit is summed, each value to the thread
 *           that will want it: registers are all taken, and a trip to memory behind the last barrier would cost what the norm did. */
#include <cooperative_groups.h>

#include "common.cuh"
#include "fused_norm.cuh"
#include "gemv_plan.h"

namespace cg = cooperative_groups;

namespace {

constexpr int TILE = 8;            /* weight rows of one mma */
constexpr int NT = 2;              /* tiles of a warp: 16 rows, or 8 gate rows and their 8 up rows */
constexpr int STEP = 32;           /* k of one 16-byte load per lane: 4 lanes x 8 */
constexpr int MAX_THREADS = 512;
template <int HALVES> constexpr int PLANE = 8 * HALVES * TILE + 16;     /* floats of a tile's sums: two tiles' rows lie in different banks */
constexpr int FLUSH_UNITS = 16;    /* partial sums of this many units are kept until the ctas of a cluster add them up */

struct gemv_params {
    const elem *x, *w;
    void *out;
    int T, N, K;                   /* N: outputs (F with silu_mul) */
    int k_cta, k_warp, x_pitch;    /* x_pitch: elements between rows of x in shared memory */
    int units, split;
    unsigned *counters;            /* [0] units claimed beyond the first two of each cluster, [1] ctas that have ended; or NULL */
    bool out_f32;
    struct norm_add add;
    struct norm_scale scale;
};

/* 16 bytes of a weight row, zeros where ok is false. */
__device__ __forceinline__ uint4 load_weight(const elem *p, bool ok)
{
    uint4 v;
    asm volatile("{.reg .pred q; setp.ne.s32 q, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
                 "@q ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];}"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w) : "l"(p), "r"((int)ok));
    return v;
}

__device__ __forceinline__ void copy_16(void *smem, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((uint32_t)__cvta_generic_to_shared(smem)), "l"(global));
}

__device__ __forceinline__ void copy_4(void *smem, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"((uint32_t)__cvta_generic_to_shared(smem)), "l"(global));
}

__device__ __forceinline__ void store_out(const gemv_params &p, int row, int n, float y)
{
    if (n >= p.N) return;
    if (p.out_f32) ((float *)p.out)[(size_t)row * p.N + n] = y;
    else ((elem *)p.out)[(size_t)row * p.N + n] = to_elem(y);
}

/* The same of a sum that is added to the residual. All lanes of a row's 16 columns come here together; n may lie behind the last. */
__device__ __forceinline__ void store_added(const gemv_params &p, int row, int n, float residual, float weight, float y)
{
    const unsigned lanes = 0xFFFFu << (threadIdx.x & 16);
    float square = 0.0f;
    if (n < p.N) store_out(p, row, n, norm_add_to(p.add, (size_t)row * p.N + n, residual, weight, y, &square));
#pragma unroll
    for (int over = NT * TILE / 2; over > 0; over /= 2) square += __shfl_xor_sync(lanes, square, over);
    if (n % (NT * TILE) == 0) p.add.squares[(size_t)row * NORM_PIECES + n / (NT * TILE)] = square;
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

/* This thread's copies into shared memory except the newest n groups of them. */
__device__ __forceinline__ void wait_copies(int n)
{
    switch (n) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
    case 5: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
    case 6: asm volatile("cp.async.wait_group 6;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 7;" ::: "memory"); break;
    }
}

/* KS: steps of a batch (NT * KS loads in flight per thread). HALVES: 1 for T <= 8, 2 for T <= 16. STAGED: x lies in shared memory. */
template <int KS, int HALVES, bool SILU, bool STAGED>
__global__ void __launch_bounds__(MAX_THREADS, KS <= 4 ? 2 : 1) gemv(const gemv_params p)
{
    extern __shared__ __align__(16) unsigned char smem[];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int row8 = lane / 4, quad = lane % 4;
    const int rank = blockIdx.x % p.split, first = blockIdx.x / p.split, stride = gridDim.x / p.split;
    const int k_base = rank * p.k_cta, k_begin = k_base + warp * p.k_warp, k_end = min(p.K, k_begin + p.k_warp);
    const int batches = (p.k_warp + KS * STEP - 1) / (KS * STEP);
    const size_t tile_stride = SILU ? (size_t)p.N * p.K : (size_t)TILE * p.K;
    constexpr int UNIT = SILU ? TILE : NT * TILE;          /* outputs of a unit */

    elem *const xs = (elem *)smem;
    float *const sums = (float *)(smem + (STAGED ? (size_t)p.T * p.x_pitch * sizeof(elem) : 0));    /* [2][warp][NT][PLANE] */
    float *const part = sums + 2 * warps * NT * PLANE<HALVES>;          /* [FLUSH_UNITS][T][NT][TILE] */
    __shared__ float scales[8 * HALVES];
    __shared__ float before[8 * HALVES * NT * TILE], gain[8 * HALVES * NT * TILE];    /* of norm_add: a thread's own, the residual and the weight */

    pdl_trigger();

    /* Whether a unit's tile has the lane's row. */
    auto has = [&](int u, int tile) { return u < p.units && u * UNIT + row8 + (SILU ? 0 : tile * TILE) < p.N; };

    uint4 w[NT][KS];
    const elem *at = p.w + (size_t)(first * UNIT + row8) * p.K + k_begin + quad * 8;
    int k = k_begin + quad * 8;
    for (int s = 0; s < KS; s++)
        for (int t = 0; t < NT; t++)
            w[t][s] = load_weight(at + t * tile_stride + s * STEP, has(first, t) && k + s * STEP < k_end);

    /* norm_add comes without silu: NT * TILE columns a unit. */
    const bool adds = !SILU && p.add.residual;
    const int per_unit = p.T * NT * TILE;
    auto fetch_gain = [&](int u) {
        for (int i = threadIdx.x; i < per_unit; i += blockDim.x)
            if (u * UNIT + i % (NT * TILE) < p.N) copy_4(gain + i, p.add.weight + u * UNIT + i % (NT * TILE));
    };
    auto fetch_before = [&](int u) {
        for (int i = threadIdx.x; i < per_unit; i += blockDim.x) {
            const int n = u * UNIT + i % (NT * TILE), r = i / (NT * TILE);
            if (n < p.N) copy_4(before + i, p.add.residual + (size_t)r * p.N + n);
        }
    };
    if (adds && p.split == 1) fetch_gain(first);
    if (adds && p.split > 1) {                             /* the cluster's last act: into the L2 at least */
        const int u = first + threadIdx.x * stride;
        if (threadIdx.x < FLUSH_UNITS && u < p.units) asm volatile("prefetch.global.L2 [%0];" :: "l"(p.add.weight + u * UNIT));
    }

    pdl_wait();

    /* Each warp fetches its own columns of x, a group of copies per batch, and waits for each only when it comes to it. */
    if (STAGED) {
        for (int b = 0; b < batches; b++) {
            for (int i = lane; i < p.T * (KS * STEP / 8); i += WARP) {
                int r = i / (KS * STEP / 8), c = b * KS * STEP + i % (KS * STEP / 8) * 8;
                if (c < p.k_warp && k_begin + c < k_end) copy_16(xs + (size_t)r * p.x_pitch + warp * p.k_warp + c, p.x + (size_t)r * p.K + k_begin + c);
            }
            asm volatile("cp.async.commit_group;" ::: "memory");
        }
    }
    if (adds && p.split == 1) fetch_before(first);
    if (p.scale.squares) norm_scales<WARP>(p.scale, p.T, p.K, scales, threadIdx.x, blockDim.x);       /* seen by all behind a unit's barrier */
    const elem *const x_lane = STAGED ? xs + (size_t)row8 * p.x_pitch - k_base : p.x + (size_t)row8 * p.K;
    const size_t x_half = (size_t)8 * (STAGED ? p.x_pitch : p.K);

    /* The first two units are a cta's own; it claims further ones two ahead, because the loads of the next are under way early. */
    __shared__ int claimed[2];
    [[maybe_unused]] int kept_first = first;
    int kept = 0, buffer = 0, after = first + stride, claim = 0;
    for (int u = first; u < p.units;) {
        if (p.counters && threadIdx.x == 0) claim = (int)atomicAdd(p.counters, 1) + 2 * stride;
        if (adds && p.split == 1 && u != first) {
            fetch_gain(u);
            fetch_before(u);
        }
        float acc[NT][4] = {};
        for (int b = 0; b < batches; b++) {
            if (STAGED && u == first) {
                wait_copies(min(7, batches - 1 - b));
                __syncwarp();
            }
            const bool last = b + 1 == batches;
            const int next_u = last ? after : u, next_k = last ? k_begin + quad * 8 : k + KS * STEP;
            const elem *next = last ? p.w + (size_t)(next_u * UNIT + row8) * p.K + next_k : at + KS * STEP;
            const bool has0 = has(next_u, 0), has1 = has(next_u, 1);
#pragma unroll
            for (int s = 0; s < KS; s++) {
                elem8 x[2] = {};
                const bool inside = k + s * STEP < k_end;
                if (inside && row8 < p.T) x[0].raw = *(const uint4 *)(x_lane + k + s * STEP);
                if (HALVES == 2 && inside && row8 + 8 < p.T) x[1].raw = *(const uint4 *)(x_lane + x_half + k + s * STEP);
                const uint32_t a0[4] = { x[0].raw.x, x[1].raw.x, x[0].raw.y, x[1].raw.y };
                const uint32_t a1[4] = { x[0].raw.z, x[1].raw.z, x[0].raw.w, x[1].raw.w };
#pragma unroll
                for (int t = 0; t < NT; t++) {
                    const uint32_t b0[2] = { w[t][s].x, w[t][s].y }, b1[2] = { w[t][s].z, w[t][s].w };
                    mma_elem(acc[t], a0, b0);
                    mma_elem(acc[t], a1, b1);
                    w[t][s] = load_weight(next + t * tile_stride + s * STEP, (t ? has1 : has0) && next_k + s * STEP < k_end);
                }
            }
            at = next;
            k = next_k;
        }

        /* The warps' sums meet in shared memory; two buffers, so one barrier a unit is enough. */
        float *const mine = sums + ((size_t)buffer * warps + warp) * NT * PLANE<HALVES>;
        for (int t = 0; t < NT; t++)
            for (int h = 0; h < HALVES; h++)
                *(float2 *)(mine + t * PLANE<HALVES> + (h * 8 + row8) * TILE + quad * 2) = make_float2(acc[t][2 * h], acc[t][2 * h + 1]);
        if (p.counters && threadIdx.x == 0) claimed[buffer] = claim;
        if (adds && p.split == 1) asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        auto over_warps = [&](int t, int r, int c) {
            const float *from = sums + ((size_t)buffer * warps * NT + t) * PLANE<HALVES> + r * TILE + c;
            float sum = 0.0f;
            for (int i = 0; i < warps; i++) sum += from[(size_t)i * NT * PLANE<HALVES>];
            return sum;
        };
        if (p.split == 1 && SILU) {
            for (int i = threadIdx.x; i < p.T * TILE; i += blockDim.x) {
                const int c = i % TILE, r = i / TILE;
                const float scale = p.scale.squares ? scales[r] : 1.0f;
                store_out(p, r, u * UNIT + c, silu_mul(over_warps(0, r, c) * scale, over_warps(1, r, c) * scale));
            }
        } else {
            for (int i = threadIdx.x; i < per_unit; i += blockDim.x) {
                const int c = i % (NT * TILE), r = i / (NT * TILE);
                float sum = over_warps(c / TILE, r, c % TILE);
                if (p.split > 1) {
                    part[(size_t)kept * per_unit + i] = sum;
                    continue;
                }
                if (p.scale.squares) sum *= scales[r];
                if (adds) store_added(p, r, u * UNIT + c, before[i], gain[i], sum);
                else store_out(p, r, u * UNIT + c, sum);
            }
        }
        [[maybe_unused]] const int done = u;
        u = after;
        after = p.counters ? claimed[buffer] : after + stride;
        buffer ^= 1;
        if (p.split == 1 || (++kept < FLUSH_UNITS && u < p.units)) continue;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        /* The ctas of the cluster add up what they kept, each a share of the outputs. */
        cg::cluster_group cluster = cg::this_cluster();
        const int outs = p.T * UNIT;
        auto column = [&](int i) { return (kept_first + i / outs * stride) * UNIT + i % UNIT; };
        auto fetch = [&](int i, float *residual, float *weight) {
            if (!adds || i >= kept * outs || column(i) >= p.N) return;
            *residual = p.add.residual[(size_t)(i % outs / UNIT) * p.N + column(i)];
            *weight = __ldg(p.add.weight + column(i));
        };
        float residual = 0.0f, weight = 0.0f;
        fetch(rank * blockDim.x + threadIdx.x, &residual, &weight);    /* mostly the only one: arrives while the ctas meet */
        cluster.sync();
        for (int i = rank * blockDim.x + threadIdx.x; i < kept * outs; i += p.split * blockDim.x) {
            const int r = i % outs / UNIT, from = i / outs * per_unit + r * NT * TILE + i % UNIT;
            const float scale = p.scale.squares ? scales[r] : 1.0f;
            float sum = 0.0f, up = 0.0f;
            for (int s = 0; s < p.split; s++) {
                const float *remote = cluster.map_shared_rank(part, s) + from;
                sum += remote[0];
                if (SILU) up += remote[TILE];
            }
            sum *= scale;
            if (adds) store_added(p, r, column(i), residual, weight, sum);
            else store_out(p, r, column(i), SILU ? silu_mul(sum, up * scale) : sum);
            fetch(i + p.split * blockDim.x, &residual, &weight);
        }
        cluster.sync();
        kept = 0;
        kept_first = done + stride;
#endif
    }

    if (p.counters && threadIdx.x == 0 && atomicInc(p.counters + 1, gridDim.x - 1) == gridDim.x - 1) p.counters[0] = 0;    /* the last one out */
}

template <int KS, int HALVES, bool SILU, bool STAGED>
static int launch_one(const gemv_params &p, const struct gemv_plan &plan, size_t smem, const struct launch *l)
{
    auto kernel = gemv<KS, HALVES, SILU, STAGED>;

    if (smem > 40 << 10 && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem) != cudaSuccess)
        return ERR_INTERNAL;
    return launch_clusters(l, plan.split, kernel, dim3(plan.clusters * plan.split), dim3(plan.warps * WARP), smem, p);
}

template <int KS, int HALVES, bool SILU>
static int launch_staged(gemv_params &p, const struct gemv_plan &plan, const struct launch *l)
{
    const int warps = plan.warps;
    size_t sums = (size_t)2 * warps * NT * PLANE<HALVES> * sizeof(float);
    size_t parts = plan.split > 1 ? (size_t)FLUSH_UNITS * NT * p.T * TILE * sizeof(float) : 0;
    size_t xs;

    /* Rows of x half a cycle of the banks apart: the eight rows an mma reads then do not collide. */
    p.x_pitch = p.k_cta % 64 ? p.k_cta : p.k_cta + 32;
    xs = (size_t)p.T * p.x_pitch * sizeof(elem);
    if (xs + sums + parts <= (size_t)(l->sm >= 90 ? 224 << 10 : 96 << 10))
        return launch_one<KS, HALVES, SILU, true>(p, plan, xs + sums + parts, l);
    return launch_one<KS, HALVES, SILU, false>(p, plan, sums + parts, l);
}

template <int KS>
static int launch_halves(gemv_params &p, const struct gemv_plan &plan, bool silu, const struct launch *l)
{
    if (silu) return p.T <= 8 ? launch_staged<KS, 1, true>(p, plan, l) : launch_staged<KS, 2, true>(p, plan, l);
    return p.T <= 8 ? launch_staged<KS, 1, false>(p, plan, l) : launch_staged<KS, 2, false>(p, plan, l);
}

} // namespace

extern "C" int ELEM_NAME(launch_gemv_planned)(const struct gemv_kernel *a, const struct gemv_plan *plan, const struct launch *l)
{
    gemv_params p = {};

    p.x = (const elem *)a->x;
    p.w = (const elem *)a->w;
    p.out = a->out;
    p.T = a->num_tokens;
    p.N = a->silu_mul ? a->n / 2 : a->n;
    p.K = a->k;
    p.k_cta = plan->k_cta;
    p.k_warp = plan->k_warp;
    p.units = plan->units;
    p.split = plan->split;
    p.counters = plan->split == 1 && plan->units > 2 * plan->clusters ? (unsigned *)a->counters : NULL;
    p.out_f32 = a->out_f32;
    p.add = a->add;
    p.scale = a->scale;
    if (a->add.residual) *a->add.num_pieces = plan->units;
    return plan->deep == 16 ? launch_halves<8>(p, *plan, a->silu_mul, l) : launch_halves<4>(p, *plan, a->silu_mul, l);
}

extern "C" int ELEM_NAME(launch_gemv)(const struct gemv_kernel *a, const struct launch *l)
{
    struct gemv_plan plan;

    if (a->num_tokens < 1 || a->num_tokens > GEMV_MAX_ROWS || a->n < 1 || a->k < 8 || a->k % 8 != 0) return ERR_UNSUPPORTED;
    if (a->silu_mul && (a->out_f32 || a->n % 2 != 0)) return ERR_UNSUPPORTED;
    if ((a->add.residual || a->scale.squares) && l->f16) return ERR_UNSUPPORTED;
    if (a->rope.qkv) return ERR_UNSUPPORTED;
    if (a->add.residual && (a->silu_mul || a->n > NORM_PIECES * NT * TILE)) return ERR_UNSUPPORTED;
    plan = gemv_plan_for(a->silu_mul ? a->n / 2 : a->n, a->k, a->silu_mul, l->sm, l->num_sms);
    return ELEM_NAME(launch_gemv_planned)(a, &plan, l);
}

ELEM_PLANNED_DOOR(launch_gemv_planned, gemv_kernel, gemv_plan)
ELEM_DOOR(launch_gemv, gemv_kernel)
