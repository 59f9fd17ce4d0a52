/* gemm_tune.c - which way is fastest for each product and bucket of rows: a contest between the library's algorithms and the own kernels'
 * cuts, on the device: at start, and an item of the agenda at a time while nothing else runs. gemm.h is the manual. */
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
#include "gemm_agenda.h"
#include "gemm_cache.h"
#include "gemm_sm90_plan.h"
#include "gemm_ways.h"

enum { SPACER_WIDTH = 1024, CANDIDATES = 16, OWN_CANDIDATES = 16, MAX_WAYS = 48, LEADS = 4, FINALISTS = 6 };
enum { RUNS = 5, RUNS_LARGE = 2, RUNS_SMALL = 20, ROUNDS_SMALL = 3 };      /* above about 0.3 ms; below about 15 us, where noise decides else */
enum { SM90_MIN_ROWS = 96 };                               /* below, tiles of 128 rows are not worth timing */
static const size_t COLD_BYTES = (size_t)192 << 20;        /* weight copies to rotate over: three times the L2 of an H200 */
static const size_t LEAD_BYTES = (size_t)256 << 20;        /* cleared ahead of a timing: the launches queue up behind it */
enum { LEAD_PIECES = 16, NOISE_BYTES = 1 << 20 };

enum { CHECK_COLS = 1024, CHECK_PARTS = 4 };               /* both ends of the first and of the last row */
/* What small kernels take in line at least: two products that take a norm in save that much together, that of q, k and v saves rope_store. */
static const float NORM_US = 2.5f, ROPE_US = 1.0f;
static const double CHECK_ERROR = 2e-2;                    /* |own - library| / |library|: sums in another order, rounded to bf16, stay below 5e-3 */

/* What the library makes of the first copy of w, and silu(gate) * up of it. */
struct reference { bool known; float plain[CHECK_PARTS][CHECK_COLS], silu[CHECK_PARTS][CHECK_COLS]; };

struct bench {
    struct reference reference;
    void *x, *out, *lead, *spacer;
    const void *w[GEMM_MAX_COPIES];
    int copies;
    int32_t spacer_width;
    size_t lead_bytes;
    const struct launch *launch;
    cudaStream_t stream;
    cudaEvent_t begin, end, laps[MAX_WAYS + 1];
};

/* What one start has to time; lives until nothing is left. All host memory and events are there before READY. */
struct gemm_tuner {
    struct gemm_shape shapes[GEMM_MAX_SHAPES];
    struct gemm_agenda agenda;
    struct bench bench;
    uint16_t noise[NOISE_BYTES / 2];       /* random elements */
    void *scratch;
    size_t scratch_bytes;
    bool library_only;
    int timed;                             /* since the file was written */
    int64_t spent_ns, longest_ns;          /* on items */
};

/* Zeros would make every algorithm look faster than it is. */
static void make_noise(uint16_t *noise, bool f16)
{
    uint64_t state = 0x5DEECE66Du;

    for (size_t i = 0; i < NOISE_BYTES / sizeof *noise; i++) {         /* sign, exponents of 0.008 .. 0.06, random mantissa */
        state = state * 6364136223846793005u + 1442695040888963407u;
        noise[i] = (uint16_t)(f16 ? (state >> 33 & 0x83FF) | (uint64_t)(8 + (state >> 60 & 3)) << 10
                                  : (state >> 33 & 0x807F) | (uint64_t)(120 + (state >> 60 & 3)) << 7);
    }
}

static cudaError_t fill_random(const struct gemm_tuner *t, void *to, size_t bytes)
{
    cudaError_t e = cudaSuccess;

    for (size_t done = 0, have = 0; e == cudaSuccess && done < bytes; done += have) {
        if (done == 0) {
            have = bytes < NOISE_BYTES ? bytes : NOISE_BYTES;
            e = cudaMemcpyAsync(to, t->noise, have, cudaMemcpyHostToDevice, t->bench.stream);
        } else {
            have = done < bytes - done ? done : bytes - done;          /* doubles each time */
            e = cudaMemcpyAsync((char *)to + done, to, have, cudaMemcpyDeviceToDevice, t->bench.stream);
        }
    }
    return e == cudaSuccess ? cudaStreamSynchronize(t->bench.stream) : e;
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
    if (b->copies > GEMM_MAX_COPIES) b->copies = GEMM_MAX_COPIES;
    while (b->copies > 1 && x + out + spacer + w * (size_t)b->copies + 256 > bytes) b->copies--;
    for (int i = 0; i < b->copies; i++) b->w[i] = at + x + w * (size_t)i;
    b->lead = at + x + w * (size_t)b->copies;
    b->spacer = (char *)b->out - spacer;
    b->spacer_width = SPACER_WIDTH;
    b->lead_bytes = (size_t)((char *)b->spacer - (char *)b->lead);
    if (b->lead_bytes > LEAD_BYTES) b->lead_bytes = LEAD_BYTES;
    return true;
}

/* The same in the shape's own memory: real weights of several layers, and activations that no step uses now. */
static bool bench_borrow(struct bench *b, const struct gemm_shape *shape, int32_t rows)
{
    size_t spacer;

    if (!shape->x || !shape->out || !shape->spare || shape->num_w < 1) return false;
    b->x = shape->x;
    b->out = shape->out;
    b->copies = shape->num_w < GEMM_MAX_COPIES ? shape->num_w : GEMM_MAX_COPIES;
    memcpy(b->w, shape->w, sizeof b->w);
    b->spacer = shape->spare;
    for (b->spacer_width = SPACER_WIDTH; (size_t)rows * (size_t)b->spacer_width * 4 > shape->spare_bytes; b->spacer_width /= 2)
        if (b->spacer_width <= 8) return false;
    spacer = align_up((size_t)rows * (size_t)b->spacer_width * 4);
    b->lead = (char *)shape->spare + spacer;
    b->lead_bytes = spacer < shape->spare_bytes ? shape->spare_bytes - spacer : 0;
    if (b->lead_bytes > LEAD_BYTES) b->lead_bytes = LEAD_BYTES;
    return true;
}

/* Steps find finite numbers in what they do not write themselves (padding), as before. */
static cudaError_t give_back(const struct bench *b, const struct gemm_shape *shape, int32_t rows)
{
    cudaError_t e = cudaMemsetAsync(shape->x, 0, (size_t)rows * (size_t)shape->k * 2, b->stream);

    if (e == cudaSuccess) e = cudaMemsetAsync(shape->out, 0, (size_t)rows * (size_t)shape->n * (shape->out_f32 ? 4 : 2), b->stream);
    if (e == cudaSuccess) e = cudaMemsetAsync(shape->spare, 0, shape->spare_bytes, b->stream);
    return e;
}

/* Keeps the device busy while launches are queued. */
static bool clear_lead(const struct bench *b)
{
    size_t cleared = 0;

    for (int i = 0; i < LEAD_PIECES && cleared < LEAD_BYTES && b->lead_bytes > 0; i++, cleared += b->lead_bytes)
        if (cudaMemsetAsync(b->lead, 0, b->lead_bytes, b->stream) != cudaSuccess) return false;
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
    struct launch launch = *b->launch;
    cublasLtMatmulAlgo_t algo;

    /* Behind the small kernel that stands for its predecessor an own kernel begins to load early; behind one that fills the shared memory
     * it could not (0.6B, 256 rows: o and down 7.0 us of a step in the library, 9.7 in the own kernel that won the contest). */
    if (c->shape->behind_large && !norm_pays(c->rows)) launch.pdl = false;
    if (!c->way) return launch_silu_mul(&(struct silu_mul_kernel){ b->out, b->out, c->rows, c->shape->n / 2 }, b->launch) == 0;
    if (c->way->how == GEMM_SM90) {
        struct gemm_sm90_plan plan = gemm_entry_plan(c->way);
        struct gemm_kernel own;
        a.silu_mul = c->way->silu_mul;
        own = gemm_own_product(&a);
        return launch_gemm_planned(&own, &plan, &launch) == 0;
    }
    if (c->way->how == GEMM_SKINNY || c->way->how == GEMM_GEMV) {
        struct gemv_kernel few;
        a.silu_mul = c->way->silu_mul;
        few = gemm_few_rows(g, &a, c->way->algo[0]);
        return (c->way->how == GEMM_GEMV ? launch_gemv(&few, &launch) : launch_gemm_skinny(&few, &launch)) == 0;
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
    return launch_silu_mul(&(struct silu_mul_kernel){ b->spacer, b->spacer, rows, b->spacer_width }, &plain) == 0;
}

/* Microseconds of one run with its spacer, < 0 where it does not run. apart: silu_mul behind it. */
static float time_candidate(struct gemm *g, struct bench *b, const struct candidate *c, int runs, bool apart)
{
    const struct candidate silu = { .shape = c->shape, .rows = c->rows };
    float ms = 0;

    if (!run_candidate(g, b, c, b->w[0])) return -1;       /* the warm-up */
    if (!clear_lead(b) || cudaEventRecord(b->begin, b->stream) != cudaSuccess) return -1;
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
static void enter_own(struct contest *c, const struct bench *b, const struct gemm_shape *shape, const struct gemm_item *item, bool silu_mul, int most)
{
    int32_t rows = item->rows;
    struct gemm_entry way = { .n = shape->n, .k = shape->k, .rows = item->bucket, .out_f32 = shape->out_f32, .silu_mul = silu_mul };
    struct gemm_args a = { .num_tokens = rows, .n = shape->n, .k = shape->k, .out_f32 = shape->out_f32, .silu_mul = silu_mul };
    struct gemm_kernel own = gemm_own_product(&a);
    struct gemm_sm90_plan plan;

    if (b->launch->sm != 90) return;
    if (rows <= GEMV_MAX_ROWS) {
        way.how = GEMM_GEMV;
        enter(c, &way);
    }
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

/* What a way saves beside itself. The hidden size is one side of the weight, mostly the smaller one. */
static float saves_us(const struct gemm *g, const struct gemm_shape *shape, int32_t rows, const struct gemm_entry *way)
{
    const int32_t hidden = shape->n < shape->k ? shape->n : shape->k;
    bool norm = shape->beside_norm && !g->f16 && norm_pays(rows) && (way->how == GEMM_SKINNY || (way->how == GEMM_GEMV && gemv_gains_by_norm(rows, hidden)));
    bool rope = shape->rope_head > 0 && rope_pays(rows, shape->norms_heads) && gemm_entry_rotates(way, shape->rope_head, shape->norms_heads);
    return (norm ? NORM_US / 2 : 0) + (rope ? ROPE_US : 0);
}

static bool is_small(const struct gemm_shape *shape, int32_t rows) { return (int64_t)shape->n * shape->k <= 32 << 20 && rows <= 256; }

/* Each way once, small ones the best of three times, one behind the other on a device that is kept busy until all are queued; the ones
 * that run, fastest first. */
static void first_round(struct gemm *g, struct bench *b, const struct gemm_shape *shape, int32_t rows, struct product *p, struct contest *c)
{
    struct candidate now = { .shape = shape, .rows = rows, .p = p };
    int ran = 0;

    for (int i = 0; i < c->n; i++) {                       /* kernels get loaded, what is not supported drops out */
        now.way = &c->ways[i];
        if (run_candidate(g, b, &now, b->w[0])) c->ways[ran++] = c->ways[i];
    }
    c->n = ran;
    for (int round = 0; round < (is_small(shape, rows) ? ROUNDS_SMALL : 1); round++) {
        for (int i = 0; i < LEADS; i++)
            if (!clear_lead(b)) c->n = 0;
        if (cudaEventRecord(b->laps[0], b->stream) != cudaSuccess) c->n = 0;
        for (int i = 0; i < c->n; i++) {
            now.way = &c->ways[i];
            if (!run_spacer(b, rows) || !run_candidate(g, b, &now, b->w[i % b->copies]) || cudaEventRecord(b->laps[i + 1], b->stream) != cudaSuccess) c->n = i;
        }
        if (cudaStreamSynchronize(b->stream) != cudaSuccess) c->n = 0;
        for (int i = 0; i < c->n; i++) {
            float us = 0;
            if (cudaEventElapsedTime(&us, b->laps[i], b->laps[i + 1]) != cudaSuccess) us = 1e9f;
            c->us[i] = round == 0 || us < c->us[i] ? us : c->us[i];
        }
    }
    for (int i = 0; i < c->n; i++) {
        struct gemm_entry way = c->ways[i];
        float us = c->us[i] - saves_us(g, shape, rows, &way);
        int at = i;
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
        if (us > 0) us = fmaxf(us - saves_us(g, shape, rows, now.way), 0.1f);
        if (us <= 0 || (best->tuned && us >= best->us)) continue;
        if (now.way->how != GEMM_LIBRARY && !agrees(g, b, &now)) continue;
        *best = *now.way;
        best->us = us;
        best->tuned = true;
    }
}

/* Times the ways to do one shape and bucket into the table. */
static void tune_one(struct gemm *g, struct bench *b, const struct gemm_shape *shape, const struct gemm_item *item, bool library_only)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int32_t rows = item->rows;
    struct gemm_entry way = { .n = shape->n, .k = shape->k, .rows = item->bucket, .out_f32 = shape->out_f32 }, best = way;
    bool large = (double)rows * shape->n * shape->k > 1e11, small = is_small(shape, rows);
    int runs = large ? RUNS_LARGE : small ? RUNS_SMALL : RUNS, own = large ? OWN_CANDIDATES * 2 / 3 : OWN_CANDIDATES, found;
    struct contest contest = { 0 };
    struct product p;

    if (gemm_product_init(g, &p, rows, shape->n, shape->k, shape->out_f32) != CUBLAS_STATUS_SUCCESS) return;
    found = gemm_guess(g, &p, shape->n, shape->out_f32, rows <= GEMV_RULE_ROWS && !library_only ? 1 : large ? CANDIDATES / 2 : CANDIDATES, results);
    for (int i = 0; i < found; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
        gemm_entry_set(&way, &results[i]);
        enter(&contest, &way);
    }
    b->reference.known = false;
    if (contest.n > 0 && !library_only) {
        make_reference(g, b, &(struct candidate){ .shape = shape, .rows = rows, .p = &p, .way = &contest.ways[0] });
        enter_own(&contest, b, shape, item, false, own);
    }
    first_round(g, b, shape, rows, &p, &contest);
    final_round(g, b, shape, rows, &p, &contest, runs, &best);
    if (best.tuned) gemm_table_put(&g->table, &best);
    if (best.tuned && shape->silu_mul && !library_only) {
        struct gemm_entry fused = { .n = shape->n, .k = shape->k, .rows = item->bucket, .silu_mul = true };
        struct candidate apart = { .shape = shape, .rows = rows, .p = &p, .way = &best };
        float apart_us = time_candidate(g, b, &apart, runs, true);
        contest.n = 0;
        enter_own(&contest, b, shape, item, true, own);
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

/* ---- the agenda ---- */

static void tuner_free(struct gemm_tuner *t)
{
    if (!t) return;
    for (int i = 0; i <= MAX_WAYS; i++)
        if (t->bench.laps[i]) cudaEventDestroy(t->bench.laps[i]);
    if (t->bench.begin) cudaEventDestroy(t->bench.begin);
    if (t->bench.end) cudaEventDestroy(t->bench.end);
    free(t);
}

static int tuner_new(struct gemm_tuner **out, struct gemm *g, const struct gemm_tune_args *a, const struct launch *l, struct err *err)
{
    const size_t most = (size_t)4 << 30;
    struct gemm_tuner *t = calloc(1, sizeof *t);
    cudaError_t e = cudaSuccess;

    *out = t;
    if (!t) return err_set(err, ERR_NO_MEMORY, "gemm: out of memory");
    if (a->num_shapes > GEMM_MAX_SHAPES) return err_set(err, ERR_UNSUPPORTED, "gemm: %d shapes", a->num_shapes);
    memcpy(t->shapes, a->shapes, (size_t)a->num_shapes * sizeof *a->shapes);
    gemm_agenda_make(&t->agenda, &g->table, t->shapes, a->num_shapes, g->sm == 90 ? 1 : GEMV_MAX_ROWS + 1, a->max_rows);
    if (gemm_agenda_left(&t->agenda) == 0) return 0;       /* the warm start */
    t->bench.launch = l;
    t->bench.stream = (cudaStream_t)l->stream;
    t->scratch = a->scratch;
    t->scratch_bytes = a->scratch_bytes;
    t->library_only = a->library_only;
    make_noise(t->noise, g->f16);
    for (int i = 0; i <= MAX_WAYS && e == cudaSuccess; i++) e = cudaEventCreate(&t->bench.laps[i]);
    if (e == cudaSuccess) e = cudaEventCreate(&t->bench.begin);
    if (e == cudaSuccess) e = cudaEventCreate(&t->bench.end);
    if (e == cudaSuccess && t->scratch) e = fill_random(t, t->scratch, t->scratch_bytes < most ? t->scratch_bytes : most);
    return e == cudaSuccess ? 0 : err_set(err, ERR_INTERNAL, "gemm: memory to time in: %s", cudaGetErrorString(e));
}

static struct gemm_entry entry_now(struct gemm *g, const struct gemm_shape *shape, int32_t bucket, bool silu_mul)
{
    const struct gemm_entry *e = gemm_table_find(&g->table, shape->n, shape->k, bucket, shape->out_f32 && !silu_mul, silu_mul);
    return e ? *e : gemm_rule(g, bucket, silu_mul);
}

static bool other_way(const struct gemm_entry *a, const struct gemm_entry *b)
{
    return a->how != b->how || (a->how != GEMM_APART && memcmp(a->algo, b->algo, sizeof a->algo) != 0);
}

/* The next item of the agenda. What does not fit into the memory there is is left untimed. */
static int time_next(struct gemm *g, struct gemm_tuner *t, int32_t *changed, struct err *err)
{
    const struct gemm_item *item = gemm_agenda_next(&t->agenda);
    const struct gemm_shape *shape = &t->shapes[item->shape];
    struct gemm_entry plain = entry_now(g, shape, item->bucket, false), silu = entry_now(g, shape, item->bucket, true), now;
    struct bench *b = &t->bench;
    int64_t began_ns = clock_now_ns();
    cudaError_t e = cudaSuccess;

    *changed = 0;
    if (t->scratch ? !bench_carve(b, shape, item->rows, t->scratch, t->scratch_bytes) : !bench_borrow(b, shape, item->rows)) return 0;
    if (!t->scratch) e = fill_random(t, b->x, (size_t)item->rows * (size_t)shape->k * 2);
    if (e == cudaSuccess) tune_one(g, b, shape, item, t->library_only);
    if (e == cudaSuccess && !t->scratch) e = give_back(b, shape, item->rows);
    if (e == cudaSuccess) e = cudaGetLastError();
    if (e == cudaSuccess) e = cudaStreamSynchronize(b->stream);
    if (e != cudaSuccess) return err_set(err, ERR_INTERNAL, "gemm: timing failed on the device: %s", cudaGetErrorString(e));
    t->timed++;
    int64_t took_ns = clock_now_ns() - began_ns;
    t->spent_ns += took_ns;
    if (took_ns > t->longest_ns) t->longest_ns = took_ns;
    now = entry_now(g, shape, item->bucket, false);
    if (other_way(&plain, &now)) *changed = item->bucket;
    now = entry_now(g, shape, item->bucket, true);
    if (shape->silu_mul && other_way(&silu, &now)) *changed = item->bucket;
    return 0;
}

static void keep(struct gemm *g, struct gemm_tuner *t)
{
    struct err err = { 0 };

    if (g->cache_path && t->timed > 0 && gemm_cache_write(&g->table, g->cache_path, &err) < 0) log_warn("gemm_cache_write", "%s", err.message);
    t->timed = 0;
}

void gemm_tune_end(struct gemm *g)
{
    if (g->tuner) keep(g, g->tuner);
    tuner_free(g->tuner);
    g->tuner = NULL;
}

int gemm_tune(struct gemm *g, const struct gemm_tune_args *a, const struct launch *l, struct err *err)
{
    int64_t began_ns = clock_now_ns(), until_ns = began_ns + a->budget_ms * 1000000;
    struct gemm_tuner *t = NULL;
    int32_t changed;
    int left = 0, rc;

    gemm_tune_end(g);
    if ((rc = tuner_new(&t, g, a, l, err)) < 0 || gemm_agenda_left(&t->agenda) == 0) goto out;
    while ((left = gemm_agenda_left(&t->agenda)) > 0 && clock_now_ns() < until_ns) {
        if ((rc = time_next(g, t, &changed, err)) < 0) goto out;
        if (a->progress) a->progress(a->arg, t->agenda.total - left + 1, t->agenda.total);
    }
    log_info("gemm_tuned", "%d of %d matrix product shapes timed in %d ms, the longest in %d ms, %d left%s", t->timed, t->agenda.total,
             (int)((clock_now_ns() - began_ns) / 1000000), (int)(t->longest_ns / 1000000), left, left == 0 ? "" : a->later ? ": while idle" : ": at the next start");
    if (left > 0 && a->later) {
        g->tuner = t;
        t = NULL;
    } else keep(g, t);
out:
    tuner_free(t);
    return rc;
}

int gemm_tune_left(const struct gemm *g) { return g->tuner ? gemm_agenda_left(&g->tuner->agenda) : 0; }

int gemm_tune_more(struct gemm *g, const struct launch *l, int32_t *changed, struct err *err)
{
    int rc;

    *changed = 0;
    if (gemm_tune_left(g) == 0) return 0;
    g->tuner->bench.launch = l;
    g->tuner->bench.stream = (cudaStream_t)l->stream;
    if ((rc = time_next(g, g->tuner, changed, err)) < 0) return rc;
    if (gemm_agenda_left(&g->tuner->agenda) > 0) return 1;
    log_info("gemm_tuned", "all %d matrix product shapes are timed, in %d ms, the longest in %d ms", g->tuner->agenda.total,
             (int)(g->tuner->spent_ns / 1000000), (int)(g->tuner->longest_ns / 1000000));
    gemm_tune_end(g);
    return 0;
}
