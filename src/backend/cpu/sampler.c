/* sampler.c - see sampler.h. */
#include "sampler.h"

#include <math.h>
#include <string.h>

#include <sluice/sampling.h>

#include "base/bug.h"

struct sample_job {
    struct sampler *sampler;
    const struct cpu_kernels *kernels;
    const struct sample_args *args;
};

static size_t carve(size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 63) & ~(size_t)63;
    return at;
}

/* Scratch of one thread in memory at base (NULL: size only). */
static size_t scratch_layout(struct sample_scratch *scratch, char *base, int32_t vocab_size)
{
    size_t used = 0, v = (size_t)vocab_size;
    size_t logits = carve(&used, v * sizeof(float));
    size_t weights = carve(&used, v * sizeof(float));
    size_t candidates = carve(&used, v * sizeof(int32_t));
    size_t heap = carve(&used, v * sizeof(int32_t));
    size_t sums = carve(&used, (v / SAMPLE_BLOCK + 1) * sizeof(double));
    size_t bins = carve(&used, SAMPLE_BINS * sizeof(struct sample_bin));
    if (base)
        *scratch = (struct sample_scratch){ (float *)(base + logits), (float *)(base + weights),
                                            (int32_t *)(base + candidates), (int32_t *)(base + heap),
                                            (double *)(base + sums), (struct sample_bin *)(base + bins) };
    return used;
}

size_t sampler_layout(struct sampler *sampler, char *base, const struct backend_options *options)
{
    size_t used = 0, v = (size_t)options->vocab_size, slots = (size_t)options->max_seqs;
    size_t seen_words = (v + 63) / 64;
    size_t scratch_bytes = scratch_layout(NULL, NULL, options->vocab_size);
    size_t seen = carve(&used, slots * seen_words * sizeof(uint64_t));
    size_t counts = carve(&used, slots * v * sizeof(uint16_t));
    size_t last = carve(&used, slots * sizeof(token_id));
    size_t scratch = carve(&used, (size_t)options->threads * scratch_bytes);
    if (sampler && base)
        *sampler = (struct sampler){ .vocab_size = options->vocab_size, .num_slots = options->max_seqs,
                                     .seen_words = (int64_t)seen_words, .seen = (uint64_t *)(base + seen),
                                     .counts = (uint16_t *)(base + counts),
                                     .last_tokens = (token_id *)(base + last), .scratch = base + scratch,
                                     .scratch_bytes = scratch_bytes };
    return used;
}

static uint64_t *slot_seen(const struct sampler *s, int32_t slot) { return s->seen + (int64_t)slot * s->seen_words; }
static uint16_t *slot_counts(const struct sampler *s, int32_t slot) { return s->counts + (int64_t)slot * s->vocab_size; }

static void add_token(struct sampler *s, int32_t slot, token_id token, bool is_output)
{
    if (token < 0 || token >= s->vocab_size) return;
    slot_seen(s, slot)[token / 64] |= 1ull << (token % 64);
    uint16_t *count = &slot_counts(s, slot)[token];
    if (is_output && *count < UINT16_MAX) ++*count;
}

static void rebuild_history(struct sampler *s, const struct step_plan *plan)
{
    const struct history_entry *entries = plan_history(plan);
    const token_id *tokens = plan_history_tokens(plan);

    for (int32_t i = 0; i < plan->num_history; i++) {
        const struct history_entry *entry = &entries[i];
        BUG_ON(entry->slot < 0 || entry->slot >= s->num_slots);
        memset(slot_seen(s, entry->slot), 0, (size_t)s->seen_words * sizeof(uint64_t));
        memset(slot_counts(s, entry->slot), 0, (size_t)s->vocab_size * sizeof(uint16_t));
        uint64_t total = (uint64_t)entry->num_prompt + entry->num_output;
        for (uint64_t t = 0; t < total; t++)
            add_token(s, entry->slot, tokens[entry->begin + t], t >= entry->num_prompt);
    }
}

static void apply_bias(float *logits, int32_t n, const struct step_plan *plan, const struct sampling_row *row)
{
    const token_id *ids = plan_bias_ids(plan);
    const float *values = plan_bias_values(plan);
    for (uint32_t i = row->bias_begin; i < row->bias_begin + row->bias_count; i++)
        if (ids[i] >= 0 && ids[i] < n) logits[ids[i]] += values[i];
}

/* Every other token is out. */
static void apply_allowed(float *logits, const float *raw, int32_t n, const struct step_plan *plan, const struct sampling_row *row)
{
    const token_id *ids = plan_bias_ids(plan) + row->allow_begin;

    for (int32_t id = 0; id < n; id++) logits[id] = -INFINITY;
    for (uint32_t i = 0; i < row->allow_count; i++)
        if (ids[i] >= 0 && ids[i] < n) logits[ids[i]] = raw[ids[i]];
}

static void apply_penalties(float *logits, int32_t n, const struct sampler *s, const struct sampling_row *row)
{
    const struct sampling_params *p = &row->params;
    const uint64_t *seen = slot_seen(s, row->slot);
    const uint16_t *counts = slot_counts(s, row->slot);

    for (int64_t word = 0; word < s->seen_words; word++) {
        for (uint64_t bits = seen[word]; bits; bits &= bits - 1) {
            int64_t id = word * 64 + __builtin_ctzll(bits);
            if (id >= n) return;
            float logit = logits[id];
            logit = logit > 0.0f ? logit / p->repetition_penalty : logit * p->repetition_penalty;
            if (counts[id] > 0) logit -= p->frequency_penalty * (float)counts[id] + p->presence_penalty;
            logits[id] = logit;
        }
    }
}

/* The k largest of the row, falling, ties to the lower id. */
static int32_t top_entries(struct token_logprob *top, int32_t k, const float *logits, int32_t n, float log_z)
{
    int32_t held = 0;
    float least = -INFINITY;               /* of the entries held once k are held */
    for (int32_t id = 0; id < n; id++) {
        if (held == k && !(logits[id] > least)) continue;
        int32_t at = held < k ? held++ : k - 1;
        for (; at > 0 && top[at - 1].logprob < logits[id]; at--) top[at] = top[at - 1];
        top[at] = (struct token_logprob){ id, logits[id] };
        least = top[held - 1].logprob;
    }
    for (int32_t i = 0; i < held; i++) top[i].logprob -= log_z;
    return held;
}

static int32_t rank_of(const float *logits, int32_t n, token_id token)
{
    float own = logits[token];
    int32_t ahead = 0;
    for (int32_t id = 0; id < token; id++) ahead += logits[id] >= own;
    for (int32_t id = token + 1; id < n; id++) ahead += logits[id] > own;
    return ahead + 1;
}

static token_id first_equal(const float *logits, int32_t n, float value)
{
    for (int32_t id = 0; id < n; id++)
        if (logits[id] == value) return id;
    return TOKEN_NONE;
}

static token_id choose(const struct sample_job *job, const struct sample_scratch *scratch, const float *raw,
                       float raw_max, const struct sampling_row *row)
{
    const struct sampling_params *p = &row->params;
    const struct step_plan *plan = job->args->plan;
    int32_t n = job->args->vocab_size;
    bool penalties = row->use_penalties && sampling_has_penalties(p), has_nan = false;
    const float *logits = raw;
    float max = raw_max;

    if (row->bias_count > 0 || row->allow_count > 0 || penalties) {
        if (row->allow_count > 0) apply_allowed(scratch->logits, raw, n, plan, row);
        else memcpy(scratch->logits, raw, (size_t)n * sizeof(float));
        apply_bias(scratch->logits, n, plan, row);
        if (penalties) apply_penalties(scratch->logits, n, job->sampler, row);
        logits = scratch->logits;
        max = job->kernels->max(logits, n, &has_nan);
        if (has_nan || !isfinite(max)) return TOKEN_NONE;
    }
    if (sampling_is_greedy(p)) return first_equal(logits, n, max);
    return sample_draw(scratch, job->kernels, logits, n, max, p, sampling_uniform(p->seed, p->choice, row->num_generated));
}

static void fill_row(const struct sample_job *job, const struct sample_scratch *scratch, int64_t r)
{
    const struct sampling_row *row = &plan_rows(job->args->plan)[r];
    struct result_row *result = &job->args->result->rows[r];
    int32_t n = job->args->vocab_size, num_logprobs = row->params.num_logprobs;
    const float *raw = job->args->logits + r * (int64_t)n;
    bool has_nan = false;
    float max = job->kernels->max(raw, n, &has_nan);

    memset(result, 0, offsetof(struct result_row, top));
    result->token = TOKEN_NONE;
    result->bad = 1;
    if (has_nan || !isfinite(max)) return;
    result->token = row->target >= 0 && row->target < n ? row->target : TOKEN_NONE;
    if (row->target < 0) result->token = choose(job, scratch, raw, max, row);
    if (result->token == TOKEN_NONE) return;
    result->bad = 0;
    if (num_logprobs >= 0 || row->target >= 0) {
        float log_z = max + logf(job->kernels->exp_sum(NULL, raw, n, max, 1.0f));
        result->logprob = raw[result->token] - log_z;
        result->rank = num_logprobs >= 0 ? rank_of(raw, n, result->token) : 0;
        int32_t k = num_logprobs < MAX_TOP_LOGPROBS ? num_logprobs : MAX_TOP_LOGPROBS;
        if (k > 0) result->num_top = top_entries(result->top, k < n ? k : n, raw, n, log_z);
    }
    if (row->target < 0 && row->use_penalties) add_token(job->sampler, row->slot, result->token, true);
}

static void sample_row(const struct sample_job *job, const struct sample_scratch *scratch, int64_t r)
{
    const struct sampling_row *row = &plan_rows(job->args->plan)[r];
    fill_row(job, scratch, r);
    if (row->target < 0) job->sampler->last_tokens[row->slot] = job->args->result->rows[r].token;
}

static void sample_body(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct sample_job *job = arg;
    struct sample_scratch scratch;
    scratch_layout(&scratch, job->sampler->scratch + (size_t)thread * job->sampler->scratch_bytes,
                   job->sampler->vocab_size);
    for (int64_t r = begin; r < end; r++) sample_row(job, &scratch, r);
}

void sampler_run(struct sampler *sampler, struct pool *pool, const struct cpu_kernels *kernels,
                 const struct sample_args *args)
{
    const struct sampling_row *rows = plan_rows(args->plan);
    struct sample_job job = { sampler, kernels, args };

    for (int32_t r = 0; r < args->plan->num_rows; r++)
        BUG_ON(rows[r].slot < 0 || rows[r].slot >= sampler->num_slots);
    args->result->step = args->plan->step;
    args->result->num_rows = args->plan->num_rows;
    args->result->rc = 0;
    rebuild_history(sampler, args->plan);
    pool_run(pool, args->plan->num_rows, 1, sample_body, &job);
}
