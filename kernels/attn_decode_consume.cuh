/* attn_decode_consume.cuh - the consumers, four warps: scores, softmax and sums of a piece's tiles; what the warps have of an item is put
 * together in shared memory, what ctas have of a cut one in the workspace. Part of attn_decode.cu. */
#ifndef SLUICE_KERNELS_ATTN_DECODE_CONSUME_CUH
#define SLUICE_KERNELS_ATTN_DECODE_CONSUME_CUH

#include "attn_decode_ring.cuh"

namespace {

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

} // namespace

#endif
