/* launch_gemv against a plain double loop: every T of 1..16, odd N and K, both outputs, silu_mul, and sums that do not depend on T. */
#include "gpu.h"
#include "unit/base/cmocka_all.h"

struct shape { int n, k; };

/* ref[t, i] = x[t, :] . w[i, :] in double */
static void multiply(const float *x, const float *w, double *ref, int t, int n, int k)
{
    for (int r = 0; r < t; r++)
        for (int i = 0; i < n; i++) {
            const float *a = x + (size_t)r * (size_t)k, *b = w + (size_t)i * (size_t)k;
            double sum = 0;
            for (int j = 0; j < k; j++) sum += (double)a[j] * b[j];
            ref[(size_t)r * (size_t)n + (size_t)i] = sum;
        }
}

/* |a - ref| / |ref| of what the device wrote; NaN where it wrote nothing. */
static double distance(const void *a, const double *ref, size_t n, bool f32)
{
    double d = 0, s = 0;

    for (size_t i = 0; i < n; i++) {
        double y = f32 ? (double)((const float *)a)[i] : (double)of_elem(((const uint16_t *)a)[i]);
        d += (y - ref[i]) * (y - ref[i]);
        s += ref[i] * ref[i];
    }
    return sqrt(d / (s > 0 ? s : 1));
}

static void check(struct shape shape, bool f32, bool silu, int pdl)
{
    enum { T = GEMV_MAX_ROWS };
    if (!gpu_turn()) return;
    int n = shape.n, k = shape.k, outs = silu ? n / 2 : n;
    size_t out_bytes = (size_t)T * (size_t)outs * (f32 ? 4 : 2), row_bytes = out_bytes / T;
    uint64_t seed = 17 + (uint64_t)n * 31 + (uint64_t)k;
    float *x = malloc((size_t)T * (size_t)k * 4), *w = malloc((size_t)n * (size_t)k * 4);
    uint16_t *xh = malloc((size_t)T * (size_t)k * 2), *wh = malloc((size_t)n * (size_t)k * 2);
    double *ref = malloc((size_t)T * (size_t)n * sizeof *ref);
    unsigned char *full = malloc(out_bytes + 8), *got = malloc(out_bytes);
    struct launch l = gpu_launch(pdl);
    void *dx, *dw, *dout, *counters = gpu_new(MATMUL_COUNTER_BYTES);

    random_elem(&seed, 1.0f, x, xh, (size_t)T * (size_t)k);
    random_elem(&seed, 0.05f, w, wh, (size_t)n * (size_t)k);
    multiply(x, w, ref, T, n, k);
    if (silu)
        for (int t = 0; t < T; t++)
            for (int f = 0; f < outs; f++) {
                double gate = ref[t * n + f], up = ref[t * n + outs + f];
                ref[t * outs + f] = gate / (1 + exp(-gate)) * up;     /* t * outs + f <= t * n + f: read before it is written over */
            }
    dx = gpu_copy(xh, (size_t)T * (size_t)k * 2);
    dw = gpu_copy(wh, (size_t)n * (size_t)k * 2);
    CUDA_MUST(cudaMemset(counters, 0, MATMUL_COUNTER_BYTES));
    for (int t = T; t >= 1; t--) {                         /* odd T: the ctas deal out the rows of w; the sums are the same */
        dout = gpu_new(out_bytes);
        assert_int_equal(launch_gemv(&(struct gemv_kernel){ .x = dx, .w = dw, .out = dout, .num_tokens = t, .n = n, .k = k, .out_f32 = f32, .silu_mul = silu,
                                                             .counters = t % 2 ? counters : NULL }, &l), 0);
        gpu_sync();
        gpu_read(got, dout, out_bytes);
        gpu_free(dout);
        if (t == T) {
            double e = distance(got, ref, (size_t)T * (size_t)outs, f32);
            if (!(e < (f32 ? 2e-5 : gpu_tolerance(4e-3)))) fail_msg("n %d k %d f32 %d silu %d: error %g", n, k, f32, silu, e);
            memcpy(full, got, out_bytes);
        } else if (memcmp(full, got, row_bytes * (size_t)t) != 0) {
            fail_msg("n %d k %d f32 %d silu %d: T = %d differs from T = %d", n, k, f32, silu, t, T);
        }
        for (size_t i = row_bytes * (size_t)t; i < out_bytes; i++)
            if (got[i] != 0xFF) fail_msg("n %d k %d T %d: wrote behind its rows", n, k, t);
    }
    gpu_read(full, counters, 8);
    for (int i = 0; i < 8; i++) assert_int_equal(full[i], 0);          /* left as they were */
    gpu_free(counters);
    gpu_free(dx);
    gpu_free(dw);
    free(x); free(w); free(xh); free(wh); free(ref); free(full); free(got);
}

static void every_shape_and_every_T(void **state)
{
    static const struct shape shapes[] = { { 1, 8 }, { 7, 24 }, { 8, 576 }, { 9, 576 }, { 577, 584 }, { 40, 1000 }, { 1000, 1024 }, { 4096, 520 },
                                           { 33, 1544 }, { 130, 2056 }, { 65, 4096 }, { 3000, 4104 }, { 24, 14336 }, { 70, 14344 }, { 5003, 64 }, { 9000, 3080 }, { 20001, 1032 } };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check(shapes[i], false, false, i % 2 == 0);
        check(shapes[i], true, false, i % 2 == 1);
    }
}

static void gate_and_up_in_one(void **state)
{
    static const struct shape shapes[] = { { 2, 8 }, { 14, 72 }, { 16, 576 }, { 18, 576 }, { 3072, 576 }, { 1030, 1024 }, { 2050, 4096 }, { 26, 14336 }, { 9000, 3080 } };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) check(shapes[i], false, true, i % 2 == 0);
}

static void what_it_does_not_do_is_refused(void **state)
{
    struct launch l = gpu_launch(0);
    struct gemv_kernel a = { .num_tokens = 1, .n = 8, .k = 8 }, b;

    (void)state;
    b = a; b.num_tokens = 17;            assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.num_tokens = 0;             assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.k = 12;                     assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.n = 7; b.silu_mul = true;   assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_shape_and_every_T), cmocka_unit_test(gate_and_up_in_one),
                                        cmocka_unit_test(what_it_does_not_do_is_refused) };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
