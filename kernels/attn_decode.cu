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
#include "attn_decode_consume.cuh"
#include "attn_decode_plan.h"
#include "attn_decode_produce.cuh"
#include "attn_decode_ring.cuh"

namespace {

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
