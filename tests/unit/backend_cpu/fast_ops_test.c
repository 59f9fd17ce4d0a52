/* fast_ops_test.c - every instruction set of this machine against the oracle, and the promise that a row's bits do not
 * depend on its neighbours, on the threads, on the tiling or on the block size. */
#include "fixture.h"

#include "base/bf16.h"
#include "fast_ops.h"

static const struct backend_ops *const FAST = &backend_cpu_fast, *const REF = &backend_cpu_ref;

static struct backend *open_fast(enum cpu_isa isa, int threads)
{
    struct backend *b = open_backend(FAST, DTYPE_F16, threads, 64, 8);
    assert_int_equal(backend_cpu_fast_force_isa(b, isa), 0);
    return b;
}

#define FOR_EACH_ISA(isa) \
    for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa < CPU_ISA_COUNT; isa++) if (cpu_kernels_for(isa))

static void round_to_bf16(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = bf16_to_f32(bf16_from_f32(x[i]));
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(bf16_from_f32(1.0f), 0x3f80);
    assert_int_equal(bf16_from_f32(1.0f + 0x1p-8f), 0x3f80);             /* a tie: even below */
    assert_int_equal(bf16_from_f32(1.0f + 3 * 0x1p-8f), 0x3f82);         /* a tie: even above */
    assert_int_equal(bf16_from_f32(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
    assert_int_equal(bf16_from_f32(INFINITY), 0x7f80);
    assert_true(isnan(bf16_to_f32(bf16_from_f32(NAN))));
}

/* With x and w already bf16 both sides hold the same numbers: what is left is the order of the sums. */
static void matmul_agrees_with_the_oracle(void **state)
{
    (void)state;
    static const int shapes[][3] = { { 1, 1, 1 }, { 1, 33, 17 }, { 2, 31, 64 }, { 3, 47, 96 }, { 7, 100, 577 },
                                     { 14, 64, 130 }, { 15, 96, 64 }, { 61, 65, 33 }, { 130, 40, 5000 } };
    FOR_EACH_ISA(isa)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            int t = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
            struct backend *fast = open_fast(isa, 2), *ref = open_backend(REF, DTYPE_F32, 2, 64, 8);
            float *x = random_floats((size_t)t * k, s + 1, 1), *w = random_floats((size_t)n * k, s + 2, 1);
            float *bias = random_floats((size_t)n, s + 3, 1);
            float *got = zeroed((size_t)t * n, sizeof *got), *want = zeroed((size_t)t * n, sizeof *want);
            round_to_bf16(x, (size_t)t * k);
            round_to_bf16(w, (size_t)n * k);
            struct weight wf = make_weight(FAST, fast, WEIGHT_MATRIX, n, k, w), bf = make_weight(FAST, fast, WEIGHT_VECTOR, 1, n, bias);
            struct weight wr = make_weight(REF, ref, WEIGHT_MATRIX, n, k, w), br = make_weight(REF, ref, WEIGHT_VECTOR, 1, n, bias);
            for (int with_bias = 0; with_bias < 2; with_bias++) {
                struct matmul_args args = { .x = x, .w = &wf, .bias = with_bias ? &bf : NULL, .out = got, .num_tokens = t };
                FAST->matmul(fast, &args);
                args.w = &wr, args.bias = with_bias ? &br : NULL, args.out = want;
                REF->matmul(ref, &args);
                assert_true(largest_difference(got, want, (size_t)t * n) < 1e-6 * k + 1e-5);
            }
            free(x), free(w), free(bias), free(got), free(want);
            FAST->close(fast);
            REF->close(ref);
        }
}

/* Full precision in: the error of bf16 rounding stays what it should be. */
static void matmul_error_is_that_of_bf16(void **state)
{
    (void)state;
    enum { T = 9, N = 64, K = 576 };
    float *x = random_floats(T * K, 1, 1), *w = random_floats(N * K, 2, 0.04f), got[T * N], want[T * N];
    struct backend *ref = open_backend(REF, DTYPE_F32, 1, 64, 8);
    struct weight wr = make_weight(REF, ref, WEIGHT_MATRIX, N, K, w);
    REF->matmul(ref, &(struct matmul_args){ .x = x, .w = &wr, .out = want, .num_tokens = T });
    FOR_EACH_ISA(isa) {
        struct backend *fast = open_fast(isa, 2);
        struct weight wf = make_weight(FAST, fast, WEIGHT_MATRIX, N, K, w);
        double error = 0, size = 0;
        FAST->matmul(fast, &(struct matmul_args){ .x = x, .w = &wf, .out = got, .num_tokens = T });
        for (int i = 0; i < T * N; i++) error += pow(got[i] - want[i], 2), size += pow(want[i], 2);
        assert_true(sqrt(error / size) < 0.004);
        FAST->close(fast);
    }
    REF->close(ref);
    free(x), free(w);
}

static void matmul_norm_is_matmul_then_norm(void **state)
{
    (void)state;
    enum { T = 5, C = 96, K = 200, N = 32 };
    float *x = random_floats(T * K, 1, 1), *w = random_floats(C * K, 2, 0.1f), *next = random_floats(N * C, 3, 1), *gain = random_floats(C, 4, 1);
    float *before = random_floats(T * C, 5, 2), out[T * C], residual[2][T * C], normed[2][T * C];
    for (int i = 0; i < 2; i++) {
        const struct backend_ops *ops = i ? FAST : REF;
        struct backend *b = open_backend(ops, i ? DTYPE_F16 : DTYPE_F32, 2, 64, 8);
        struct weight wm = make_weight(ops, b, WEIGHT_MATRIX, C, K, w), wn = make_weight(ops, b, WEIGHT_MATRIX, N, C, next);
        struct weight wg = make_weight(ops, b, WEIGHT_VECTOR, 1, C, gain);
        memcpy(residual[0], before, sizeof residual[0]);
        memcpy(residual[1], before, sizeof residual[1]);
        ops->matmul_norm(b, &(struct matmul_norm_args){ .x = x, .w = &wm, .out = out, .residual = residual[0], .norm = &wg, .normed = normed[0],
                                                        .next = &wn, .num_tokens = T, .eps = 1e-5f });
        ops->matmul(b, &(struct matmul_args){ .x = x, .w = &wm, .out = out, .num_tokens = T });
        ops->rmsnorm(b, &(struct rmsnorm_args){ .x = out, .residual = residual[1], .weight = &wg, .out = normed[1], .num_tokens = T, .hidden = C,
                                                .eps = 1e-5f });
        assert_memory_equal(residual[0], residual[1], sizeof residual[0]);
        assert_memory_equal(normed[0], normed[1], sizeof normed[0]);
        ops->close(b);
    }
    free(x), free(w), free(next), free(gain), free(before);
}

static void matmul_rows_do_not_see_each_other(void **state)
{
    (void)state;
    enum { T = 512, N = 97, K = 1537 };
    static const int sizes[] = { 1, 2, 7, 13, 14, 15, 64, 512 };
    float *x = random_floats((size_t)T * K, 1, 1), *w = random_floats((size_t)N * K, 2, 1);
    float *all = zeroed((size_t)T * N, sizeof *all), *part = zeroed((size_t)T * N, sizeof *part);
    FOR_EACH_ISA(isa) {
        struct backend *one = open_fast(isa, 1), *three = open_fast(isa, 3);
        struct weight w1 = make_weight(FAST, one, WEIGHT_MATRIX, N, K, w), w3 = make_weight(FAST, three, WEIGHT_MATRIX, N, K, w);
        FAST->matmul(one, &(struct matmul_args){ .x = x, .w = &w1, .out = all, .num_tokens = T });
        for (int s = 0; s < 8; s++) {
            memset(part, 0, (size_t)T * N * sizeof *part);
            for (int t = 0; t < T; t += sizes[s]) {
                int rows = T - t < sizes[s] ? T - t : sizes[s];
                FAST->matmul(three, &(struct matmul_args){ .x = x + (size_t)t * K, .w = &w3, .out = part + (size_t)t * N,
                                                           .num_tokens = rows });
                if (sizes[s] < 3 && t >= 40) break;
            }
            size_t rows = sizes[s] < 3 ? 40 : T;
            assert_memory_equal(part, all, rows * N * sizeof *part);
        }
        FAST->close(one);
        FAST->close(three);
    }
    free(x), free(w), free(all), free(part);
}

struct store_job { struct backend *b; struct weight *w; const float *src; int step; };

static void store_rows(void *arg, int64_t begin, int64_t end)
{
    const struct store_job *job = arg;
    for (int64_t i = begin; i < end; i++) {
        int64_t row = i * job->step, rows = job->w->rows - row < job->step ? job->w->rows - row : job->step;
        FAST->weight_store(job->b, job->w, WEIGHT_MATRIX, row, rows, job->src + row * job->w->cols);
    }
}

static void weight_store_in_any_pieces(void **state)
{
    (void)state;
    enum { N = 77, K = 161 };
    static const int steps[] = { 1, 5, 32, 40, 77 };
    float *src = random_floats(N * K, 3, 1);
    FOR_EACH_ISA(isa) {
        struct backend *b = open_fast(isa, 3);
        struct weight whole = make_weight(FAST, b, WEIGHT_MATRIX, N, K, src);
        size_t bytes = FAST->weight_bytes(WEIGHT_MATRIX, N, K);
        for (int s = 0; s < 5; s++) {
            struct weight w = { .rows = N, .cols = K, .data = FAST->carve(b, bytes) };
            struct store_job job = { b, &w, src, steps[s] };
            FAST->parallel_for(b, (N + steps[s] - 1) / steps[s], 1, store_rows, &job);
            assert_memory_equal(w.data, whole.data, bytes);
        }
        /* and what was stored is what embed gives back: the value rounded to bf16 */
        token_id ids[] = { 0, 31, 32, 76, 77, -1 };
        float out[6 * K];
        FAST->embed(b, &(struct embed_args){ .ids = ids, .num_tokens = 6, .table = &whole, .out = out });
        for (int t = 0; t < 6; t++)
            for (int k = 0; k < K; k++) {
                float want = t < 4 ? bf16_to_f32(bf16_from_f32(src[ids[t] * K + k])) : 0.0f;
                assert_true(out[t * K + k] == want);
            }
        FAST->close(b);
    }
    free(src);
}

static void norm_and_gate_agree_and_are_alone(void **state)
{
    (void)state;
    static const int widths[] = { 1, 15, 64, 577, 1536 };
    enum { T = 33 };
    FOR_EACH_ISA(isa)
        for (int i = 0; i < 5; i++) {
            int c = widths[i];
            size_t n = (size_t)T * c;
            struct backend *fast = open_fast(isa, 3), *ref = open_backend(REF, DTYPE_F32, 1, 64, 8);
            float *x = random_floats(2 * n, 1, 4), *weight = random_floats((size_t)c, 2, 1);
            float *res[2] = { random_floats(n, 3, 1), random_floats(n, 3, 1) };
            float *out[2] = { zeroed(n, sizeof(float)), zeroed(n, sizeof(float)) }, *alone = zeroed(n, sizeof *alone);
            struct weight wf = make_weight(FAST, fast, WEIGHT_VECTOR, 1, c, weight), wr = make_weight(REF, ref, WEIGHT_VECTOR, 1, c, weight);
            FAST->rmsnorm(fast, &(struct rmsnorm_args){ x, res[0], &wf, out[0], T, c, 1e-5f });
            REF->rmsnorm(ref, &(struct rmsnorm_args){ x, res[1], &wr, out[1], T, c, 1e-5f });
            assert_memory_equal(res[0], res[1], n * sizeof(float));
            assert_true(largest_difference(out[0], out[1], n) < 1e-5);
            FAST->rmsnorm(fast, &(struct rmsnorm_args){ NULL, res[0] + 5 * c, &wf, alone, 1, c, 1e-5f });
            assert_memory_equal(alone, out[0] + 5 * c, (size_t)c * sizeof(float));

            FAST->silu_mul(fast, &(struct silu_mul_args){ x, out[0], T, c });
            REF->silu_mul(ref, &(struct silu_mul_args){ x, out[1], T, c });
            assert_true(largest_difference(out[0], out[1], n) < 2e-5);
            FAST->silu_mul(fast, &(struct silu_mul_args){ x + 4 * c, alone, 1, c });
            assert_memory_equal(alone, out[0] + 2 * c, (size_t)c * sizeof(float));
            free(x), free(weight), free(res[0]), free(res[1]), free(out[0]), free(out[1]), free(alone);
            FAST->close(fast);
            REF->close(ref);
        }
}

/* exp through exp_sum: relative error over the whole range, and the ends. */
static void exp_is_within_two_ulp(void **state)
{
    (void)state;
    enum { N = 40000 };
    float *x = zeroed(N, sizeof *x), *y = zeroed(N, sizeof *y);
    for (int i = 0; i < N; i++) x[i] = -87.3f + 87.3f * 2 * (float)i / N;
    FOR_EACH_ISA(isa) {
        const struct cpu_kernels *kernels = cpu_kernels_for(isa);
        kernels->exp_sum(y, x, N, 0, 1);
        double worst = 0;
        for (int i = 0; i < N; i++) worst = fmax(worst, fabs(y[i] / exp((double)x[i]) - 1));
        assert_true(worst < 2 * 0x1p-23);
        float edge[5] = { 0, -INFINITY, -200, 200, NAN }, out[5];
        float sum = kernels->exp_sum(out, edge, 3, 0, 1);
        assert_true(sum == 1.0f && out[0] == 1.0f && out[1] == 0.0f && out[2] == 0.0f);
        kernels->exp_sum(out, edge, 5, 0, 1);
        assert_true(isinf(out[3]) && isnan(out[4]));
    }
    free(x), free(y);
}

static const struct attention_case CASES[] = {
    { 9, 3, 64, 16, 0, 3, { 1, 1, 60 }, { 1, 130, 100 } },
    { 9, 3, 64, 64, 0, 2, { 1, 131 }, { 200, 131 } },
    { 4, 4, 80, 16, 0, 2, { 7, 1 }, { 70, 65 } },
    { 8, 1, 96, 32, 0, 2, { 1, 33 }, { 64, 97 } },
    { 5, 1, 128, 64, 0, 2, { 1, 64 }, { 129, 300 } },
    { 6, 1, 128, 16, 0, 1, { 17 }, { 17 } },
    { 7, 1, 72, 48, 0, 1, { 9 }, { 150 } },
    { 40, 1, 64, 128, 0, 1, { 3 }, { 190 } },
    { 6, 2, 64, 16, 50, 2, { 1, 90 }, { 180, 140 } },
    { 3, 3, 64, 64, 100, 2, { 1, 40 }, { 250, 64 } },
    { 2, 2, 10, 16, 0, 2, { 1, 20 }, { 40, 20 } },
};
enum { NUM_CASES = sizeof CASES / sizeof CASES[0] };

struct attention_setup { struct attention_run run; float *qkv[8], *norm; int none[8], middle[8], full[8]; size_t out_floats; };

static void setup_init(struct attention_setup *s, const struct attention_case *c, size_t kv_elem)
{
    memset(s, 0, sizeof *s);
    attention_run_init(&s->run, c, kv_elem);
    for (int i = 0; i < c->num_seqs; i++) {
        s->qkv[i] = random_floats((size_t)c->context_lens[i] * s->run.row, 40 + (uint64_t)i, 1.5f);
        s->full[i] = c->context_lens[i];
        s->middle[i] = c->context_lens[i] - c->q_lens[i];
    }
    s->norm = random_floats((size_t)c->dim, 8, 1);
    s->out_floats = 1024 * (size_t)c->heads * c->dim;
}

static void setup_free(struct attention_setup *s)
{
    for (int i = 0; i < s->run.c.num_seqs; i++) free(s->qkv[i]);
    free(s->norm);
    attention_run_free(&s->run);
}

static void attention_agrees_with_the_oracle(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
        for (int i = 0; i < NUM_CASES; i++)
            for (int with_norm = 0; with_norm < 2; with_norm++) {
                struct attention_setup f, r;
                struct backend *fast = open_fast(isa, 2), *ref = open_backend(REF, DTYPE_F32, 2, 64, 8);
                setup_init(&f, &CASES[i], 2);
                setup_init(&r, &CASES[i], 4);
                struct weight wf = make_weight(FAST, fast, WEIGHT_VECTOR, 1, CASES[i].dim, f.norm);
                struct weight wr = make_weight(REF, ref, WEIGHT_VECTOR, 1, CASES[i].dim, f.norm);
                float *got = zeroed(f.out_floats, sizeof *got), *want = zeroed(f.out_floats, sizeof *want);
                const struct weight *nf = with_norm ? &wf : NULL, *nr = with_norm ? &wr : NULL;
                attend_range(FAST, fast, &f.run, f.qkv, f.none, f.middle, nf, got);
                attend_range(REF, ref, &r.run, r.qkv, r.none, r.middle, nr, want);
                attend_range(FAST, fast, &f.run, f.qkv, f.middle, f.full, nf, got);
                attend_range(REF, ref, &r.run, r.qkv, r.middle, r.full, nr, want);
                size_t n = (size_t)f.run.num_tokens * CASES[i].heads * CASES[i].dim;
                /* the oracle keeps K and V in f32, the fast backend in f16 */
                assert_true(largest_difference(got, want, n) < 5e-3);
                double mean = 0;
                for (size_t e = 0; e < n; e++) mean += fabs((double)got[e] - (double)want[e]) / (double)n;
                assert_true(mean < 5e-4);
                free(got), free(want);
                setup_free(&f), setup_free(&r);
                FAST->close(fast);
                REF->close(ref);
            }
}

/* A context in one go, in two, token by token; other block sizes; other threads: the same bits. */
static void attention_rows_do_not_depend_on_the_way(void **state)
{
    (void)state;
    static const int steps[] = { 1, 3, 37, 64, 1000 }, block_sizes[] = { 16, 32, 48, 64, 128 };
    FOR_EACH_ISA(isa)
        for (int i = 0; i < NUM_CASES; i++) {
            float *first = NULL;
            int dims = CASES[i].heads * CASES[i].dim;
            for (int way = 0; way < 5; way++) {
                struct attention_case c = CASES[i];
                struct attention_setup s;
                struct backend *b = open_fast(isa, 1 + way % 3);
                c.num_seqs = 1;
                c.q_lens[0] = c.context_lens[0] = CASES[i].context_lens[CASES[i].num_seqs - 1];
                c.block_size = block_sizes[(i + way) % 5];
                setup_init(&s, &c, 2);
                float *out = zeroed(s.out_floats, sizeof *out);
                for (int at = 0, next; at < s.full[0]; at = next) {
                    next = at + steps[way] < s.full[0] ? at + steps[way] : s.full[0];
                    attend_range(FAST, b, &s.run, s.qkv, &at, &next, NULL, out + at * dims);
                }
                if (first) assert_memory_equal(out, first, (size_t)s.full[0] * dims * sizeof *out);
                if (first) free(out);
                else first = out;
                setup_free(&s);
                FAST->close(b);
            }
            free(first);
        }
}

static void describe_names_the_choice(void **state)
{
    (void)state;
    struct backend *b = open_backend(FAST, DTYPE_F16, 2, 64, 8);
    assert_non_null(strstr(FAST->describe(b), cpu_kernels_for(cpu_isa_best())->name));
    assert_non_null(strstr(FAST->describe(b), "2 threads"));
    assert_non_null(cpu_kernels_for(CPU_ISA_PORTABLE));
    FAST->close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(matmul_agrees_with_the_oracle),
        cmocka_unit_test(matmul_error_is_that_of_bf16),
        cmocka_unit_test(matmul_norm_is_matmul_then_norm),
        cmocka_unit_test(matmul_rows_do_not_see_each_other),
        cmocka_unit_test(weight_store_in_any_pieces),
        cmocka_unit_test(norm_and_gate_agree_and_are_alone),
        cmocka_unit_test(exp_is_within_two_ulp),
        cmocka_unit_test(attention_agrees_with_the_oracle),
        cmocka_unit_test(attention_rows_do_not_depend_on_the_way),
        cmocka_unit_test(describe_names_the_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
