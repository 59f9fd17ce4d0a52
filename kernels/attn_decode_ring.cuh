/* attn_decode_ring.cuh - what the producer and the consumers of a cta share: sizes, arguments, the walk over the cta's range, and the
 * ring of tiles between them in shared memory. Part of attn_decode.cu.
 * A stage is a tile of K, one of V, and Q where an item begins; `full` of each is ended by the copies, `empty` by the consumers' lanes. */
#ifndef SLUICE_KERNELS_ATTN_DECODE_RING_CUH
#define SLUICE_KERNELS_ATTN_DECODE_RING_CUH

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
    if (lane == 0) mbar_arrive_for<WARP>(bar);
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

/* ---- padding ---- */

/* By neighbouring threads, the first of which is a multiple of their number. */
__device__ __forceinline__ void clear_row(const args &a, int seq, int row_elements, int threads)
{
    uint4 *row = reinterpret_cast<uint4 *>(a.out + (int64_t)seq * row_elements);
    for (int i = threadIdx.x % threads; i < row_elements / 8; i += threads) row[i] = make_uint4(0, 0, 0, 0);
}

} // namespace

#endif
