/* attn_prefill_sm90.cu - prefill attention by wgmma and TMA: what attn_prefill.cu does, for sm_90                  op: attn_prefill
 * Shapes    kernels.h, struct attn_prefill_kernel. D in {64, 128, 256}, H / Hk up to the rows of a tile, any block size.
 * Work      4 H D (sum of visible keys) operations. T = 8192, H = 32, D = 128: 550 G.
 * Roofline  matrix bound: 0.70 ms at the 790 TFLOP/s that a bf16 product reaches on an H200. exp2 is the second limit: 16 a clock and
 *           multiprocessor, half of the matrix unit's time at D = 128 and all of it at D = 64; it has to run beside the products.
 * Launch    persistent: one block per multiprocessor; a warpgroup that fetches, then GROUPS of 64 rows each.
 *           Shared memory: Q [64 GROUPS, D], two stages each of K and V [KEYS, D]: 160 KB at D = 128.
 * Order     keys descending, KEYS at a time, whatever the batch: a sequence's result does not depend on its neighbours.
 * Oracle    tests/kernels/attn_prefill_test.c.  Figures: kernels/README.md.
 * Why       A KV block of one head is a contiguous [block_size, D]: one box of a 2-D tensor map. The producer looks up the block table
 *           and issues boxes of gcd(block_size, KEYS) rows; boxes past the context lie outside the tensor and arrive as zeros.
 *           One warp finds the next tiles, one fetches Q and K, one V: in one warp their latencies added up to a tenth of the time.
 *           Three overlaps: the fetching warps run ahead, also into the next tile; a warpgroup issues the scores of the next keys (or
 *           of the next tile's first ones) before the product with V of the last ones and does its softmax under the latter; the
 *           warpgroups take turns at issuing, so that the softmax of one falls under the products of the other.
 *           Tiles are dealt out longest first, forth and back over the blocks (i, 2 n - 1 - i, ...), which evens out causal lengths
 *           without a counter in memory; every block finds its tiles from cu_seqlens_q and context_lens alone. */
#include "attn_prefill.cuh"
#include "hopper.cuh"

#include <algorithm>
#include <numeric>

namespace {

constexpr int PRODUCER_BARRIER = 15;     /* named barriers: 1 .. 2 GROUPS are the consumers' */
constexpr int SEQS = 256;                /* whose lengths have room in shared memory */
constexpr int LEVELS = 64;               /* tiles are ordered by ceil(end of their keys / level width), longest first */

template <int D_, int KEYS_, int GROUPS_, int STAGES_, int Q_STAGES_> struct config {
    static constexpr int D = D_, KEYS = KEYS_, GROUPS = GROUPS_, ROWS = 64 * GROUPS, PANELS = D / PANEL;
    static constexpr int STAGES = STAGES_, Q_STAGES = Q_STAGES_, THREADS = WARPGROUP * (GROUPS + 1);
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 40 : 32, CONSUMER_REGISTERS = GROUPS == 2 ? 232 : 160;
    static constexpr int Q_PANEL = ROWS * PANEL, KV_PANEL = KEYS * PANEL;          /* elements */
    static constexpr bool LAZY_RESCALE = D > 128;            /* test before the multiplications whether any row needs them */
};

/* What a block works on next. The dealer's warp fills a ring of TILES of them; the warps that fetch and those that compute read it. */
constexpr int TILES = 4;
struct tile {
    int num_keys;                        /* tiles of keys; 0: its queries see none (padding); -1: no more work */
    int last_key;                        /* first key of the first (highest) tile of keys */
    int token, num_queries, position;    /* row of q of its first query; how many; position of the first in the context */
    int seq, kv_head, context;
};

template <class C> struct shared_memory {
    elem q[C::Q_STAGES][C::ROWS * C::D];
    elem k[C::STAGES][C::KEYS * C::D], v[C::STAGES][C::KEYS * C::D];
    uint64_t tile_full[TILES], tile_empty[TILES];
    uint64_t q_full[C::Q_STAGES], q_empty[C::Q_STAGES], k_full[C::STAGES], k_empty[C::STAGES], v_full[C::STAGES], v_empty[C::STAGES];
    struct tile tile[TILES];
    int32_t cu_seqlens_q[SEQS + 1], context_lens[SEQS];      /* copies, where the launch has at most SEQS sequences */
    int before[LEVELS + 2];              /* before[i]: tiles of levels above LEVELS - i; the last one: all */
    int longest;                         /* context */
};

struct params {
    struct attn_prefill_kernel a;
    int group, tile_queries, box_rows;   /* G; queries of a tile; rows of a KV box */
    int num_kv_rows;                     /* rows of the KV tensor maps */
};

/* ---- which tile is whose ---- */

/* Sum of x over the lanes below this one. */
__device__ __forceinline__ int warp_sum_before(int x)
{
    int sum = x;
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, sum, step);
        if ((int)(threadIdx.x % WARP) >= step) sum += other;
    }
    return sum - x;
}

/* How many of a sequence's tiles end at or before key position `end`. */
__device__ __forceinline__ int tiles_up_to(int q_len, int context, int tile_queries, int end)
{
    if (end >= context) return (q_len + tile_queries - 1) / tile_queries;
    return max(0, end - (context - q_len)) / tile_queries;
}

__device__ __forceinline__ int level_width(int longest, int keys) { return max(1, (longest + keys * LEVELS - 1) / (keys * LEVELS)) * keys; }

/* Where to read the lengths of first_seq .. num_seqs-1: in shared memory they cost a tenth of the latency. */
struct lengths { const int32_t *cu, *contexts; };
template <class C> __device__ __forceinline__ struct lengths lengths_of(const shared_memory<C> &s, const struct params &p)
{
    bool copied = p.a.num_seqs - p.a.first_seq <= SEQS;
    return { copied ? s.cu_seqlens_q : p.a.cu_seqlens_q + p.a.first_seq, copied ? s.context_lens : p.a.context_lens + p.a.first_seq };
}

/* The producer's warpgroup: fills s.before, which is zero, and the copies of lengths. */
template <class C> __device__ __forceinline__ void count_tiles(shared_memory<C> &s, const struct params &p)
{
    int num_seqs = p.a.num_seqs - p.a.first_seq, lane = threadIdx.x % WARP, longest = 0;
    struct lengths from = lengths_of<C>(s, p);
    const int32_t *cu = from.cu, *contexts = from.contexts;

    for (int b = threadIdx.x; b <= num_seqs; b += WARPGROUP) {
        int q_begin = p.a.cu_seqlens_q[p.a.first_seq + b], context = b < num_seqs ? p.a.context_lens[p.a.first_seq + b] : 0;
        longest = max(longest, context);
        if (num_seqs > SEQS) continue;
        s.cu_seqlens_q[b] = q_begin;
        if (b < num_seqs) s.context_lens[b] = context;
    }
    longest = __reduce_max_sync(0xffffffffu, longest);
    if (lane == 0 && longest > 0) atomicMax(&s.longest, longest);
    named_sync(PRODUCER_BARRIER, WARPGROUP);
    int width = level_width(s.longest, C::KEYS);
    for (int i = threadIdx.x; i < num_seqs * (LEVELS + 1); i += WARPGROUP) {
        int b = i / (LEVELS + 1), level = i % (LEVELS + 1), q_len = cu[b + 1] - cu[b], context = contexts[b];
        int n = tiles_up_to(q_len, context, p.tile_queries, level * width);
        if (level > 0) n -= tiles_up_to(q_len, context, p.tile_queries, (level - 1) * width);
        if (n) atomicAdd(&s.before[LEVELS - level + 1], n * p.a.num_kv_heads);
    }
    named_sync(PRODUCER_BARRIER, WARPGROUP);
    if (threadIdx.x < WARP) {                                /* running sum: three entries a lane, 3 * 32 >= LEVELS + 2 */
        int x[3], sum = 0;
        for (int i = 0; i < 3; i++) sum += x[i] = 3 * lane + i < LEVELS + 2 ? s.before[3 * lane + i] : 0;
        int start = warp_sum_before(sum);
        for (int i = 0; i < 3; i++) {
            start += x[i];
            if (3 * lane + i < LEVELS + 2) s.before[3 * lane + i] = start;
        }
        __syncwarp();
    }
}

/* The index-th tile in the order longest first; the whole warp calls. */
template <class C> __device__ __forceinline__ struct tile find_tile(const shared_memory<C> &s, const struct params &p, int index)
{
    constexpr unsigned ALL = 0xffffffffu;
    int lane = threadIdx.x % WARP, num_seqs = p.a.num_seqs - p.a.first_seq, width = level_width(s.longest, C::KEYS);
    int i = __popc(__ballot_sync(ALL, s.before[lane + 1] <= index)) + __popc(__ballot_sync(ALL, s.before[lane + 33] <= index)) +
            (s.before[LEVELS + 1] <= index);
    int level = LEVELS - i, rest = index - s.before[i];
    struct lengths from = lengths_of<C>(s, p);
    struct tile t;

    for (int base = 0;; base += WARP) {
        int b = base + lane, q_begin = 0, q_len = 0, context = 0, high = 0, count = 0;
        if (b < num_seqs) {
            q_begin = from.cu[b];
            q_len = from.cu[b + 1] - q_begin;
            context = from.contexts[b];
            high = tiles_up_to(q_len, context, p.tile_queries, level * width);
            count = (high - (level > 0 ? tiles_up_to(q_len, context, p.tile_queries, (level - 1) * width) : 0)) * p.a.num_kv_heads;
        }
        int earlier = warp_sum_before(count);
        unsigned past = __ballot_sync(ALL, earlier + count > rest);
        if (!past) { rest -= __shfl_sync(ALL, earlier + count, WARP - 1); continue; }
        int owner = __ffs(past) - 1;
        rest -= __shfl_sync(ALL, earlier, owner);
        q_begin = __shfl_sync(ALL, q_begin, owner);
        q_len = __shfl_sync(ALL, q_len, owner);
        t.context = __shfl_sync(ALL, context, owner);
        t.seq = p.a.first_seq + base + owner;
        int first = (__shfl_sync(ALL, high, owner) - 1 - rest / p.a.num_kv_heads) * p.tile_queries;
        t.kv_head = rest % p.a.num_kv_heads;
        t.token = q_begin + first;
        t.num_queries = min(p.tile_queries, q_len - first);
        t.position = t.context - q_len + first;
        break;
    }
    struct key_range keys = visible_keys(t.position, 0, t.num_queries - 1, p.a.sliding_window);
    int begin = keys.begin / C::KEYS, end = keys.end <= 0 ? 0 : (keys.end + C::KEYS - 1) / C::KEYS;
    t.num_keys = max(0, end - begin);
    t.last_key = (end - 1) * C::KEYS;
    return t;
}

/* ---- the producer's warpgroup: warp 0 deals tiles, warp 1 fetches queries and keys, warp 2 values ---- */

template <class C> __device__ __forceinline__ void put_tile(shared_memory<C> &s, const struct tile &t, int num_tiles)
{
    int slot = num_tiles % TILES;

    mbar_wait(&s.tile_empty[slot], num_tiles / TILES % 2 ^ 1);
    if (threadIdx.x % WARP == 0) {
        s.tile[slot] = t;
        mbar_arrive(&s.tile_full[slot]);
    }
    __syncwarp();
}

template <class C> __device__ __forceinline__ void deal_tiles(shared_memory<C> &s, const struct params &p)
{
    int total = s.before[LEVELS + 1], blocks = gridDim.x, num_tiles = 0;

    for (int round = 0; round * blocks < total; round++) {
        int index = round * blocks + (round % 2 ? blocks - 1 - (int)blockIdx.x : (int)blockIdx.x);
        if (index < total) put_tile<C>(s, find_tile<C>(s, p, index), num_tiles++);
    }
    put_tile<C>(s, { .num_keys = -1 }, num_tiles);
}

/* KEYS keys from position `key` on into a stage of K or V. Each lane has at most one box; lane 0 announces the bytes. The block table
 * is read before the wait. */
template <class C> __device__ __forceinline__ void fetch_keys(elem *stage, uint64_t *full, uint64_t *empty, uint32_t phase, const CUtensorMap *map,
                                                              const struct params &p, const struct tile &t, const block_id *table, int key)
{
    static_assert(C::KEYS / 16 * C::PANELS <= WARP, "a box a lane");
    int lane = threadIdx.x % WARP, panel = lane % C::PANELS, first = lane / C::PANELS * p.box_rows, position = key + first, row = p.num_kv_rows;

    if (first < C::KEYS && position < t.context) {
        int block = position / p.a.kv.block_size;
        row = (table[block] * p.a.num_kv_heads + t.kv_head) * p.a.kv.block_size + position - block * p.a.kv.block_size;
    }
    mbar_wait(empty, phase ^ 1);
    if (lane == 0) mbar_expect(full, C::KEYS * C::D * sizeof(elem));
    if (first < C::KEYS) tma_load_2d(stage + panel * C::KV_PANEL + first * PANEL, map, panel * PANEL, row, full);
}

template <class C> __device__ __forceinline__ void fetch_queries(shared_memory<C> &s, const CUtensorMap *map, const struct params &p,
                                                                 const struct tile &t, unsigned q_it)
{
    unsigned stage = q_it % C::Q_STAGES;

    mbar_wait(&s.q_empty[stage], q_it / C::Q_STAGES % 2 ^ 1);
    if (threadIdx.x % WARP == 0) {
        mbar_expect(&s.q_full[stage], p.tile_queries * p.group * C::D * (uint32_t)sizeof(elem));
        for (int panel = 0; panel < C::PANELS; panel++)
            tma_load_3d(s.q[stage] + panel * C::Q_PANEL, map, panel * PANEL, t.kv_head * p.group, t.token, &s.q_full[stage]);
    }
}

/* One warp: all stages of K, and Q (q_map not NULL), or all stages of V. */
template <class C> __device__ __forceinline__ void fetch(shared_memory<C> &s, const struct params &p, elem (*ring)[C::KEYS * C::D], uint64_t *full, uint64_t *empty,
                                                         const CUtensorMap *map, const CUtensorMap *q_map)
{
    unsigned it = 0, q_it = 0;

    for (unsigned num_tiles = 0;; num_tiles++) {
        unsigned slot = num_tiles % TILES;
        mbar_wait(&s.tile_full[slot], num_tiles / TILES % 2);
        struct tile t = s.tile[slot];
        mbar_arrive(&s.tile_empty[slot]);
        if (t.num_keys < 0) return;
        __syncwarp();
        const block_id *table = p.a.kv.block_tables + (int64_t)t.seq * p.a.kv.max_blocks_per_seq;
        if (num_tiles == 0) {                                /* lengths and tables are older than the predecessor, Q and K are not */
            prefetch_l1(table + max(t.last_key, 0) / p.a.kv.block_size);
            pdl_wait();
        }
        if (q_map && t.num_keys > 0) fetch_queries<C>(s, q_map, p, t, q_it++);
        for (int n = 0; n < t.num_keys; n++, it++) {
            unsigned stage = it % C::STAGES;
            fetch_keys<C>(ring[stage], &full[stage], &empty[stage], it / C::STAGES % 2, map, p, t, table, t.last_key - n * C::KEYS);
        }
    }
}

/* ---- consumers: a warpgroup has 64 rows of the tile ---- */

/* The two rows of this thread, r and r + 8 of the warp's 16: query * 256 + head of each, counted within the tile. */
struct rows { int row[2]; };
__device__ __forceinline__ int packed_row(int row)           /* opaque: unpacked where used, not kept in four registers that D = 64 lacks */
{
    asm volatile("" : "+r"(row));
    return row;
}
__device__ __forceinline__ int query_of(const struct rows &rows, int r) { return packed_row(rows.row[r]) / 256; }
__device__ __forceinline__ int head_of(const struct rows &rows, int r) { return packed_row(rows.row[r]) % 256; }

template <class C> __device__ __forceinline__ void issue_scores(float (&scores)[C::KEYS / 2], uint64_t q, const elem *k)
{
    uint64_t b = wgmma_desc_k(k);
#pragma unroll
    for (int d = 0; d < C::D; d += 16) {
        uint32_t q_step = d / PANEL * (C::Q_PANEL * sizeof(elem) / 16) + d % PANEL / 8, k_step = d / PANEL * (C::KV_PANEL * sizeof(elem) / 16) + d % PANEL / 8;
        wgmma_shape<C::KEYS>::template ss<0>(scores, wgmma_desc_at(q, q_step), wgmma_desc_at(b, k_step), d > 0);
    }
    wgmma_commit();
}

template <class C> __device__ __forceinline__ void issue_output(float (&o)[C::D / 2], const uint32_t (&weights)[C::KEYS / 16][4], const elem *v, bool accumulate)
{
    uint64_t b = wgmma_desc_n(v, C::KV_PANEL * sizeof(elem));
#pragma unroll
    for (int k = 0; k < C::KEYS / 16; k++) wgmma_shape<C::D>::template rs<1>(o, weights[k], wgmma_desc_at(b, k * (16 * PANEL_ROW_BYTES / 16)), accumulate || k > 0);
    wgmma_commit();
}

/* Scores of keys that a row may not see become -inf. key: the first of the tile. */
template <int N> __device__ __forceinline__ void mask_scores(float (&scores)[N], const int (&position)[2], int key, int window)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int last = position[r] - key - threadIdx.x % 4 * 2, first = window > 0 ? last - window + 1 : -N * 4;     /* of the columns 8 j + i */
#pragma unroll
        for (int j = 0; j < N / 4; j++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (8 * j + i > last || 8 * j + i < first) scores[4 * j + 2 * r + i] = -INFINITY;
    }
}

/* One step of the running softmax: scores become weights relative to the new largest score, sum is kept for this lane's columns,
 * shrink is what sums so far have to be multiplied with. */
template <int N> __device__ __forceinline__ void softmax_step(float (&scores)[N], float (&largest)[2], float (&sum)[2], float (&shrink)[2], float to_log2)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = largest[r];
#pragma unroll
        for (int j = 0; j < N / 4; j++) top = fmaxf(top, fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
        top = quad_max(top);
        float base = top == -INFINITY ? 0.0f : top * to_log2;
        shrink[r] = exp2_fast(largest[r] * to_log2 - base);
        largest[r] = top;
        sum[r] *= shrink[r];
#pragma unroll
        for (int j = 0; j < N / 4; j++)
#pragma unroll
            for (int i = 4 * j + 2 * r; i < 4 * j + 2 * r + 2; i++) sum[r] += scores[i] = exp2_fast(scores[i] * to_log2 - base);
    }
}

template <int N> __device__ __forceinline__ void pack_weights(uint32_t (&weights)[N / 8][4], const float (&scores)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) weights[i / 4][i % 4] = pack_elem(scores[2 * i], scores[2 * i + 1]);
}

/* The block holds other data after the last key of the context; zero weight times NaN would be NaN. Whole rows: the swizzle
 * does not matter. Every warpgroup clears for itself, so none waits for another. */
template <class C> __device__ __forceinline__ void clear_rows(elem *v, int first)
{
    for (int i = threadIdx.x % WARPGROUP; i < (C::KEYS - first) * (C::D / 8); i += WARPGROUP) {
        int row = first + i / (C::D / 8), piece = i % (C::D / 8);
        *(uint4 *)(v + piece / 8 * C::KV_PANEL + row * PANEL + piece % 8 * 8) = make_uint4(0, 0, 0, 0);
    }
    fence_async_proxy();
    named_sync(C::GROUPS + threadIdx.x / WARPGROUP, WARPGROUP);
}

/* o / sum as elem to out. The four lanes of a row exchange pairs, so that each stores 16 bytes of it. */
template <class C> __device__ __forceinline__ void store_output(const float (&o)[C::D / 2], const float (&sum)[2], const struct rows &rows,
                                                                const struct tile &t, const struct params &p)
{
    int quad = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = quad_sum(sum[r]), inverse = total > 0 ? 1.0f / total : 0.0f;
        bool mine = query_of(rows, r) < t.num_queries;
        elem *out = (elem *)p.a.out + ((int64_t)(t.token + query_of(rows, r)) * p.a.num_heads + t.kv_head * p.group + head_of(rows, r)) * C::D;
#pragma unroll
        for (int j = 0; j < C::D / 8; j += 4) {              /* lane q of the four ends with columns 8 (j + q) .. + 7 */
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = pack_elem(o[4 * (j + i) + 2 * r] * inverse, o[4 * (j + i) + 2 * r + 1] * inverse);
#pragma unroll
            for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (i & bit) continue;
                    uint32_t give = quad & bit ? x[i] : x[i | bit], got = __shfl_xor_sync(0xffffffffu, give, bit);
                    if (quad & bit) x[i] = got; else x[i | bit] = got;
                }
            if (mine) *(uint4 *)(out + 8 * (j + quad)) = make_uint4(x[0], x[1], x[2], x[3]);
        }
    }
}

/* Tiles whose queries see no key (padding) are zeros. */
template <class C> __device__ __forceinline__ void store_zeros(const struct tile &t, const struct params &p)
{
    int pieces = p.group * (C::D / 8);
    for (int i = threadIdx.x - WARPGROUP; i < t.num_queries * pieces; i += C::GROUPS * WARPGROUP)
        ((uint4 *)p.a.out)[((int64_t)(t.token + i / pieces) * p.a.num_heads + t.kv_head * p.group) * (C::D / 8) + i % pieces] = make_uint4(0, 0, 0, 0);
}

/* What a warpgroup carries from one tile of keys to the next. */
template <class C> struct state {
    float o[C::D / 2], scores[C::KEYS / 2], largest[2], sum[2];
    uint32_t weights[C::KEYS / 16][4];
    unsigned num_tiles, q_it, it;        /* current tile; its queries; its keys whose weights are ready: stages and phases follow */
    int key, position;                   /* first of the keys whose scores are computed; of the tile's first query */
};

/* Waits for tile x.num_tiles of this block and its queries, past tiles without keys. Returns its number of key tiles, -1 at the end. */
template <class C> __device__ __forceinline__ int next_tile(shared_memory<C> &s, const struct params &p, struct state<C> &x)
{
    for (;; x.num_tiles++) {
        unsigned slot = x.num_tiles % TILES;
        mbar_wait(&s.tile_full[slot], x.num_tiles / TILES % 2);
        const struct tile &t = s.tile[slot];
        if (t.num_keys) {
            if (t.num_keys > 0) mbar_wait(&s.q_full[x.q_it % C::Q_STAGES], x.q_it / C::Q_STAGES % 2);
            return t.num_keys;
        }
        store_zeros<C>(t, p);
        mbar_arrive(&s.tile_empty[slot]);
    }
}

/* The warpgroups issue their products in turns: barrier 1, 2, .. is the turn of the first, second, .. */
__device__ __forceinline__ void take_turn() { named_sync(threadIdx.x / WARPGROUP, 2 * WARPGROUP); }
template <int GROUPS> __device__ __forceinline__ void pass_turn() { named_arrive(threadIdx.x / WARPGROUP % GROUPS + 1, 2 * WARPGROUP); }

/* Scores are in x.scores: hands K back (and Q after a tile's last keys), masks. */
template <class C> __device__ __forceinline__ void scores_ready(shared_memory<C> &s, const struct params &p, struct state<C> &x, const struct rows &rows,
                                                                unsigned k_stage, bool last)
{
    bool leader = threadIdx.x % WARP == 0;

    wgmma_hold(x.scores);
    if (leader) mbar_arrive(&s.k_empty[k_stage]);
    if (leader && last) mbar_arrive(&s.q_empty[x.q_it % C::Q_STAGES]);
    if (x.key + C::KEYS - 1 > x.position ||
        (p.a.sliding_window > 0 && x.key < x.position + s.tile[x.num_tiles % TILES].num_queries - p.a.sliding_window)) {
        int position[2] = { x.position + query_of(rows, 0), x.position + query_of(rows, 1) };
        mask_scores(x.scores, position, x.key, p.a.sliding_window);
    }
}

/* The softmax before this must not move below the wait that follows it: its time is that of the product with V. The assembler knows no
 * reason to keep them apart; a store that depends on the sums, never done, is one. */
template <class C> __device__ __forceinline__ void softmax_ends_here(shared_memory<C> &s, const struct state<C> &x)
{
    asm volatile("{\n.reg .pred never;\nsetp.lt.f32 never, %0, 0f00000000;\n@never st.volatile.shared.f32 [%1], %0;\n}"
                 :: "f"(x.sum[0] + x.sum[1]), "r"(smem_address(&s.longest)) : "memory");
}

/* Waits for the product with V and hands the stage back. */
template <class C> __device__ __forceinline__ void output_ready(shared_memory<C> &s, struct state<C> &x)
{
    wgmma_wait<0>();
    wgmma_hold(x.o);
    if (threadIdx.x % WARP == 0) mbar_arrive(&s.v_empty[x.it % C::STAGES]);
}

/* Weights of a tile's first keys, after its softmax; before the product with V the rows past the context are cleared. */
template <class C> __device__ __forceinline__ void begin_tile(shared_memory<C> &s, struct state<C> &x)
{
    int valid = s.tile[x.num_tiles % TILES].context - x.key;
    unsigned stage = x.it % C::STAGES;

    pack_weights(x.weights, x.scores);
    if (valid < C::KEYS) {
        mbar_wait(&s.v_full[stage], x.it / C::STAGES % 2);
        clear_rows<C>(s.v[stage], valid);
    }
}

template <class C> __device__ __forceinline__ void end_tile(shared_memory<C> &s, const struct params &p, const struct state<C> &x, const struct rows &rows,
                                                            const float (&sum)[2], unsigned slot)
{
    store_output<C>(x.o, sum, rows, s.tile[slot], p);
    mbar_arrive(&s.tile_empty[slot]);
}

/* Scores of the keys ahead and output of those whose weights are ready, both in flight when it returns. first: a tile's first. */
template <class C> __device__ __forceinline__ void issue_both(shared_memory<C> &s, struct state<C> &x, uint64_t q, bool first)
{
    constexpr uint32_t Q_STEP = C::ROWS * C::D * sizeof(elem) / 16;
    unsigned stage = x.it % C::STAGES, ahead = (x.it + 1) % C::STAGES;

    mbar_wait(&s.k_full[ahead], (x.it + 1) / C::STAGES % 2);
    take_turn();
    wgmma_fence();
    issue_scores<C>(x.scores, wgmma_desc_at(q, x.q_it % C::Q_STAGES * Q_STEP), s.k[ahead]);
    mbar_wait(&s.v_full[stage], x.it / C::STAGES % 2);
    wgmma_fence();
    issue_output<C>(x.o, x.weights, s.v[stage], !first);
    pass_turn<C::GROUPS>();
}

template <class C> __device__ __forceinline__ void consume(shared_memory<C> &s, const struct params &p)
{
    struct state<C> x;
    struct rows rows;
    int warpgroup = threadIdx.x / WARPGROUP - 1;
    uint64_t q = wgmma_desc_k(s.q[0] + warpgroup * 64 * PANEL);
    float to_log2 = p.a.scale * LOG2_E, shrink[2];

    for (int r = 0; r < 2; r++) {
        int row = warpgroup * 64 + threadIdx.x / WARP % 4 * 16 + threadIdx.x % WARP / 4 + 8 * r;
        rows.row[r] = row / p.group * 256 + row % p.group;
    }
    x.num_tiles = x.q_it = x.it = 0;
    int num_keys = next_tile<C>(s, p, x);
    if (num_keys < 0) return;
    if (warpgroup == C::GROUPS - 1) pass_turn<C::GROUPS>();  /* the first turn is the first one's */
    x.key = s.tile[x.num_tiles % TILES].last_key;
    x.position = s.tile[x.num_tiles % TILES].position;
    mbar_wait(&s.k_full[0], 0);
    wgmma_fence();
    issue_scores<C>(x.scores, q, s.k[0]);
    wgmma_wait<0>();
    scores_ready<C>(s, p, x, rows, 0, num_keys == 1);
    x.largest[0] = x.largest[1] = -INFINITY;
    x.sum[0] = x.sum[1] = 0;
    softmax_step(x.scores, x.largest, x.sum, shrink, to_log2);
    begin_tile<C>(s, x);

    for (;;) {
        for (int n = 1; n < num_keys; n++) {
            issue_both<C>(s, x, q, n == 1);
            wgmma_wait<1>();
            x.key -= C::KEYS;
            scores_ready<C>(s, p, x, rows, (x.it + 1) % C::STAGES, n == num_keys - 1);
            softmax_step(x.scores, x.largest, x.sum, shrink, to_log2);
            softmax_ends_here<C>(s, x);
            output_ready<C>(s, x);
            if (!C::LAZY_RESCALE || __any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < C::D / 2; i++) x.o[i] *= shrink[i / 2 % 2];
            }
            pack_weights(x.weights, x.scores);
            x.it++;
        }

        /* The last product with V runs together with the first scores of the next tile. */
        unsigned slot = x.num_tiles++ % TILES;
        bool first = num_keys == 1;
        x.q_it++;
        num_keys = next_tile<C>(s, p, x);
        if (num_keys < 0) {
            mbar_wait(&s.v_full[x.it % C::STAGES], x.it / C::STAGES % 2);
            wgmma_fence();
            issue_output<C>(x.o, x.weights, s.v[x.it % C::STAGES], !first);
            output_ready<C>(s, x);
            end_tile<C>(s, p, x, rows, x.sum, slot);
            return;
        }
        issue_both<C>(s, x, q, first);
        wgmma_wait<1>();
        x.key = s.tile[x.num_tiles % TILES].last_key;
        x.position = s.tile[x.num_tiles % TILES].position;
        scores_ready<C>(s, p, x, rows, (x.it + 1) % C::STAGES, num_keys == 1);
        float sum[2] = { x.sum[0], x.sum[1] };
        x.largest[0] = x.largest[1] = -INFINITY;
        x.sum[0] = x.sum[1] = 0;
        softmax_step(x.scores, x.largest, x.sum, shrink, to_log2);
        softmax_ends_here<C>(s, x);
        output_ready<C>(s, x);
        end_tile<C>(s, p, x, rows, sum, slot);
        x.it++;
        begin_tile<C>(s, x);
    }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS, 1) attn_prefill_wgmma(const __grid_constant__ struct params p, const __grid_constant__ CUtensorMap q_map,
                                                                    const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map)
{
#ifdef HOPPER_CODE
    extern __shared__ __align__(TILE_ALIGN) unsigned char shared[];
    shared_memory<C> &s = *reinterpret_cast<shared_memory<C> *>(shared);

    pdl_trigger();
    if (threadIdx.x == 0) {
        tma_prefetch(&q_map);
        tma_prefetch(&k_map);
        tma_prefetch(&v_map);
        for (int i = 0; i < TILES; i++) {
            mbar_init(&s.tile_full[i], 1);
            mbar_init(&s.tile_empty[i], (2 + C::GROUPS * 4) * WARP);      /* every lane: a check of races follows no order through __syncwarp() */
        }
        for (int i = 0; i < C::Q_STAGES; i++) {
            mbar_init(&s.q_full[i], 1);
            mbar_init(&s.q_empty[i], C::GROUPS * 4);
        }
        for (int i = 0; i < C::STAGES; i++) {
            mbar_init(&s.k_full[i], 1);
            mbar_init(&s.v_full[i], 1);
            mbar_init(&s.k_empty[i], C::GROUPS * 4);
            mbar_init(&s.v_empty[i], C::GROUPS * 4);
        }
        mbar_init_fence();
        s.longest = 0;
    }
    for (int i = threadIdx.x; i < LEVELS + 2; i += C::THREADS) s.before[i] = 0;
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_down<C::PRODUCER_REGISTERS>();
        count_tiles<C>(s, p);
        if (threadIdx.x / WARP == 0) deal_tiles<C>(s, p);
        else if (threadIdx.x / WARP == 1) fetch<C>(s, p, s.k, s.k_full, s.k_empty, &k_map, &q_map);
        else if (threadIdx.x / WARP == 2) fetch<C>(s, p, s.v, s.v_full, s.v_empty, &v_map, nullptr);
    } else {
        registers_up<C::CONSUMER_REGISTERS>();
        pdl_wait();
        consume<C>(s, p);
    }
#endif
}

template <class C> static int launch_wgmma(const struct attn_prefill_kernel *a, const struct launch *l)
{
    int group = a->num_heads / a->num_kv_heads, tile_queries = C::ROWS / group, box_rows = std::gcd(a->kv.block_size, C::KEYS);
    int num_seqs = a->num_seqs - a->first_seq;
    int64_t num_kv_rows = a->kv.num_blocks * a->num_kv_heads * a->kv.block_size;
    int64_t most = (int64_t)num_seqs * ((a->max_q_len + tile_queries - 1) / max(1, tile_queries)) * a->num_kv_heads;
    CUtensorMap q_map, k_map, v_map;

    if (tile_queries < 1 || num_kv_rows + 2 * C::KEYS > INT32_MAX) return ERR_UNSUPPORTED;
    uint64_t q_dims[3] = { (uint64_t)C::D, (uint64_t)a->num_heads, (uint64_t)a->num_tokens }, q_strides[2] = { C::D * sizeof(elem), a->q_stride * sizeof(elem) };
    uint32_t q_box[3] = { PANEL, (uint32_t)group, (uint32_t)tile_queries };
    uint64_t kv_dims[2] = { (uint64_t)C::D, (uint64_t)num_kv_rows }, kv_strides[1] = { C::D * sizeof(elem) };
    uint32_t kv_box[2] = { PANEL, (uint32_t)box_rows };
    if (tensor_map_elem(&q_map, a->q, 3, q_dims, q_strides, q_box) < 0 || tensor_map_elem(&k_map, a->kv.k, 2, kv_dims, kv_strides, kv_box) < 0 ||
        tensor_map_elem(&v_map, a->kv.v, 2, kv_dims, kv_strides, kv_box) < 0) return ERR_INTERNAL;

    struct params p = { *a, group, tile_queries, box_rows, (int)num_kv_rows };
    int bytes = (int)sizeof(shared_memory<C>);
    if (cudaFuncSetAttribute(attn_prefill_wgmma<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) return ERR_INTERNAL;
    return launch_kernel(l, attn_prefill_wgmma<C>, dim3((unsigned)std::min<int64_t>(most, l->num_sms)), dim3(C::THREADS), bytes, p, q_map, k_map, v_map);
}

} // namespace

int ELEM_NAME(launch_attn_prefill_sm90)(const struct attn_prefill_kernel *a, const struct launch *l)
{
    switch (a->head_dim) {
    case 64: return launch_wgmma<config<64, 128, 3, 3, 2>>(a, l);
    case 128: return launch_wgmma<config<128, 128, 2, 2, 2>>(a, l);
    case 256: return launch_wgmma<config<256, 64, 2, 2, 1>>(a, l);
    default: return ERR_UNSUPPORTED;
    }
}
