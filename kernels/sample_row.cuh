/* sample_row.cuh - one row of logits as its team of ctas sees it: tiles, what changes a logit, sums without an order. Part of
 * sample.cu.
 * A row is cut in tiles of TILE tokens; a team (a cluster, or one cta) shares them out in runs of whole tiles, a warp takes a tile
 * at a time. What is summed over tiles is summed in fixed point: integers have no order, so neither the size of the team
 * nor the timing of atomics shows in the result, and a row draws the same token in any batch. */
#ifndef SLUICE_KERNELS_SAMPLE_ROW_CUH
#define SLUICE_KERNELS_SAMPLE_ROW_CUH

#include "common.cuh"

constexpr int SAMPLE_THREADS = 512, SAMPLE_WARPS = SAMPLE_THREADS / WARP;
constexpr int TILE = 1024, TILE_LOADS = TILE / (4 * WARP);
constexpr int SAMPLE_MAX_VOCAB = 1 << 18, MAX_TILES = SAMPLE_MAX_VOCAB / TILE;
constexpr int MAX_TEAM = 8;
constexpr int BINS = 2048, BINS_PER_THREAD = BINS / SAMPLE_THREADS;
constexpr int LIST = 2048, LIST_PER_THREAD = LIST / SAMPLE_THREADS;
constexpr int HASH_BITS = 11, HASH = 1 << HASH_BITS;

struct row_view {
    const float *logits;                   /* of the row */
    int vocab_size;
    int first_tile, num_tiles;             /* of this cta */
    bool is_aligned;                       /* rows start at multiples of 16 bytes */
    bool is_changed, has_allowed, has_bias, has_hash, has_penalties;
    const token_id *bias_ids;              /* of the row */
    const float *bias_values;
    int bias_count;
    const uint32_t *seen;                  /* of the row's slot */
    const uint16_t *counts;
    float repetition, frequency, presence;
    float max, scale;                      /* weight = exp2((logit - max) * scale) */
    float min_p;
};

struct found_cut { uint64_t key, weight; uint32_t count; int32_t bin, in_bin; uint32_t is_found; };
struct told { uint64_t a, b; };

struct sample_shared {
    float raw_max[MAX_TILES], raw_sum[MAX_TILES];            /* of this cta's tiles; sums of exp(logit - the tile's max) */
    float max[MAX_TILES], sum[MAX_TILES], min[MAX_TILES];    /* the same after bias and penalties, divided by temperature */
    int32_t first_max[MAX_TILES];                            /* greedy rows: the first token that has the tile's max */
    uint64_t weight[MAX_TILES];                              /* fixed point, relative to the row's max */
    struct told told[2][MAX_TEAM];                           /* what the ctas of the team tell each other, two rounds deep */
    uint64_t arrived[2];                                     /* mbarriers: all of a round has been told */
    uint64_t warp_sums[SAMPLE_WARPS];
    struct row_view view;
    struct found_cut found, found_bin[2];
    uint32_t counter;                                        /* entries in list, or a count over tiles */
    uint32_t bin_count[BINS], bin_low[BINS], bin_high[BINS]; /* tokens; weight in two words: shared memory adds 32 bits at a time */
    uint64_t list[LIST];                                     /* keys */
    int32_t hash_ids[HASH];                                  /* tokens with a bias, open addressing */
    float hash_values[HASH];
    uint32_t bits[];                                         /* of this cta's tokens: allowed, or where none is named: biased */
};

/* Functions that are no part of the first pass are calls, not inlined: they would cost it registers. They find the cta's state
 * here, so that the compiler knows it to be shared memory. */
static __device__ __forceinline__ struct sample_shared *cta_state()
{
    extern __shared__ __align__(16) unsigned char sample_memory[];
    return (struct sample_shared *)sample_memory;
}

/* ---- numbers ---- */

/* The one order of tokens as integers: a larger logit has the larger key, among equals the lower id. 0 is below every key. */
static __device__ __forceinline__ uint64_t key_of(float logit, int id)
{
    uint32_t u = __float_as_uint(logit + 0.0f);              /* -0 is 0 */
    u ^= (u & 0x80000000u) ? 0xffffffffu : 0x80000000u;
    return (uint64_t)u << 32 | (0xffffffffu - (uint32_t)id);
}
static __device__ __forceinline__ float key_logit(uint64_t key)
{
    uint32_t u = (uint32_t)(key >> 32);
    return __uint_as_float(u ^ ((u & 0x80000000u) ? 0x80000000u : 0xffffffffu));
}
static __device__ __forceinline__ int key_id(uint64_t key) { return (int)(0xffffffffu - (uint32_t)key); }

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* A weight of 0..1 (or a tile's sum of them) with 40 bits behind the point: 2^18 tokens lose less than 2^-22 of the largest. */
static __device__ __forceinline__ uint64_t to_fixed(float weight) { return __float2ull_rn(weight * 0x1p40f); }
static __device__ __forceinline__ double of_fixed(uint64_t weight) { return (double)weight * 0x1p-40; }
static __device__ __forceinline__ uint64_t share_of(double share, uint64_t total)      /* rounded up, 1..total */
{
    uint64_t at = (uint64_t)ceil(share * (double)total);
    return at < 1 ? 1 : at > total ? total : at;
}

/* NaN wins. */
static __device__ __forceinline__ float max_or_nan(float a, float b)
{
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
static __device__ __forceinline__ float warp_max_or_nan(float x)
{
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) x = max_or_nan(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}
static __device__ __forceinline__ float warp_min(float x)
{
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) x = fminf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}
static __device__ __forceinline__ uint64_t warp_sum_u64(uint64_t x)
{
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
/* Sum over the lanes up to this one. */
static __device__ __forceinline__ uint64_t warp_scan_u64(uint64_t x)
{
#pragma unroll
    for (int lane = 1; lane < WARP; lane *= 2) {
        uint64_t before = __shfl_up_sync(0xffffffffu, x, lane);
        if (threadIdx.x % WARP >= lane) x += before;
    }
    return x;
}

/* Over the cta: what the threads before this one hold, *total what all hold. Ends with a barrier. */
static __device__ __noinline__ uint64_t cta_scan_u64(uint64_t x, uint64_t *total)
{
    struct sample_shared *s = cta_state();
    int warp = threadIdx.x / WARP;
    uint64_t upto = warp_scan_u64(x), before = upto - x, all = 0;
    if (threadIdx.x % WARP == WARP - 1) s->warp_sums[warp] = upto;
    __syncthreads();
    for (int w = 0; w < SAMPLE_WARPS; w++) {
        if (w < warp) before += s->warp_sums[w];
        all += s->warp_sums[w];
    }
    *total = all;
    __syncthreads();
    return before;
}
static __device__ uint32_t cta_scan_u32(uint32_t x, uint32_t *total)
{
    uint64_t all;
    uint32_t before = (uint32_t)cta_scan_u64(x, &all);
    *total = (uint32_t)all;
    return before;
}

/* ---- the team ---- */

struct team { int rank, ranks; uint32_t round; };

/* Everything that any thread of the team wrote before is seen by all after it. Dear: a fence of the whole GPU in every warp. */
static __device__ __forceinline__ void team_barrier(const struct team &team)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (team.ranks > 1) {
        asm volatile("barrier.cluster.arrive.release;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

/* The same variable of another cta of the team. */
template <typename T>
static __device__ __forceinline__ T *at_rank(const struct team &team, T *mine, int rank)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (team.ranks == 1) return mine;
    uint64_t address;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(mine), "r"(rank));
    return (T *)address;
#else
    return mine;
#endif
}

/* Before the first pass: the barriers that tell() waits at, and word to the team that this cta runs. Heard of in team_join(). */
static __device__ __forceinline__ void team_begin(struct sample_shared *s, const struct team &team)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (team.ranks == 1) return;
    if (threadIdx.x < WARP) {
        for (int i = 0; threadIdx.x == 0 && i < 2; i++)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"((uint32_t)__cvta_generic_to_shared(&s->arrived[i])) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    } else asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
/* Word to the team that this cta has read from another, which may go on once it has heard that of all: team_join(). */
static __device__ __forceinline__ void team_has_read(const struct team &team)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (team.ranks > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
static __device__ __forceinline__ void team_join(const struct team &team)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (team.ranks > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/* a and b, the same in all threads of this cta, become told(...)[rank] in every cta of the team. A message, not a barrier: other
 * writes to the team are not ordered by it. A barrier of this cta. */
static __device__ __forceinline__ void tell(struct sample_shared *s, struct team *team, uint64_t a, uint64_t b)
{
    uint32_t buffer = ++team->round & 1;
    __syncthreads();                       /* all have read the round before: it may be overwritten from now on */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (team->ranks > 1) {
        uint32_t barrier = (uint32_t)__cvta_generic_to_shared(&s->arrived[buffer]), parity = (team->round - 1) >> 1 & 1, done = 0;
        uint32_t slot = (uint32_t)__cvta_generic_to_shared(&s->told[buffer][team->rank]);
        if (threadIdx.x == 0)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(team->ranks * (int)sizeof(struct told)) : "memory");
        if (threadIdx.x < team->ranks)
            asm volatile("{ .reg .u32 slot, barrier;\n"
                         "mapa.shared::cluster.u32 slot, %0, %2;\n"
                         "mapa.shared::cluster.u32 barrier, %1, %2;\n"
                         "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [slot], {%3, %4}, [barrier]; }"
                         :: "r"(slot), "r"(barrier), "r"(threadIdx.x), "l"(a), "l"(b) : "memory");
        while (!done)
            asm volatile("{ .reg .pred p;\n"
                         "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                         "selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
        return;
    }
#endif
    if (threadIdx.x == 0) s->told[buffer][0] = { a, b };
    __syncthreads();
}
static __device__ __forceinline__ struct told told_by(const struct sample_shared *s, const struct team &team, int rank)
{
    return s->told[team.round & 1][rank];
}

/* ---- the row ---- */


/* Four logits for each of N loads, from token `first` on, STRIDE apart; -inf beyond the vocabulary. All loads are under way before
 * one is waited for. */
template <int N, int STRIDE = 4 * WARP>
static __device__ __forceinline__ void load_logits(float4 *x, const struct row_view &v, int first)
{
    if (v.is_aligned) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            int id = first + j * STRIDE;
            x[j] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
            if (id < v.vocab_size) x[j] = *(const float4 *)(v.logits + id);
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        int id = first + j * STRIDE;
        x[j] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (id + 0 < v.vocab_size) x[j].x = v.logits[id + 0];
        if (id + 1 < v.vocab_size) x[j].y = v.logits[id + 1];
        if (id + 2 < v.vocab_size) x[j].z = v.logits[id + 2];
        if (id + 3 < v.vocab_size) x[j].w = v.logits[id + 3];
    }
}

/* The logit with the biases of the token, in the order of the list (one token named three times in a short list: in any order). */
static __device__ __noinline__ float biased_logit(float logit, int id)
{
    const struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    if (!v.has_hash) {
        for (int i = 0; i < v.bias_count; i++)
            if (v.bias_ids[i] == id) logit += v.bias_values[i];
        return logit;
    }
    for (uint32_t at = (uint32_t)id * 2654435761u >> (32 - HASH_BITS); s->hash_ids[at] >= 0; at = (at + 1) % HASH)
        if (s->hash_ids[at] == id) return logit + s->hash_values[at];
    return logit;
}

/* Allowed, then bias, then penalties. Marked are the allowed ones, or where all are, those with a bias. */
static __device__ __noinline__ float changed_logit(float logit, int id, bool is_marked, bool is_seen)
{
    const struct row_view &v = cta_state()->view;
    uint32_t count = is_seen ? v.counts[id] : 0;
    if (v.has_allowed && !is_marked) return -INFINITY;
    if (v.has_bias && is_marked) logit = biased_logit(logit, id);
    if (is_seen) {
        logit = logit > 0.0f ? __fdiv_rn(logit, v.repetition) : __fmul_rn(logit, v.repetition);
        /* Two roundings, as on the CPU: greedy rows are compared bit by bit. */
        if (count > 0) logit = __fsub_rn(logit, __fadd_rn(__fmul_rn(v.frequency, (float)count), v.presence));
    }
    return logit;
}

/* What is known of a tile's tokens, a word of 32 in each lane. Few change: these are looked at one by one (extra), and where a tile
 * is read in bulk they count as -inf (held), as do those that are not allowed. */
struct tile_bits { uint32_t held, extra, marked, seen; };
static __device__ __forceinline__ struct tile_bits bits_of_tile(const struct row_view &v, const struct sample_shared *s, int tile)
{
    struct tile_bits bits = {};
    int lane = threadIdx.x % WARP, word = (v.first_tile + tile) * (TILE / 32) + lane;
    if (v.has_allowed || v.has_bias) bits.marked = s->bits[tile * (TILE / 32) + lane];
    if (v.has_penalties && word * 32 < v.vocab_size) bits.seen = v.seen[word];
    bits.extra = bits.seen | (v.has_bias ? bits.marked : 0);
    if (v.has_allowed) bits.extra &= bits.marked;
    bits.held = bits.extra | (v.has_allowed ? ~bits.marked : 0);
    return bits;
}
static __device__ __forceinline__ float4 without(float4 x, uint32_t held)                  /* held: the bits of the four */
{
    return make_float4(held & 1u ? -INFINITY : x.x, held & 2u ? -INFINITY : x.y, held & 4u ? -INFINITY : x.z, held & 8u ? -INFINITY : x.w);
}
/* Load j of a tile read by a warp in runs of four. */
static __device__ __forceinline__ float4 without(float4 x, const struct tile_bits &bits, int j)
{
    int lane = threadIdx.x % WARP;
    return without(x, __shfl_sync(0xffffffffu, bits.held, j * 4 + lane / 8) >> lane % 8 * 4);
}
/* visit(changed logit, id) for the extra tokens of the tile, each lane for its word; -inf where a lane has no more. */
template <typename Visit>
static __device__ __forceinline__ void for_extra(const struct row_view &v, const struct tile_bits &bits, int tile, Visit visit)
{
    int first = (v.first_tile + tile) * TILE + (int)(threadIdx.x % WARP) * 32;
    for (uint32_t left = bits.extra; __any_sync(0xffffffffu, left != 0); left &= left - 1) {
        int at = left != 0 ? __ffs(left) - 1 : 0;
        float logit = -INFINITY;
        if (left != 0) logit = changed_logit(v.logits[first + at], first + at, bits.marked >> at & 1u, bits.seen >> at & 1u);
        visit(logit, first + at);
    }
}

/* visit(logit, id) for every token of a tile (index within this cta), in no order: changed logits or raw ones, with -inf for what is
 * beyond the vocabulary, and -inf too for tokens that are visited once more by themselves. A warp visits together. */
template <typename Visit>
static __device__ __forceinline__ void for_tile(const struct row_view &v, int tile, bool raw, Visit visit)
{
    constexpr int AT_ONCE = 4;
    int first = (v.first_tile + tile) * TILE + (int)(threadIdx.x % WARP) * 4;
    bool is_changed = v.is_changed && !raw;
    struct tile_bits bits = {};
    if (is_changed) bits = bits_of_tile(v, cta_state(), tile);
#pragma unroll 1
    for (int load = 0; load < TILE_LOADS; load += AT_ONCE) {
        float4 x[AT_ONCE];
        load_logits<AT_ONCE>(x, v, first + load * 4 * WARP);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            int id = first + (load + j) * 4 * WARP;
            if (is_changed) x[j] = without(x[j], bits, load + j);
            visit(x[j].x, id);
            visit(x[j].y, id + 1);
            visit(x[j].z, id + 2);
            visit(x[j].w, id + 3);
        }
    }
    if (is_changed) for_extra(v, bits, tile, visit);
}

static __device__ __forceinline__ float weight_of(const struct row_view &v, float logit) { return exp2_fast((logit - v.max) * v.scale); }

/* Who is allowed or biased, from the lists of the row. Ends with a barrier. */
static __device__ __noinline__ void prepare_changes(const token_id *allowed, int num_allowed)
{
    struct sample_shared *s = cta_state();
    const struct row_view &v = s->view;
    int first_id = v.first_tile * TILE, end_id = first_id + v.num_tiles * TILE;
    if (end_id > v.vocab_size) end_id = v.vocab_size;
    for (int i = threadIdx.x; i < v.num_tiles * (TILE / 32); i += SAMPLE_THREADS) s->bits[i] = 0;
    if (v.has_hash)
        for (int i = threadIdx.x; i < HASH; i += SAMPLE_THREADS) {
            s->hash_ids[i] = -1;
            s->hash_values[i] = 0.0f;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < num_allowed; i += SAMPLE_THREADS) {
        int id = allowed[i];
        if (id >= first_id && id < end_id) atomicOr(&s->bits[(id - first_id) / 32], 1u << (id - first_id) % 32);
    }
    for (int i = threadIdx.x; v.has_bias && i < v.bias_count; i += SAMPLE_THREADS) {
        int id = v.bias_ids[i];
        if (id < first_id || id >= end_id) continue;
        if (num_allowed == 0) atomicOr(&s->bits[(id - first_id) / 32], 1u << (id - first_id) % 32);
        for (uint32_t at = (uint32_t)id * 2654435761u >> (32 - HASH_BITS); v.has_hash; at = (at + 1) % HASH) {
            int32_t there = atomicCAS(&s->hash_ids[at], -1, id);
            if (there != -1 && there != id) continue;
            atomicAdd(&s->hash_values[at], v.bias_values[i]);
            break;
        }
    }
    __syncthreads();
}

#endif
