/* launch_gemm_skinny against a plain double loop: every bucket of T, odd N and K, both outputs, silu_mul, every cut over the device. */
#include "gemm_skinny_plan.h"
#include "gpu.h"
#include "unit/base/cmocka_all.h"

enum { T_MAX = GEMM_SKINNY_MAX_ROWS };

struct product { int n, k; bool silu; float *x, *w; double *ref; void *dx, *dw, *dout, *counters, *workspace; };

static void product_new(struct product *p, int n, int k, bool silu)
{
    uint64_t seed = 23 + (uint64_t)n * 31 + (uint64_t)k;
    size_t xs = (size_t)T_MAX * (size_t)k, ws = (size_t)n * (size_t)k;
    uint16_t *xh = malloc(2 * xs), *wh = malloc(2 * ws);

    *p = (struct product){ .n = n, .k = k, .silu = silu, .x = malloc(4 * xs), .w = malloc(4 * ws), .ref = malloc(8 * T_MAX * (size_t)n) };
    random_elem(&seed, 1.0f, p->x, xh, xs);
    random_elem(&seed, 0.05f, p->w, wh, ws);
    for (int t = 0; t < T_MAX; t++)
        for (int i = 0; i < n; i++) {
            const float *a = p->x + (size_t)t * (size_t)k, *b = p->w + (size_t)i * (size_t)k;
            float part[8] = { 0 };
            double sum = 0;
            for (int j = 0; j < k; j += 8)
                for (int l = 0; l < 8; l++) part[l] += a[j + l] * b[j + l];
            for (int l = 0; l < 8; l++) sum += (double)part[l];
            p->ref[(size_t)t * (size_t)n + (size_t)i] = sum;
        }
    if (silu)
        for (int t = 0; t < T_MAX; t++)
            for (int f = 0; f < n / 2; f++) {
                double gate = p->ref[t * n + f], up = p->ref[t * n + n / 2 + f];
                p->ref[t * (n / 2) + f] = gate / (1 + exp(-gate)) * up;
            }
    p->dx = gpu_copy(xh, 2 * xs);
    p->dw = gpu_copy(wh, 2 * ws);
    p->dout = gpu_new((size_t)4 * T_MAX * (size_t)n);
    p->counters = gpu_new(MATMUL_COUNTER_BYTES);
    p->workspace = gpu_new(GEMM_SKINNY_WORKSPACE_BYTES);
    CUDA_MUST(cudaMemset(p->counters, 0, MATMUL_COUNTER_BYTES));
    free(xh);
    free(wh);
}

static void product_free(struct product *p)
{
    free(p->x); free(p->w); free(p->ref);
    gpu_free(p->dx); gpu_free(p->dw); gpu_free(p->dout); gpu_free(p->counters); gpu_free(p->workspace);
}

static void run(struct product *p, int t, bool f32, const struct gemm_skinny_plan *plan, int pdl)
{
    if (!gpu_turn()) return;
    int outs = p->silu ? p->n / 2 : p->n;
    size_t bytes = (size_t)T_MAX * (size_t)outs * (f32 ? 4 : 2), written = bytes / T_MAX * (size_t)t;
    unsigned char *got = malloc(bytes);
    struct launch l = gpu_launch(pdl);
    struct gemv_kernel a = { .x = p->dx, .w = p->dw, .out = p->dout, .num_tokens = t, .n = p->n, .k = p->k, .out_f32 = f32, .silu_mul = p->silu,
                             .counters = p->counters, .workspace = p->workspace };
    double d = 0, s = 0;

    CUDA_MUST(cudaMemset(p->dout, 0xFF, bytes));
    for (int again = 0; again < 3; again++)                /* in a row: each finds the counters as it should */
        assert_int_equal(plan ? launch_gemm_skinny_planned(&a, plan, &l) : launch_gemm_skinny(&a, &l), 0);
    gpu_sync();
    gpu_read(got, p->dout, bytes);
    for (int i = 0; i < t * outs; i++) {
        double y = f32 ? (double)((float *)got)[i] : (double)of_elem(((uint16_t *)got)[i]);
        d += (y - p->ref[i]) * (y - p->ref[i]);
        s += p->ref[i] * p->ref[i];
    }
    if (!(sqrt(d / s) < (f32 ? 2e-5 : gpu_tolerance(4e-3))))
        fail_msg("n %d k %d T %d f32 %d silu %d how %d groups %d panels %d cluster %d ctas %d: error %g", p->n, p->k, t, f32, p->silu, plan ? (int)plan->how : -1,
                 plan ? plan->groups : 0, plan ? plan->panels : 0, plan ? plan->cluster : 0, plan ? plan->ctas : 0, sqrt(d / s));
    for (size_t i = written; i < bytes; i++)
        if (got[i] != 0xFF) fail_msg("n %d k %d T %d: wrote behind its rows", p->n, p->k, t);
    free(got);
}

static void every_bucket(void **state)
{
    static const struct { int n, k; bool silu; } shapes[] = { { 1, 8, false }, { 264, 584, false }, { 130, 2056, false }, { 1000, 1024, false },
                                                              { 640, 576, true }, { 272, 1032, true }, { 72, 14336, false } };
    static const int rows[] = { 1, 8, 9, 16, 17, 24, 25, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128 };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct product p;
        product_new(&p, shapes[i].n, shapes[i].k, shapes[i].silu);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            run(&p, rows[r], false, NULL, r % 2 == 0);
            if (!p.silu) run(&p, rows[r], true, NULL, r % 2 == 1);
        }
        product_free(&p);
    }
}

static void every_cut(void **state)
{
    static const struct { int n, k; bool silu; } shapes[] = { { 1224, 840, false }, { 1200, 840, true }, { 129, 72, false }, { 4096, 1024, false }, { 1296, 960, true } };
    int ran[GEMM_SKINNY_CUTS + 1] = { 0 };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct product p;
        product_new(&p, shapes[i].n, shapes[i].k, shapes[i].silu);
        for (int rows = 16; rows <= 128; rows += 16)
            for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++)
                for (int ctas = 2; ctas <= 132; ctas = ctas * 2 + 1) {      /* from several tiles per cta to several ctas per tile */
                    struct gemm_skinny_plan plan = gemm_skinny_plan_cut(rows, p.n, p.k, cut, ctas, ctas % 4 == 1 ? 110 << 10 : GEMM_SKINNY_SMEM_MAX);
                    if (plan.stages < 2) continue;
                    run(&p, rows - 3, rows % 32 == 0 && !p.silu, &plan, ctas != 5);
                    ran[cut]++;
                }
        product_free(&p);
    }
    for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++)
        if (ran[cut] == 0) fail_msg("cut %d suited no shape", cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_bucket), cmocka_unit_test(every_cut) };
    if (gpu_absent()) return GPU_SKIP;
    if (gpu_launch(0).sm != 90) { printf("skipped: not an sm_90 device\n"); return GPU_SKIP; }
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
