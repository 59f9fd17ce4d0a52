/* attn_decode.cu - out[b, h, :] = softmax(q[b, h, :] . K[b, h / G, :, :] * scale) V[b, h / G, :, :], one query per sequence, paged KV
 * Shapes    q rows of qkv (elements, stride q_stride), K, V [num_blocks, Hk, block_size, D] elem, out [B, H, D] elem; D in {64, 80, 96, 128,
 *           256}; G = H / Hk any; block_size a multiple of 16; scores, softmax and sums in fp32, probabilities elements.
 * Traffic   sum(len) * Hk * D * 4 bytes of KV, each once; q, out and parts are below 2 %. 8B, B=64, 4k: 1.07 GB a layer.
 * Roofline  memory bound, G flops a byte: 241 us at 4.45 TB/s (H200 read ceiling) for that case, 250 us at the 4.3 TB/s that reads of
 *           random 16 KB blocks reach.
 * Launch    2 ctas a SM (1 for D = 256 and for few items) of 4 consumer warps and 1 producer warp; 110 to 220 KB shared memory: a ring of
 *           3 or 4 K and V tiles.
 * Order     tiles (at D = 64 quarters of them) in order inside a warp; warps, then parts of a cut item, by a fixed tree; where items are
 *           cut depends on the step's lengths, so a row's result depends on the batch only by rounding. An item that is dealt
 *           is never cut: it does not matter who gets it.
 * Oracle    a float loop, tests/kernels/attn_decode_test.c.  Figures: kernels/README.md.
 * Why       The producer runs over the cta's whole range (attn_decode_plan.h), items back to back, so the ring never drains: reads
 *           in flight are what makes bandwidth. S^T = K Q^T and O^T = V^T P^T, with the tokens and then the columns of V as the 16
 *           rows of the matrix product and up to 8 query heads as its 8 columns: nothing is wasted on heads that are not there, and
 *           a warp's sums take half the registers. Each warp softmaxes its own tokens; warps meet once an item. Of a
 *           tile that the query sees in part only that part is read.
 *           Many items: half of them are dealt by a counter, as some multiprocessors read a quarter faster than others. One is asked
 *           for only when the ring has room for it: asked for earlier, half of what dealing gains is lost. A plan that may deal
 *           (attn_decode_may_deal) has a kernel of its own: the other is up to a microsecond faster where work is small.
 * Early     The producer starts on KV of earlier steps before pdl_wait(): only a sequence's last tile and Q are of this step. It reads
 *           plan, lengths and tables for that: who writes them triggers its dependents only when it is done. */
#include "attn_decode_plan.h"
#include "common.cuh"
#include "hopper.cuh"

/* A bench that includes this file may note when a cta got where. */
#ifndef ATTN_DECODE_MARK
#define ATTN_DECODE_MARK(event) ((void)0)
#endif

namespace {

constexpr int CONSUMERS = 4;                       /* warps */
constexpr int THREADS = (CONSUMERS + 1) * WARP;
constexpr int HEADS = ATTN_DECODE_HEADS;
constexpr int CONSUMER_BARRIER = 1;
constexpr int RING_MAX = 4;                        /* stages; deeper rings read no faster */
constexpr float LOG2E = 1.4426950408889634f;

/* What depends on head_dim. A tile is PANELS panels of TILE rows of 64 columns, swizzled as hopper.cuh says. */
template <int D> struct dims {
    static constexpr int TILE = D <= 64 ? 128 : 64;
    static constexpr int PANELS = (D + PANEL - 1) / PANEL;
    static constexpr int PANEL_BYTES = TILE * PANEL_ROW_BYTES;
    static constexpr int SLOT_BYTES = PANELS * PANEL_BYTES;
    static constexpr bool WHOLE = D > 64;                      /* a warp takes every fourth tile whole, else a quarter of each */
    static constexpr int WARP_TOKENS = WHOLE ? TILE : TILE / CONSUMERS;
    static constexpr int SUBS = WARP_TOKENS / 16;              /* matrix rows of a warp's tokens, by 16 */
    static constexpr int COLS = D / 16;                        /* 16-column groups of V */
    static constexpr int COLS4 = (COLS + 3) / 4 * 4;           /* rounded up: a quarter for each warp after the merge */
    static constexpr int KEEP = COLS4 / CONSUMERS;
    static constexpr int Q_STEPS = (D / 16 + 1) / 2 * 2;       /* steps of 16 along D; loaded in pairs */
    static constexpr int Q_ROW = D * 2 + 16;                   /* bytes; the pad spreads the 8 rows over all banks */
    static constexpr int Q_BYTES = (HEADS * Q_ROW + 127) / 128 * 128;
    static constexpr int MERGE_BYTES = CONSUMERS * (COLS4 / 2) * WARP * 16;
};

struct args {
    const elem *q, *k, *v;
    elem *out;
    const block_id *tables;
    const int32_t *lens;
    const struct attn_decode_cut *cuts;
    int32_t *counters;
    float4 *part_stats, *part_sums;
    int64_t q_stride;
    int32_t max_blocks, block_size, num_seqs, num_heads, num_kv_heads, group, passes, window, stages, box_shift, ranges, range_shift;
    float scale;
};

/* K and V of all blocks as [row][D], for boxes of the largest size and of 16 rows. */
struct maps { CUtensorMap full[2], part[2]; };

/* ---- small device helpers ---- */

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* mbar_wait() for every architecture: the older ones have no sleeping wait. */
__device__ __forceinline__ void ring_wait(uint64_t *bar, uint32_t parity)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    mbar_wait(bar, parity);
#else
    uint32_t done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done) : "r"(smem_address(bar)), "r"(parity) : "memory");
    } while (!done);
#endif
}

__device__ __forceinline__ void ring_arrive(uint64_t *bar)
{
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" :: "r"(smem_address(bar)) : "memory");
}

/* A warp has read a slot: an arrival for each lane. The copy engine's ring has one lane speak for all; but where a check of races sees
 * what is written there next (Q, and the cp.async ring), every lane comes itself: it follows no order through __syncwarp(). */
template <bool TMA> __device__ __forceinline__ void slot_read(uint64_t *bar, bool each, int lane)
{
    if (!TMA || each) {
        ring_arrive(bar);
        return;
    }
    __syncwarp();
#ifdef HOPPER_CODE
    if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 32;" :: "r"(smem_address(bar)) : "memory");
#endif
}

__device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ uint32_t transposed(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

/* ---- the walk over a cta's range: producer and consumers each do it, and see the same pieces ---- */

struct piece {
    int32_t seq, item, len;
    int32_t tile, end;             /* tiles from position 0 */
    int32_t first_tile, last_tile; /* of the whole item */
};

struct walk {
    int32_t seq, item, tile, end_seq, end_item, end_tile;
    int32_t len, next_len;         /* of seq and seq + 1: read one sequence ahead */
};

/* The cut where cta c begins. With range_shift a cta takes several neighbouring ranges as one. */
__device__ __forceinline__ const attn_decode_cut &cut_of(const args &a, int cta) { return a.cuts[cta << a.range_shift]; }

__device__ __forceinline__ walk walk_begin(const args &a)
{
    const attn_decode_cut &from = cut_of(a, blockIdx.x), &to = cut_of(a, blockIdx.x + 1);
    return { from.seq, from.item, from.tile, to.seq, to.item, to.tile, from.len, from.next_len };
}

__device__ __forceinline__ bool walk_done(const walk &w, const args &a)
{
    return w.seq > w.end_seq || w.seq >= a.num_seqs || (w.seq == w.end_seq && w.item == w.end_item && w.tile >= w.end_tile);
}

/* Next piece of the range; false at its end. A sequence without KV is one piece of no tiles. */
template <int D> __device__ __forceinline__ bool walk_next(walk &w, const args &a, piece &p)
{
    bool last = w.seq == w.end_seq && w.item == w.end_item;
    if (walk_done(w, a)) return false;
    attn_decode_tiles(dims<D>::TILE, a.window, w.len, &p.first_tile, &p.last_tile);
    p.seq = w.seq;
    p.item = w.item;
    p.len = w.len;
    p.tile = p.first_tile + w.tile;
    p.end = last ? p.first_tile + w.end_tile : p.last_tile;
    w.tile = 0;
    w.item++;
    if (last) w.seq = a.num_seqs;                                /* the range ends inside this item */
    else if (w.item == a.num_kv_heads * a.passes || w.len <= 0) {
        w.item = 0;
        w.seq++;
        w.len = w.next_len;
        w.next_len = w.seq + 1 < a.num_seqs ? a.lens[w.seq + 1] : 0;
    }
    return true;
}

/* All of an item that was dealt. */
template <int D> __device__ __forceinline__ piece whole_item(const args &a, int seq, int item, int len)
{
    piece p = { seq, item, len, 0, 0, 0, 0 };
    attn_decode_tiles(dims<D>::TILE, a.window, len, &p.first_tile, &p.last_tile);
    p.tile = p.first_tile;
    p.end = p.last_tile;
    return p;
}

/* ---- shared memory ---- */

template <int D> struct shared_parts {
    uint8_t *ring, *q, *merge;
    float *stats;                  /* [CONSUMERS][HEADS][2]: maximum, sum */
    uint64_t *full, *empty;        /* [stage][K, V] */
    int4 *dealt;                   /* [stage]: the dealt item that begins here: sequence, item, length; sequence -1: there are no more */
    int *flag;
};

template <int D> __host__ __device__ __forceinline__ int shared_bytes(int stages)
{
    return TILE_ALIGN + stages * (2 * dims<D>::SLOT_BYTES + dims<D>::Q_BYTES) + dims<D>::MERGE_BYTES + CONSUMERS * HEADS * 8 +
           4 * RING_MAX * 8 + RING_MAX * 16 + 16;
}

template <int D> __device__ __forceinline__ shared_parts<D> shared_layout(uint8_t *base, int stages)
{
    shared_parts<D> s;
    s.ring = base + (TILE_ALIGN - smem_address(base) % TILE_ALIGN) % TILE_ALIGN;
    s.q = s.ring + stages * 2 * dims<D>::SLOT_BYTES;
    s.merge = s.q + stages * dims<D>::Q_BYTES;
    s.stats = reinterpret_cast<float *>(s.merge + dims<D>::MERGE_BYTES);
    s.full = reinterpret_cast<uint64_t *>(s.stats + CONSUMERS * HEADS * 2);
    s.empty = s.full + 2 * RING_MAX;
    s.dealt = reinterpret_cast<int4 *>(s.empty + 2 * RING_MAX);
    s.flag = reinterpret_cast<int *>(s.dealt + RING_MAX);
    return s;
}

/* ---- producer: one warp ---- */

/* Up to 32 boxes of one piece; a box is the rows of a tile that lie in one block, and lane l looks after box l. */
struct chunk { piece p; int32_t tile, tiles; };

/* next(piece) finds the piece behind this one, or says that there is none: then the chunk has no tiles. */
template <int D, typename Next> __device__ __forceinline__ void chunk_next(chunk &c, const args &a, Next &&next)
{
    int per_chunk = WARP / (dims<D>::TILE >> a.box_shift);
    c.tile += c.tiles;
    while (c.tile >= c.p.end) {
        if (!next(c.p)) {
            c.tiles = 0;
            return;
        }
        c.tile = c.p.tile;
    }
    c.tiles = min(per_chunk, c.p.end - c.tile);
}

/* The block of this lane's box; BLOCK_NONE where it holds nothing that the query sees. */
template <int D> __device__ __forceinline__ block_id chunk_block(const chunk &c, const args &a)
{
    int lane = threadIdx.x % WARP, boxes = dims<D>::TILE >> a.box_shift, box = c.tile * boxes + lane, at = box << a.box_shift;
    bool wanted = lane < c.tiles * boxes && at < c.p.len && (a.window <= 0 || at + (1 << a.box_shift) > c.p.len - a.window);
    return wanted ? a.tables[(int64_t)c.p.seq * a.max_blocks + at / a.block_size] : BLOCK_NONE;
}

/* The query heads of a chunk's item: where they are, and how many. */
template <int D> __device__ __forceinline__ const elem *chunk_q(const chunk &c, const args &a, int &heads)
{
    int kv_head = c.p.item / a.passes, from = c.p.item % a.passes * HEADS;
    heads = min(HEADS, a.group - from);
    return a.q + c.p.seq * a.q_stride + (int64_t)(kv_head * a.group + from) * D;
}

/* One head a lane, counted by the barrier of the stage's K. */
template <int D> __device__ __forceinline__ void load_q_tma(const shared_parts<D> &s, int stage, const elem *q, int heads, int lane)
{
#ifdef HOPPER_CODE
    if (lane < heads)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(smem_address(s.q + stage * dims<D>::Q_BYTES + lane * dims<D>::Q_ROW)), "l"(q + lane * D), "r"(D * 2),
                        "r"(smem_address(s.full + stage * 2)) : "memory");
#endif
}

/* One tile of K or V. A full tile comes in the largest boxes there are, one box of one panel per lane; a tile that the query sees in part
 * in boxes of 16 rows, and only those that it sees (TILE / 16 * PANELS <= 32). row: of the box that this lane looks after. */
template <int D> __device__ __forceinline__ void load_tile_tma(const shared_parts<D> &s, const args &a, const chunk &c, int t, int row, int stage, int kv,
                                                               const struct maps *maps, int q_bytes, int lane)
{
#ifdef HOPPER_CODE
    using d = dims<D>;
    int boxes = d::TILE >> a.box_shift, at = (c.tile + t) * d::TILE, from = a.window > 0 ? c.p.len - a.window : 0;
    bool whole = at >= from && at + d::TILE <= c.p.len;
    int shift = whole ? a.box_shift : 4, box = lane / d::PANELS << shift, panel = lane % d::PANELS;          /* box: its first row in the tile */
    int y = __shfl_sync(~0u, row, (t * boxes + (box >> a.box_shift)) % WARP) + (box & ((1 << a.box_shift) - 1));
    bool wanted = box < d::TILE && (whole || (at + box < c.p.len && at + box + 16 > from));
    uint32_t rows = __popc(__ballot_sync(~0u, wanted && panel == 0)) << shift;
    uint64_t *full = s.full + stage * 2 + kv;

    if (lane == 0) mbar_expect(full, rows * d::PANELS * PANEL_ROW_BYTES + q_bytes);
    __syncwarp();
    if (wanted)
        tma_load_2d(s.ring + (stage * 2 + kv) * d::SLOT_BYTES + panel * d::PANEL_BYTES + box * PANEL_ROW_BYTES,
                    whole ? &maps->full[kv] : &maps->part[kv], panel * PANEL, y, full);
#endif
}

/* By neighbouring threads, the first of which is a multiple of their number. */
__device__ __forceinline__ void clear_row(const args &a, int seq, int row_elements, int threads)
{
    uint4 *row = reinterpret_cast<uint4 *>(a.out + (int64_t)seq * row_elements);
    for (int i = threadIdx.x % threads; i < row_elements / 8; i += threads) row[i] = make_uint4(0, 0, 0, 0);
}

template <int D, bool TMA, bool DEAL>
__device__ __forceinline__ void produce(const args &a, const shared_parts<D> &s, const struct maps *maps)
{
    using d = dims<D>;
    int lane = threadIdx.x % WARP, boxes = d::TILE >> a.box_shift, stage = 0, issued = 0, first_heads = 0;
    uint32_t phase = 0;
    walk w = walk_begin(a);
    const attn_decode_cut &deal = a.cuts[a.ranges + 1];
    int to_deal = DEAL ? deal.tile : 0, items = a.num_kv_heads * a.passes;
    chunk c = {};
    const elem *first_q = nullptr;
    bool waited = false, dealing = false;
    /* Until here the predecessors may still run. The first Q follows what was issued without it. */
    auto wait_once = [&] {
        if (waited) return;
        waited = true;
        pdl_wait();
        ATTN_DECODE_MARK(2);
        if (TMA && issued > 0) load_q_tma<D>(s, 0, first_q, first_heads, lane);
    };
    /* The next piece of the range, then whole items from the counter. Whoever comes last after the end leaves it zeroed. */
    auto next = [&](piece &p) {
        if (walk_next<D>(w, a, p)) return true;
        while (to_deal > 0) {
            int ticket = 0;
            wait_once();
            if (lane == 0) ticket = atomicAdd(a.counters + a.ranges, 1);
            ticket = __shfl_sync(~0u, ticket, 0);
            if (ticket < to_deal) {
                int at = deal.seq * items + deal.item + ticket, seq = at / items;
                p = whole_item<D>(a, seq, at - seq * items, a.lens[seq]);
                dealing = true;
                if (p.tile < p.end) return true;
                if (p.item == 0) clear_row(a, seq, a.num_heads * D, WARP);             /* padding */
            } else {
                if (ticket == to_deal + (int)gridDim.x - 1 && lane == 0) a.counters[a.ranges] = 0;
                to_deal = 0;
            }
        }
        return false;
    };
    if (!TMA) wait_once();
    chunk_next<D>(c, a, next);
    block_id block = chunk_block<D>(c, a);

    while (c.tiles > 0) {
        /* The next chunk's table entries are on their way while this one is issued. But an item is asked for only when there is room
         * for it: who is ahead gets it. */
        chunk ahead = c;
        block_id block_ahead = BLOCK_NONE;
        bool dealt = dealing, ask = DEAL && to_deal > 0 && c.tile + c.tiles == c.p.end && walk_done(w, a);
        if (!ask) {
            chunk_next<D>(ahead, a, next);
            block_ahead = chunk_block<D>(ahead, a);
        }

        int item_heads, kv_head = c.p.item / a.passes, in_block = ((c.tile * boxes + lane) << a.box_shift) % a.block_size;
        const elem *q = chunk_q<D>(c, a, item_heads);
        int row = block < 0 ? -1 : (block * a.num_kv_heads + kv_head) * a.block_size + in_block;

        for (int t = 0; t < c.tiles; t++) {
            int heads = c.tile + t == c.p.tile ? item_heads : 0;           /* Q comes with an item's first tile */
            if (issued == 0) {
                ATTN_DECODE_MARK(1);
                first_q = q;
                first_heads = heads;
            }
            /* The last tile holds the position that this step wrote; a second item needs its Q; a full ring needs consumers. */
            if (c.tile + t == c.p.last_tile - 1 || (issued > 0 && heads > 0) || issued == a.stages) wait_once();
            for (int kv = 0; kv < 2; kv++) {
                ring_wait(s.empty + stage * 2 + kv, phase ^ 1);
                if (DEAL && dealt && kv == 0 && heads > 0 && lane == 0) s.dealt[stage] = make_int4(c.p.seq, c.p.item, c.p.len, 0);
                if constexpr (TMA) {
                    load_tile_tma<D>(s, a, c, t, row, stage, kv, maps, kv == 0 ? heads * D * 2 : 0, lane);
                    if (kv == 0 && waited) load_q_tma<D>(s, stage, q, heads, lane);
                } else {
                    constexpr int VECS = D / 8;                /* 16-byte pieces of a row */
                    uint64_t *full = s.full + stage * 2 + kv;
                    uint8_t *slot = s.ring + (stage * 2 + kv) * d::SLOT_BYTES;
                    const elem *src = kv ? a.v : a.k;
#pragma unroll 4
                    for (int i = lane; i < d::TILE * VECS; i += WARP) {
                        int r = i / VECS, vec = i % VECS, y = __shfl_sync(~0u, row, t * boxes + (r >> a.box_shift));
                        uint32_t to = smem_address(slot + vec / 8 * d::PANEL_BYTES + r * PANEL_ROW_BYTES + ((vec % 8) ^ (r % 8)) * 16);
                        if (y >= 0 && (c.tile + t) * d::TILE + r < c.p.len)
                            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
                                         :: "r"(to), "l"(src + (int64_t)(y + (r & ((1 << a.box_shift) - 1))) * D + vec * 8) : "memory");
                    }
                    if (kv == 0)
                        for (int i = lane; i < heads * VECS; i += WARP)
                            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                                         :: "r"(smem_address(s.q + stage * d::Q_BYTES + i / VECS * d::Q_ROW + i % VECS * 16)), "l"(q + i * 8) : "memory");
                    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(smem_address(full)) : "memory");
                    if (lane == 0) ring_arrive(full);          /* for what was dealt: the copies release nothing but themselves */
                }
            }
            issued++;
            if (++stage == a.stages) {
                stage = 0;
                phase ^= 1;
            }
        }
        if (ask) {
            ring_wait(s.empty + stage * 2, phase ^ 1);
            chunk_next<D>(ahead, a, next);
            block_ahead = chunk_block<D>(ahead, a);
        }
        c = ahead;
        block = block_ahead;
    }
    wait_once();
    ATTN_DECODE_MARK(8);
    if (DEAL && deal.tile > 0) {                               /* a stage of nothing */
        ring_wait(s.empty + stage * 2, phase ^ 1);
        if (lane == 0) s.dealt[stage] = make_int4(-1, 0, 0, 0);
        __syncwarp();
        if (!TMA || lane == 0) ring_arrive(s.full + stage * 2);
        if (!TMA && lane == 0) ring_arrive(s.full + stage * 2);
    }
}

/* ---- consumers: four warps ---- */

/* A warp's share of an item. Lane (g, t) = (lane / 4, lane % 4) holds heads 2t and 2t + 1:
 * o[i] = { (column 16 i + g, head 2t), (same, 2t + 1), (column 16 i + g + 8, 2t), (same, 2t + 1) }. */
template <int D> struct sums { float m[2], l[2], o[dims<D>::COLS4][4]; };

template <int D> __device__ __forceinline__ void sums_clear(sums<D> &x)
{
    x.m[0] = x.m[1] = -INFINITY;
    x.l[0] = x.l[1] = 0;
#pragma unroll
    for (int i = 0; i < dims<D>::COLS4; i++) x.o[i][0] = x.o[i][1] = x.o[i][2] = x.o[i][3] = 0;
}

/* s[sub] = K q^T of 16 tokens: { (token g, head 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) }. */
template <int D> __device__ __forceinline__ void scores(float (&s)[dims<D>::SUBS][4], const uint32_t (&q)[dims<D>::Q_STEPS][2], uint32_t slot, int row0, int lane)
{
    using d = dims<D>;
    uint32_t at = slot + (row0 + (lane & 15)) * PANEL_ROW_BYTES;
#pragma unroll
    for (int sub = 0; sub < d::SUBS; sub++) {
        float odd[4] = { 0, 0, 0, 0 };                         /* two chains: half the latency */
        s[sub][0] = s[sub][1] = s[sub][2] = s[sub][3] = 0;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t fragment[4];
            load_matrices(fragment, at + k / 4 * d::PANEL_BYTES + sub * 16 * PANEL_ROW_BYTES + (((k % 4 * 2 + (lane >> 4)) ^ (lane & 7)) * 16));
            mma_elem(k % 2 ? odd : s[sub], fragment, q[k]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) s[sub][i] += odd[i];
    }
}

/* Scores to probabilities under the running maximum; what was summed before shrinks along. */
template <int D> __device__ __forceinline__ void softmax(float (&s)[dims<D>::SUBS][4], sums<D> &x, float scale_log2, int at, int from, int len, int lane)
{
    using d = dims<D>;
    float top[2] = { -INFINITY, -INFINITY };
    bool ragged = at < from || at + d::WARP_TOKENS > len;
#pragma unroll
    for (int sub = 0; sub < d::SUBS; sub++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int pos = at + sub * 16 + (lane >> 2) + (i >> 1) * 8;
            s[sub][i] = ragged && (pos < from || pos >= len) ? -INFINITY : s[sub][i] * scale_log2;
            top[i & 1] = fmaxf(top[i & 1], s[sub][i]);
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int step = 4; step < WARP; step *= 2) top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], step));
        float m = fmaxf(x.m[h], top[h]), shrink = exp2_fast(x.m[h] - m);
        x.m[h] = m;
        x.l[h] *= shrink;
#pragma unroll
        for (int i = 0; i < d::COLS; i++) {
            x.o[i][h] *= shrink;
            x.o[i][h + 2] *= shrink;
        }
    }
#pragma unroll
    for (int sub = 0; sub < d::SUBS; sub++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[sub][i] = exp2_fast(s[sub][i] - x.m[i & 1]);
            x.l[i & 1] += s[sub][i];
        }
}

/* o += V^T p^T. Rows of V that the query does not see may hold anything, also NaN: cleared. */
template <int D> __device__ __forceinline__ void add_values(const float (&s)[dims<D>::SUBS][4], sums<D> &x, uint32_t slot, int row0, int at, int from, int len, int lane)
{
    using d = dims<D>;
    bool ragged = at < from || at + d::WARP_TOKENS > len;
    int row = (lane & 7) + (lane >> 4) * 8;
#pragma unroll
    for (int sub = 0; sub < d::SUBS; sub++) {
        uint32_t p[2] = { transposed(pack_elem(s[sub][0], s[sub][1])), transposed(pack_elem(s[sub][2], s[sub][3])) };
        uint32_t keep[2] = { ~0u, ~0u };
        if (ragged)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int pos = at + sub * 16 + i * 8 + (lane & 3) * 2;
                keep[i] = (pos >= from && pos < len ? 0xFFFFu : 0u) | (pos + 1 >= from && pos + 1 < len ? 0xFFFF0000u : 0u);
            }
#pragma unroll
        for (int i = 0; i < d::COLS; i++) {
            uint32_t fragment[4];
            load_matrices_transposed(fragment, slot + i / 4 * d::PANEL_BYTES + (row0 + sub * 16 + row) * PANEL_ROW_BYTES +
                                                   (((i % 4 * 2 + (lane >> 3 & 1)) ^ (lane & 7)) * 16));
#pragma unroll
            for (int j = 0; j < 4; j++) fragment[j] &= keep[j >> 1];
            mma_elem(x.o[i], fragment, p);
        }
    }
}

__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync %0, %1;" :: "n"(CONSUMER_BARRIER), "n"(CONSUMERS * WARP) : "memory"); }

/* Sums of the four warps. Afterwards every warp has m and l of all, and its quarter of the columns, groups column0 .. + KEEP - 1, in
 * kept. Halves are exchanged twice instead of everything once: half the shared memory. */
template <int D> __device__ __forceinline__ void merge_warps(sums<D> &x, float (&kept)[dims<D>::KEEP][4], const shared_parts<D> &s, int warp, int lane)
{
    using d = dims<D>;
    constexpr int HALF = d::COLS4 / 2, QUARTER = d::KEEP;
    float4 *box = reinterpret_cast<float4 *>(s.merge);
    float half[HALF][4], factor[2];

#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int step = 4; step < WARP; step *= 2) x.l[h] += __shfl_xor_sync(~0u, x.l[h], step);
        if (lane < 4) *reinterpret_cast<float2 *>(s.stats + (warp * HEADS + lane * 2 + h) * 2) = make_float2(x.m[h], x.l[h]);
    }
    consumer_sync();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float2 of[CONSUMERS];
        float m = -INFINITY, l = 0;
#pragma unroll
        for (int i = 0; i < CONSUMERS; i++) {
            of[i] = *reinterpret_cast<float2 *>(s.stats + (i * HEADS + (lane & 3) * 2 + h) * 2);
            m = fmaxf(m, of[i].x);
        }
#pragma unroll
        for (int i = 0; i < CONSUMERS; i++) l += of[i].y * exp2_fast(of[i].x - m);
        factor[h] = exp2_fast(x.m[h] - m);
        x.m[h] = m;
        x.l[h] = l;
    }
    bool upper = warp & 1, upper2 = warp >> 1;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        float4 send;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            half[i][j] = (upper ? x.o[i + HALF][j] : x.o[i][j]) * factor[j & 1];
            (&send.x)[j] = (upper ? x.o[i][j] : x.o[i + HALF][j]) * factor[j & 1];
        }
        box[(warp * HALF + i) * WARP + lane] = send;
    }
    consumer_sync();
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        float4 got = box[((warp ^ 1) * HALF + i) * WARP + lane];
        half[i][0] += got.x; half[i][1] += got.y; half[i][2] += got.z; half[i][3] += got.w;
    }
    consumer_sync();
#pragma unroll
    for (int i = 0; i < QUARTER; i++) {
        float4 send;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            kept[i][j] = upper2 ? half[i + QUARTER][j] : half[i][j];
            (&send.x)[j] = upper2 ? half[i][j] : half[i + QUARTER][j];
        }
        box[(warp * QUARTER + i) * WARP + lane] = send;
    }
    consumer_sync();
#pragma unroll
    for (int i = 0; i < QUARTER; i++) {
        float4 got = box[((warp ^ 2) * QUARTER + i) * WARP + lane];
        kept[i][0] += got.x; kept[i][1] += got.y; kept[i][2] += got.z; kept[i][3] += got.w;
    }
}

/* This cta's part of a cut item goes to the workspace; the last of its ctas to come adds all parts, each warp every fourth in order, then
 * the warps as before. Returns whether this is the one. */
template <int D> __device__ __forceinline__ bool merge_parts(const piece &p, sums<D> &x, float (&kept)[dims<D>::KEEP][4], const args &a,
                                                             const shared_parts<D> &s, int column0, int warp, int lane)
{
    using d = dims<D>;
    int end = p.tile > p.first_tile ? 0 : 1;                   /* the item began in an earlier cta, or ends in a later one */
    const attn_decode_cut &cut = cut_of(a, blockIdx.x + end);
    int first = cut.first >> a.range_shift, last = cut.last >> a.range_shift, part = 2 * blockIdx.x + end;

#pragma unroll
    for (int i = 0; i < d::KEEP; i++)
        __stcg(a.part_sums + ((int64_t)part * d::COLS4 + column0 + i) * WARP + lane, make_float4(kept[i][0], kept[i][1], kept[i][2], kept[i][3]));
    if (threadIdx.x < 4) __stcg(a.part_stats + part * 4 + lane, make_float4(x.m[0], x.l[0], x.m[1], x.l[1]));
    consumer_sync();
    if (threadIdx.x == 0) {
        int came;                                              /* releases what the barrier gathered; acquires the others' parts */
        asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(came) : "l"(a.counters + first) : "memory");
        if (came == last - first) a.counters[first] = 0;
        *s.flag = came == last - first;
    }
    consumer_sync();
    if (!*s.flag) return false;

    sums_clear<D>(x);
#pragma unroll 2
    for (int i = first + warp; i <= last; i += CONSUMERS) {
        int from = 2 * i + (i == first);
        float4 of = __ldcg(a.part_stats + from * 4 + (lane & 3)), o[d::COLS4];
#pragma unroll
        for (int j = 0; j < d::COLS4; j++) o[j] = __ldcg(a.part_sums + ((int64_t)from * d::COLS4 + j) * WARP + lane);
        float m[2] = { fmaxf(x.m[0], of.x), fmaxf(x.m[1], of.z) };
        float grown[2] = { exp2_fast(of.x - m[0]), exp2_fast(of.z - m[1]) }, shrunk[2] = { exp2_fast(x.m[0] - m[0]), exp2_fast(x.m[1] - m[1]) };
        x.l[0] = x.l[0] * shrunk[0] + of.y * grown[0];
        x.l[1] = x.l[1] * shrunk[1] + of.w * grown[1];
        x.m[0] = m[0];
        x.m[1] = m[1];
#pragma unroll
        for (int j = 0; j < d::COLS4; j++) {
            x.o[j][0] = x.o[j][0] * shrunk[0] + o[j].x * grown[0];
            x.o[j][1] = x.o[j][1] * shrunk[1] + o[j].y * grown[1];
            x.o[j][2] = x.o[j][2] * shrunk[0] + o[j].z * grown[0];
            x.o[j][3] = x.o[j][3] * shrunk[1] + o[j].w * grown[1];
        }
    }
    if (lane >= 4) x.l[0] = x.l[1] = 0;                        /* the merge adds the lanes of a head; each had all of it */
    merge_warps<D>(x, kept, s, warp, lane);
    return true;
}

template <int D, bool TMA, bool DEAL> __device__ __forceinline__ void consume(const args &a, const shared_parts<D> &s)
{
    using d = dims<D>;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, stage = 0, row0 = d::WHOLE ? 0 : warp * d::WARP_TOKENS;
    int column0 = (warp & 1) * (d::COLS4 / 2) + (warp >> 1) * d::KEEP;
    uint32_t phase = 0;
    float scale_log2 = a.scale * LOG2E;
    walk w = walk_begin(a);
    const attn_decode_cut &deal = a.cuts[a.ranges + 1];
    int planned = deal.first;                                  /* sequences of the plan: the rows behind them are padding */
    bool dealing = DEAL && deal.tile > 0;
    piece p;

    pdl_wait();
    for (int seq = planned + blockIdx.x; seq < a.num_seqs; seq += gridDim.x) clear_row(a, seq, a.num_heads * D, CONSUMERS * WARP);
    for (;;) {
        if (!walk_next<D>(w, a, p)) {
            if (!dealing) break;
            ring_wait(s.full + stage * 2, phase);
            int4 item = s.dealt[stage];
            if (item.x < 0) break;
            p = whole_item<D>(a, item.x, item.y, item.z);
        }
        if (p.tile >= p.end) {                                 /* padding */
            clear_row(a, p.seq, a.num_heads * D, CONSUMERS * WARP);
            continue;
        }
        sums<D> x;
        uint32_t q[d::Q_STEPS][2];
        int from = a.window > 0 ? max(0, p.len - a.window) : 0;
        sums_clear<D>(x);
        for (int tile = p.tile; tile < p.end; tile++) {
            uint32_t k_slot = smem_address(s.ring + stage * 2 * d::SLOT_BYTES), v_slot = k_slot + d::SLOT_BYTES;
            int at = tile * d::TILE + row0;
            bool mine = !d::WHOLE || (tile - p.tile) % CONSUMERS == warp, any = mine && at < p.len && at + d::WARP_TOKENS > from;
            float score[d::SUBS][4];

            ring_wait(s.full + stage * 2, phase);
            ATTN_DECODE_MARK(3);
            if (tile == p.tile) {
                uint32_t q_at = smem_address(s.q + stage * d::Q_BYTES) + (lane & 7) * d::Q_ROW + (lane >> 3 & 1) * 16;
#pragma unroll
                for (int k = 0; k < d::Q_STEPS; k += 2) {
                    uint32_t fragment[4];
                    load_matrices(fragment, q_at + (k + (k + 1 < D / 16 ? lane >> 4 : 0)) * 32);      /* of an odd number the last is loaded twice */
                    q[k][0] = fragment[0]; q[k][1] = fragment[1]; q[k + 1][0] = fragment[2]; q[k + 1][1] = fragment[3];
                }
            }
            if (any) scores<D>(score, q, k_slot, row0, lane);
            slot_read<TMA>(s.empty + stage * 2, tile == p.tile, lane);
            if (any) softmax<D>(score, x, scale_log2, at, from, p.len, lane);
            ring_wait(s.full + stage * 2 + 1, phase);
            if (any) add_values<D>(score, x, v_slot, row0, at, from, p.len, lane);
            slot_read<TMA>(s.empty + stage * 2 + 1, false, lane);
            if (++stage == a.stages) {
                stage = 0;
                phase ^= 1;
            }
        }

        float kept[d::KEEP][4];
        merge_warps<D>(x, kept, s, warp, lane);
        if ((p.tile > p.first_tile || p.end < p.last_tile) && !merge_parts<D>(p, x, kept, a, s, column0, warp, lane)) continue;

        int from_head = p.item % a.passes * HEADS, heads = min(HEADS, a.group - from_head), head = (lane & 3) * 2;
        elem *out = a.out + ((int64_t)p.seq * a.num_heads + p.item / a.passes * a.group + from_head + head) * D;
        float inverse[2] = { 1.0f / x.l[0], 1.0f / x.l[1] };
#pragma unroll
        for (int i = 0; i < d::KEEP; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int column = (column0 + i) * 16 + (lane >> 2) + (j >> 1) * 8;
                if (column < D && head + (j & 1) < heads) out[(j & 1) * D + column] = to_elem(kept[i][j] * inverse[j & 1]);
            }
    }
    ATTN_DECODE_MARK(4 + warp);
}

/* ---- kernel ---- */

/* DEAL: the plan may deal. */
template <int D, bool TMA, bool DEAL>
__global__ void __launch_bounds__(THREADS, D > 128 ? 1 : 2)
attn_decode(const args a, const __grid_constant__ struct maps maps)
{
    extern __shared__ uint8_t smem[];
    shared_parts<D> s = shared_layout<D>(smem, a.stages);

    pdl_trigger();
    ATTN_DECODE_MARK(0);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * a.stages; i++) {
            mbar_init(s.full + i, TMA ? 1 : WARP + 1);
            mbar_init(s.empty + i, CONSUMERS * WARP);
        }
#ifdef HOPPER_CODE
        if (TMA) {
            mbar_init_fence();
            for (int kv = 0; kv < 2; kv++) {
                tma_prefetch(&maps.full[kv]);
                tma_prefetch(&maps.part[kv]);
            }
        }
#endif
    }
    __syncthreads();
    if (threadIdx.x / WARP == CONSUMERS) produce<D, TMA, DEAL>(a, s, &maps);
    else consume<D, TMA, DEAL>(a, s);
}

/* ---- host ---- */

/* Shared memory of one SM, as the programming guide lists it. */
int sm_shared_bytes(int sm) { return 1024 * (sm == 80 || sm == 87 ? 164 : sm >= 90 && sm < 120 ? 228 : 100); }

template <int D> static int launch_dim(const struct attn_decode_kernel *k, const struct launch *l)
{
    const bool tma = l->sm == 90;
    int passes = (k->num_heads / k->num_kv_heads + HEADS - 1) / HEADS, ranges = attn_decode_grid(D, l->num_sms);
    int shift = attn_decode_shift(D, (int64_t)k->num_seqs * k->num_kv_heads * passes);
    int grid = ranges >> shift, room = sm_shared_bytes(l->sm) / (grid / l->num_sms) - 1024, stages = RING_MAX;
    struct args a = {};
    struct maps maps = {};
    int box_rows = k->kv.block_size & -k->kv.block_size;       /* the largest power of two in both block and tile */

    if (box_rows > dims<D>::TILE) box_rows = dims<D>::TILE;
    while (stages > 0 && shared_bytes<D>(stages) > room) stages--;
    if (stages == 0) return ERR_UNSUPPORTED;

    a.q = (const elem *)k->q;
    a.k = (const elem *)k->kv.k;
    a.v = (const elem *)k->kv.v;
    a.out = (elem *)k->out;
    a.tables = k->kv.block_tables;
    a.lens = k->context_lens;
    a.cuts = (const struct attn_decode_cut *)k->plan;
    a.counters = (int32_t *)k->workspace;
    a.part_stats = (float4 *)((char *)k->workspace + ((size_t)(ranges + 1) * sizeof(int32_t) + 127) / 128 * 128);
    a.part_sums = a.part_stats + 2 * ranges * 4;
    a.q_stride = k->q_stride;
    a.max_blocks = k->kv.max_blocks_per_seq;
    a.block_size = k->kv.block_size;
    a.num_seqs = k->num_seqs;
    a.num_heads = k->num_heads;
    a.num_kv_heads = k->num_kv_heads;
    a.group = k->num_heads / k->num_kv_heads;
    a.passes = passes;
    a.ranges = ranges;
    a.range_shift = shift;
    a.window = k->sliding_window;
    a.stages = stages;
    while (1 << a.box_shift < box_rows) a.box_shift++;
    a.scale = k->scale;

    for (int kv = 0; tma && kv < 2; kv++) {
        uint64_t sizes[2] = { D, (uint64_t)k->kv.num_blocks * k->num_kv_heads * k->kv.block_size }, stride = D * 2;
        uint32_t box[2] = { PANEL, (uint32_t)box_rows }, part[2] = { PANEL, 16 };
        const void *base = kv ? k->kv.v : k->kv.k;
        if (tensor_map_elem(&maps.full[kv], base, 2, sizes, &stride, box) < 0 || tensor_map_elem(&maps.part[kv], base, 2, sizes, &stride, part) < 0)
            return ERR_INTERNAL;
    }
    bool deal = attn_decode_may_deal(D, l->num_sms, (int64_t)k->num_seqs * k->num_kv_heads * passes);
    auto *kernel = !tma ? attn_decode<D, false, true> : deal ? attn_decode<D, true, true> : attn_decode<D, true, false>;
    int bytes = shared_bytes<D>(stages);
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) return ERR_INTERNAL;
    return launch_kernel(l, kernel, dim3(grid), dim3(THREADS), bytes, a, maps);
}

} // namespace

extern "C" int ELEM_NAME(launch_attn_decode)(const struct attn_decode_kernel *a, const struct launch *l)
{
    if (l->sm < 80 || a->num_kv_heads < 1 || a->num_heads % a->num_kv_heads || a->kv.block_size < 16 || a->kv.block_size > 256 ||
        a->kv.block_size % 16 || a->q_stride % 8)
        return ERR_UNSUPPORTED;
    switch (a->head_dim) {
    case 64: return launch_dim<64>(a, l);
    case 80: return launch_dim<80>(a, l);
    case 96: return launch_dim<96>(a, l);
    case 128: return launch_dim<128>(a, l);
    case 256: return launch_dim<256>(a, l);
    }
    return ERR_UNSUPPORTED;
}

ELEM_DOOR(launch_attn_decode, attn_decode_kernel)
