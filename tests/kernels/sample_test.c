/* sample_test.c - kernels/sample.cu against the CPU sampler over random mixtures of parameters: greedy rows equal, drawn tokens
 * equal but where the uniform number falls within 1e-5 of a token's edge (which is computed, not assumed), reports equal. Steps
 * follow each other with the same slots, as a captured launch that is replayed with other rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sluice/backend.h>
#include <sluice/sampling.h>

#include "gpu.h"

enum { MAX_LIST = 4096, HISTORY = 40, STEPS = 6, EXTRA_SLOTS = 3 };

static const float EDGE = 1e-5f, LIKELY = 1e-3f, LOGPROB_ERROR = 1e-4f;

/* One vocabulary and number of rows: host plan and oracle, device copies, what each slot has generated. */
struct bed {
    int num_rows, vocab_size, num_slots, words;
    uint64_t rng;
    struct backend *cpu;
    struct step_plan *plan;
    struct step_result result;
    float *logits, *changed;
    struct sample_head *heads, *d_heads;
    struct token_logprob *tops, *d_tops;
    token_id *last, *d_last, *d_bias_ids, *d_history_tokens;
    float *d_logits, *d_bias_values;
    struct sampling_row *d_rows;
    struct history_entry *d_history;
    uint16_t *d_counts, *counts;
    uint32_t *d_seen, *seen;
    token_id (*tokens)[HISTORY + STEPS];   /* of each slot: prompt, then output */
    int *num_output;
    bool *is_stale;                        /* the slot's counts are to be rebuilt */
    int drawn, differing;
};

/* A row of padding: the device is given slot -1, the oracle one that nobody looks at. */
static bool is_skipped(const struct bed *b, const struct sampling_row *row) { return row->slot >= b->num_rows; }

static int below(struct bed *b, int n) { return (int)(rng_next(&b->rng) % (uint64_t)n); }
static float pick(struct bed *b, const float *from, int n) { return from[below(b, n)]; }
#define PICK(b, ...) pick(b, (const float[]){ __VA_ARGS__ }, (int)(sizeof((float[]){ __VA_ARGS__ }) / sizeof(float)))

static void bed_init(struct bed *b, int num_rows, int vocab_size)
{
    struct backend_options options = { .threads = 8, .kv_dtype = DTYPE_F32, .max_tokens = num_rows, .max_seqs = num_rows + EXTRA_SLOTS,
                                       .max_rows = num_rows, .vocab_size = vocab_size, .max_model_len = 64, .block_size = 16,
                                       .num_heads = 1, .num_kv_heads = 1, .head_dim = 64, .is_last = true };
    size_t n = (size_t)num_rows * vocab_size, lists = (size_t)num_rows * MAX_LIST, slots = (size_t)options.max_seqs;
    struct err err;

    *b = (struct bed){ .num_rows = num_rows, .vocab_size = vocab_size, .num_slots = (int)slots, .words = (vocab_size + 31) / 32,
                       .rng = (uint64_t)num_rows * 1000003 + (uint64_t)vocab_size };
    if (backend_cpu_ref.open(&b->cpu, &options, &err) != 0) fail_msg("cpu-ref: does not open");
    size_t at = (sizeof *b->plan + 63) & ~(size_t)63;
    b->plan = calloc(1, at + (size_t)num_rows * sizeof(struct sampling_row) + lists * 8 + slots * sizeof(struct history_entry) +
                        slots * sizeof *b->tokens + 1024);
    b->plan->off_rows = at;
    b->plan->off_bias_ids = at += (size_t)num_rows * sizeof(struct sampling_row);
    b->plan->off_bias_values = at += lists * 4;
    b->plan->off_history = at += lists * 4;
    b->plan->off_history_tokens = at += slots * sizeof(struct history_entry);
    b->plan->num_rows = num_rows;
    b->result.rows = calloc((size_t)num_rows, sizeof *b->result.rows);
    b->logits = malloc(n * 4);
    b->changed = malloc((size_t)vocab_size * 4);
    b->heads = malloc((size_t)num_rows * sizeof *b->heads);
    b->tops = malloc((size_t)num_rows * MAX_TOP_LOGPROBS * sizeof *b->tops);
    b->last = malloc(slots * 4);
    b->tokens = calloc(slots, sizeof *b->tokens);
    b->num_output = calloc(slots, sizeof *b->num_output);
    b->is_stale = calloc(slots, sizeof *b->is_stale);
    b->counts = malloc(slots * (size_t)vocab_size * 2);
    b->seen = malloc(slots * (size_t)b->words * 4);
    b->d_logits = gpu_new(n * 4);
    b->d_heads = gpu_new((size_t)num_rows * sizeof *b->heads);
    b->d_tops = gpu_new((size_t)num_rows * MAX_TOP_LOGPROBS * sizeof *b->tops);
    b->d_last = gpu_new(slots * 4);
    b->d_bias_ids = gpu_new(lists * 4);
    b->d_bias_values = gpu_new(lists * 4);
    b->d_rows = gpu_new((size_t)num_rows * sizeof *b->d_rows);
    b->d_history = gpu_new(slots * sizeof *b->d_history);
    b->d_history_tokens = gpu_new(slots * sizeof *b->tokens);
    b->d_counts = gpu_new(slots * (size_t)vocab_size * 2);
    b->d_seen = gpu_new(slots * (size_t)b->words * 4);
    for (size_t s = 0; s < slots; s++) b->is_stale[s] = true;
}

static void bed_release(struct bed *b)
{
    backend_cpu_ref.close(b->cpu);
    free(b->plan); free(b->result.rows); free(b->logits); free(b->changed); free(b->heads); free(b->tops); free(b->last);
    free(b->tokens); free(b->num_output); free(b->is_stale); free(b->counts); free(b->seen);
    gpu_free(b->d_logits); gpu_free(b->d_heads); gpu_free(b->d_tops); gpu_free(b->d_last); gpu_free(b->d_bias_ids);
    gpu_free(b->d_bias_values); gpu_free(b->d_rows); gpu_free(b->d_history); gpu_free(b->d_history_tokens); gpu_free(b->d_counts);
    gpu_free(b->d_seen);
}

static void fill_row(struct bed *b, float *row, int kind)
{
    int n = b->vocab_size;
    float scale = kind == 0 ? 1.0f : kind == 1 ? 3.0f : kind == 2 ? 0.05f : 2.0f;
    for (int i = 0; i < n; i++) row[i] = scale * rng_normal(&b->rng);
    if (kind == 1) for (int i = 0; i < 20; i++) row[below(b, n)] += 8.0f;
    if (kind == 3) for (int i = 0; i < n; i++) row[i] = of_elem(to_elem(row[i]));       /* many equal ones */
    if (kind == 4) for (int i = 0; i < n; i++) if (below(b, 3)) row[i] = -INFINITY;
    if (kind == 5) for (int i = 0; i < n; i++) row[i] = 1.5f;                            /* nothing but ties */
}

static uint32_t add_list(struct bed *b, int num, bool mask)
{
    uint32_t begin = (uint32_t)b->plan->num_bias;
    for (int i = 0; i < num; i++) {
        plan_bias_ids(b->plan)[b->plan->num_bias] = (token_id)(((uint64_t)i * 2654435761u + begin) % (uint64_t)b->vocab_size);
        plan_bias_values(b->plan)[b->plan->num_bias++] = mask && below(b, 4) == 0 ? -INFINITY : 5.0f * rng_normal(&b->rng);
    }
    return begin;
}

static void random_row(struct bed *b, int r, int step)
{
    struct sampling_row *row = &plan_rows(b->plan)[r];
    struct sampling_params *p = &row->params;

    *row = (struct sampling_row){ .token = r, .seq = r, .slot = r, .target = TOKEN_NONE, .num_generated = (uint32_t)step };
    p->temperature = PICK(b, 0, 0.3f, 0.7f, 1, 1, 1.5f, 2);
    p->top_k = (int)PICK(b, 0, 0, 0, 1, 5, 50, 50, 1000, 5000);
    p->top_p = PICK(b, 1, 1, 1, 0.95f, 0.9f, 0.5f, 0.99f, 0.9999f, 0);
    p->min_p = PICK(b, 0, 0, 0, 0, 0.05f, 0.3f, 1);
    p->repetition_penalty = PICK(b, 1, 1, 1.2f, 0.8f);
    p->frequency_penalty = PICK(b, 0, 0, 0.5f, -0.7f);
    p->presence_penalty = PICK(b, 0, 0, 1.1f);
    p->num_logprobs = (int)PICK(b, -1, -1, 0, 1, 5, 20);
    p->seed = rng_next(&b->rng);
    p->choice = (uint32_t)below(b, 5);
    row->use_penalties = (uint32_t)sampling_has_penalties(p);
    if (below(b, 6) == 0) row->target = below(b, b->vocab_size), row->use_penalties = 0;
    if (below(b, 3) == 0) row->bias_count = (uint32_t)(below(b, 8) ? 1 + below(b, 60) : 1700), row->bias_begin = add_list(b, (int)row->bias_count, true);
    if (below(b, 6) == 0) row->allow_count = (uint32_t)(1 + below(b, below(b, 2) ? 10 : 2000)), row->allow_begin = add_list(b, (int)row->allow_count, false);
}

/* What the sampler draws from, written once more. */
static void change(struct bed *b, int r, float *out)
{
    const struct sampling_row *row = &plan_rows(b->plan)[r];
    const float *raw = b->logits + (size_t)r * b->vocab_size;
    const token_id *ids = plan_bias_ids(b->plan);
    const struct sampling_params *p = &row->params;
    bool seen;

    for (int i = 0; i < b->vocab_size; i++) out[i] = row->allow_count ? -INFINITY : raw[i];
    for (uint32_t i = 0; i < row->allow_count; i++) out[ids[row->allow_begin + i]] = raw[ids[row->allow_begin + i]];
    for (uint32_t i = 0; i < row->bias_count; i++) out[ids[row->bias_begin + i]] += plan_bias_values(b->plan)[row->bias_begin + i];
    for (int i = 0; row->use_penalties && i < HISTORY + b->num_output[row->slot]; i++) {
        token_id id = b->tokens[row->slot][i];
        int count = 0;
        seen = false;
        for (int j = 0; j < i; j++) seen |= b->tokens[row->slot][j] == id;
        if (seen) continue;
        for (int j = HISTORY / 2; j < HISTORY + b->num_output[row->slot]; j++) count += b->tokens[row->slot][j] == id;
        out[id] = out[id] > 0 ? out[id] / p->repetition_penalty : out[id] * p->repetition_penalty;
        if (count > 0) out[id] -= p->frequency_penalty * (float)count + p->presence_penalty;
    }
}

struct candidate { double weight; float logit; int id; };
static int by_order(const void *x, const void *y)
{
    const struct candidate *a = x, *c = y;
    return a->logit != c->logit ? (a->logit < c->logit) - (a->logit > c->logit) : (a->id > c->id) - (a->id < c->id);
}

/* Could rounding alone have made `token` of this row? Draws in double, with every cut whose sum is within EDGE of where it lies.
 * Returns the token's probability, < 0: no. */
static double chance_at_edge(struct bed *b, int r, token_id token)
{
    const struct sampling_row *row = &plan_rows(b->plan)[r];
    const struct sampling_params *p = &row->params;
    int n = 0, vocab = b->vocab_size;
    double max = -INFINITY, u = sampling_uniform(p->seed, p->choice, row->num_generated);
    double chance = -1;

    change(b, r, b->changed);
    for (int i = 0; i < vocab; i++) if (b->changed[i] > max) max = b->changed[i];
    struct candidate *all = malloc((size_t)vocab * sizeof *all);
    for (int i = 0; i < vocab; i++) {
        double weight = exp((b->changed[i] - max) / p->temperature);
        if (weight >= p->min_p * (1 - EDGE) && weight > 0) all[n++] = (struct candidate){ weight, b->changed[i], i };
    }
    qsort(all, (size_t)n, sizeof *all, by_order);
    if (p->top_k > 0 && p->top_k < n) n = p->top_k;
    double total = 0, running = 0;
    int first = n, last = n;                                /* the cut of top_p lies in first..last tokens */
    for (int i = 0; i < n; i++) total += all[i].weight;
    for (int i = 0; i < n && p->top_p < 1; i++) {
        running += all[i].weight;
        if (first == n && running >= (p->top_p - EDGE) * total) first = i + 1;
        if (running >= (p->top_p + EDGE) * total) { last = i + 1; break; }
    }
    for (int m = first; m <= last && chance < 0; m++) {
        double sum = 0, before = 0, own = 0;
        for (int i = 0; i < m; i++) {
            sum += all[i].weight;
            if (all[i].id < token) before += all[i].weight;
            if (all[i].id == token) own = all[i].weight;
        }
        if (own > 0 && u * sum >= before - EDGE * sum && u * sum <= before + own + EDGE * sum) chance = own / sum;
        if (m - first > 200) m += (last - m) / 50;           /* a long flat stretch: probe it */
    }
    free(all);
    return chance;
}

static bool is_near(float a, float b) { return a == b || fabsf(a - b) <= LOGPROB_ERROR; }      /* both may be -inf */

static void compare_row(struct bed *b, int r, int step)
{
    const struct sampling_row *row = &plan_rows(b->plan)[r];
    const struct sampling_params *p = &row->params;
    const struct result_row *expected = &b->result.rows[r];
    const struct sample_head *head = &b->heads[r];
    char what[256];

    snprintf(what, sizeof what, "R=%d V=%d step %d row %d: T %g k %d p %g min_p %g logprobs %d target %d pen %u bias %u allow %u",
             b->num_rows, b->vocab_size, step, r, p->temperature, p->top_k, p->top_p, p->min_p, p->num_logprobs, row->target,
             row->use_penalties, row->bias_count, row->allow_count);
    if (is_skipped(b, row)) {
        if (head->token != -1 || head->bad != 0xFFFFFFFFu) fail_msg("%s: a skipped row was written", what);
        return;
    }
    if (head->bad != expected->bad) fail_msg("%s: bad is %u, not %u (token %d, not %d)", what, head->bad, expected->bad, head->token, expected->token);
    bool draws = row->target < 0 && !sampling_is_greedy(p) && !expected->bad;
    b->drawn += draws;
    if (row->target < 0 && b->last[row->slot] != head->token) fail_msg("%s: last_tokens holds %d, head %d", what, b->last[row->slot], head->token);
    if (head->token != expected->token) {
        double chance = draws ? chance_at_edge(b, r, head->token) : -1;
        if (chance < 0) fail_msg("%s: token %d, not %d", what, head->token, expected->token);
        b->differing += chance > LIKELY;                     /* in a flat row most tokens are near an edge */
        b->is_stale[row->slot] = true;
        return;
    }
    if (!is_near(head->logprob, expected->logprob)) fail_msg("%s: logprob %g, not %g", what, head->logprob, expected->logprob);
    if (head->rank != expected->rank) fail_msg("%s: rank %d, not %d", what, head->rank, expected->rank);
    if (head->num_top != expected->num_top) fail_msg("%s: %d tops, not %d", what, head->num_top, expected->num_top);
    for (int i = 0; i < head->num_top; i++) {
        const struct token_logprob *top = &b->tops[r * MAX_TOP_LOGPROBS + i];
        if (top->id != expected->top[i].id || !is_near(top->logprob, expected->top[i].logprob))
            fail_msg("%s: top %d is %d (%g), not %d (%g)", what, i, top->id, top->logprob, expected->top[i].id, expected->top[i].logprob);
    }
}

static void plan_step(struct bed *b, int step)
{
    struct step_plan *plan = b->plan;
    plan->num_bias = plan->num_history = plan->num_history_tokens = 0;
    for (int r = 0; r < b->num_rows; r++) {
        random_row(b, r, step);
        struct sampling_row *row = &plan_rows(plan)[r];
        if (r % 17 == 13) row->slot = b->num_rows, row->use_penalties = 0;
        if (is_skipped(b, row) || !(b->is_stale[r] || below(b, 8) == 0)) continue;
        int n = HISTORY + b->num_output[r];
        if (step == 0) for (int i = 0; i < HISTORY; i++) b->tokens[r][i] = below(b, i % 2 ? b->vocab_size : 10);
        plan_history(plan)[plan->num_history++] = (struct history_entry){ r, (uint32_t)plan->num_history_tokens, HISTORY / 2, (uint32_t)(n - HISTORY / 2) };
        memcpy(plan_history_tokens(plan) + plan->num_history_tokens, b->tokens[r], (size_t)n * 4);
        plan->num_history_tokens += n;
        b->is_stale[r] = false;
    }
    /* Some rows that nothing can be drawn from. */
    for (int r = 3; r < b->num_rows; r += 19) {
        float *row = b->logits + (size_t)r * b->vocab_size;
        row[below(b, b->vocab_size)] = step % 3 == 0 ? NAN : step % 3 == 1 ? INFINITY : 0.0f;
        if (step % 3 == 2) for (int i = 0; i < b->vocab_size; i++) row[i] = -INFINITY;
    }
}

static void upload(struct bed *b)
{
    CUDA_MUST(cudaMemcpy(b->d_logits, b->logits, (size_t)b->num_rows * b->vocab_size * 4, cudaMemcpyHostToDevice));
    struct sampling_row *rows = malloc((size_t)b->num_rows * sizeof *rows);
    memcpy(rows, plan_rows(b->plan), (size_t)b->num_rows * sizeof *rows);
    for (int r = 0; r < b->num_rows; r++) if (is_skipped(b, &rows[r])) rows[r].slot = -1;
    CUDA_MUST(cudaMemcpy(b->d_rows, rows, (size_t)b->num_rows * sizeof *b->d_rows, cudaMemcpyHostToDevice));
    free(rows);
    CUDA_MUST(cudaMemcpy(b->d_bias_ids, plan_bias_ids(b->plan), (size_t)b->plan->num_bias * 4, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(b->d_bias_values, plan_bias_values(b->plan), (size_t)b->plan->num_bias * 4, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(b->d_history, plan_history(b->plan), (size_t)b->plan->num_history * sizeof *b->d_history, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(b->d_history_tokens, plan_history_tokens(b->plan), (size_t)b->plan->num_history_tokens * 4, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemset(b->d_heads, 0xFF, (size_t)b->num_rows * sizeof *b->heads));
    CUDA_MUST(cudaMemset(b->d_tops, 0xFF, (size_t)b->num_rows * MAX_TOP_LOGPROBS * sizeof *b->tops));
    gpu_sync();
}

static void check_counts(struct bed *b, int step)
{
    gpu_read(b->counts, b->d_counts, (size_t)b->num_slots * b->vocab_size * 2);
    gpu_read(b->seen, b->d_seen, (size_t)b->num_slots * b->words * 4);
    for (int r = 0; r < b->num_rows; r++) {
        const struct sampling_row *row = &plan_rows(b->plan)[r];
        if (is_skipped(b, row) || !row->use_penalties || b->is_stale[r]) continue;
        for (int i = 0; i < HISTORY + b->num_output[r]; i++) {
            token_id id = b->tokens[r][i];
            int count = 0;
            for (int j = HISTORY / 2; j < HISTORY + b->num_output[r]; j++) count += b->tokens[r][j] == id;
            if (b->counts[(size_t)r * b->vocab_size + id] != count || !(b->seen[(size_t)r * b->words + id / 32] >> id % 32 & 1))
                fail_msg("V=%d step %d slot %d: token %d is counted %d times, not %d", b->vocab_size, step, r, id,
                         b->counts[(size_t)r * b->vocab_size + id], count);
        }
    }
}

static void check(int num_rows, int vocab_size)
{
    if (!gpu_turn()) return;
    struct bed b;
    struct launch launch = gpu_launch(1);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    bed_init(&b, num_rows, vocab_size);
    for (int r = 0; r < num_rows; r++) fill_row(&b, b.logits + (size_t)r * vocab_size, r % 11 == 10 ? 5 : r % 5);
    struct sample_kernel args = { b.d_logits, b.d_rows, b.d_bias_ids, b.d_bias_values, b.d_history, b.d_history_tokens, 0, b.d_counts,
                                  b.d_seen, b.d_last, b.d_heads, b.d_tops, NULL, num_rows, vocab_size };
    CUDA_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    launch.stream = stream;
    CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(launch_sample(&args, &launch), 0);
    CUDA_MUST(cudaStreamEndCapture(stream, &graph));
    CUDA_MUST(cudaGraphInstantiate(&exec, graph, 0));

    for (int step = 0; step < STEPS; step++) {
        plan_step(&b, step);
        upload(&b);
        struct sample_args oracle = { b.logits, b.plan, &b.result, vocab_size };
        backend_cpu_ref.sample(b.cpu, &oracle);
        struct sample_kernel now = args;
        now.num_history = b.plan->num_history;
        if (step % 2 == 0) {                               /* captured, the history before it */
            assert_int_equal(launch_sample_history(&now, &launch), 0);
            CUDA_MUST(cudaGraphLaunch(exec, stream));
        } else assert_int_equal(launch_sample(&now, &launch), 0);
        gpu_sync();
        gpu_read(b.heads, b.d_heads, (size_t)num_rows * sizeof *b.heads);
        gpu_read(b.tops, b.d_tops, (size_t)num_rows * MAX_TOP_LOGPROBS * sizeof *b.tops);
        gpu_read(b.last, b.d_last, (size_t)b.num_slots * 4);
        for (int r = 0; r < num_rows; r++) compare_row(&b, r, step);
        for (int r = 0; r < num_rows; r++) {               /* the CPU's token goes on */
            const struct sampling_row *row = &plan_rows(b.plan)[r];
            if (!is_skipped(&b, row) && row->use_penalties && !b.result.rows[r].bad) b.tokens[r][HISTORY + b.num_output[r]++] = b.result.rows[r].token;
        }
        check_counts(&b, step);
        /* A row by itself, in a team of another size: the same bits. */
        int alone = (step * 7 + 1) % num_rows;
        if (!is_skipped(&b, &plan_rows(b.plan)[alone]) && !plan_rows(b.plan)[alone].use_penalties) {
            struct sample_head head;
            struct sample_kernel one = args;
            one.rows = b.d_rows + alone;
            one.logits = b.d_logits + (size_t)alone * vocab_size;
            one.num_rows = 1;
            if (vocab_size % 4 == 0) {                     /* else that row is not aligned as the first of a launch is */
                assert_int_equal(launch_sample(&one, &launch), 0);
                gpu_sync();
                gpu_read(&head, b.d_heads, sizeof head);
                assert_memory_equal(&head, &b.heads[alone], 24);
            }
        }
        for (int r = 3; r < num_rows; r += 19) fill_row(&b, b.logits + (size_t)r * vocab_size, r % 5);
    }
    printf("R=%d V=%d: %d drawn, %d at an edge\n", num_rows, vocab_size, b.drawn, b.differing);
    if (b.differing > 1 + b.drawn / 200) fail_msg("R=%d V=%d: %d of %d drawn tokens differ", num_rows, vocab_size, b.differing, b.drawn);
    CUDA_MUST(cudaGraphExecDestroy(exec));
    CUDA_MUST(cudaGraphDestroy(graph));
    CUDA_MUST(cudaStreamDestroy(stream));
    bed_release(&b);
}

static void rows_of_1000(void **state) { (void)state; check(200, 1000); }
static void rows_of_9000(void **state) { (void)state; check(6, 9000); }              /* the smallest that a team shares */
static void rows_of_49152(void **state) { (void)state; check(100, 49152); check(13, 49152); }
static void rows_of_odd_width(void **state) { (void)state; check(60, 50257); }
static void rows_of_128256(void **state) { (void)state; check(270, 128256); }
static void rows_of_151936(void **state) { (void)state; check(7, 151936); check(40, 151936); check(120, 151936); }
static void rows_of_262144(void **state) { (void)state; check(20, 262144); }

static void wide_vocabularies_are_refused(void **state)
{
    struct launch launch = gpu_launch(0);
    struct sample_kernel args = { .num_rows = 1, .vocab_size = (1 << 18) + 1 };
    (void)state;
    assert_int_equal(launch_sample(&args, &launch), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_1000), cmocka_unit_test(rows_of_9000), cmocka_unit_test(rows_of_odd_width), cmocka_unit_test(rows_of_49152),
        cmocka_unit_test(rows_of_128256), cmocka_unit_test(rows_of_151936), cmocka_unit_test(rows_of_262144),
        cmocka_unit_test(wide_vocabularies_are_refused),
    };
    if (gpu_absent()) return GPU_SKIP;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
