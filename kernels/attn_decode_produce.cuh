/* attn_decode_produce.cuh - the producer, one warp: what the range's pieces need goes into the ring, and after them whole items from the
 * counter. Part of attn_decode.cu. */
#ifndef SLUICE_KERNELS_ATTN_DECODE_PRODUCE_CUH
#define SLUICE_KERNELS_ATTN_DECODE_PRODUCE_CUH

#include "attn_decode_ring.cuh"

namespace {

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

} // namespace

#endif
