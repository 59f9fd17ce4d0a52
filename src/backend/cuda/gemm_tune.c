/* gemm_tune.c - which way is fastest for each product and bucket of rows: a contest between the library's algorithms and the own kernels'
 * cuts, on the device and at start. gemm.h is the manual. */
#include "gemm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "base/bf16.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/log.h"
#include "gemm_cache.h"
#include "gemm_sm90_plan.h"
#include "gemm_ways.h"

enum { SPACER_WIDTH = 1024, CANDIDATES = 16, OWN_CANDIDATES = 16, MAX_WAYS = 48, LEADS = 4, FINALISTS = 6, TIMED_RUNS = 5, MAX_COPIES = 16 };
enum { SM90_MIN_ROWS = 96 };                               /* below, tiles of 128 rows are not worth timing */
static const size_t COLD_BYTES = (size_t)192 << 20;        /* weight copies to rotate over: three times the L2 of an H200 */
static const size_t LEAD_BYTES = (size_t)256 << 20;        /* cleared ahead of a timing: the launches queue up behind it */

enum { CHECK_COLS = 1024, CHECK_PARTS = 4 };               /* both ends of the first and of the last row */
static const double CHECK_ERROR = 2e-2;                    /* |own - library| / |library|: sums in another order, rounded to bf16, stay below 5e-3 */

/* What the library makes of the first copy of w, and silu(gate) * up of it. */
struct reference { bool known; float plain[CHECK_PARTS][CHECK_COLS], silu[CHECK_PARTS][CHECK_COLS]; };

struct bench {
    struct reference reference;
    void *x, *out, *w[MAX_COPIES], *lead, *spacer;
    int copies;
    size_t lead_bytes;
    const struct launch *launch;
    cudaStream_t stream;
    cudaEvent_t begin, end, laps[MAX_WAYS + 1];
};

/* Random elements all over the scratch memory: zeros would make every algorithm look faster than it is. */
static cudaError_t fill_random(void *scratch, size_t bytes, bool f16, cudaStream_t stream)
{
    enum { HOST_BYTES = 1 << 20 };
    uint64_t state = 0x5DEECE66Du;
    uint16_t *host = malloc(HOST_BYTES);
    cudaError_t e = cudaSuccess;

    if (!host) return cudaErrorMemoryAllocation;
    for (size_t i = 0; i < HOST_BYTES / sizeof *host; i++) {           /* sign, exponents of 0.008 .. 0.06, random mantissa */
        state = state * 6364136223846793005u + 1442695040888963407u;
        host[i] = (uint16_t)(f16 ? (state >> 33 & 0x83FF) | (uint64_t)(8 + (state >> 60 & 3)) << 10
                                 : (state >> 33 & 0x807F) | (uint64_t)(120 + (state >> 60 & 3)) << 7);
    }
    for (size_t done = 0, have = 0; e == cudaSuccess && done < bytes; done += have) {
        if (done == 0) {
            have = bytes < HOST_BYTES ? bytes : HOST_BYTES;
            e = cudaMemcpyAsync(scratch, host, have, cudaMemcpyHostToDevice, stream);
        } else {
            have = done < bytes - done ? done : bytes - done;          /* doubles each time */
            e = cudaMemcpyAsync((char *)scratch + done, scratch, have, cudaMemcpyDeviceToDevice, stream);
        }
    }
    if (e == cudaSuccess) e = cudaStreamSynchronize(stream);
    free(host);
    return e;
}

static size_t align_up(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

/* Cuts the scratch memory into x and as many copies of w as it takes to be cold in the L2, from the front, and out, at the end: what is
 * written there, fp32 above all, would be infinities and NaN as x or w of another shape. false: it does not fit. */
static bool bench_carve(struct bench *b, const struct gemm_shape *shape, int32_t rows, void *scratch, size_t bytes)
{
    size_t x = align_up((size_t)rows * shape->k * 2), out = align_up((size_t)rows * shape->n * (shape->out_f32 ? 4 : 2));
    size_t w = align_up((size_t)shape->n * shape->k * 2), spacer = align_up((size_t)rows * SPACER_WIDTH * 4);
    char *at = scratch;

    if (x + out + spacer + w + 256 > bytes) return false;
    b->x = at;
    b->out = at + (bytes - out) / 256 * 256;
    b->copies = (int)((COLD_BYTES + w - 1) / w) + 1;
    if (b->copies > MAX_COPIES) b->copies = MAX_COPIES;
    while (b->copies > 1 && x + out + spacer + w * (size_t)b->copies + 256 > bytes) b->copies--;
    for (int i = 0; i < b->copies; i++) b->w[i] = at + x + w * (size_t)i;
    b->lead = at + x + w * (size_t)b->copies;
    b->spacer = (char *)b->out - spacer;
    b->lead_bytes = (size_t)((char *)b->spacer - (char *)b->lead);
    if (b->lead_bytes > LEAD_BYTES) b->lead_bytes = LEAD_BYTES;
    return true;
}

/* What can be timed: an entry's way to do a product, or (p NULL) silu_mul alone. */
struct candidate {
    const struct gemm_shape *shape;
    int32_t rows;
    struct product *p;
    const struct gemm_entry *way;
};

static bool run_candidate(struct gemm *g, struct bench *b, const struct candidate *c, const void *w)
{
    struct gemm_args a = { .x = b->x, .w = w, .out = b->out, .num_tokens = c->rows, .n = c->shape->n, .k = c->shape->k, .out_f32 = c->shape->out_f32 };
    cublasLtMatmulAlgo_t algo;

    if (!c->way) return launch_silu_mul(&(struct silu_mul_kernel){ b->out, b->out, c->rows, c->shape->n / 2 }, b->launch) == 0;
    if (c->way->how == GEMM_SM90) {
        struct gemm_sm90_plan plan = gemm_entry_plan(c->way);
        struct gemm_kernel own;
        a.silu_mul = c->way->silu_mul;
        own = gemm_own_product(&a);
        return launch_gemm_planned(&own, &plan, b->launch) == 0;
    }
    if (c->way->how == GEMM_SKINNY) {
        struct gemv_kernel few;
        a.silu_mul = c->way->silu_mul;
        few = gemm_few_rows(g, &a, c->way->algo[0]);
        return launch_gemm_skinny(&few, b->launch) == 0;
    }
    memcpy(&algo, c->way->algo, sizeof algo);
    return gemm_multiply(g, c->p, a.x, a.w, a.out, &algo, b->stream) == CUBLAS_STATUS_SUCCESS;
}

/* What stands between two products in a model: a small kernel that waits its turn, as norms do. Products that load weights before their
 * predecessor has ended gain by it what they gain there, and cannot overlap with each other. */
static bool run_spacer(struct bench *b, int32_t rows)
{
    struct launch plain = *b->launch;
    plain.pdl = false;
    return launch_silu_mul(&(struct silu_mul_kernel){ b->spacer, b->spacer, rows, SPACER_WIDTH }, &plain) == 0;
}

/* Microseconds of one run with its spacer, < 0 where it does not run. apart: silu_mul behind it. */
static float time_candidate(struct gemm *g, struct bench *b, const struct candidate *c, int runs, bool apart)
{
    const struct candidate silu = { .shape = c->shape, .rows = c->rows };
    float ms = 0;

    if (!run_candidate(g, b, c, b->w[0])) return -1;       /* the warm-up */
    if (b->lead_bytes > 0 && cudaMemsetAsync(b->lead, 0, b->lead_bytes, b->stream) != cudaSuccess) return -1;
    if (cudaEventRecord(b->begin, b->stream) != cudaSuccess) return -1;
    for (int i = 1; i <= runs; i++)
        if (!run_spacer(b, c->rows) || !run_candidate(g, b, c, b->w[i % b->copies]) || (apart && !run_candidate(g, b, &silu, NULL))) return -1;
    if (cudaEventRecord(b->end, b->stream) != cudaSuccess || cudaEventSynchronize(b->end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, b->begin, b->end) != cudaSuccess) return -1;
    return ms * 1000 / (float)runs;
}

/* ---- an own kernel that disagrees with the library is not taken ---- */

/* Columns of one part of out, a matrix of `stride` columns, counted in the `width` columns from `base` on. How many, < 0 on an error. */
static int read_part(const struct gemm *g, const struct bench *b, const struct candidate *c, int part, int32_t stride, int32_t base, int32_t width, float *to)
{
    int32_t n = width < CHECK_COLS ? width : CHECK_COLS, row = part / 2 ? c->rows - 1 : 0, col = base + (part % 2 ? width - n : 0);
    size_t at = (size_t)row * (size_t)stride + (size_t)col;
    uint16_t half[CHECK_COLS];

    if (c->shape->out_f32) {
        return cudaMemcpy(to, (const float *)b->out + at, (size_t)n * sizeof *to, cudaMemcpyDeviceToHost) == cudaSuccess ? n : -1;
    }
    if (cudaMemcpy(half, (const uint16_t *)b->out + at, (size_t)n * sizeof *half, cudaMemcpyDeviceToHost) != cudaSuccess) return -1;
    for (int32_t i = 0; i < n; i++) to[i] = g->f16 ? half_to_f32(half[i]) : bf16_to_f32(half[i]);
    return n;
}

/* c: a product of the library's. */
static void make_reference(struct gemm *g, struct bench *b, const struct candidate *c)
{
    struct reference *reference = &b->reference;
    int32_t n = c->shape->n, ffn = n / 2;
    float up[CHECK_COLS];
    int have = 0;

    reference->known = run_candidate(g, b, c, b->w[0]) && cudaStreamSynchronize(b->stream) == cudaSuccess;
    for (int part = 0; part < CHECK_PARTS && reference->known; part++) {
        reference->known = read_part(g, b, c, part, n, 0, n, reference->plain[part]) > 0;
        if (!c->shape->silu_mul || !reference->known) continue;
        have = read_part(g, b, c, part, n, 0, ffn, reference->silu[part]);
        reference->known = have > 0 && read_part(g, b, c, part, n, ffn, ffn, up) == have;
        for (int i = 0; i < have; i++) {
            float gate = reference->silu[part][i];
            reference->silu[part][i] = gate / (1 + expf(-gate)) * up[i];
        }
    }
}

static bool agrees(struct gemm *g, struct bench *b, const struct candidate *c)
{
    int32_t width = c->way->silu_mul ? c->shape->n / 2 : c->shape->n;
    double off = 0, all = 0;

    if (!b->reference.known) return false;
    if (cudaMemsetAsync(b->out, 0xFF, (size_t)c->rows * (size_t)width * (c->shape->out_f32 ? 4 : 2), b->stream) != cudaSuccess ||
        !run_candidate(g, b, c, b->w[0]) || cudaStreamSynchronize(b->stream) != cudaSuccess) return false;
    for (int part = 0; part < CHECK_PARTS; part++) {
        const float *want = c->way->silu_mul ? b->reference.silu[part] : b->reference.plain[part];
        float got[CHECK_COLS];
        int have = read_part(g, b, c, part, width, 0, width, got);
        if (have < 0) return false;
        for (int i = 0; i < have; i++) {
            off += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
            all += (double)want[i] * want[i];
        }
    }
    if (off <= CHECK_ERROR * CHECK_ERROR * all) return true;           /* false for NaN too */
    g->refused++;
    log_error("gemm_check", "own product %d x %d x %d%s is off by %.3g of the library's: not used", c->rows, c->shape->n, c->shape->k,
              c->way->silu_mul ? " with silu" : "", sqrt(off / all));
    return false;
}

/* ---- a contest: all ways once, the best few again and with care ---- */

struct contest { int n; struct gemm_entry ways[MAX_WAYS]; float us[MAX_WAYS]; };

static void enter(struct contest *c, const struct gemm_entry *way)
{
    if (c->n < MAX_WAYS) c->ways[c->n++] = *way;
}

/* The own kernels' cuts of this product. */
static void enter_own(struct contest *c, const struct bench *b, const struct gemm_shape *shape, int32_t rows, bool silu_mul, int most)
{
    struct gemm_entry way = { .n = shape->n, .k = shape->k, .rows = rows, .out_f32 = shape->out_f32, .silu_mul = silu_mul };
    struct gemm_args a = { .num_tokens = rows, .n = shape->n, .k = shape->k, .out_f32 = shape->out_f32, .silu_mul = silu_mul };
    struct gemm_kernel own = gemm_own_product(&a);
    struct gemm_sm90_plan plan;

    if (b->launch->sm != 90) return;
    for (uint64_t cut = 1; cut <= GEMM_SKINNY_CUTS && rows <= GEMM_SKINNY_MAX_ROWS; cut++) {
        way.how = GEMM_SKINNY;
        way.algo[0] = cut;
        enter(c, &way);
    }
    for (int i = 0; rows >= SM90_MIN_ROWS && i < most && gemm_sm90_plan_at(&plan, i, &own, b->launch->num_sms); i++) {
        gemm_entry_set_plan(&way, &plan);
        enter(c, &way);
    }
}

/* Each way once, one behind the other on a device that is kept busy until all are queued; the ones that run, fastest first. */
static void first_round(struct gemm *g, struct bench *b, const struct gemm_shape *shape, int32_t rows, struct product *p, struct contest *c)
{
    struct candidate now = { .shape = shape, .rows = rows, .p = p };
    int ran = 0;

    for (int i = 0; i < c->n; i++) {                       /* kernels get loaded, what is not supported drops out */
        now.way = &c->ways[i];
        if (run_candidate(g, b, &now, b->w[0])) c->ways[ran++] = c->ways[i];
    }
    c->n = ran;
    for (int i = 0; i < LEADS && b->lead_bytes > 0; i++)
        if (cudaMemsetAsync(b->lead, 0, b->lead_bytes, b->stream) != cudaSuccess) c->n = 0;
    if (cudaEventRecord(b->laps[0], b->stream) != cudaSuccess) c->n = 0;
    for (int i = 0; i < c->n; i++) {
        now.way = &c->ways[i];
        if (!run_spacer(b, rows) || !run_candidate(g, b, &now, b->w[i % b->copies]) || cudaEventRecord(b->laps[i + 1], b->stream) != cudaSuccess) c->n = i;
    }
    if (cudaStreamSynchronize(b->stream) != cudaSuccess) c->n = 0;
    for (int i = 0; i < c->n; i++) {
        struct gemm_entry way = c->ways[i];
        float us = 0;
        int at = i;
        if (cudaEventElapsedTime(&us, b->laps[i], b->laps[i + 1]) != cudaSuccess) us = 1e9f;
        for (; at > 0 && c->us[at - 1] > us; at--) c->ways[at] = c->ways[at - 1], c->us[at] = c->us[at - 1];
        c->ways[at] = way;
        c->us[at] = us;
    }
}

static void final_round(struct gemm *g, struct bench *b, const struct gemm_shape *shape, int32_t rows, struct product *p, const struct contest *c, int runs,
                        struct gemm_entry *best)
{
    int own = 0, library = 0;

    for (int i = 0; i < c->n && own + library < FINALISTS; i++) {
        const struct candidate now = { .shape = shape, .rows = rows, .p = p, .way = &c->ways[i] };
        int *kind = c->ways[i].how == GEMM_LIBRARY ? &library : &own;
        float us;
        if (*kind == FINALISTS - 2) continue;              /* two of the other kind at least */
        ++*kind;
        us = time_candidate(g, b, &now, runs, false);
        if (us <= 0 || (best->tuned && us >= best->us)) continue;
        if (now.way->how != GEMM_LIBRARY && !agrees(g, b, &now)) continue;
        *best = *now.way;
        best->us = us;
        best->tuned = true;
    }
}

/* Times the ways to do one shape and bucket into the table. */
static void tune_one(struct gemm *g, struct bench *b, const struct gemm_shape *shape, int32_t rows, bool library_only)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    struct gemm_entry way = { .n = shape->n, .k = shape->k, .rows = rows, .out_f32 = shape->out_f32 }, best = way;
    bool large = (double)rows * shape->n * shape->k > 1e11;            /* above about 0.3 ms: fewer runs, fewer ways */
    int runs = large ? 2 : TIMED_RUNS, own = large ? OWN_CANDIDATES * 2 / 3 : OWN_CANDIDATES, found;
    struct contest contest = { 0 };
    struct product p;

    if (gemm_product_init(g, &p, rows, shape->n, shape->k, shape->out_f32) != CUBLAS_STATUS_SUCCESS) return;
    found = gemm_guess(g, &p, shape->n, shape->out_f32, large ? CANDIDATES / 2 : CANDIDATES, results);
    for (int i = 0; i < found; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
        gemm_entry_set(&way, &results[i]);
        enter(&contest, &way);
    }
    b->reference.known = false;
    if (contest.n > 0 && !library_only) {
        make_reference(g, b, &(struct candidate){ .shape = shape, .rows = rows, .p = &p, .way = &contest.ways[0] });
        enter_own(&contest, b, shape, rows, false, own);
    }
    first_round(g, b, shape, rows, &p, &contest);
    final_round(g, b, shape, rows, &p, &contest, runs, &best);
    if (best.tuned) gemm_table_put(&g->table, &best);
    if (best.tuned && shape->silu_mul && !library_only) {
        struct gemm_entry fused = { .n = shape->n, .k = shape->k, .rows = rows, .silu_mul = true };
        struct candidate apart = { .shape = shape, .rows = rows, .p = &p, .way = &best };
        float apart_us = time_candidate(g, b, &apart, runs, true);
        contest.n = 0;
        enter_own(&contest, b, shape, rows, true, own);
        first_round(g, b, shape, rows, &p, &contest);
        final_round(g, b, shape, rows, &p, &contest, runs, &fused);
        if (!fused.tuned || (apart_us > 0 && fused.us >= apart_us)) {
            fused.how = GEMM_APART;
            fused.us = apart_us;
            fused.tuned = apart_us > 0;
        }
        gemm_table_put(&g->table, &fused);
    }
}

int gemm_tune(struct gemm *g, const struct gemm_tune_args *a, const struct launch *l, struct err *err)
{
    struct bench b = { .launch = l, .stream = (cudaStream_t)l->stream };
    int64_t until_ns = clock_now_ns() + a->budget_ms * 1000000;
    int rc = 0, done = 0, timed = 0, total = 0;

    for (int32_t rows = GEMV_ALWAYS_ROWS + 1; rows <= gemm_bucket(a->max_rows); rows = gemm_bucket(rows) + 1) total += a->num_shapes;
    for (int i = 0; i < a->num_shapes; i++)
        for (int32_t rows = GEMV_ALWAYS_ROWS + 1; rows <= gemm_bucket(a->max_rows); rows = gemm_bucket(rows) + 1)
            done += gemm_table_find(&g->table, a->shapes[i].n, a->shapes[i].k, gemm_bucket(rows), a->shapes[i].out_f32, false) != NULL;
    if (done == total) return 0;                           /* the warm start */

    for (int i = 0; i <= MAX_WAYS; i++)
        if (cudaEventCreate(&b.laps[i]) != cudaSuccess) rc = ERR_INTERNAL;
    if (rc < 0 || cudaEventCreate(&b.begin) != cudaSuccess || cudaEventCreate(&b.end) != cudaSuccess ||
        fill_random(a->scratch, a->scratch_bytes < (size_t)4 << 30 ? a->scratch_bytes : (size_t)4 << 30, g->f16, b.stream) != cudaSuccess) {
        rc = err_set(err, ERR_INTERNAL, "gemm: scratch memory: %s", cudaGetErrorString(cudaGetLastError()));
        goto out;
    }
    /* Few rows first: these are the decode steps. */
    for (int32_t rows = GEMV_ALWAYS_ROWS + 1; rows <= gemm_bucket(a->max_rows); rows = gemm_bucket(rows) + 1)
        for (int i = 0; i < a->num_shapes; i++) {
            const struct gemm_shape *shape = &a->shapes[i];
            struct gemm_entry *e = gemm_table_find(&g->table, shape->n, shape->k, gemm_bucket(rows), shape->out_f32, false);
            if (e && e->tuned) continue;
            if (clock_now_ns() >= until_ns) goto tuned;
            if (bench_carve(&b, shape, gemm_bucket(rows), a->scratch, a->scratch_bytes)) {
                tune_one(g, &b, shape, gemm_bucket(rows), a->library_only);
                timed++;
            }
            if (a->progress) a->progress(a->arg, ++done, total);
        }
tuned:
    if (cudaGetLastError() != cudaSuccess || cudaStreamSynchronize(b.stream) != cudaSuccess) { rc = err_set(err, ERR_INTERNAL, "gemm: timing failed on the device"); goto out; }
    log_info("gemm_tuned", "%d of %d matrix product shapes timed", timed, total);
    if (g->cache_path && timed > 0) {
        struct err write_err = { 0 };
        if (gemm_cache_write(&g->table, g->cache_path, &write_err) < 0) log_warn("gemm_cache_write", "%s", write_err.message);
    }
out:
    for (int i = 0; i <= MAX_WAYS; i++)
        if (b.laps[i]) cudaEventDestroy(b.laps[i]);
    if (b.begin) cudaEventDestroy(b.begin);
    if (b.end) cudaEventDestroy(b.end);
    return rc;
}
