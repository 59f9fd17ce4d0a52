/* ref_matmul.c - out[t, n] = sum over k of x[t, k] * w[n, k] (+ bias[n]), fp32. Threads share the outputs n. */
#include "ref_ops.h"

enum { LANES = 16 };

float ref_dot(const float *a, const float *b, int64_t n)
{
    float sum[LANES] = { 0 }, total = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sum[lane] += a[i + lane] * b[i + lane];
    for (; i < n; i++) sum[i % LANES] += a[i] * b[i];
    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    return total;
}

static void matmul_outputs(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct matmul_args *args = arg;
    const float *x = args->x, *w = args->w->data, *bias = args->bias ? args->bias->data : NULL;
    int64_t k = args->w->cols, n = args->w->rows;
    float *out = args->out;

    (void)thread;
    for (int64_t j = begin; j < end; j++)
        for (int64_t t = 0; t < args->num_tokens; t++)
            out[t * n + j] = ref_dot(x + t * k, w + j * k, k) + (bias ? bias[j] : 0.0f);
}

void ref_matmul(struct backend *b, const struct matmul_args *args)
{
    struct matmul_args copy = *args;
    int64_t work = args->w->cols * args->num_tokens;
    pool_run(b->pool, args->w->rows, cpu_grain(b, args->w->rows, work), matmul_outputs, &copy);
}
