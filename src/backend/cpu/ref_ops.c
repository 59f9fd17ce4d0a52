/* ref_ops.c - embedding, RMS norm, SiLU gate: fp32, one row at a time, threads share the rows. */
#include "ref_ops.h"

#include <math.h>
#include <string.h>

static void embed_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct embed_job *job = arg;
    const struct embed_args *args = job->args;
    const float *table = args->table->data;
    int64_t hidden = args->table->cols;
    float *out = args->out;

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        int64_t row = embed_row(job, t);
        if (row >= 0 && row < args->table->rows)
            memcpy(out + t * hidden, table + row * hidden, (size_t)hidden * sizeof(float));
        else memset(out + t * hidden, 0, (size_t)hidden * sizeof(float));
    }
}

void ref_embed(struct backend *b, const struct embed_args *args)
{
    struct embed_job job = { args, b->sampler.last_tokens };
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, args->table->cols), embed_rows, &job);
}

/* residual += x;  out = residual / sqrt(mean(residual^2) + eps) * weight */
static void rmsnorm_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct rmsnorm_args *args = arg;
    const float *weight = args->weight->data;
    int64_t hidden = args->hidden;

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *x = args->x ? (const float *)args->x + t * hidden : NULL;
        float *residual = (float *)args->residual + t * hidden, *out = (float *)args->out + t * hidden;
        for (int64_t c = 0; x && c < hidden; c++) residual[c] += x[c];
        float scale = 1.0f / sqrtf(ref_dot(residual, residual, hidden) / (float)hidden + args->eps);
        for (int64_t c = 0; c < hidden; c++) out[c] = residual[c] * scale * weight[c];
    }
}

void ref_rmsnorm(struct backend *b, const struct rmsnorm_args *args)
{
    struct rmsnorm_args copy = *args;
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, args->hidden), rmsnorm_rows, &copy);
}

/* out = gate * sigmoid(gate) * up */
static void silu_mul_rows(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct silu_mul_args *args = arg;
    int64_t ffn = args->ffn;

    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *gate = (const float *)args->gate_up + t * 2 * ffn, *up = gate + ffn;
        float *out = (float *)args->out + t * ffn;
        for (int64_t f = 0; f < ffn; f++) out[f] = gate[f] / (1.0f + expf(-gate[f])) * up[f];
    }
}

void ref_silu_mul(struct backend *b, const struct silu_mul_args *args)
{
    struct silu_mul_args copy = *args;
    pool_run(b->pool, args->num_tokens, cpu_grain(b, args->num_tokens, 4 * (int64_t)args->ffn), silu_mul_rows, &copy);
}

void ref_gate_up(struct backend *b, const struct gate_up_args *args)
{
    ref_matmul(b, &(struct matmul_args){ .x = args->x, .w = args->w, .out = args->wide, .num_tokens = args->num_tokens });
    ref_silu_mul(b, &(struct silu_mul_args){ args->wide, args->out, args->num_tokens, args->ffn });
}

void ref_matmul_rope(struct backend *b, const struct matmul_rope_args *args)
{
    cpu_backend_matmul_rope(b, args, ref_matmul, ref_rope_store);
}

void ref_matmul_norm(struct backend *b, const struct matmul_norm_args *args)
{
    cpu_backend_matmul_norm(b, args, ref_matmul, ref_rmsnorm);
}

void ref_norm_rows(struct backend *b, const struct norm_rows_args *args)
{
    cpu_backend_norm_rows(b, args, ref_rmsnorm);
}
