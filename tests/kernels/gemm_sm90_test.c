/* launch_gemm and every way to cut a product against plain double sums: odd T, N and K, both outputs, silu_mul, few and many tiles. */
#include "gemm_sm90_plan.h"
#include "gpu.h"
#include "unit/base/cmocka_all.h"

enum { GUARD = 4096, SAMPLES = 1000 };

static struct launch device;

static int setup(void **state)
{
    (void)state;
    device = gpu_launch(1);
    return 0;
}

struct problem { int t, n, k; float *x, *w; void *x_dev, *w_dev, *out_dev; unsigned char *out; size_t out_bytes; };

static struct problem problem_new(int t, int n, int k)
{
    struct problem p = { .t = t, .n = n, .k = k, .out_bytes = (size_t)t * (size_t)n * 4 + GUARD };
    uint64_t seed = (uint64_t)(t * 131 + n * 17 + k);
    size_t x = (size_t)t * (size_t)k, w = (size_t)n * (size_t)k;
    uint16_t *raw = malloc(2 * (x > w ? x : w));

    p.x = malloc(sizeof(float) * x);
    p.w = malloc(sizeof(float) * w);
    p.out = malloc(p.out_bytes);
    for (size_t i = 0; i < x; i++) { raw[i] = to_elem((float)(rng_uniform(&seed) * 2 - 1)); p.x[i] = of_elem(raw[i]); }
    p.x_dev = gpu_copy(raw, 2 * x);
    for (size_t i = 0; i < w; i++) { raw[i] = to_elem((float)(rng_uniform(&seed) * 0.2 - 0.1)); p.w[i] = of_elem(raw[i]); }
    p.w_dev = gpu_copy(raw, 2 * w);
    free(raw);
    p.out_dev = gpu_new(p.out_bytes);
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->x);
    free(p->w);
    free(p->out);
    gpu_free(p->x_dev);
    gpu_free(p->w_dev);
    gpu_free(p->out_dev);
}

static double dot(const struct problem *p, int t, int n)
{
    double sum = 0;
    for (int i = 0; i < p->k; i++) sum += (double)p->x[(size_t)t * (size_t)p->k + (size_t)i] * (double)p->w[(size_t)n * (size_t)p->k + (size_t)i];
    return sum;
}

static double expected(const struct problem *p, int t, int n, bool silu)
{
    double gate = dot(p, t, n);
    return silu ? gate / (1 + exp(-gate)) * dot(p, t, n + p->n / 2) : gate;
}

/* Nothing is NaN (the poison), the guard behind out is as it was, and samples agree. plan NULL: launch_gemm's own. */
static void check(struct problem *p, const struct gemm_sm90_plan *plan, bool f32, bool silu)
{
    if (!gpu_turn()) return;
    struct gemm_kernel a = { .x = p->x_dev, .w = p->w_dev, .out = p->out_dev, .num_tokens = p->t, .n = p->n, .k = p->k, .out_f32 = f32, .silu_mul = silu };
    int width = silu ? p->n / 2 : p->n, rc;
    size_t count = (size_t)p->t * (size_t)width, bytes = count * (f32 ? 4 : 2);
    uint64_t seed = 99;
    double d = 0, s = 0, worst = 0;
    char name[128];

    snprintf(name, sizeof name, "T %d N %d K %d f32 %d silu %d, %d x %d cluster %d x %d split %d", p->t, p->n, p->k, f32, silu, plan ? plan->rows : 0,
             plan ? plan->cols : 0, plan ? plan->cluster_m : 0, plan ? plan->cluster_n : 0, plan ? plan->split : 0);
    CUDA_MUST(cudaMemset(p->out_dev, 0xFF, p->out_bytes));
    rc = plan ? launch_gemm_planned(&a, plan, &device) : launch_gemm(&a, &device);
    if (rc < 0) fail_msg("%s: %d %s", name, rc, cudaGetErrorString(cudaGetLastError()));
    gpu_sync();
    gpu_read(p->out, p->out_dev, p->out_bytes);
    for (size_t i = 0; i < GUARD; i++)
        if (p->out[bytes + i] != 0xFF) fail_msg("%s: wrote behind out", name);
    for (size_t i = 0; i < count; i++) {
        double y = f32 ? (double)((float *)p->out)[i] : (double)of_elem(((uint16_t *)p->out)[i]);
        if (!isfinite(y)) fail_msg("%s: row %zu column %zu is %g", name, i / (size_t)width, i % (size_t)width, y);
    }
    for (int i = 0; i < SAMPLES; i++) {
        int t = (int)(rng_next(&seed) % (uint64_t)p->t), n = (int)(rng_next(&seed) % (uint64_t)width);
        size_t at = (size_t)t * (size_t)width + (size_t)n;
        double y = f32 ? (double)((float *)p->out)[at] : (double)of_elem(((uint16_t *)p->out)[at]), want = expected(p, t, n, silu);
        d += (y - want) * (y - want);
        s += want * want;
        worst = fmax(worst, fabs(y - want) / (fabs(want) + 0.1));
    }
    if (!(sqrt(d / s) < (f32 ? 2e-5 : gpu_tolerance(4e-3))) || !(worst < (f32 ? 2e-4 : gpu_tolerance(1e-2)))) fail_msg("%s: error %g, worst %g", name, sqrt(d / s), worst);
}

static void all_plans(int t, int n, int k)
{
    struct problem p = problem_new(t, n, k);
    static const struct { bool f32, silu; } kinds[] = { { false, false }, { true, false }, { false, true } };
    int tried = 0;

    for (int kind = 0; kind < 3; kind++) {
        struct gemm_kernel a = { .num_tokens = t, .n = n, .k = k, .out_f32 = kinds[kind].f32, .silu_mul = kinds[kind].silu };
        struct gemm_sm90_plan plan;
        for (int i = 0; gemm_sm90_plan_at(&plan, i, &a, device.num_sms); i++, tried++) check(&p, &plan, kinds[kind].f32, kinds[kind].silu);
        check(&p, NULL, kinds[kind].f32, kinds[kind].silu);
    }
    if (tried < 20) fail_msg("only %d plans", tried);
    problem_free(&p);
}

static void odd_sizes(void **state) { (void)state; all_plans(257, 1072, 584); }
static void few_rows(void **state) { (void)state; all_plans(97, 528, 1096); }
static void one_stage_of_k(void **state) { (void)state; all_plans(128, 272, 264); }
static void several_rounds(void **state) { (void)state; all_plans(1000, 6160, 200); }
static void long_sums(void **state) { (void)state; all_plans(256, 1024, 4096); }

/* Launches that follow each other, with and without a split. */
static void one_after_the_other(void **state)
{
    struct problem p = problem_new(256, 1024, 1024);
    struct gemm_kernel a = { .x = p.x_dev, .w = p.w_dev, .out = p.out_dev, .num_tokens = 256, .n = 1024, .k = 1024 };
    (void)state;
    for (int round = 0; round < 200; round++) {
        struct gemm_sm90_plan plan;
        if (!gpu_turn() || !gemm_sm90_plan_at(&plan, round % 13, &a, device.num_sms)) continue;
        assert_int_equal(launch_gemm_planned(&a, &plan, &device), 0);
    }
    check(&p, NULL, false, false);
    problem_free(&p);
}

static void refused(void **state)
{
    struct gemm_kernel a = { .num_tokens = 256, .n = 1024, .k = 1020 };
    struct launch old = device;

    (void)state;
    assert_int_equal(launch_gemm(&a, &device), ERR_UNSUPPORTED);
    a.k = 1024, a.n = 1022;
    assert_int_equal(launch_gemm(&a, &device), ERR_UNSUPPORTED);
    a.n = 1032, a.silu_mul = true;
    assert_int_equal(launch_gemm(&a, &device), ERR_UNSUPPORTED);
    old.sm = 80;
    a.n = 1024;
    assert_int_equal(launch_gemm(&a, &old), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(odd_sizes), cmocka_unit_test(few_rows), cmocka_unit_test(one_stage_of_k),
                                        cmocka_unit_test(several_rounds), cmocka_unit_test(long_sums), cmocka_unit_test(one_after_the_other),
                                        cmocka_unit_test(refused) };
    struct cudaDeviceProp prop;
    if (gpu_absent()) return GPU_SKIP;
    CUDA_MUST(cudaGetDeviceProperties(&prop, 0));
    if (prop.major != 9) {
        printf("skipped: %s is not a Hopper GPU\n", prop.name);
        return GPU_SKIP;
    }
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, setup, NULL);
    }
    return failed;
}
