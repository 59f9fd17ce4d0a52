/* gemm_tune.c - what is to be timed, one thing after the other: at start, and an item of the agenda at a time while nothing else runs.
 * gemm.h is the manual. */
#include "gemm.h"

#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "base/clock.h"
#include "base/log.h"
#include "gemm_agenda.h"
#include "gemm_cache.h"
#include "gemm_contest.h"
#include "gemm_layer.h"
#include "gemm_ways.h"

enum { NOISE_BYTES = 1 << 20 };

/* What one start has to time; lives until nothing is left. All host memory and events are there before READY. */
struct gemm_tuner {
    struct gemm_shape shapes[GEMM_MAX_SHAPES];
    struct gemm_agenda agenda;
    struct bench bench;
    uint16_t noise[NOISE_BYTES / 2];       /* random elements */
    struct gemm_layers layers;
    struct layer_contest contests[GEMM_MAX_LAYERS];         /* of a bucket each: what was entered, and is to be tried when its layer's turn comes */
    struct layer_contest *trying;          /* whose trials come next; NULL: none's */
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

static void tuner_free(struct gemm_tuner *t)
{
    if (!t) return;
    for (int i = 0; i < GEMM_MAX_LAYERS; i++) layer_contest_end(&t->contests[i]);
    for (int i = 0; i <= CONTEST_MAX_WAYS; i++)
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
    if (g->sm == 90 && !a->library_only) t->layers = a->layers;
    gemm_agenda_make(&t->agenda, &g->table, t->shapes, a->num_shapes, g->sm == 90 ? 1 : GEMV_MAX_ROWS + 1, a->max_rows, t->layers.max_rows);
    if (gemm_agenda_left(&t->agenda) == 0) return 0;       /* the warm start */
    t->bench.launch = l;
    t->bench.stream = (cudaStream_t)l->stream;
    t->scratch = a->scratch;
    t->scratch_bytes = a->scratch_bytes;
    t->library_only = a->library_only;
    make_noise(t->noise, g->f16);
    for (int i = 0; i <= CONTEST_MAX_WAYS && e == cudaSuccess; i++) e = cudaEventCreate(&t->bench.laps[i]);
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

/* Shapes and layers; the layer whose trials have begun is one. */
static int left_of(const struct gemm_tuner *t) { return gemm_agenda_left(&t->agenda) + (t->trying ? 1 : 0); }

/* The contest of a bucket's layer, empty at first. NULL: that many rows have none. */
static struct layer_contest *contest_of(struct gemm_tuner *t, int32_t bucket)
{
    if (t->layers.max_rows == 0 || bucket > gemm_bucket(t->layers.max_rows)) return NULL;
    for (int i = 0; i < GEMM_MAX_LAYERS; i++) {
        if (t->contests[i].bucket == 0) layer_contest_begin(&t->contests[i], bucket, bucket < t->layers.max_rows ? bucket : t->layers.max_rows);
        if (t->contests[i].bucket == bucket) return &t->contests[i];
    }
    return NULL;
}

static int next_trial(struct gemm *g, struct gemm_tuner *t, int32_t *changed, struct err *err)
{
    struct bench *b = &t->bench;
    bool better = false;
    int rc = layer_contest_next(t->trying, g, &t->layers, b->stream, b->begin, b->end, &better, err);

    if (better) *changed = t->trying->bucket;
    if (layer_contest_is_over(t->trying)) t->trying = NULL;
    return rc;
}

/* The next item of the agenda, or trial of the layer that it is at. What does not fit into the memory there is is left untimed. */
static int time_item(struct gemm *g, struct gemm_tuner *t, int32_t *changed, struct err *err)
{
    *changed = 0;
    if (t->trying) return next_trial(g, t, changed, err);
    const struct gemm_item *item = gemm_agenda_next(&t->agenda);
    if (item->shape == GEMM_LAYER) {
        struct layer_contest *contest = contest_of(t, item->bucket);
        if (contest && !layer_contest_is_over(contest)) t->trying = contest;
        t->timed++;
        return 0;
    }
    const struct gemm_shape *shape = &t->shapes[item->shape];
    struct gemm_entry plain = entry_now(g, shape, item->bucket, false), silu = entry_now(g, shape, item->bucket, true), now;
    struct bench *b = &t->bench;
    cudaError_t e = cudaSuccess;

    if (t->scratch ? !bench_carve(b, shape, item->rows, t->scratch, t->scratch_bytes) : !bench_borrow(b, shape, item->rows)) return 0;
    if (!t->scratch) e = fill_random(t, b->x, (size_t)item->rows * (size_t)shape->k * 2);
    if (e == cudaSuccess) contest_run(g, b, shape, item, t->library_only, shape->out_f32 ? NULL : contest_of(t, item->bucket));
    if (e == cudaSuccess && !t->scratch) e = bench_give_back(b, shape, item->rows);
    if (e == cudaSuccess) e = cudaGetLastError();
    if (e == cudaSuccess) e = cudaStreamSynchronize(b->stream);
    if (e != cudaSuccess) return err_set(err, ERR_INTERNAL, "gemm: timing failed on the device: %s", cudaGetErrorString(e));
    t->timed++;
    now = entry_now(g, shape, item->bucket, false);
    if (!gemm_same_way(&plain, &now)) *changed = item->bucket;
    now = entry_now(g, shape, item->bucket, true);
    if (shape->silu_mul && !gemm_same_way(&silu, &now)) *changed = item->bucket;
    return 0;
}

static int time_next(struct gemm *g, struct gemm_tuner *t, int32_t *changed, struct err *err)
{
    int64_t began_ns = clock_now_ns(), took_ns;
    int rc = time_item(g, t, changed, err);

    took_ns = clock_now_ns() - began_ns;
    t->spent_ns += took_ns;
    if (took_ns > t->longest_ns) t->longest_ns = took_ns;
    return rc;
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
    while ((left = left_of(t)) > 0 && clock_now_ns() < until_ns) {
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

int gemm_tune_left(const struct gemm *g) { return g->tuner ? left_of(g->tuner) : 0; }

int gemm_tune_more(struct gemm *g, const struct launch *l, int32_t *changed, struct err *err)
{
    int rc;

    *changed = 0;
    if (gemm_tune_left(g) == 0) return 0;
    g->tuner->bench.launch = l;
    g->tuner->bench.stream = (cudaStream_t)l->stream;
    if ((rc = time_next(g, g->tuner, changed, err)) < 0) return rc;
    if (left_of(g->tuner) > 0) return 1;
    log_info("gemm_tuned", "all %d matrix product shapes are timed, in %d ms, the longest in %d ms", g->tuner->agenda.total,
             (int)(g->tuner->spent_ns / 1000000), (int)(g->tuner->longest_ns / 1000000));
    gemm_tune_end(g);
    return 0;
}
