#include "gemm_contest.h"

#include <math.h>
#include <string.h>

#include "base/bf16.h"
#include "base/half.h"
#include "base/log.h"
#include "gemm_sm90_plan.h"

enum { SPACER_WIDTH = 1024, CANDIDATES = 16, OWN_CANDIDATES = 16, LEADS = 4, FINALISTS = 6, LAYER_FINALISTS = 11, LIBRARY_FINALISTS = 3 };
enum { RUNS = 5, RUNS_LARGE = 2, RUNS_SMALL = 20, ROUNDS_SMALL = 3 };      /* above about 0.3 ms; below about 15 us, where noise decides else */
enum { SM90_MIN_ROWS = 96 };                               /* below, tiles of 128 rows are not worth timing */
static const size_t COLD_BYTES = (size_t)192 << 20;        /* weight copies to rotate over: three times the L2 of an H200 */
static const size_t LEAD_BYTES = (size_t)256 << 20;        /* cleared ahead of a timing: the launches queue up behind it */
enum { LEAD_PIECES = 16 };

/* What small kernels take in line at least: two products that take a norm in save that much together, that of q, k and v saves rope_store. */
static const float NORM_US = 2.5f, ROPE_US = 1.0f;
static const double CHECK_ERROR = 2e-2;                    /* |own - library| / |library|: sums in another order, rounded to bf16, stay below 5e-3 */

static size_t align_up(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

bool bench_carve(struct bench *b, const struct gemm_shape *shape, int32_t rows, void *scratch, size_t bytes)
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

bool bench_borrow(struct bench *b, const struct gemm_shape *shape, int32_t rows)
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

cudaError_t bench_give_back(const struct bench *b, const struct gemm_shape *shape, int32_t rows)
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

struct contest { int n; struct gemm_entry ways[CONTEST_MAX_WAYS]; float us[CONTEST_MAX_WAYS]; };

static void enter(struct contest *c, const struct gemm_entry *way)
{
    if (c->n < CONTEST_MAX_WAYS) c->ways[c->n++] = *way;
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

/* Where silu is wanted, a way without it stands for the product and silu_mul apart. */
static void try_in_layer(struct layer_contest *layer, const struct gemm_shape *shape, const struct gemm_entry *way)
{
    layer_contest_enter(layer, &(struct layer_trial){ .way = *way, .change = shape->silu_mul && !way->silu_mul ? LAYER_APART : LAYER_WAY });
}

/* layer: where those that come close are entered; NULL: nowhere. */
static void final_round(struct gemm *g, struct bench *b, const struct gemm_shape *shape, int32_t rows, struct product *p, const struct contest *c, int runs,
                        struct gemm_entry *best, struct layer_contest *layer)
{
    const float close = 1.6f;                              /* to the best: what loses by more alone does not win in a layer */
    const int most = layer ? LAYER_FINALISTS : FINALISTS;
    int own = 0, library = 0;

    for (int i = 0; i < c->n && own + library < most; i++) {
        const struct candidate now = { .shape = shape, .rows = rows, .p = p, .way = &c->ways[i] };
        int *kind = c->ways[i].how == GEMM_LIBRARY ? &library : &own;
        float us;
        if (*kind == (layer && kind == &library ? LIBRARY_FINALISTS : most - 2)) continue;     /* two of the other kind at least */
        ++*kind;
        us = time_candidate(g, b, &now, runs, false);
        if (us > 0) us = fmaxf(us - saves_us(g, shape, rows, now.way), 0.1f);
        if (us <= 0 || (best->tuned && us >= best->us * (layer ? close : 1))) continue;
        if (now.way->how != GEMM_LIBRARY && !agrees(g, b, &now)) continue;
        struct gemm_entry timed = *now.way;
        timed.us = us;
        timed.tuned = true;
        if (layer) try_in_layer(layer, shape, &timed);
        if (!best->tuned || us < best->us) *best = timed;
    }
}

/* Alone gemv looks slower than it is in a step: it is tried in the layer whatever it took, and where it is the rule that is where it begins. */
static void enter_gemv(struct layer_contest *layer, const struct gemm_shape *shape, const struct gemm_item *item, bool silu_mul, struct gemm_entry *best)
{
    struct gemm_entry way = { .n = shape->n, .k = shape->k, .rows = item->bucket, .silu_mul = silu_mul, .how = GEMM_GEMV, .us = best->us, .tuned = true };

    if (item->rows > GEMV_MAX_ROWS) return;
    try_in_layer(layer, shape, &way);
    if (!gemv_always(item->bucket, shape->n, shape->k)) return;
    try_in_layer(layer, shape, best);
    *best = way;
}

void contest_run(struct gemm *g, struct bench *b, const struct gemm_shape *shape, const struct gemm_item *item, bool library_only,
                 struct layer_contest *layer)
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
    final_round(g, b, shape, rows, &p, &contest, runs, &best, layer);
    if (layer && best.tuned) enter_gemv(layer, shape, item, false, &best);
    if (best.tuned) gemm_table_put(&g->table, &best);
    if (best.tuned && shape->silu_mul && !library_only) {
        struct gemm_entry fused = { .n = shape->n, .k = shape->k, .rows = item->bucket, .silu_mul = true };
        struct candidate apart = { .shape = shape, .rows = rows, .p = &p, .way = &best };
        float apart_us = time_candidate(g, b, &apart, runs, true);
        contest.n = 0;
        enter_own(&contest, b, shape, item, true, own);
        first_round(g, b, shape, rows, &p, &contest);
        final_round(g, b, shape, rows, &p, &contest, runs, &fused, layer);
        if (!fused.tuned || (apart_us > 0 && fused.us >= apart_us)) {
            fused.how = GEMM_APART;
            fused.us = apart_us;
            fused.tuned = apart_us > 0;
        }
        if (layer && fused.tuned) enter_gemv(layer, shape, item, true, &fused);
        gemm_table_put(&g->table, &fused);
    }
    for (uint8_t flip = FLIP_INSIDE; layer && best.tuned && flip <= FLIP_BEHIND; flip <<= 1)
        if (flip != FLIP_INSIDE || (rows <= GEMM_SKINNY_MAX_ROWS && (shape->rope_head > 0 || shape->behind_large)))
            layer_contest_enter(layer, &(struct layer_trial){ .way = best, .change = LAYER_FLIP, .flip = flip });
}
