/* gemm_run for few and many rows, inside a captured graph, after tuning (before and between) and from its cache file, against a plain double loop. */
#include <unistd.h>

#include "gemm.h"
#include "gpu.h"
#include "unit/base/cmocka_all.h"

enum { MAX_T = 513, N = 264, K = 584 };

static struct { uint16_t *xh, *wh; double *ref; void *x, *w, *out, *workspace; } data;

static int setup(void **state)
{
    uint64_t seed = 5;
    float *x = malloc(sizeof *x * MAX_T * K), *w = malloc(sizeof *w * N * K);

    (void)state;
    data.xh = malloc((size_t)2 * MAX_T * K);
    data.wh = malloc((size_t)2 * N * K);
    data.ref = malloc(sizeof(double) * MAX_T * N);
    random_elem(&seed, 1.0f, x, data.xh, (size_t)MAX_T * K);
    random_elem(&seed, 0.05f, w, data.wh, (size_t)N * K);
    for (int t = 0; t < MAX_T; t++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)x[t * K + k] * w[n * K + k];
            data.ref[t * N + n] = sum;
        }
    free(x);
    free(w);
    data.x = gpu_copy(data.xh, (size_t)2 * MAX_T * K);
    data.w = gpu_copy(data.wh, (size_t)2 * N * K);
    data.out = gpu_new((size_t)4 * MAX_T * N);
    data.workspace = gpu_new(GEMM_WORKSPACE_BYTES);
    return 0;
}

static struct gemm *open_gemm(const char *cache_path)
{
    struct gemm *g = NULL;
    struct err err = { 0 };

    if (gemm_open(&g, &(struct gemm_options){ .workspace = data.workspace, .workspace_bytes = GEMM_WORKSPACE_BYTES, .f16 = gpu_f16, .cache_path = cache_path },
                  &err) < 0)
        fail_msg("%s", err.message);
    return g;
}

static void poison(void) { CUDA_MUST(cudaMemset(data.out, 0xFF, (size_t)4 * MAX_T * N)); CUDA_MUST(cudaDeviceSynchronize()); }

static void compare(int t, bool f32)
{
    float *got = malloc(sizeof *got * MAX_T * N);
    double d = 0, s = 0;

    gpu_read(got, data.out, (size_t)t * N * (f32 ? 4 : 2));
    for (int i = 0; i < t * N; i++) {
        double y = f32 ? (double)got[i] : (double)of_elem(((uint16_t *)got)[i]);
        d += (y - data.ref[i]) * (y - data.ref[i]);
        s += data.ref[i] * data.ref[i];
    }
    free(got);
    if (!(sqrt(d / s) < (f32 ? 2e-5 : gpu_tolerance(4e-3)))) fail_msg("T %d f32 %d: error %g", t, f32, sqrt(d / s));
}

static const int rows[] = { 1, 2, 15, 16, 17, 24, 31, 32, 33, 64, 100, 128, 129, 255, 256, 257, 513 };
enum { NUM_ROWS = sizeof rows / sizeof rows[0] };

static void run_all(struct gemm *g)
{
    struct launch l = gpu_launch(1);
    struct err err = { 0 };

    for (int i = 0; i < NUM_ROWS; i++)
        for (int f32 = 0; f32 < 2; f32++) {
            poison();
            if (gemm_run(g, &(struct gemm_args){ .x = data.x, .w = data.w, .out = data.out, .num_tokens = rows[i], .n = N, .k = K, .out_f32 = f32 }, &l, &err) < 0)
                fail_msg("%s", err.message);
            gpu_sync();
            compare(rows[i], f32);
        }
}

static void right_without_tuning(void **state)
{
    struct gemm *g = open_gemm(NULL);

    (void)state;
    run_all(g);
    gemm_close(g);
}

static void right_in_a_captured_graph(void **state)
{
    struct gemm *g = open_gemm(NULL);
    struct launch l = gpu_launch(1);
    cudaStream_t stream;

    (void)state;
    CUDA_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    l.stream = stream;
    for (int i = 0; i < NUM_ROWS; i++) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        for (int again = 0; again < 3; again++)
            assert_int_equal(gemm_run(g, &(struct gemm_args){ .x = data.x, .w = data.w, .out = data.out, .num_tokens = rows[i], .n = N, .k = K }, &l, NULL), 0);
        CUDA_MUST(cudaStreamEndCapture(stream, &graph));
        CUDA_MUST(cudaGraphInstantiate(&exec, graph, 0));
        poison();
        CUDA_MUST(cudaGraphLaunch(exec, stream));
        CUDA_MUST(cudaStreamSynchronize(stream));
        compare(rows[i], false);
        CUDA_MUST(cudaGraphExecDestroy(exec));
        CUDA_MUST(cudaGraphDestroy(graph));
    }
    CUDA_MUST(cudaStreamDestroy(stream));
    gemm_close(g);
}

static void count(void *arg, int done, int total) { (void)total; *(int *)arg = done; }

static void tuned_once_then_read_from_the_file(void **state)
{
    char path[] = "/tmp/gemm_test.XXXXXX";
    int fd = mkstemp(path), calls = 0;
    size_t scratch_bytes = (size_t)64 << 20;
    void *scratch = gpu_new(scratch_bytes);
    struct gemm_shape shapes[] = { { .n = N, .k = K }, { .n = N, .k = K, .out_f32 = true } };
    struct gemm_tune_args args = { .shapes = shapes, .num_shapes = 2, .max_rows = 513, .scratch = scratch, .scratch_bytes = scratch_bytes, .budget_ms = 120000,
                                   .progress = count, .arg = &calls };
    struct launch l = gpu_launch(0);
    struct err err = { 0 };
    struct gemm *g;

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    g = open_gemm(path);
    if (gemm_tune(g, &args, &l, &err) < 0) fail_msg("%s", err.message);
    assert_true(calls > 10);
    assert_int_equal(gemm_refused(g), 0);                  /* although fp32 results were written between bf16 ones */
    run_all(g);
    gemm_close(g);
    calls = 0;
    g = open_gemm(path);
    assert_int_equal(gemm_tune(g, &args, &l, &err), 0);
    assert_int_equal(calls, 0);                            /* nothing left to time */
    run_all(g);
    gemm_close(g);
    gpu_free(scratch);
    unlink(path);
}

static bool all_zero(const void *device, size_t bytes)
{
    unsigned char *host = malloc(bytes);
    bool zero = true;

    gpu_read(host, device, bytes);
    for (size_t i = 0; i < bytes && zero; i++) zero = host[i] == 0;
    free(host);
    return zero;
}

/* With weights and memory of the shapes' own, as a serving rank does: nothing at start, then an item at a time with products between. */
static void timed_later_an_item_at_a_time(void **state)
{
    char path[] = "/tmp/gemm_test.XXXXXX";
    int fd = mkstemp(path), left, items = 0, changes = 0, rc = 1;
    size_t x_bytes = (size_t)2 * MAX_T * K, out_bytes = (size_t)4 * MAX_T * N, spare_bytes = (size_t)4 * MAX_T * K;
    void *x = gpu_new(x_bytes), *out = gpu_new(out_bytes), *spare = gpu_new(spare_bytes), *other = gpu_copy(data.wh, (size_t)2 * N * K);
    struct gemm_shape shapes[] = { { .n = N, .k = K }, { .n = 256, .k = K, .silu_mul = true }, { .n = N, .k = K, .out_f32 = true, .max_rows = 100 } };
    struct gemm_tune_args args = { .shapes = shapes, .num_shapes = 3, .max_rows = MAX_T, .later = true };
    struct launch l = gpu_launch(1);
    struct err err = { 0 };
    int32_t changed, last = 0;
    struct gemm *g;

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < 3; i++) {
        shapes[i].w[0] = data.w;
        shapes[i].w[1] = other;
        shapes[i].num_w = 2;
        shapes[i].x = x;
        shapes[i].out = out;
        shapes[i].spare = spare;
        shapes[i].spare_bytes = spare_bytes;
    }
    g = open_gemm(path);
    if (gemm_tune(g, &args, &l, &err) < 0) fail_msg("%s", err.message);
    left = gemm_tune_left(g);
    assert_int_equal(left, l.sm == 90 ? 2 * 16 + 11 : 2 * 11 + 6);     /* 1 or 17 to 513 rows, to 100: no time for any */
    while (rc == 1) {
        if ((rc = gemm_tune_more(g, &l, &changed, &err)) < 0) fail_msg("%s", err.message);
        assert_true(changed == 0 || changed >= last);      /* few rows first */
        if (changed) changes++, last = changed;
        assert_int_equal(gemm_tune_left(g), left - ++items);
        assert_int_equal(rc, items < left);
        if (items % 5 == 0) run_all(g);                    /* half timed */
    }
    assert_int_equal(items, left);
    assert_true(changes > 0);
    assert_int_equal(gemm_tune_more(g, &l, &changed, &err), 0);
    assert_int_equal(changed, 0);
    assert_int_equal(gemm_refused(g), 0);
    assert_true(all_zero(x, x_bytes) && all_zero(out, (size_t)2 * MAX_T * N) && all_zero(spare, spare_bytes));
    run_all(g);
    gemm_close(g);
    g = open_gemm(path);                                   /* it was written when the last item was done */
    if (gemm_tune(g, &args, &l, &err) < 0) fail_msg("%s", err.message);
    assert_int_equal(gemm_tune_left(g), 0);
    gemm_close(g);

    assert_int_equal(truncate(path, 0), 0);
    g = open_gemm(path);
    if (gemm_tune(g, &args, &l, &err) < 0) fail_msg("%s", err.message);
    assert_int_equal(gemm_tune_more(g, &l, &changed, &err), 1);
    gemm_close(g);                                         /* keeps the one that is done */
    g = open_gemm(path);
    if (gemm_tune(g, &args, &l, &err) < 0) fail_msg("%s", err.message);
    assert_int_equal(gemm_tune_left(g), left - 1);
    gemm_close(g);
    gpu_free(x); gpu_free(out); gpu_free(spare); gpu_free(other);
    unlink(path);
}

/* ---- among neighbours ---- */

static struct { struct gemm *g; struct launch launch; int32_t rows, largest; int begun, ran; } layer;

static int layer_begin(void *arg, int32_t num_rows)
{
    (void)arg;
    layer.begun++;
    layer.rows = num_rows;
    if (num_rows > layer.largest) layer.largest = num_rows;
    return 0;
}

/* A model of two products. */
static int layer_run(void *arg)
{
    struct gemm_args plain = { .x = data.x, .w = data.w, .out = data.out, .num_tokens = layer.rows, .n = N, .k = K }, silu = plain;
    struct err err = { 0 };

    (void)arg;
    layer.ran++;
    silu.n = 256;
    silu.silu_mul = gemm_fuses_silu(layer.g, layer.rows, silu.n, K);
    return gemm_run(layer.g, &plain, &layer.launch, &err) < 0 || gemm_run(layer.g, &silu, &layer.launch, &err) < 0 ? ERR_INTERNAL : 0;
}

static void layers_follow_their_products(void **state)
{
    char path[] = "/tmp/gemm_test.XXXXXX";
    int fd = mkstemp(path), before = 0, trials = 0, rc = 1;
    size_t scratch_bytes = (size_t)64 << 20;
    void *scratch = gpu_new(scratch_bytes);
    struct gemm_shape shapes[] = { { .n = N, .k = K }, { .n = 256, .k = K, .silu_mul = true } };
    struct gemm_tune_args args = { .shapes = shapes, .num_shapes = 2, .max_rows = 96, .scratch = scratch, .scratch_bytes = scratch_bytes, .later = true,
                                   .layers = { .begin = layer_begin, .run = layer_run, .max_rows = 60, .max_captured = 48 } };
    struct err err = { 0 };
    cudaStream_t stream;
    int32_t changed;

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    memset(&layer, 0, sizeof layer);
    layer.launch = gpu_launch(1);
    CUDA_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    layer.launch.stream = stream;
    layer.g = open_gemm(path);
    if (gemm_tune(layer.g, &args, &layer.launch, &err) < 0) fail_msg("%s", err.message);
    while (rc == 1) {
        int left = gemm_tune_left(layer.g);
        trials += left == before;                          /* a trial that is not its layer's last leaves as many */
        before = left;
        if ((rc = gemm_tune_more(layer.g, &layer.launch, &changed, &err)) < 0) fail_msg("%s", err.message);
        assert_in_range(gemm_tune_left(layer.g), left - 1, left);
    }
    assert_int_equal(gemm_tune_left(layer.g), 0);
    if (layer.launch.sm == 90) {
        assert_int_equal(layer.largest, 60);
        assert_true(trials > 20 && layer.begun > 20 && layer.ran > 2 * layer.begun);       /* 60 rows are run, not captured */
    } else assert_int_equal(layer.ran, 0);
    run_all(layer.g);
    gemm_close(layer.g);
    layer.g = open_gemm(path);                             /* all of it was kept */
    if (gemm_tune(layer.g, &args, &layer.launch, &err) < 0) fail_msg("%s", err.message);
    assert_int_equal(gemm_tune_left(layer.g), 0);
    gemm_close(layer.g);
    CUDA_MUST(cudaStreamDestroy(stream));
    gpu_free(scratch);
    unlink(path);
}

/* The first 256 rows of w as gate and up. Where the device has no kernel for it, or a slower one, nothing is fused. */
static void silu_fused_where_that_was_faster(void **state)
{
    enum { F = 128 };
    size_t scratch_bytes = (size_t)64 << 20;
    void *scratch = gpu_new(scratch_bytes);
    struct gemm_shape shape = { .n = 2 * F, .k = K, .silu_mul = true };
    struct gemm_tune_args args = { .shapes = &shape, .num_shapes = 1, .max_rows = MAX_T, .scratch = scratch, .scratch_bytes = scratch_bytes, .budget_ms = 120000 };
    struct launch l = gpu_launch(1);
    struct gemm *g = open_gemm(NULL);
    uint16_t *got = malloc(sizeof *got * MAX_T * F);
    struct err err = { 0 };
    int fused = 0;

    (void)state;
    if (gemm_tune(g, &args, &l, &err) < 0) fail_msg("%s", err.message);
    for (int i = 0; i < NUM_ROWS; i++) {
        double d = 0, s = 0;
        if (!gemm_fuses_silu(g, rows[i], 2 * F, K)) continue;
        fused++;
        poison();
        if (gemm_run(g, &(struct gemm_args){ .x = data.x, .w = data.w, .out = data.out, .num_tokens = rows[i], .n = 2 * F, .k = K, .silu_mul = true }, &l, &err) < 0)
            fail_msg("%s", err.message);
        gpu_sync();
        gpu_read(got, data.out, sizeof *got * (size_t)rows[i] * F);
        for (int t = 0; t < rows[i]; t++)
            for (int f = 0; f < F; f++) {
                double gate = data.ref[t * N + f], want = gate / (1 + exp(-gate)) * data.ref[t * N + F + f], y = (double)of_elem(got[t * F + f]);
                d += (y - want) * (y - want);
                s += want * want;
            }
        if (!(sqrt(d / s) < gpu_tolerance(5e-3))) fail_msg("T %d: error %g", rows[i], sqrt(d / s));
    }
    assert_true(fused >= 2);                               /* a few rows at least */
    free(got);
    gemm_close(g);
    gpu_free(scratch);
}

static void silu_only_where_it_is_fused(void **state)
{
    struct gemm *g = open_gemm(NULL);
    struct launch l = gpu_launch(0);

    (void)state;
    assert_true(gemm_fuses_silu(g, 1, N, K));
    assert_false(gemm_fuses_silu(g, 4096, N, K));
    assert_int_equal(gemm_run(g, &(struct gemm_args){ .x = data.x, .w = data.w, .out = data.out, .num_tokens = 4096, .n = N, .k = K, .silu_mul = true }, &l, NULL), ERR_UNSUPPORTED);
    gemm_close(g);
}

/* Sums of 584 * 2048, beyond f16: its largest, with the sign, from every own kernel that the device has; with silu the sign of up. */
static void what_overflows_becomes_the_largest(void **state)
{
    enum { T = 128 };
    uint16_t *x = malloc(2 * T * K), *w = malloc(2 * N * K), *got = malloc(2 * T * N);
    void *counters = gpu_new(MATMUL_COUNTER_BYTES), *partials = gpu_new(GEMM_SKINNY_WORKSPACE_BYTES);
    struct launch l = gpu_launch(0);
    int kernels = 0;

    (void)state;
    for (int i = 0; i < T * K; i++) x[i] = to_elem(256);
    for (int i = 0; i < N * K; i++) w[i] = to_elem(i / K % 2 ? -8 : 8);
    CUDA_MUST(cudaMemset(counters, 0, MATMUL_COUNTER_BYTES));
    CUDA_MUST(cudaMemcpy(data.x, x, 2 * T * K, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(data.w, w, 2 * N * K, cudaMemcpyHostToDevice));
    for (int way = 0; way < 6; way++) {
        int t = way < 2 ? 16 : T, silu = way % 2, rc;
        int outs = silu ? N / 2 : N;
        struct gemv_kernel few = { .x = data.x, .w = data.w, .out = data.out, .num_tokens = t, .n = N, .k = K, .silu_mul = silu, .counters = counters,
                                   .workspace = partials };
        struct gemm_kernel many = { .x = data.x, .w = data.w, .out = data.out, .num_tokens = t, .n = N, .k = K, .silu_mul = silu };
        if (silu && outs % 8 != 0) continue;
        poison();
        rc = way < 2 ? launch_gemv(&few, &l) : way < 4 ? launch_gemm_skinny(&few, &l) : launch_gemm(&many, &l);
        if (rc == ERR_UNSUPPORTED) continue;
        assert_int_equal(rc, 0);
        gpu_sync();
        gpu_read(got, data.out, (size_t)(2 * t * outs));
        for (int i = 0; i < t * outs; i++) {
            int f = i % outs;
            double gate = f % 2 ? -1 : 1, up = silu ? ((outs + f) % 2 ? -1 : 1) : 1;
            double want = silu && gate < 0 ? 0 : gate * up * (gpu_f16 ? 65504 : silu ? 1196032.0 * 1196032.0 : 1196032);
            if (!(fabs(of_elem(got[i]) - want) <= 0x1p-7 * fabs(want))) fail_msg("way %d, element %d: %g, not %g", way, i, of_elem(got[i]), want);
        }
        kernels++;
    }
    assert_true(kernels >= 2);
    CUDA_MUST(cudaMemcpy(data.x, data.xh, (size_t)2 * MAX_T * K, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(data.w, data.wh, (size_t)2 * N * K, cudaMemcpyHostToDevice));
    gpu_free(counters);
    gpu_free(partials);
    free(x); free(w); free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(right_without_tuning), cmocka_unit_test(right_in_a_captured_graph),
                                        cmocka_unit_test(tuned_once_then_read_from_the_file), cmocka_unit_test(timed_later_an_item_at_a_time),
                                        cmocka_unit_test(layers_follow_their_products), cmocka_unit_test(silu_fused_where_that_was_faster),
                                        cmocka_unit_test(silu_only_where_it_is_fused), cmocka_unit_test(what_overflows_becomes_the_largest) };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, setup, NULL);
    }
    return failed;
}
