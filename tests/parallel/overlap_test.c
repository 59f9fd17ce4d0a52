/* overlap_test.c - the scheduler over real ranks on the CPU: what every request is answered is the same, bit for bit, with
 * one plan in flight and with two that hold the same sequences. Requests of all kinds at once: stops, min_tokens,
 * penalties, logprobs, n > 1, bad words, scored prompts, aborts; few KV blocks, chunked prompts, prefix cache on and off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/rank.h>

#include "base/log.h"
#include "engine/scheduler.h"
#include "unit/model/tiny_model.h"

enum { REQUESTS = 60, MAX_LEN = 160, MAX_PROMPT = 90, MAX_SEQS = 12, BLOCK_SIZE = 16, WIDE_BLOCKS = 400, TIGHT_BLOCKS = 12,
       MAX_EVENTS = 80, MAX_SCORES = 96, MAX_BATCHED = 64, STOP_IDS = 40 };

/* What one request got. */
struct answer {
    struct token_event events[MAX_EVENTS];
    struct token_logprob tops[MAX_EVENTS][3];
    float scores[MAX_SCORES];
    int num_events, num_scores;
};

struct setup {
    const char *name;
    const struct backend_ops *ops;
    bool overlap, prefix_caching;
    int32_t num_blocks, chunk, max_batched;
    enum scheduler_policy policy;
};

struct run {
    const struct setup *setup;
    struct scheduler s;
    struct ranks *ranks;
    struct step_result results[2];
    const struct step_plan *flights[2];
    int num_flights;
    struct answer *answers;            /* [REQUESTS] by id - 1 */
    int64_t now;
    int32_t most_in_flight;
    uint64_t feedbacks;
};

static token_id stop_ids[STOP_IDS];
static token_id eos_ids[MAX_EOS_IDS];

static uint32_t next_random(uint32_t *state, uint32_t below)
{
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % below;
}

/* A random token of a tiny model is about as likely as any other: many stops make streams of a few tokens. */
static void choose_stops(void)
{
    for (int i = 0; i < STOP_IDS; i++) stop_ids[i] = (token_id)(i * 8 + 1);
    for (int i = 0; i < 4; i++) eos_ids[i] = (token_id)(i * 64 + 4);
}

/* Request number i, the same in every run. Choices of one prompt follow each other. */
static struct submission *make(uint32_t i, const struct submission_limits *limits)
{
    static const token_id bias_ids[] = { 7, 12 };
    static const float bias_values[] = { 2.5f, -3.0f };
    static const int32_t bad_words[] = { 1, 9, 2, 30, 31, 3, 4, 5, 6 };
    uint32_t random = 1 + i / 4 * 7919, group = i % 12 < 4 ? i / 4 + 1 : 0;
    token_id tokens[MAX_PROMPT];
    if (!group) random += i * 104729;
    uint32_t num_prompt = 1 + next_random(&random, MAX_PROMPT);
    for (uint32_t t = 0; t < num_prompt; t++)
        tokens[t] = t < 32 && i % 3 == 0 ? (token_id)(t * 5) : (token_id)next_random(&random, TINY_VOCAB);
    struct engine_request req = {
        .id = i + 1, .group = group, .arrival_ms = i, .max_tokens = 1 + (int32_t)next_random(&random, 60), .num_prompt = num_prompt,
        .tokens = tokens, .priority = (int32_t)(i % 3),
        .sampling = { .temperature = i % 2 ? 0.9f : 0, .top_p = i % 5 ? 1 : 0.8f, .top_k = i % 7 ? 0 : 20, .repetition_penalty = 1,
                      .num_logprobs = -1, .seed = 77 + i / 4, .choice = i % 4 } };
    if (i % 4 == 1) req.num_stop_ids = STOP_IDS, req.stop_ids = stop_ids;
    if (i % 4 == 2) req.ignore_eos = true;
    if (i % 5 == 1) req.min_tokens = 1 + (int32_t)next_random(&random, (uint32_t)req.max_tokens);
    if (i % 6 == 1) req.sampling.frequency_penalty = 0.7f, req.sampling.repetition_penalty = 1.3f;
    if (i % 6 == 4) req.sampling.presence_penalty = 1.5f;
    if (i % 7 == 2) req.sampling.num_logprobs = 3;
    if (i % 9 == 3) req.num_bias = 2, req.bias_ids = bias_ids, req.bias_values = bias_values;
    if (i % 10 == 7) req.num_bad_ints = 9, req.bad_words = bad_words;
    if (i % 13 == 5) req.score_prompt = true, req.num_prompt_logprobs = 2;
    if (i % 26 == 5 && num_prompt > 1) req.max_tokens = 0;
    memset(req.cache_domain, i % 8 == 0, sizeof(req.cache_domain));
    struct submission *sub = submission_new(&req, limits);
    assert_non_null(sub);
    return sub;
}

/* A few are told to stop after so many tokens. */
static int abort_after(uint64_t id) { return id % 11 == 6 ? (int)(id % 5) : -1; }

static void note_outcomes(struct run *run)
{
    struct submission *sub;
    for (int32_t i = 0; i < run->s.num_scores; i++) {
        struct answer *answer = &run->answers[run->s.scores[i].id - 1];
        assert_int_equal(run->s.scores[i].position, answer->num_scores + 1);
        answer->scores[answer->num_scores++] = run->s.scores[i].row->logprob;
    }
    for (int32_t i = 0; i < run->s.num_outcomes; i++) {
        const struct step_outcome *outcome = &run->s.outcomes[i];
        struct answer *answer = &run->answers[outcome->event.id - 1];
        assert_true(answer->num_events < MAX_EVENTS);
        assert_true(answer->num_events == 0 || answer->events[answer->num_events - 1].finish == FINISH_NONE);
        struct token_event *event = &answer->events[answer->num_events];
        *event = outcome->event;
        event->scheduled_ns = event->step_ns = 0;
        event->num_cached = 0;         /* depends on who came first */
        for (int t = 0; t < event->num_top; t++) answer->tops[answer->num_events][t] = outcome->row->top[t];
        answer->num_events++;
    }
    scheduler_clear_outcomes(&run->s);
    while ((sub = scheduler_take_finished(&run->s))) submission_free(sub);
}

static void abort_some(struct run *run)
{
    for (uint64_t id = 1; id <= REQUESTS; id++)
        if (run->answers[id - 1].num_events == abort_after(id)) scheduler_abort(&run->s, id, 0);
}

static void land(struct run *run)
{
    struct step_result *result = NULL;
    assert_int_equal(ranks_wait(run->ranks, &result), 0);
    scheduler_commit(&run->s, run->flights[0], result, run->now);
    run->flights[0] = run->flights[1];
    run->num_flights--;
}

static void step(struct run *run)
{
    struct err err = { 0 };
    const struct step_plan *plan = scheduler_next_step(&run->s, ++run->now);
    scheduler_check(&run->s);
    assert_true(plan || run->num_flights);
    if (plan) {
        if (step_plan_check(plan, run->setup->num_blocks, TINY_VOCAB, &err) < 0) fail_msg("%s", err.message);
        for (int32_t t = 0; t < plan->num_tokens; t++) run->feedbacks += plan_input_ids(plan)[t] == TOKEN_FEEDBACK;
        assert_int_equal(ranks_submit(run->ranks, plan, &run->results[plan->micro_batch]), 0);
        run->flights[run->num_flights++] = plan;
        if (run->num_flights > run->most_in_flight) run->most_in_flight = run->num_flights;
    }
    if (!plan || run->num_flights == ranks_num_slots(run->ranks)) land(run);
    note_outcomes(run);
    abort_some(run);
    scheduler_check(&run->s);
    note_outcomes(run);
}

static struct ranks *start(const struct model_source *src, const struct setup *setup)
{
    struct ranks_options options = {
        .ops = setup->ops, .tp_size = 1, .pp_size = 1, .threads = 1, .kv_dtype = setup->ops == &backend_cpu_ref ? DTYPE_F32 : DTYPE_F16,
        .max_num_seqs = MAX_SEQS, .max_num_batched_tokens = setup->max_batched, .max_model_len = MAX_LEN, .block_size = BLOCK_SIZE,
        .overlap = setup->overlap, .headroom = 0.1, .num_blocks_override = setup->num_blocks, .seed = 7 };
    struct ranks *ranks = NULL;
    struct err err = { 0 };
    if (ranks_start(&ranks, src, &options, NULL, NULL, &err) < 0) fail_msg("%s: %s", setup->name, err.message);
    assert_int_equal(ranks_overlaps(ranks), setup->overlap);
    assert_int_equal(ranks_num_slots(ranks), setup->overlap ? 2 : 1);
    return ranks;
}

static struct answer *serve(const struct model_source *src, const struct setup *setup)
{
    struct run run = { .setup = setup, .ranks = start(src, setup), .answers = calloc(REQUESTS, sizeof(struct answer)) };
    struct scheduler_options o = {
        .max_num_seqs = MAX_SEQS, .max_num_batched_tokens = setup->max_batched, .max_model_len = MAX_LEN, .max_sequences = REQUESTS,
        .num_blocks = setup->num_blocks, .block_size = BLOCK_SIZE, .vocab_size = TINY_VOCAB, .num_plans = ranks_num_slots(run.ranks),
        .overlap = ranks_overlaps(run.ranks), .long_prefill_chunk = setup->chunk, .policy = setup->policy,
        .enable_prefix_caching = setup->prefix_caching, .eos.num = 4 };
    struct submission_limits limits = { MAX_LEN, BLOCK_SIZE, { { 1 } }, true, !setup->prefix_caching };
    struct err err = { 0 };
    assert_non_null(run.answers);
    memcpy(o.eos.ids, eos_ids, sizeof(eos_ids));
    assert_int_equal(scheduler_init(&run.s, &o, &err), 0);
    for (int i = 0; i < 2; i++) assert_non_null(run.results[i].rows = calloc(MAX_SEQS, sizeof(struct result_row)));
    /* some come while others run */
    for (uint32_t i = 0; i < REQUESTS || scheduler_num_sequences(&run.s); i++) {
        if (i < REQUESTS) scheduler_add(&run.s, make(i, &limits));
        if (i >= REQUESTS / 2 || i % 4 == 3) step(&run);
    }
    while (run.num_flights) step(&run);
    assert_int_equal(scheduler_stats(&run.s)->blocks_used, 0);
    assert_true(setup->num_blocks > TIGHT_BLOCKS || run.s.stats.preemptions > 0);
    assert_int_equal(run.most_in_flight, setup->overlap ? 2 : 1);
    assert_true(!setup->overlap == !run.feedbacks);
    scheduler_release(&run.s);
    ranks_stop(run.ranks);
    for (int i = 0; i < 2; i++) free(run.results[i].rows);
    return run.answers;
}

/* An aborted one may have got a token more or less before the abort was seen. */
static void assert_same(const struct answer *want, const struct answer *got, uint64_t id, const char *name)
{
    bool cut = abort_after(id) >= 0;
    int n = want->num_events < got->num_events ? want->num_events : got->num_events;
    if (!cut && (want->num_events != got->num_events || want->num_scores != got->num_scores))
        fail_msg("%s: request %d: %d events and %d scores, not %d and %d", name, (int)id, got->num_events, got->num_scores,
                 want->num_events, want->num_scores);
    for (int e = 0; e < n - cut; e++) {
        if (!memcmp(&want->events[e], &got->events[e], sizeof(want->events[e]))) continue;
        fail_msg("%s: request %d: event %d is token %d, finish %d, not token %d, finish %d", name, (int)id, e, got->events[e].token,
                 got->events[e].finish, want->events[e].token, want->events[e].finish);
    }
    if (cut) return;
    assert_memory_equal(want->tops, got->tops, sizeof(want->tops));
    assert_memory_equal(want->scores, got->scores, sizeof(want->scores));
}

/* There was something to get wrong. */
static void assert_telling(const struct answer *answers)
{
    int of[FINISH_STOP_STRING] = { 0 }, tops = 0, scores = 0;
    for (int i = 0; i < REQUESTS; i++) {
        const struct answer *answer = &answers[i];
        assert_true(answer->num_events > 0);
        of[answer->events[answer->num_events - 1].finish]++;
        tops += answer->events[0].num_top > 0;
        scores += answer->num_scores;
    }
    assert_true(of[FINISH_EOS] > 3 && of[FINISH_STOP_TOKEN] > 3 && of[FINISH_LENGTH] > 3 && of[FINISH_ABORTED] > 1);
    assert_true(of[FINISH_NONE] == 0 && of[FINISH_ERROR] == 0 && tops > 3 && scores > 50);
}

static void compare_all(const struct backend_ops *ops)
{
    const struct setup setups[] = {
        { "plain", ops, false, true, WIDE_BLOCKS, 0, MAX_BATCHED, POLICY_FAIR },
        { "overlap", ops, true, true, WIDE_BLOCKS, 0, MAX_BATCHED, POLICY_FAIR },
        { "overlap, no cache", ops, true, false, WIDE_BLOCKS, 0, MAX_BATCHED, POLICY_FCFS },
        { "overlap, chunks", ops, true, true, WIDE_BLOCKS, 5, 16, POLICY_FAIR },
        { "overlap, few blocks", ops, true, true, TIGHT_BLOCKS, 24, MAX_BATCHED, POLICY_PRIORITY },
        { "overlap, few blocks, no cache", ops, true, false, TIGHT_BLOCKS, 0, MAX_BATCHED, POLICY_FAIR },
        { "few blocks", ops, false, true, TIGHT_BLOCKS, 24, MAX_BATCHED, POLICY_FCFS },
    };
    struct model_source *src = tiny_open(0, true, "");
    assert_non_null(src);
    choose_stops();
    struct answer *want = serve(src, &setups[0]);
    assert_telling(want);
    for (size_t i = 1; i < sizeof(setups) / sizeof(setups[0]); i++) {
        struct answer *got = serve(src, &setups[i]);
        for (uint64_t id = 1; id <= REQUESTS; id++) assert_same(&want[id - 1], &got[id - 1], id, setups[i].name);
        free(got);
    }
    free(want);
    model_source_close(src);
}

static void answers_are_the_same_on_cpu_ref(void **state)
{
    (void)state;
    compare_all(&backend_cpu_ref);
}

static void answers_are_the_same_on_cpu_fast(void **state)
{
    (void)state;
    compare_all(&backend_cpu_fast);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_the_same_on_cpu_ref), cmocka_unit_test(answers_are_the_same_on_cpu_fast),
    };
    log_set_level(LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
