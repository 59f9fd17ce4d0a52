/* ref_ops_test.c - the oracle itself against double loops written here. */
#include "fixture.h"

static void matmul_is_the_sum(void **state)
{
    (void)state;
    static const int shapes[][3] = { { 1, 1, 1 }, { 1, 33, 17 }, { 3, 47, 96 }, { 5, 64, 577 } };   /* T N K */
    for (int s = 0; s < 4; s++)
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            int t = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
            struct backend *b = open_backend(&backend_cpu_ref, DTYPE_F32, 2, 64, 4);
            float *x = random_floats((size_t)t * k, 1, 1), *w = random_floats((size_t)n * k, 2, 1);
            float *bias = random_floats((size_t)n, 3, 1), *out = zeroed((size_t)t * n, sizeof *out);
            struct weight weight = make_weight(&backend_cpu_ref, b, WEIGHT_MATRIX, n, k, w);
            struct weight bias_w = make_weight(&backend_cpu_ref, b, WEIGHT_VECTOR, 1, n, bias);
            backend_cpu_ref.matmul(b, &(struct matmul_args){ .x = x, .w = &weight, .bias = with_bias ? &bias_w : NULL,
                                                             .out = out, .num_tokens = t, .out_f32 = true });
            for (int i = 0; i < t; i++)
                for (int j = 0; j < n; j++) {
                    double want = with_bias ? bias[j] : 0;
                    for (int c = 0; c < k; c++) want += (double)x[i * k + c] * w[j * k + c];
                    assert_true(fabs(out[i * n + j] - want) < 1e-5 * sqrt(k) + 1e-6);
                }
            free(x), free(w), free(bias), free(out);
            backend_cpu_ref.close(b);
        }
}

static void embed_takes_rows_and_zeroes_foreign_ones(void **state)
{
    (void)state;
    enum { V = 10, C = 6 };
    struct backend *b = open_backend(&backend_cpu_ref, DTYPE_F32, 1, 64, 4);
    float *table = random_floats(V * C, 5, 1), out[4 * C];
    struct weight w = make_weight(&backend_cpu_ref, b, WEIGHT_MATRIX, V, C, table);
    const token_id ids[4] = { 100, 109, 99, 110 };
    memset(out, 0x7f, sizeof out);
    backend_cpu_ref.embed(b, &(struct embed_args){ .ids = ids, .num_tokens = 4, .table = &w, .first_row = 100, .out = out });
    assert_memory_equal(out, table, C * sizeof(float));
    assert_memory_equal(out + C, table + 9 * C, C * sizeof(float));
    for (int i = 2 * C; i < 4 * C; i++) assert_true(out[i] == 0.0f);
    free(table);
    backend_cpu_ref.close(b);
}

static void rmsnorm_adds_then_norms(void **state)
{
    (void)state;
    enum { T = 3, C = 37 };
    struct backend *b = open_backend(&backend_cpu_ref, DTYPE_F32, 2, 64, 4);
    float *x = random_floats(T * C, 1, 1), *residual = random_floats(T * C, 2, 1), *weight = random_floats(C, 3, 1);
    float sum[T * C], out[T * C];
    struct weight w = make_weight(&backend_cpu_ref, b, WEIGHT_VECTOR, 1, C, weight);
    for (int with_x = 0; with_x < 2; with_x++) {
        memcpy(sum, residual, sizeof sum);
        backend_cpu_ref.rmsnorm(b, &(struct rmsnorm_args){ with_x ? x : NULL, sum, &w, out, T, C, 1e-5f });
        for (int t = 0; t < T; t++) {
            double square = 0;
            for (int c = 0; c < C; c++) {
                double value = residual[t * C + c] + (with_x ? x[t * C + c] : 0);
                assert_true(fabs(sum[t * C + c] - value) < 1e-6);
                square += value * value;
            }
            double scale = 1 / sqrt(square / C + 1e-5);
            for (int c = 0; c < C; c++) assert_true(fabs(out[t * C + c] - sum[t * C + c] * scale * weight[c]) < 1e-5);
        }
    }
    free(x), free(residual), free(weight);
    backend_cpu_ref.close(b);
}

static void silu_mul_is_the_formula(void **state)
{
    (void)state;
    enum { T = 2, F = 19 };
    struct backend *b = open_backend(&backend_cpu_ref, DTYPE_F32, 1, 64, 4);
    float *x = random_floats(T * 2 * F, 1, 3), out[T * F];
    backend_cpu_ref.silu_mul(b, &(struct silu_mul_args){ x, out, T, F });
    for (int t = 0; t < T; t++)
        for (int f = 0; f < F; f++) {
            double gate = x[t * 2 * F + f], up = x[t * 2 * F + F + f];
            assert_true(fabs(out[t * F + f] - gate / (1 + exp(-gate)) * up) < 1e-5);
        }
    free(x);
    backend_cpu_ref.close(b);
}

static void naive_head(double *to, const float *from, const float *norm, const struct attention_run *run, int position)
{
    int dim = run->c.dim;
    double scale = 1, square = 0, head[256];
    for (int d = 0; d < dim; d++) square += (double)from[d] * from[d];
    if (norm) scale = 1 / sqrt(square / dim + 1e-5);
    for (int d = 0; d < dim; d++) head[d] = from[d] * scale * (norm ? norm[d] : 1);
    const float *cos_sin = run->cos_sin + position * dim;
    for (int i = 0; i < dim / 2; i++) {
        to[i] = head[i] * cos_sin[i] - head[i + dim / 2] * cos_sin[i + dim / 2];
        to[i + dim / 2] = head[i + dim / 2] * cos_sin[i] + head[i] * cos_sin[i + dim / 2];
    }
}

static void naive_attention(const struct attention_run *run, const float *qkv, const float *norm, int position, int head,
                            double *out)
{
    const struct attention_case *c = &run->c;
    int dim = c->dim, kv_head = head / (c->heads / c->kv_heads), first = 0;
    double q[256], k[256], weights[512], top = -1e300, sum = 0;
    if (c->window && position - c->window + 1 > 0) first = position - c->window + 1;
    naive_head(q, qkv + position * run->row + head * dim, norm, run, position);
    for (int p = first; p <= position; p++) {
        naive_head(k, qkv + p * run->row + (c->heads + kv_head) * dim, norm, run, p);
        weights[p] = 0;
        for (int d = 0; d < dim; d++) weights[p] += q[d] * k[d] / sqrt(dim);
        top = fmax(top, weights[p]);
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int p = first; p <= position; p++) {
        double w = exp(weights[p] - top);
        sum += w;
        const float *v = qkv + p * run->row + (c->heads + c->kv_heads + kv_head) * dim;
        for (int d = 0; d < dim; d++) out[d] += w * v[d];
    }
    for (int d = 0; d < dim; d++) out[d] /= sum;
}

static void attention_is_the_formula(void **state)
{
    (void)state;
    static const struct attention_case cases[] = {
        { 2, 2, 64, 16, 0, 2, { 5, 1 }, { 5, 40 } },
        { 6, 2, 80, 16, 0, 1, { 33 }, { 70 } },
        { 4, 1, 96, 64, 20, 2, { 1, 70 }, { 100, 70 } },
    };
    for (int i = 0; i < 3; i++)
        for (int with_norm = 0; with_norm < 2; with_norm++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                const struct attention_case *c = &cases[i];
                struct attention_run run;
                struct backend *b = open_backend(&backend_cpu_ref, bf16 ? DTYPE_BF16 : DTYPE_F32, 2, 64, 4);
                attention_run_init(&run, c, bf16 ? 2 : 4);
                float *qkv[8], *norm = random_floats((size_t)c->dim, 99, 1);
                struct weight w = make_weight(&backend_cpu_ref, b, WEIGHT_VECTOR, 1, c->dim, norm);
                int from[8] = { 0 }, middle[8], to[8];
                float *early = zeroed(1024 * (size_t)c->heads * c->dim, sizeof *early);
                for (int s = 0; s < c->num_seqs; s++) {
                    qkv[s] = random_floats((size_t)c->context_lens[s] * run.row, 10 + (uint64_t)s, 1);
                    to[s] = c->context_lens[s];
                    middle[s] = to[s] - c->q_lens[s];
                }
                float *out = zeroed((size_t)run.num_tokens * c->heads * c->dim, sizeof *out);
                attend_range(&backend_cpu_ref, b, &run, qkv, from, middle, with_norm ? &w : NULL, early);
                attend_range(&backend_cpu_ref, b, &run, qkv, middle, to, with_norm ? &w : NULL, out);
                double tolerance = bf16 ? 0.02 : 2e-5;
                for (int s = 0; s < c->num_seqs; s++)
                    for (int p = middle[s]; p < to[s]; p++)
                        for (int h = 0; h < c->heads; h++) {
                            double want[256];
                            naive_attention(&run, qkv[s], with_norm ? norm : NULL, p, h, want);
                            const float *got = out + ((run.cu[s] + p - middle[s]) * c->heads + h) * c->dim;
                            for (int d = 0; d < c->dim; d++) assert_true(fabs(got[d] - want[d]) < tolerance);
                        }
                for (int s = 0; s < c->num_seqs; s++) free(qkv[s]);
                free(out), free(norm), free(early);
                attention_run_free(&run);
                backend_cpu_ref.close(b);
            }
}

static void norm_rows_norms_the_rows_of_the_plan(void **state)
{
    (void)state;
    enum { T = 5, C = 8 };
    struct backend *b = open_backend(&backend_cpu_ref, DTYPE_F32, 1, 64, 4);
    float *x = random_floats(T * C, 1, 1), *residual = random_floats(T * C, 2, 1), *w = random_floats(C, 3, 1), out[3 * C];
    struct weight weight = make_weight(&backend_cpu_ref, b, WEIGHT_VECTOR, 1, C, w);
    struct step_plan *plan = make_plan(T, 3, 0, 0, 0);
    static const int tokens[3] = { 4, 0, 4 };
    for (int r = 0; r < 3; r++) plan_rows(plan)[r].token = tokens[r];
    backend_cpu_ref.norm_rows(b, &(struct norm_rows_args){ .x = x, .residual = residual, .weight = &weight,
                                                           .plan = backend_cpu_ref.upload(b, plan), .out = out, .hidden = C,
                                                           .eps = 1e-5f });
    for (int r = 0; r < 3; r++) {
        double square = 0, sum[C];
        for (int c = 0; c < C; c++) sum[c] = (double)x[tokens[r] * C + c] + residual[tokens[r] * C + c];
        for (int c = 0; c < C; c++) square += sum[c] * sum[c];
        for (int c = 0; c < C; c++) assert_true(fabs(out[r * C + c] - sum[c] / sqrt(square / C + 1e-5) * w[c]) < 1e-5);
    }
    free(plan), free(x), free(residual), free(w);
    backend_cpu_ref.close(b);
}

static void open_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    struct backend *b = NULL;
    struct err err = { 0 };
    struct backend_options options = { .threads = 1, .kv_dtype = DTYPE_F16, .max_seqs = 1, .vocab_size = 8 };
    assert_int_equal(backend_cpu_ref.open(&b, &options, &err), ERR_CONFIG);
    err_clear(&err);
    options.kv_dtype = DTYPE_F32;
    assert_int_equal(backend_cpu_fast.open(&b, &options, &err), ERR_CONFIG);
    err_clear(&err);
    options.threads = 0;
    assert_int_equal(backend_cpu_ref.open(&b, &options, &err), ERR_CONFIG);
    assert_null(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_is_the_sum),
        cmocka_unit_test(embed_takes_rows_and_zeroes_foreign_ones),
        cmocka_unit_test(rmsnorm_adds_then_norms),
        cmocka_unit_test(silu_mul_is_the_formula),
        cmocka_unit_test(attention_is_the_formula),
        cmocka_unit_test(norm_rows_norms_the_rows_of_the_plan),
        cmocka_unit_test(open_refuses_what_it_cannot_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
