/* launch_gemm_skinny against a plain double loop: every bucket of T, odd N and K, both outputs, silu_mul, every cut over the device;
 * and with the norm's two halves, norm_add and norm_scale. */
#include "gemm_skinny_plan.h"
#include "gpu.h"
#include "unit/base/cmocka_all.h"

enum { T_MAX = GEMM_SKINNY_MAX_ROWS };

struct product { int n, k; bool silu; float *x, *w; double *ref, *raw;        /* raw: before silu */
                 void *dx, *dw, *dout, *counters, *workspace; };

static void product_new(struct product *p, int n, int k, bool silu)
{
    uint64_t seed = 23 + (uint64_t)n * 31 + (uint64_t)k;
    size_t xs = (size_t)T_MAX * (size_t)k, ws = (size_t)n * (size_t)k;
    uint16_t *xh = malloc(2 * xs), *wh = malloc(2 * ws);

    *p = (struct product){ .n = n, .k = k, .silu = silu, .x = malloc(4 * xs), .w = malloc(4 * ws), .ref = malloc(8 * T_MAX * (size_t)n),
                            .raw = malloc(8 * T_MAX * (size_t)n) };
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
    memcpy(p->raw, p->ref, 8 * T_MAX * (size_t)n);
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
    free(p->x); free(p->w); free(p->ref); free(p->raw);
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

/* ---- the norm between two products ---- */

static double sum_error(double d, double s) { return s > 0 ? sqrt(d / s) : sqrt(d); }

static void say_where(const struct product *p, int t, const struct gemm_skinny_plan *plan, const char *what, double error)
{
    fail_msg("n %d k %d T %d silu %d how %d groups %d panels %d cluster %d ctas %d: %s: error %g", p->n, p->k, t, p->silu, plan ? (int)plan->how : -1,
             plan ? plan->groups : 0, plan ? plan->panels : 0, plan ? plan->cluster : 0, plan ? plan->ctas : 0, what, error);
}

/* Twice in a row, so the second finds the residual of the first. */
static void run_add(struct product *p, int t, const struct gemm_skinny_plan *plan, int pdl)
{
    if (!gpu_turn()) return;
    enum { AGAIN = 2 };
    const size_t n = (size_t)p->n, all = (size_t)T_MAX * n, squares_bytes = (size_t)4 * T_MAX * NORM_PIECES;
    float *before = malloc(4 * all), *residual = malloc(4 * all), *weight = malloc(4 * n), *squares = malloc(squares_bytes);
    uint16_t *out = malloc(2 * all);
    uint64_t seed = 5 + (uint64_t)t;
    int32_t pieces = -1;
    struct launch l = gpu_launch(pdl);

    for (size_t i = 0; i < all; i++) before[i] = 2.0f * rng_normal(&seed);
    for (size_t i = 0; i < n; i++) weight[i] = 1.0f + 0.3f * rng_normal(&seed);
    float *d_residual = gpu_copy(before, 4 * all), *d_weight = gpu_copy(weight, 4 * n), *d_squares = gpu_new(squares_bytes);
    struct gemv_kernel a = { .x = p->dx, .w = p->dw, .out = p->dout, .num_tokens = t, .n = p->n, .k = p->k, .counters = p->counters,
                             .workspace = p->workspace, .add = { d_residual, d_weight, d_squares, &pieces } };
    CUDA_MUST(cudaMemset(p->dout, 0xFF, 2 * all));
    for (int again = 0; again < AGAIN; again++)
        assert_int_equal(plan ? launch_gemm_skinny_planned(&a, plan, &l) : launch_gemm_skinny(&a, &l), 0);
    gpu_sync();
    gpu_read(residual, d_residual, 4 * all);
    gpu_read(squares, d_squares, squares_bytes);
    gpu_read(out, p->dout, 2 * all);
    assert_in_range(pieces, 1, NORM_PIECES);

    double dr = 0, sr = 0, d_out = 0, s_out = 0, ds = 0;
    for (int r = 0; r < t; r++) {
        double sum = 0, got = 0;
        for (size_t i = 0; i < n; i++) {
            double want = (double)before[(size_t)r * n + i] + AGAIN * p->ref[(size_t)r * n + i], e = (double)residual[(size_t)r * n + i] - want;
            double y = want * (double)weight[i], o = (double)of_elem(out[(size_t)r * n + i]) - y;
            dr += e * e;
            sr += want * want;
            d_out += o * o;
            s_out += y * y;
            sum += want * want;
        }
        for (int i = 0; i < pieces; i++) got += (double)squares[(size_t)r * NORM_PIECES + (size_t)i];
        ds = fmax(fabs(got / sum - 1), got == got ? ds : INFINITY);
    }
    if (!(sum_error(dr, sr) < 1e-5)) say_where(p, t, plan, "residual", sum_error(dr, sr));
    if (!(sum_error(d_out, s_out) < 4e-3)) say_where(p, t, plan, "residual times weight", sum_error(d_out, s_out));
    if (!(ds < 1e-4)) say_where(p, t, plan, "squares", ds);
    for (size_t i = (size_t)t * n; i < all; i++)
        if (out[i] != 0xFFFF || residual[i] != before[i]) say_where(p, t, plan, "wrote behind its rows", 0);
    for (int r = 0; r < T_MAX; r++)
        for (int i = r < t ? pieces : 0; i < NORM_PIECES; i++)
            if (squares[(size_t)r * NORM_PIECES + (size_t)i] == squares[(size_t)r * NORM_PIECES + (size_t)i]) say_where(p, t, plan, "squares behind the pieces", 0);
    free(before); free(residual); free(weight); free(squares); free(out);
    gpu_free(d_residual); gpu_free(d_weight); gpu_free(d_squares);
}

static void run_scale(struct product *p, int t, int pieces, bool f32, const struct gemm_skinny_plan *plan, int pdl)
{
    if (!gpu_turn()) return;
    const size_t outs = (size_t)(p->silu ? p->n / 2 : p->n), n = (size_t)p->n, bytes = (size_t)T_MAX * outs * (f32 ? 4 : 2);
    unsigned char *got = malloc(bytes);
    float *squares = malloc((size_t)4 * T_MAX * NORM_PIECES);
    double scales[T_MAX], d = 0, s = 0;
    uint64_t seed = 7 + (uint64_t)t;
    struct launch l = gpu_launch(pdl);

    memset(squares, 0xFF, (size_t)4 * T_MAX * NORM_PIECES);
    for (int r = 0; r < t; r++) {
        double sum = 0;
        for (int i = 0; i < pieces; i++) {
            float v = (float)(rng_uniform(&seed) * (r + 1) * p->k / pieces);
            squares[(size_t)r * NORM_PIECES + (size_t)i] = v;
            sum += (double)v;
        }
        scales[r] = 1 / sqrt(sum / p->k + (double)1e-5f);
    }
    float *d_squares = gpu_copy(squares, (size_t)4 * T_MAX * NORM_PIECES);
    struct gemv_kernel a = { .x = p->dx, .w = p->dw, .out = p->dout, .num_tokens = t, .n = p->n, .k = p->k, .out_f32 = f32, .silu_mul = p->silu,
                             .counters = p->counters, .workspace = p->workspace, .scale = { d_squares, pieces, 1e-5f } };
    CUDA_MUST(cudaMemset(p->dout, 0xFF, bytes));
    for (int again = 0; again < 2; again++)
        assert_int_equal(plan ? launch_gemm_skinny_planned(&a, plan, &l) : launch_gemm_skinny(&a, &l), 0);
    gpu_sync();
    gpu_read(got, p->dout, bytes);
    for (int r = 0; r < t; r++)
        for (size_t i = 0; i < outs; i++) {
            size_t at = (size_t)r * outs + i;
            double y = f32 ? (double)((float *)got)[at] : (double)of_elem(((uint16_t *)got)[at]), want;
            if (p->silu) {
                double gate = p->raw[(size_t)r * n + i] * scales[r], up = p->raw[(size_t)r * n + outs + i] * scales[r];
                want = gate / (1 + exp(-gate)) * up;
            } else {
                want = p->raw[at] * scales[r];
            }
            d += (y - want) * (y - want);
            s += want * want;
        }
    if (!(sum_error(d, s) < (f32 ? 2e-5 : 4e-3))) say_where(p, t, plan, "scale", sum_error(d, s));
    for (size_t i = bytes / T_MAX * (size_t)t; i < bytes; i++)
        if (got[i] != 0xFF) say_where(p, t, plan, "scale wrote behind its rows", 0);
    free(got); free(squares);
    gpu_free(d_squares);
}

static void norm_halves(void **state)
{
    static const struct { int n, k; bool silu; } shapes[] = { { 1000, 1024, false }, { 576, 840, false }, { 68, 14336, false }, { 1296, 960, true }, { 640, 576, true } };
    static const int rows[] = { 1, 9, 16, 33, 64, 100, 128 }, counts[] = { 1, 9, 16, 17, 30, 33, 64, 65, 256, 1024 };
    int added[GEMM_SKINNY_CUTS + 1] = { 0 }, scaled[GEMM_SKINNY_CUTS + 1] = { 0 }, count = 0;
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct product p;
        product_new(&p, shapes[i].n, shapes[i].k, shapes[i].silu);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            if (!p.silu) run_add(&p, rows[r], NULL, r % 2);
            run_scale(&p, rows[r], counts[count++ % 10], false, NULL, r % 2);
            for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++)
                for (int ctas = 7; ctas <= 132; ctas += 125) {
                    struct gemm_skinny_plan plan = gemm_skinny_plan_cut(rows[r], p.n, p.k, cut, ctas, GEMM_SKINNY_SMEM_MAX);
                    if (plan.stages < 2) continue;
                    if (!p.silu) {
                        run_add(&p, rows[r], &plan, ctas != 7);
                        added[cut]++;
                    }
                    run_scale(&p, rows[r], counts[count++ % 10], !p.silu && cut % 4 == 0, &plan, ctas != 7);
                    scaled[cut]++;
                }
        }
        product_free(&p);
    }
    for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++)
        if (added[cut] == 0 || scaled[cut] == 0) fail_msg("cut %d suited no shape", cut);
}

static void norm_refused(void **state)
{
    struct product p;
    struct launch l = gpu_launch(0);
    int32_t pieces;
    (void)state;
    product_new(&p, 130, 64, false);
    struct gemv_kernel a = { .x = p.dx, .w = p.dw, .out = p.dout, .num_tokens = 9, .n = 130, .k = 64, .counters = p.counters, .workspace = p.workspace };
    struct gemv_kernel add = a, scale = a;
    add.add = (struct norm_add){ p.dout, p.dout, p.dout, &pieces };
    scale.scale = (struct norm_scale){ p.dout, 3, 1e-5f };
    assert_int_equal(launch_gemm_skinny(&add, &l), ERR_UNSUPPORTED);       /* rows of the residual in parts of four columns */
    add.n = 128;
    l.f16 = true;
    assert_int_equal(launch_gemm_skinny(&add, &l), ERR_UNSUPPORTED);
    assert_int_equal(launch_gemm_skinny(&scale, &l), ERR_UNSUPPORTED);
    l.f16 = false;
    add.out_f32 = true;
    assert_int_equal(launch_gemm_skinny(&add, &l), ERR_UNSUPPORTED);
    product_free(&p);
}

/* ---- the product of q, k and v ---- */

enum { ROPE_BLOCK = 16, ROPE_POSITIONS = 40 };

static double of_head(const double *head, int i, int dim, double scale, const float *weight, const float *turn)
{
    const int half = dim / 2, low = i % half;
    double a = head[low] * scale * (weight ? (double)weight[low] : 1), b = head[low + half] * scale * (weight ? (double)weight[low + half] : 1);
    if (!turn) return i < half ? a : b;
    return i < half ? a * (double)turn[low] - b * (double)turn[low + half] : b * (double)turn[low] + a * (double)turn[low + half];
}

static void run_rope(struct product *p, int t, int heads, int kv_heads, int dim, bool bias, bool norms, bool scaled, const struct gemm_skinny_plan *plan, int pdl)
{
    if (!gpu_turn()) return;
    enum { CACHE_BLOCKS = T_MAX / ROPE_BLOCK + 1, SLOTS = CACHE_BLOCKS * ROPE_BLOCK };
    const size_t n = (size_t)p->n, all = (size_t)T_MAX * n, cache = (size_t)SLOTS * (size_t)(kv_heads * dim);
    const int num_heads = heads + 2 * kv_heads;
    float *b = malloc(4 * n), *q_norm = malloc(4 * (size_t)dim), *k_norm = malloc(4 * (size_t)dim), *turns = malloc(4 * ROPE_POSITIONS * (size_t)dim);
    float *squares = malloc((size_t)4 * T_MAX * NORM_PIECES);
    double head[128], d = 0, s = 0;
    int32_t positions[T_MAX];
    int64_t slots[T_MAX];
    uint16_t *out = malloc(2 * all), *k = malloc(2 * cache), *v = malloc(2 * cache);
    uint64_t seed = 11 + (uint64_t)t * 3 + (uint64_t)p->n;
    struct launch l = gpu_launch(pdl);

    for (size_t i = 0; i < n; i++) b[i] = 0.5f * rng_normal(&seed);
    for (int i = 0; i < dim; i++) {
        q_norm[i] = 1 + 0.3f * rng_normal(&seed);
        k_norm[i] = 1 + 0.3f * rng_normal(&seed);
    }
    for (int i = 0; i < ROPE_POSITIONS * dim; i++) turns[i] = rng_normal(&seed);
    memset(squares, 0xFF, (size_t)4 * T_MAX * NORM_PIECES);
    for (int r = 0; r < T_MAX; r++) {
        positions[r] = (int32_t)(rng_next(&seed) % ROPE_POSITIONS);
        slots[r] = r % 7 == 3 ? -1 : (r * 37 + 5) % SLOTS;             /* SLOTS and 37 have no common factor */
        squares[(size_t)r * NORM_PIECES] = (float)(r + 1) * (float)p->k;
    }
    float *d_b = gpu_copy(b, 4 * n), *d_q = gpu_copy(q_norm, 4 * (size_t)dim), *d_k = gpu_copy(k_norm, 4 * (size_t)dim);
    float *d_turns = gpu_copy(turns, 4 * ROPE_POSITIONS * (size_t)dim), *d_squares = gpu_copy(squares, (size_t)4 * T_MAX * NORM_PIECES);
    int32_t *d_positions = gpu_copy(positions, sizeof positions[0] * (size_t)t);
    int64_t *d_slots = gpu_copy(slots, sizeof slots[0] * (size_t)t);
    uint16_t *d_kc = gpu_new(2 * cache), *d_vc = gpu_new(2 * cache);
    struct gemv_kernel a = { .x = p->dx, .w = p->dw, .num_tokens = t, .n = p->n, .k = p->k, .counters = p->counters, .workspace = p->workspace,
                             .rope = { .qkv = p->dout, .bias = bias ? d_b : NULL, .q_norm = norms ? d_q : NULL, .k_norm = norms ? d_k : NULL,
                                       .cos_sin = d_turns, .positions = d_positions, .slot_mapping = d_slots, .k = d_kc, .v = d_vc, .num_tokens = t,
                                       .num_heads = heads, .num_kv_heads = kv_heads, .head_dim = dim, .block_size = ROPE_BLOCK, .eps = 1e-6f } };
    if (scaled) a.scale = (struct norm_scale){ d_squares, 1, 1e-5f };
    CUDA_MUST(cudaMemset(p->dout, 0xFF, 2 * all));
    for (int again = 0; again < 2; again++)
        assert_int_equal(plan ? launch_gemm_skinny_planned(&a, plan, &l) : launch_gemm_skinny(&a, &l), 0);
    gpu_sync();
    gpu_read(out, p->dout, 2 * all);
    gpu_read(k, d_kc, 2 * cache);
    gpu_read(v, d_vc, 2 * cache);
    for (int r = 0; r < t; r++) {
        double scale = scaled ? 1 / sqrt((double)squares[(size_t)r * NORM_PIECES] / p->k + (double)1e-5f) : 1;
        for (int h = 0; h < num_heads; h++) {
            const bool is_v = h >= heads + kv_heads, is_k = h >= heads && !is_v;
            const int at_head = h - (is_v ? heads + kv_heads : heads);
            double sum = 0;
            for (int i = 0; i < dim; i++) {
                head[i] = p->raw[(size_t)r * n + (size_t)(h * dim + i)] * scale + (bias ? (double)b[h * dim + i] : 0);
                sum += head[i] * head[i];
            }
            double norm = norms && !is_v ? 1 / sqrt(sum / dim + (double)1e-6f) : 1;
            for (int i = 0; i < dim; i++) {
                double want = of_head(head, i, dim, norm, !norms || is_v ? NULL : is_k ? k_norm : q_norm, is_v ? NULL : turns + positions[r] * dim), got;
                if (h < heads) {
                    got = (double)of_elem(out[(size_t)r * n + (size_t)(h * dim + i)]);
                } else {
                    if (slots[r] < 0) continue;
                    size_t place = (((size_t)(slots[r] / ROPE_BLOCK) * (size_t)kv_heads + (size_t)at_head) * ROPE_BLOCK + (size_t)(slots[r] % ROPE_BLOCK)) * (size_t)dim + (size_t)i;
                    got = (double)of_elem((is_v ? v : k)[place]);
                    (is_v ? v : k)[place] = 0xFFFF;        /* seen */
                }
                d += (got - want) * (got - want);
                s += want * want;
            }
        }
    }
    if (!(sum_error(d, s) < gpu_tolerance(4e-3))) say_where(p, t, plan, "rope", sum_error(d, s));
    for (size_t i = 0; i < cache; i++)
        if (k[i] != 0xFFFF || v[i] != 0xFFFF) say_where(p, t, plan, "a slot that is nobody's", 0);
    for (size_t i = (size_t)t * n; i < all; i++)
        if (out[i] != 0xFFFF) say_where(p, t, plan, "rope wrote behind its rows", 0);
    free(b); free(q_norm); free(k_norm); free(turns); free(squares); free(out); free(k); free(v);
    gpu_free(d_b); gpu_free(d_q); gpu_free(d_k); gpu_free(d_turns); gpu_free(d_squares); gpu_free(d_positions); gpu_free(d_slots); gpu_free(d_kc); gpu_free(d_vc);
}

static void rope(void **state)
{
    static const struct { int heads, kv_heads, dim, k; } shapes[] = { { 3, 1, 64, 584 }, { 9, 3, 64, 576 }, { 4, 2, 128, 1024 }, { 5, 1, 128, 1160 } };
    static const int rows[] = { 1, 9, 16, 33, 48, 64, 100, 128 };
    int ran[GEMM_SKINNY_CUTS + 1] = { 0 }, count = 0;
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const int heads = shapes[i].heads, kv_heads = shapes[i].kv_heads, dim = shapes[i].dim;
        struct product p;
        product_new(&p, (heads + 2 * kv_heads) * dim, shapes[i].k, false);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            run_rope(&p, rows[r], heads, kv_heads, dim, r % 2, r % 3 > 0, false, NULL, r % 2);
            for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++)
                for (int ctas = 7; ctas <= 132; ctas += 125, count++) {
                    struct gemm_skinny_plan plan = gemm_skinny_plan_cut(rows[r], p.n, p.k, cut, ctas, GEMM_SKINNY_SMEM_MAX);
                    if (plan.stages < 2 || !gemm_skinny_rotates(cut, dim, false)) continue;
                    run_rope(&p, rows[r], heads, kv_heads, dim, count % 2, gemm_skinny_rotates(cut, dim, true) && count % 3 > 0, !gpu_f16 && count % 5 > 1, &plan, ctas != 7);
                    ran[cut]++;
                }
        }
        product_free(&p);
    }
    for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++)
        if (ran[cut] == 0 && gemm_skinny_rotates(cut, 64, false)) fail_msg("cut %d suited no shape", cut);
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
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_bucket), cmocka_unit_test(every_cut), cmocka_unit_test(norm_refused), cmocka_unit_test(rope) };
    const struct CMUnitTest bf16_tests[] = { cmocka_unit_test(norm_halves) };     /* f16: refused */
    if (gpu_absent()) return GPU_SKIP;
    if (gpu_launch(0).sm != 90) { printf("skipped: not an sm_90 device\n"); return GPU_SKIP; }
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
        if (!gpu_f16) failed += cmocka_run_group_tests(bf16_tests, NULL, NULL);
    }
    return failed;
}
