/* attn_prefill.cu - out[t, h] = sum over visible p of softmax_p(scale * q[t, h] . k[p]) * v[p], causal, paged KV   op: attn_prefill
 * Shapes    kernels.h, struct attn_prefill_kernel. D in {64, 80, 96, 128, 256}, any H / Hk, any block size that is a multiple of 16.
 *           Elements in and out; scores, softmax and sums in fp32; probabilities rounded to elements for the second product.
 * Work      4 H D (sum of visible keys) operations: T = 8192, H = 32, D = 128: 550 G. Bytes do not matter at that size.
 * Roofline  matrix bound. This version is for every GPU from sm_80 on (mma.sync); on sm_90 the shapes that attn_prefill_sm90.cu
 *           knows go there, which is about twice as fast.
 * Launch    grid (Hk, sequences, row tiles of the longest), longest row tiles first; 4 warps, each 16 rows of a 64-row tile.
 *           Shared memory: Q, K and V tiles of 64 rows, 3 * 64 * (2 D + 16) bytes: 52 KB at D = 128, 99 KB at D = 256.
 * Order     keys ascending, 64 at a time, whatever the batch: a sequence's result does not depend on its neighbours.
 * Oracle    tests/kernels/attn_prefill_test.c.  Figures: kernels/README.md.
 * Why       one buffer each for K and V: V of this step is fetched under the first product, K of the next under the softmax and the
 *           second, so two tiles in flight need no second stage and D = 256 fits into the 99 KB of sm_86. Rows are padded by 16
 *           bytes: 2 D + 16 is an odd multiple of 16, so the eight rows of an ldmatrix fall into different banks. */
#include "attn_prefill.cuh"

namespace {

constexpr int ROWS = 64, KEYS = 64, THREADS = 128;

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const elem *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const elem *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

/* 16 bytes to shared memory in the background; zeros where !valid. */
__device__ __forceinline__ void copy_async(elem *smem, const elem *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"((uint32_t)__cvta_generic_to_shared(smem)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

/* Keys first .. first + 63 of one sequence and KV head; those past the context are zeros, not what lies in the block (0 * NaN). */
template <int D>
__device__ __forceinline__ void fetch_keys(elem *tile, const elem *pool, const block_id *table, const struct paged_kv &kv, int num_kv_heads,
                                           int kv_head, int first, int context)
{
    for (int i = threadIdx.x / 8; i < KEYS; i += THREADS / 8) {
        int position = first + i;
        bool valid = position < context;
        int block = valid ? position / kv.block_size : 0;
        const elem *row = pool;
        if (valid) row += (((int64_t)table[block] * num_kv_heads + kv_head) * kv.block_size + position - block * kv.block_size) * D;
        for (int c = threadIdx.x % 8; c < D / 8; c += 8) copy_async(tile + i * (D + 8) + c * 8, row + c * 8, valid);
    }
}

template <int D>
__global__ void __launch_bounds__(THREADS) attn_prefill_mma(const __grid_constant__ struct attn_prefill_kernel a)
{
    constexpr int STRIDE = D + 8;
    extern __shared__ __align__(16) unsigned char shared[];
    elem *q_tile = (elem *)shared, *k_tile = q_tile + ROWS * STRIDE, *v_tile = k_tile + KEYS * STRIDE;
    int kv_head = blockIdx.x, seq = a.first_seq + blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int group = a.num_heads / a.num_kv_heads;

    pdl_trigger();
    pdl_wait();
    int q_begin = a.cu_seqlens_q[seq], q_len = a.cu_seqlens_q[seq + 1] - q_begin, context = a.context_lens[seq];
    int first_row = (gridDim.z - 1 - blockIdx.z) * ROWS, num_rows = min(ROWS, q_len * group - first_row);
    if (num_rows <= 0) return;

    int offset = context - q_len;
    struct key_range keys = visible_keys(offset, first_row / group, (first_row + num_rows - 1) / group, a.sliding_window);
    const block_id *table = a.kv.block_tables + (int64_t)seq * a.kv.max_blocks_per_seq;
    const elem *k_pool = (const elem *)a.kv.k, *v_pool = (const elem *)a.kv.v;
    int first = keys.begin / KEYS * KEYS;

    for (int i = threadIdx.x / 8; i < ROWS; i += THREADS / 8) {
        int row = min(first_row + i, first_row + num_rows - 1);
        const elem *q = (const elem *)a.q + (int64_t)(q_begin + row / group) * a.q_stride + (kv_head * group + row % group) * D;
        for (int c = threadIdx.x % 8; c < D / 8; c += 8) copy_async(q_tile + i * STRIDE + c * 8, q + c * 8, true);
    }
    if (first < keys.end) fetch_keys<D>(k_tile, k_pool, table, a.kv, a.num_kv_heads, kv_head, first, context);
    copy_commit();

    /* This thread's two rows of the tile, and where their queries stand. */
    int row[2] = { first_row + warp * 16 + lane / 4, first_row + warp * 16 + lane / 4 + 8 };
    int position[2] = { offset + row[0] / group, offset + row[1] / group };
    float to_log2 = a.scale * LOG2_E, largest[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 };
    float o[D / 8][4] = {};

    for (; first < keys.end; first += KEYS) {
        fetch_keys<D>(v_tile, v_pool, table, a.kv, a.num_kv_heads, kv_head, first, context);
        copy_commit();
        copy_wait<1>();
        __syncthreads();

        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D; k += 16) {
            uint32_t qa[4];
            ldmatrix(qa, q_tile + (warp * 16 + lane % 16) * STRIDE + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                uint32_t kb[4];
                ldmatrix(kb, k_tile + (n * 16 + lane / 16 * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
                mma_elem(s[2 * n], qa, kb);
                mma_elem(s[2 * n + 1], qa, kb + 2);
            }
        }
        __syncthreads();
        if (first + KEYS < keys.end) fetch_keys<D>(k_tile, k_pool, table, a.kv, a.num_kv_heads, kv_head, first + KEYS, context);
        copy_commit();

        bool whole = first + KEYS - 1 <= offset + first_row / group && (a.sliding_window <= 0 || first > offset + (first_row + num_rows - 1) / group - a.sliding_window);
        if (!whole) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int key = first + n * 8 + lane % 4 * 2 + i % 2, at = position[i / 2];
                    if (key > at || (a.sliding_window > 0 && key <= at - a.sliding_window)) s[n][i] = -INFINITY;
                }
        }

#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = largest[r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            top = quad_max(top);
            float base = top == -INFINITY ? 0.0f : top * to_log2, shrink = exp2_fast(largest[r] * to_log2 - base);
            largest[r] = top;
            sum[r] *= shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) sum[r] += s[n][i] = exp2_fast(s[n][i] * to_log2 - base);
#pragma unroll
            for (int d = 0; d < D / 8; d++) { o[d][2 * r] *= shrink; o[d][2 * r + 1] *= shrink; }
        }

        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t p[4] = { pack_elem(s[2 * n][0], s[2 * n][1]), pack_elem(s[2 * n][2], s[2 * n][3]),
                              pack_elem(s[2 * n + 1][0], s[2 * n + 1][1]), pack_elem(s[2 * n + 1][2], s[2 * n + 1][3]) };
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t vb[4];
                ldmatrix_transposed(vb, v_tile + (n * 16 + lane % 16) * STRIDE + d * 16 + lane / 16 * 8);
                mma_elem(o[2 * d], p, vb);
                mma_elem(o[2 * d + 1], p, vb + 2);
            }
        }
        __syncthreads();
    }
    copy_wait<0>();

#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = quad_sum(sum[r]), inverse = total > 0 ? 1.0f / total : 0.0f;
        if (row[r] >= first_row + num_rows) continue;
        elem *out = (elem *)a.out + ((int64_t)(q_begin + row[r] / group) * a.num_heads + kv_head * group + row[r] % group) * D;
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *(uint32_t *)(out + d * 8 + lane % 4 * 2) = pack_elem(o[d][2 * r] * inverse, o[d][2 * r + 1] * inverse);
    }
}

template <int D> static int launch_mma(const struct attn_prefill_kernel *a, const struct launch *l)
{
    constexpr int bytes = 3 * ROWS * (D + 8) * (int)sizeof(elem);
    int group = a->num_heads / a->num_kv_heads;
    dim3 grid(a->num_kv_heads, a->num_seqs - a->first_seq, (int)(((int64_t)a->max_q_len * group + ROWS - 1) / ROWS));

    if (cudaFuncSetAttribute(attn_prefill_mma<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) return ERR_INTERNAL;
    return launch_kernel(l, attn_prefill_mma<D>, grid, dim3(THREADS), bytes, *a);
}

} // namespace

extern "C" int ELEM_NAME(launch_attn_prefill)(const struct attn_prefill_kernel *a, const struct launch *l)
{
    const struct paged_kv *kv = &a->kv;

    if (a->num_kv_heads <= 0 || a->num_heads % a->num_kv_heads || kv->block_size % 16 || kv->block_size < 16 || kv->block_size > 256) return ERR_UNSUPPORTED;
    if (a->q_stride % 8) return ERR_UNSUPPORTED;
    if (a->num_seqs <= a->first_seq || a->max_q_len <= 0) return 0;
    if (l->sm == 90) {
        int rc = ELEM_NAME(launch_attn_prefill_sm90)(a, l);
        if (rc != ERR_UNSUPPORTED) return rc;
    }
    switch (a->head_dim) {
    case 64: return launch_mma<64>(a, l);
    case 80: return launch_mma<80>(a, l);
    case 96: return launch_mma<96>(a, l);
    case 128: return launch_mma<128>(a, l);
    case 256: return launch_mma<256>(a, l);
    default: return ERR_UNSUPPORTED;
    }
}

ELEM_DOOR(launch_attn_prefill, attn_prefill_kernel)
