/* ref_attention.c - out[t, h] = sum over visible p of softmax_p(scale * q[t, h] . k[p]) * v[p], and the store of k and v.
 * The softmax is taken in two passes (largest score, then weights), so nothing but the output row is kept. */
#include <math.h>
#include <string.h>

#include "base/bug.h"
#include "base/bf16.h"
#include "ref_ops.h"

struct kv_view { const struct kv_layer *kv; enum dtype dtype; int num_kv_heads, block_size, head_dim; };

static int64_t kv_row(const struct kv_view *view, int64_t slot, int head)
{
    int64_t block = slot / view->block_size, offset = slot % view->block_size;
    return ((block * view->num_kv_heads + head) * view->block_size + offset) * view->head_dim;
}

static void kv_store(const struct kv_view *view, void *base, int64_t slot, int head, const float *row)
{
    int64_t at = kv_row(view, slot, head);
    if (view->dtype == DTYPE_F32) memcpy((float *)base + at, row, (size_t)view->head_dim * sizeof(float));
    else for (int d = 0; d < view->head_dim; d++) ((uint16_t *)base)[at + d] = bf16_from_f32(row[d]);
}

static void kv_load(const struct kv_view *view, const void *base, int64_t slot, int head, float *row)
{
    int64_t at = kv_row(view, slot, head);
    if (view->dtype == DTYPE_F32) memcpy(row, (const float *)base + at, (size_t)view->head_dim * sizeof(float));
    else for (int d = 0; d < view->head_dim; d++) row[d] = bf16_to_f32(((const uint16_t *)base)[at + d]);
}

struct rope_job { const struct rope_store_args *args; enum dtype kv_dtype; };

static void norm_head(float *head, const struct weight *weight, int head_dim, float eps)
{
    if (!weight) return;
    const float *w = weight->data;
    float scale = 1.0f / sqrtf(ref_dot(head, head, head_dim) / (float)head_dim + eps);
    for (int d = 0; d < head_dim; d++) head[d] = head[d] * scale * w[d];
}

static void rotate_head(float *head, const float *cos_sin, int head_dim)
{
    int half = head_dim / 2;
    for (int i = 0; i < half; i++) {
        float a = head[i], b = head[i + half], cosine = cos_sin[i], sine = cos_sin[i + half];
        head[i] = a * cosine - b * sine;
        head[i + half] = b * cosine + a * sine;
    }
}

static void rope_tokens(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct rope_job *job = arg;
    const struct rope_store_args *args = job->args;
    struct kv_view view = { &args->kv, job->kv_dtype, args->num_kv_heads, args->block_size, args->head_dim };
    int heads = args->num_heads, kv_heads = args->num_kv_heads, dim = args->head_dim;

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *q = (float *)args->qkv + t * (heads + 2 * kv_heads) * dim, *k = q + heads * dim, *v = k + kv_heads * dim;
        const float *cos_sin = args->cos_sin + (int64_t)args->positions[t] * dim;
        const float *bias = args->bias ? args->bias->data : NULL;
        for (int i = 0; bias && i < (heads + 2 * kv_heads) * dim; i++) q[i] += bias[i];
        for (int h = 0; h < heads; h++) {
            norm_head(q + h * dim, args->q_norm, dim, args->eps);
            rotate_head(q + h * dim, cos_sin, dim);
        }
        for (int h = 0; h < kv_heads; h++) {
            norm_head(k + h * dim, args->k_norm, dim, args->eps);
            rotate_head(k + h * dim, cos_sin, dim);
            kv_store(&view, args->kv.k, args->slot_mapping[t], h, k + h * dim);
            kv_store(&view, args->kv.v, args->slot_mapping[t], h, v + h * dim);
        }
    }
}

void ref_rope_store(struct backend *b, const struct rope_store_args *args)
{
    struct rope_job job = { args, b->options.kv_dtype };
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, (int64_t)args->num_heads * args->head_dim),
             rope_tokens, &job);
}

struct attention_job { const struct attention_args *args; enum dtype kv_dtype; };

static int sequence_of(const int32_t *cu_seqlens_q, int num_seqs, int64_t token)
{
    int low = 0, high = num_seqs;          /* cu[low] <= token < cu[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (cu_seqlens_q[middle] <= token) low = middle;
        else high = middle;
    }
    return low;
}

static void attend_row(const struct attention_job *job, int64_t token, int head)
{
    const struct attention_args *args = job->args;
    struct kv_view view = { &args->kv, job->kv_dtype, args->num_kv_heads, args->block_size, args->head_dim };
    int dim = args->head_dim, kv_head = head / (args->num_heads / args->num_kv_heads);
    int seq = sequence_of(args->cu_seqlens_q, args->num_seqs, token);
    const block_id *blocks = args->block_tables + (int64_t)seq * args->max_blocks_per_seq;
    const float *q = (const float *)args->qkv + (token * (args->num_heads + 2 * args->num_kv_heads) + head) * dim;
    float *out = (float *)args->out + (token * args->num_heads + head) * dim;
    int32_t position = args->context_lens[seq] - args->cu_seqlens_q[seq + 1] + (int32_t)token;
    int32_t first = args->sliding_window > 0 && position >= args->sliding_window ? position - args->sliding_window + 1 : 0;
    float row[MAX_HEAD_DIM], max = -INFINITY, sum = 0;

#define SLOT(p) ((int64_t)blocks[(p) / args->block_size] * args->block_size + (p) % args->block_size)
    for (int32_t p = first; p <= position; p++) {
        kv_load(&view, args->kv.k, SLOT(p), kv_head, row);
        max = fmaxf(max, args->scale * ref_dot(q, row, dim));
    }
    memset(out, 0, (size_t)dim * sizeof(float));
    for (int32_t p = first; p <= position; p++) {
        kv_load(&view, args->kv.k, SLOT(p), kv_head, row);
        float weight = expf(args->scale * ref_dot(q, row, dim) - max);
        sum += weight;
        kv_load(&view, args->kv.v, SLOT(p), kv_head, row);
        for (int d = 0; d < dim; d++) out[d] += weight * row[d];
    }
#undef SLOT
    for (int d = 0; d < dim; d++) out[d] /= sum;
}

static void attend_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct attention_job *job = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) attend_row(job, i / job->args->num_heads, (int)(i % job->args->num_heads));
}

void ref_attention(struct backend *b, const struct attention_args *args)
{
    struct attention_job job = { args, b->options.kv_dtype };
    BUG_ON(args->head_dim > MAX_HEAD_DIM);
    pool_run(b->pool, (int64_t)args->num_tokens * args->num_heads, 1, attend_rows, &job);
}
