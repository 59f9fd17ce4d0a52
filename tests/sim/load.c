#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A plan on the device. */
struct flight { const struct step_plan *plan; double ms, end_ms; };

struct run {
    struct load *load;
    struct scheduler s;
    struct submission_limits limits;
    struct step_result result;
    double *last_ms;                   /* [num_requests] of the last token */
    token_id *prompt;                  /* [max_model_len] */
    double now_ms, device_ms;          /* the device is busy until then */
    struct flight flights[2];          /* oldest first */
    int num_flights;
    int32_t num_submitted;
};

void load_fail(const char *file, int line, const char *cond)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, cond);
    abort();
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double load_percentile(double *values, int32_t n, double share)
{
    LOAD_CHECK(n > 0);
    qsort(values, (size_t)n, sizeof *values, by_value);
    int32_t at = (int32_t)(share * n + 0.999999) - 1;
    return values[at < 0 ? 0 : at];
}

static token_id token_at(uint64_t stream, int32_t i)
{
    uint64_t x = (stream << 32) + (uint64_t)i + 1;

    x *= 0x9e3779b97f4a7c15u;
    x ^= x >> 31;
    x *= 0xbf58476d1ce4e5b9u;
    return (token_id)((x >> 33) % LOAD_VOCAB);
}

static void submit(struct run *run, int32_t index)
{
    struct load_request *r = &run->load->requests[index];
    struct engine_request req = {
        .id = (uint64_t)index + 1, .group = r->group, .arrival_ms = (int64_t)r->arrival_ms, .priority = r->priority,
        .max_tokens = r->max_tokens, .num_prompt = (uint32_t)r->num_prompt, .tokens = run->prompt,
        .sampling = { .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 },
    };
    uint64_t own = r->group ? r->group << 16 : (uint64_t)index + 1;

    for (int32_t i = 0; i < r->num_prompt; i++) run->prompt[i] = token_at(i < r->num_shared ? 0 : own, i);
    struct submission *sub = submission_new(&req, &run->limits);
    LOAD_CHECK(sub);
    scheduler_add(&run->s, sub);
    r->first_ms = r->end_ms = -1;
}

static void arrive(struct run *run)
{
    struct load *load = run->load;

    if (!scheduler_num_sequences(&run->s) && run->num_submitted < load->num_requests &&
        load->requests[run->num_submitted].arrival_ms > run->now_ms)
        run->now_ms = load->requests[run->num_submitted].arrival_ms;
    while (run->num_submitted < load->num_requests && load->requests[run->num_submitted].arrival_ms <= run->now_ms)
        submit(run, run->num_submitted++);
}

static void receive(struct run *run, const struct token_event *event)
{
    int32_t index = (int32_t)event->id - 1;
    struct load_request *r = &run->load->requests[index];
    double gap = run->now_ms - run->last_ms[index];

    LOAD_CHECK(event->token == LOAD_TOKEN && event->index == (uint32_t)++r->num_tokens);
    if (r->num_tokens == 1) r->first_ms = run->now_ms;
    else if (gap > r->longest_gap_ms) r->longest_gap_ms = gap;
    run->last_ms[index] = run->now_ms;
    r->num_cached = (int32_t)event->num_cached;
    if (event->finish == FINISH_NONE) return;
    LOAD_CHECK(event->finish == FINISH_LENGTH && r->num_tokens == r->max_tokens);
    r->end_ms = run->now_ms;
}

static void publish(struct run *run)
{
    struct submission *sub;

    for (int32_t i = 0; i < run->s.num_outcomes; i++) receive(run, &run->s.outcomes[i].event);
    scheduler_clear_outcomes(&run->s);
    while ((sub = scheduler_take_finished(&run->s))) submission_free(sub);
}

/* A plan waits for the one before it. */
static void launch(struct run *run, const struct step_plan *plan)
{
    struct load *load = run->load;
    struct flight *flight = &run->flights[run->num_flights++];
    double ms = load->step_ms + load->token_ms * plan->num_tokens +
                load->key_ms * (double)run->s.batches[plan->micro_batch].num_keys;

    if (load->slowdown) ms *= load->slowdown(run->now_ms);
    if (run->device_ms < run->now_ms) run->device_ms = run->now_ms;
    run->device_ms += ms;
    *flight = (struct flight){ plan, ms, run->device_ms };
    load->steps++;
    load->tokens += plan->num_tokens;
}

static void land(struct run *run)
{
    struct flight flight = run->flights[0];

    run->flights[0] = run->flights[1];
    run->num_flights--;
    run->result.step = flight.plan->step;
    run->result.num_rows = flight.plan->num_rows;
    for (int32_t i = 0; i < flight.plan->num_rows; i++) run->result.rows[i] = (struct result_row){ .token = LOAD_TOKEN };
    run->now_ms = flight.end_ms;
    scheduler_measured(&run->s, flight.plan, flight.ms);
    scheduler_commit(&run->s, flight.plan, &run->result, (int64_t)(run->now_ms * 1e6));
    publish(run);
}

static void one_step(struct run *run)
{
    arrive(run);
    const struct step_plan *plan = scheduler_next_step(&run->s, (int64_t)(run->now_ms * 1e6));
    LOAD_CHECK(plan || run->num_flights);      /* no deadlock */
    if (plan) launch(run, plan);
    if (!plan || run->num_flights == run->s.options.num_plans) land(run);
}

void load_run(struct load *load)
{
    uint8_t secret[32] = { 1 }, digest[32] = { 2 };
    struct scheduler_options *o = &load->options;
    struct run run = { .load = load };
    struct err err = { 0 };

    o->vocab_size = LOAD_VOCAB;
    o->num_plans = 1 + o->overlap;
    if (scheduler_init(&run.s, o, &err) < 0) load_fail(__FILE__, __LINE__, err.message);
    run.limits = (struct submission_limits){ o->max_model_len, o->block_size, prefix_root(secret, digest), true,
                                             !o->enable_prefix_caching };
    run.result.rows = calloc((size_t)o->max_num_seqs, sizeof *run.result.rows);
    run.last_ms = calloc((size_t)load->num_requests, sizeof *run.last_ms);
    run.prompt = calloc((size_t)o->max_model_len, sizeof *run.prompt);
    LOAD_CHECK(run.result.rows && run.last_ms && run.prompt);
    load->steps = load->tokens = 0;
    while (run.num_submitted < load->num_requests || scheduler_num_sequences(&run.s)) one_step(&run);
    scheduler_check(&run.s);
    load->end_ms = run.now_ms;
    load->stats = *scheduler_stats(&run.s);
    load->fitted = run.s.step_time;
    for (int32_t i = 0; i < load->num_requests; i++) LOAD_CHECK(load->requests[i].end_ms >= 0);
    free(run.result.rows);
    free(run.last_ms);
    free(run.prompt);
    scheduler_release(&run.s);
}
