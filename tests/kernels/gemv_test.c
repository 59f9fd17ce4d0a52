/* launch_gemv against a plain double loop: every T of 1..16, odd N and K, both outputs, silu_mul, the norm between
 * two products, and sums that do not depend on T. */
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

/* ---- the norm between two products ---- */

/* How a product stands to norms. pieces 0: no norm before it. num_sms: of a smaller device, 0: of this one. */
struct norms { bool add, silu; int pieces, num_sms; };

/* What the rows leave, on the host, and where the device has it. T rows, N outputs. */
struct left { size_t out_bytes, residual_bytes, squares_bytes; unsigned char *out; float *residual, *squares; };

static struct left left_new(size_t rows, size_t outs, bool add)
{
    struct left l = { .out_bytes = rows * outs * 2, .residual_bytes = add ? rows * outs * 4 : 0, .squares_bytes = rows * NORM_PIECES * 4 };
    l.out = malloc(l.out_bytes);
    l.residual = malloc(l.residual_bytes + 4);
    l.squares = malloc(l.squares_bytes);
    return l;
}
static void left_free(struct left *l) { free(l->out); free(l->residual); free(l->squares); }

/* The squares that stand before a product: pieces of each row, NaN behind them; -> each row's scale. */
static float *squares_before(uint64_t *seed, int rows, int pieces, int k, float eps, double *scale)
{
    float *squares = malloc((size_t)rows * NORM_PIECES * 4);

    for (int t = 0; t < rows; t++) {
        double sum = 0;
        for (int i = 0; i < NORM_PIECES; i++) squares[t * NORM_PIECES + i] = i < pieces ? (float)(rng_uniform(seed) * (t + 1)) : NAN;
        for (int i = 0; i < pieces; i++) sum += squares[t * NORM_PIECES + i];
        scale[t] = 1 / sqrt(sum / k + eps);
    }
    return squares;
}

/* ref, the sums: scaled, silu_mul, added to the residual (which becomes the new one), times the weight. */
static void norm_reference(double *ref, int rows, int n, const struct norms *norms, const double *scale, double *residual, const float *weight)
{
    int outs = norms->silu ? n / 2 : n;

    for (int t = 0; t < rows; t++) {
        for (int i = 0; i < n && norms->pieces; i++) ref[t * n + i] *= scale[t];
        for (int i = 0; i < outs; i++) {
            double y = ref[t * n + i];
            if (norms->silu) y = y / (1 + exp(-y)) * ref[t * n + outs + i];
            if (norms->add) {
                residual[t * outs + i] += y;
                y = residual[t * outs + i] * weight[i];
            }
            ref[t * outs + i] = y;
        }
    }
}

static void norms_agree(struct shape shape, const struct norms *norms, const struct left *got, const double *ref, const double *residual, int num_pieces)
{
    enum { T = GEMV_MAX_ROWS, UNIT = 16 };
    int outs = norms->silu ? shape.n / 2 : shape.n;
    double e = distance(got->out, ref, (size_t)T * (size_t)outs, false);

    if (!(e < gpu_tolerance(4e-3))) fail_msg("n %d k %d silu %d pieces %d: error %g", shape.n, shape.k, norms->silu, norms->pieces, e);
    if (!norms->add) return;
    e = distance(got->residual, residual, (size_t)T * (size_t)outs, true);
    if (!(e < 2e-5)) fail_msg("n %d k %d pieces %d: residual's error %g", shape.n, shape.k, norms->pieces, e);
    assert_int_equal(num_pieces, (outs + UNIT - 1) / UNIT);
    for (int t = 0; t < T; t++)
        for (int i = 0; i < num_pieces; i++) {
            double sum = 0, square = got->squares[t * NORM_PIECES + i];
            for (int c = i * UNIT; c < outs && c < (i + 1) * UNIT; c++) sum += residual[t * outs + c] * residual[t * outs + c];
            if (!(fabs(square - sum) <= 1e-4 * sum)) fail_msg("n %d k %d row %d piece %d: %g, not %g", shape.n, shape.k, t, i, square, sum);
        }
}

/* A row's values, its residual and its squares are what they were among T rows; all else is as it was. */
static void same_rows(struct shape shape, const struct left *got, const struct left *full, const float *residual_before, int t, bool add, int num_pieces)
{
    enum { T = GEMV_MAX_ROWS };
    size_t out = got->out_bytes / T * (size_t)t, residual = got->residual_bytes / T * (size_t)t;
    const unsigned char *squares = (const unsigned char *)got->squares;

    if (memcmp(got->out, full->out, out) != 0) fail_msg("n %d k %d: T = %d differs from T = %d", shape.n, shape.k, t, T);
    for (size_t i = out; i < got->out_bytes; i++)
        if (got->out[i] != 0xFF) fail_msg("n %d k %d T %d: wrote behind its rows", shape.n, shape.k, t);
    if (!add) return;
    if (memcmp(got->residual, full->residual, residual) != 0) fail_msg("n %d k %d: residual of T = %d differs", shape.n, shape.k, t);
    if (memcmp((char *)got->residual + residual, (const char *)residual_before + residual, got->residual_bytes - residual) != 0)
        fail_msg("n %d k %d T %d: wrote residuals behind its rows", shape.n, shape.k, t);
    for (int r = 0; r < T; r++) {
        size_t row = (size_t)r * NORM_PIECES * 4, used = r < t ? (size_t)num_pieces * 4 : 0;
        if (memcmp(squares + row, (const unsigned char *)full->squares + row, used) != 0) fail_msg("n %d k %d: squares of T = %d differ", shape.n, shape.k, t);
        for (size_t i = used; i < NORM_PIECES * 4; i++)
            if (squares[row + i] != 0xFF) fail_msg("n %d k %d T %d row %d: wrote behind its pieces", shape.n, shape.k, t, r);
    }
}

static void check_norms(struct shape shape, struct norms norms, int pdl)
{
    enum { T = GEMV_MAX_ROWS };
    static const int rows[] = { T, 9, 8, 3, 2, 1 };
    if (!gpu_turn()) return;
    int n = shape.n, k = shape.k, outs = norms.silu ? n / 2 : n, num_pieces = 0;
    size_t X = (size_t)T * (size_t)k, W = (size_t)n * (size_t)k, O = (size_t)T * (size_t)outs;
    uint64_t seed = 23 + (uint64_t)n * 31 + (uint64_t)k;
    float *x = malloc(X * 4), *w = malloc(W * 4), *residual_before = malloc(O * 4), *weight = malloc((size_t)outs * 4), eps = 1e-5f;
    uint16_t *xh = malloc(X * 2), *wh = malloc(W * 2);
    double *ref = malloc((size_t)T * (size_t)n * sizeof *ref), *residual = malloc(O * sizeof *residual), scale[T];
    struct left full = left_new(T, (size_t)outs, norms.add), got = left_new(T, (size_t)outs, norms.add);
    float *squares = squares_before(&seed, T, norms.pieces, k, eps, scale);
    struct launch l = gpu_launch(pdl);

    if (norms.num_sms) l.num_sms = norms.num_sms;
    random_elem(&seed, 1.0f, x, xh, X);
    random_elem(&seed, 0.05f, w, wh, W);
    for (size_t i = 0; i < O; i++) residual[i] = residual_before[i] = 3 * rng_normal(&seed);
    for (int i = 0; i < outs; i++) weight[i] = 1 + 0.3f * rng_normal(&seed);
    multiply(x, w, ref, T, n, k);
    norm_reference(ref, T, n, &norms, scale, residual, weight);
    void *dx = gpu_copy(xh, X * 2), *dw = gpu_copy(wh, W * 2), *dbefore = gpu_copy(squares, (size_t)T * NORM_PIECES * 4);
    void *dweight = gpu_copy(weight, (size_t)outs * 4), *counters = gpu_new(MATMUL_COUNTER_BYTES);
    CUDA_MUST(cudaMemset(counters, 0, MATMUL_COUNTER_BYTES));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int t = rows[i];
        void *dout = gpu_new(got.out_bytes), *dresidual = gpu_copy(residual_before, O * 4), *dafter = gpu_new(got.squares_bytes);
        struct gemv_kernel a = { .x = dx, .w = dw, .out = dout, .num_tokens = t, .n = n, .k = k, .silu_mul = norms.silu, .counters = t % 2 ? counters : NULL };
        if (norms.add) a.add = (struct norm_add){ dresidual, dweight, dafter, &num_pieces };
        if (norms.pieces) a.scale = (struct norm_scale){ dbefore, norms.pieces, eps };
        assert_int_equal(launch_gemv(&a, &l), 0);
        gpu_sync();
        gpu_read(got.out, dout, got.out_bytes);
        gpu_read(got.residual, dresidual, got.residual_bytes);
        gpu_read(got.squares, dafter, got.squares_bytes);
        if (t == T) {
            norms_agree(shape, &norms, &got, ref, residual, num_pieces);
            memcpy(full.out, got.out, got.out_bytes);
            memcpy(full.residual, got.residual, got.residual_bytes);
            memcpy(full.squares, got.squares, got.squares_bytes);
        }
        same_rows(shape, &got, &full, residual_before, t, norms.add, num_pieces);
        gpu_free(dout); gpu_free(dresidual); gpu_free(dafter);
    }
    gpu_free(dx); gpu_free(dw); gpu_free(dbefore); gpu_free(dweight); gpu_free(counters);
    left_free(&full); left_free(&got);
    free(x); free(w); free(residual_before); free(weight); free(xh); free(wh); free(ref); free(residual); free(squares);
}

/* Units in one, two and more turns, dealt by counters; parts of a cluster that meet once and, on a small device, twice; x too long to
 * be staged; the most pieces. */
static void norms_between_products(void **state)
{
    static const struct shape shapes[] = { { 1, 8 }, { 7, 24 }, { 16, 576 }, { 577, 584 }, { 1024, 2048 }, { 1000, 3072 }, { 2200, 4096 }, { 3001, 2056 },
                                           { 6003, 72 }, { 16384, 72 }, { 70, 14344 }, { 1100, 8200 }, { 40, 30000 } };
    static const int pieces[] = { 1, 3, 36, 64, 256, 257, 1024 };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        int before = pieces[i % (sizeof pieces / sizeof pieces[0])], sms = shapes[i].k == 8200 ? 8 : 0;
        check_norms(shapes[i], (struct norms){ .add = true, .num_sms = sms }, i % 2 == 0);
        check_norms(shapes[i], (struct norms){ .pieces = before }, i % 2 == 1);
        check_norms(shapes[i], (struct norms){ .add = true, .pieces = before }, i % 2 == 0);
        if (shapes[i].n % 2 == 0) check_norms(shapes[i], (struct norms){ .pieces = before, .silu = true, .num_sms = sms }, i % 2 == 1);
    }
}

static void what_it_does_not_do_is_refused(void **state)
{
    struct launch l = gpu_launch(0);
    struct gemv_kernel a = { .num_tokens = 1, .n = 8, .k = 8 }, b;
    float some = 0;

    (void)state;
    b = a; b.num_tokens = 17;            assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.num_tokens = 0;             assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.k = 12;                     assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.n = 7; b.silu_mul = true;   assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.silu_mul = true; b.add.residual = &some; assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.n = 16385; b.add.residual = &some;       assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    l.f16 = true;
    b = a; b.add.residual = &some;       assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
    b = a; b.scale.squares = &some;      assert_int_equal(launch_gemv(&b, &l), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_shape_and_every_T), cmocka_unit_test(gate_and_up_in_one),
                                        cmocka_unit_test(what_it_does_not_do_is_refused) };
    const struct CMUnitTest bf16_tests[] = { cmocka_unit_test(norms_between_products) };      /* f16: refused */
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
        if (!gpu_f16) failed += cmocka_run_group_tests(bf16_tests, NULL, NULL);
    }
    return failed;
}
