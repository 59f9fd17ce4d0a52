#include "gemm_layer.h"

#include "base/log.h"

enum { REPEATS = 6, REPEATS_LONG = 3 };                    /* of passes; of passes of more than LONG_MS */
static const float LONG_MS = 2;
static const float GAIN = 0.997f, CLEAR = 1.02f;           /* what a trial has to come below: less is noise; what it does not make up for */

void layer_contest_end(struct layer_contest *c)
{
    if (c->now) cudaGraphExecDestroy(c->now);
    c->now = NULL;
}

void layer_contest_begin(struct layer_contest *c, int32_t bucket, int32_t rows)
{
    layer_contest_end(c);
    *c = (struct layer_contest){ .bucket = bucket, .rows = rows };
}

void layer_contest_enter(struct layer_contest *c, const struct layer_trial *trial)
{
    if (c->num_trials < LAYER_TRIALS) c->trials[c->num_trials++] = *trial;
}

bool layer_contest_is_over(const struct layer_contest *c) { return c->next >= c->num_trials; }

/* ---- the table under a trial ---- */

/* What a product of silu_mul has in the table: its own entry and that with silu_mul in it. */
struct standing { struct gemm_entry plain, silu; bool has_plain, has_silu; };

static struct standing standing_of(struct gemm *g, const struct gemm_entry *way)
{
    const struct gemm_entry *plain = gemm_table_find(&g->table, way->n, way->k, way->rows, way->out_f32, false);
    const struct gemm_entry *silu = gemm_table_find(&g->table, way->n, way->k, way->rows, false, true);
    struct standing s = { .has_plain = plain != NULL, .has_silu = silu != NULL };
    if (plain) s.plain = *plain;
    if (silu) s.silu = *silu;
    return s;
}

static void put_standing(struct gemm *g, const struct standing *s)
{
    if (s->has_plain) gemm_table_put(&g->table, &s->plain);
    if (s->has_silu) gemm_table_put(&g->table, &s->silu);
}

/* What would stand with the trial's change. false: that is what stands already. */
static bool changed_standing(struct standing *s, const struct layer_trial *t)
{
    bool apart = s->has_silu && s->silu.how == GEMM_APART;

    if (t->change == LAYER_FLIP) {
        struct gemm_entry *e = s->has_silu && !apart ? &s->silu : &s->plain;
        if (!s->has_plain || !s->plain.tuned || (e == &s->silu && t->flip != FLIP_EARLY)) return false;
        e->flips ^= t->flip;
        return true;
    }
    if (t->way.silu_mul) {
        if (!s->has_silu || gemm_same_way(&s->silu, &t->way)) return false;
        s->silu = t->way;
        return true;
    }
    if (!s->has_plain || (t->change == LAYER_APART && !s->has_silu)) return false;
    if (gemm_same_way(&s->plain, &t->way) && (t->change == LAYER_WAY || apart)) return false;
    s->plain = t->way;
    if (t->change == LAYER_APART && !apart)
        s->silu = (struct gemm_entry){ .n = t->way.n, .k = t->way.k, .rows = t->way.rows, .silu_mul = true, .how = GEMM_APART, .us = t->way.us, .tuned = true };
    return true;
}

/* ---- timing ---- */

/* What a trial is timed with. */
struct stopwatch { struct gemm *g; const struct gemm_layers *layers; cudaStream_t stream; cudaEvent_t begin, end; };

/* One side of it: what stands in the table, and the layers captured so. NULL: launched kernel by kernel, as such a step is. */
struct side { const struct standing *standing; cudaGraphExec_t exec; };

enum { LOST = 0, WON = 1, FAILED = -1, NO_ROOM = -2 };      /* what a trial comes to; the device failed; no memory to capture with */

/* The layers by the table, captured. What was never run is loaded before. 0, FAILED, NO_ROOM. */
static int capture(const struct stopwatch *w, cudaGraphExec_t *exec)
{
    cudaGraph_t graph = NULL;
    cudaError_t code;
    int rc = w->layers->run(w->layers->arg);

    *exec = NULL;
    if (rc < 0 || cudaStreamSynchronize(w->stream) != cudaSuccess) return FAILED;
    if (cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return FAILED;
    rc = w->layers->run(w->layers->arg);
    code = cudaStreamEndCapture(w->stream, &graph);
    if (code == cudaSuccess && rc == 0) code = cudaGraphInstantiate(exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (code == cudaErrorMemoryAllocation) cudaGetLastError();             /* it is told */
    return code == cudaErrorMemoryAllocation ? NO_ROOM : code == cudaSuccess && rc == 0 ? 0 : FAILED;
}

static bool time_side(const struct stopwatch *w, const struct side *side, float *ms)
{
    if (cudaEventRecord(w->begin, w->stream) != cudaSuccess) return false;
    if (side->exec) {
        if (cudaGraphLaunch(side->exec, w->stream) != cudaSuccess) return false;
    } else {
        put_standing(w->g, side->standing);
        if (w->layers->run(w->layers->arg) < 0) return false;
    }
    return cudaEventRecord(w->end, w->stream) == cudaSuccess && cudaEventSynchronize(w->end) == cudaSuccess &&
           cudaEventElapsedTime(ms, w->begin, w->end) == cudaSuccess;
}

/* In turns, so that a clock that changes is fair to both; not to the end where it is clear (*out). */
static int is_faster(const struct stopwatch *w, const struct side *next, const struct side *now, bool *out)
{
    float best[2] = { 1e9f, 1e9f }, ms = 0;                /* now, next */

    for (int i = -1; i < (ms > LONG_MS ? REPEATS_LONG : REPEATS); i++) {       /* the first of each warms up */
        for (int which = 0; which < 2; which++) {
            if (!time_side(w, which ? next : now, &ms)) return FAILED;
            if (i >= 0 && ms < best[which]) best[which] = ms;
        }
        *out = i >= 1 && best[1] > best[0] * CLEAR;
        if (*out) return LOST;
    }
    return best[1] < best[0] * GAIN ? WON : LOST;
}

/* WON: the trial stands now; else what stood. *out: it lost by far. */
static int try_it(struct layer_contest *c, const struct stopwatch *w, const struct standing *stood, const struct standing *tried, bool *out)
{
    bool captured = c->rows <= w->layers->max_captured;
    struct side now = { stood, NULL }, next = { tried, NULL };
    int rc = 0, outcome;

    if (w->layers->begin(w->layers->arg, c->rows) < 0) return FAILED;
    if (captured && !c->now) rc = capture(w, &c->now);
    now.exec = c->now;
    if (captured && rc == 0) {
        put_standing(w->g, tried);
        rc = capture(w, &next.exec);
    }
    outcome = rc < 0 ? rc : is_faster(w, &next, &now, out);
    put_standing(w->g, outcome == WON ? tried : stood);
    if (outcome == WON) {
        c->now = next.exec;
        next.exec = now.exec;
    }
    if (next.exec) cudaGraphExecDestroy(next.exec);
    return outcome;
}

static void mark_timed(struct gemm_table *t, int32_t bucket)
{
    for (int i = 0; i < t->num_entries; i++)
        if (t->entries[i].rows == bucket && !t->entries[i].out_f32) t->entries[i].in_layer = t->entries[i].tuned;
}

int layer_contest_next(struct layer_contest *c, struct gemm *g, const struct gemm_layers *layers, cudaStream_t stream, cudaEvent_t begin, cudaEvent_t end,
                       bool *changed, struct err *err)
{
    const struct stopwatch w = { g, layers, stream, begin, end };
    struct layer_trial *trial = &c->trials[c->next++];
    const struct standing stood = standing_of(g, &trial->way);
    struct standing tried = stood;
    int outcome = !trial->out && changed_standing(&tried, trial) ? try_it(c, &w, &stood, &tried, &trial->out) : LOST;

    *changed = outcome == WON;
    c->improved = c->improved || *changed;
    if (outcome == NO_ROOM) {                              /* what stands is good enough; the next start tries again */
        log_warn("gemm_layer", "no device memory to capture layers of %d rows with: their products stay as they are", (int)c->rows);
        c->next = c->num_trials;
        layer_contest_end(c);
        return 0;
    }
    if (outcome == FAILED || cudaGetLastError() != cudaSuccess) return err_set(err, ERR_INTERNAL, "gemm: layers of %d rows do not run", (int)c->rows);
    if (!layer_contest_is_over(c)) return 0;
    if (c->improved && !c->again) {                        /* what lost before may win beside what won */
        c->improved = false;
        c->again = true;
        c->next = 0;
        return 0;
    }
    mark_timed(&g->table, c->bucket);
    layer_contest_end(c);
    return 0;
}
