/* fast_ops.c - embedding, norms, gate, rope and attention on top of the inner loops: who computes which rows. */
#include "fast_ops.h"

#include <string.h>

#include "base/bug.h"
#include "base/bf16.h"
#include "base/half.h"
#include "blocks.h"

static void embed_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct embed_job *job = arg;
    const struct embed_args *args = job->args;
    int64_t hidden = args->table->cols, pairs = (hidden + 1) / 2;
    enum dtype kept = args->table->kept;
    size_t kept_panel = block_panel_bytes(kept) * (size_t)(hidden / BLOCK_INPUTS);

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *out = (float *)args->out + t * hidden;
        int64_t row = embed_row(job, t);
        if (row < 0 || row >= args->table->rows) {
            memset(out, 0, (size_t)hidden * sizeof(float));
            continue;
        }
        if (kept != DTYPE_F32) {
            blocks_load(out, (const uint8_t *)args->table->data + (size_t)(row / BLOCK_OUTPUTS) * kept_panel, kept,
                        (int)(row % BLOCK_OUTPUTS), hidden / BLOCK_INPUTS);
            continue;
        }
        const uint32_t *column = (const uint32_t *)args->table->data + row / PANEL_COLS * pairs * PANEL_COLS +
                                 row % PANEL_COLS;
        for (int64_t i = 0; i < hidden / 2; i++) {
            out[2 * i] = bf16_to_f32((uint16_t)column[i * PANEL_COLS]);
            out[2 * i + 1] = bf16_to_f32((uint16_t)(column[i * PANEL_COLS] >> 16));
        }
        if (hidden % 2) out[hidden - 1] = bf16_to_f32((uint16_t)column[hidden / 2 * PANEL_COLS]);
    }
}

void fast_embed(struct backend *b, const struct embed_args *args)
{
    struct embed_job job = { args, b->sampler.last_tokens };
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, 4 * args->table->cols), embed_rows, &job);
}

struct rmsnorm_job { const struct rmsnorm_args *args; const struct cpu_kernels *kernels; };

static void rmsnorm_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct rmsnorm_job *job = arg;
    const struct rmsnorm_args *args = job->args;
    int64_t hidden = args->hidden;

    (void)thread;
    for (int64_t t = begin; t < end; t++)
        job->kernels->rmsnorm(args->x ? (const float *)args->x + t * hidden : NULL, (float *)args->residual + t * hidden,
                              args->weight->data, (float *)args->out + t * hidden, hidden, args->eps);
}

void fast_rmsnorm(struct backend *b, const struct rmsnorm_args *args)
{
    struct rmsnorm_job job = { args, b->kernels };
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, args->hidden), rmsnorm_rows, &job);
}

struct silu_job { const struct silu_mul_args *args; const struct cpu_kernels *kernels; };

static void silu_mul_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct silu_job *job = arg;
    int64_t ffn = job->args->ffn;

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *gate = (const float *)job->args->gate_up + t * 2 * ffn;
        job->kernels->silu_mul(gate, gate + ffn, (float *)job->args->out + t * ffn, ffn);
    }
}

void fast_silu_mul(struct backend *b, const struct silu_mul_args *args)
{
    struct silu_job job = { args, b->kernels };
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, 2 * (int64_t)args->ffn), silu_mul_rows, &job);
}

struct rope_job { const struct rope_store_args *args; const struct cpu_kernels *kernels; };

static void turn_head(const struct rope_job *job, float *head, const struct weight *norm, const float *cos_sin)
{
    int dim = job->args->head_dim;
    if (norm) job->kernels->rmsnorm(NULL, head, norm->data, head, dim, job->args->eps);
    job->kernels->rotate(head, cos_sin, dim);
}

/* K as pairs [D/2][block_size], V as [block_size][D] within the block of one head. */
static void store_token(const struct rope_store_args *args, int64_t slot, const float *k, const float *v)
{
    int dim = args->head_dim, block_size = args->block_size;
    int64_t block = slot / block_size, offset = slot % block_size;

    for (int h = 0; h < args->num_kv_heads; h++, k += dim, v += dim) {
        int64_t base = (block * args->num_kv_heads + h) * block_size * dim;
        uint32_t *k_pairs = (uint32_t *)((uint16_t *)args->kv.k + base) + offset;
        uint16_t *v_row = (uint16_t *)args->kv.v + base + offset * dim;
        for (int i = 0; i < dim / 2; i++)
            k_pairs[(int64_t)i * block_size] = half_from_f32(k[2 * i]) | (uint32_t)half_from_f32(k[2 * i + 1]) << 16;
        for (int d = 0; d < dim; d++) v_row[d] = half_from_f32(v[d]);
    }
}

static void rope_tokens(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct rope_job *job = arg;
    const struct rope_store_args *args = job->args;
    int heads = args->num_heads, kv_heads = args->num_kv_heads, dim = args->head_dim;

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        float *q = (float *)args->qkv + t * (heads + 2 * kv_heads) * dim, *k = q + heads * dim, *v = k + kv_heads * dim;
        const float *cos_sin = args->cos_sin + (int64_t)args->positions[t] * dim;
        const float *bias = args->bias ? args->bias->data : NULL;
        for (int i = 0; bias && i < (heads + 2 * kv_heads) * dim; i++) q[i] += bias[i];
        for (int h = 0; h < heads; h++) turn_head(job, q + h * dim, args->q_norm, cos_sin);
        for (int h = 0; h < kv_heads; h++) turn_head(job, k + h * dim, args->k_norm, cos_sin);
        store_token(args, args->slot_mapping[t], k, v);
    }
}

void fast_rope_store(struct backend *b, const struct rope_store_args *args)
{
    struct rope_job job = { args, b->kernels };
    int64_t work = (int64_t)(args->num_heads + 4 * args->num_kv_heads) * args->head_dim;
    BUG_ON(args->head_dim % 2);
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, work), rope_tokens, &job);
}

void fast_gate_up(struct backend *b, const struct gate_up_args *args)
{
    fast_matmul(b, &(struct matmul_args){ .x = args->x, .w = args->w, .out = args->wide, .num_tokens = args->num_tokens });
    fast_silu_mul(b, &(struct silu_mul_args){ args->wide, args->out, args->num_tokens, args->ffn });
}

void fast_matmul_rope(struct backend *b, const struct matmul_rope_args *args)
{
    cpu_backend_matmul_rope(b, args, fast_matmul, fast_rope_store);
}

void fast_matmul_norm(struct backend *b, const struct matmul_norm_args *args)
{
    cpu_backend_matmul_norm(b, args, fast_matmul, fast_rmsnorm);
}

void fast_norm_rows(struct backend *b, const struct norm_rows_args *args)
{
    cpu_backend_norm_rows(b, args, fast_rmsnorm);
}
