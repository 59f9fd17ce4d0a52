#include "helpers.h"

#include <math.h>

#include "scheduler.h"

enum { EOS = 999 };

/* A scheduler whose device draws: last token + 1. */
struct bench {
    struct scheduler s;
    struct result_row rows[16];
    token_id draw;                     /* != TOKEN_NONE: this token instead */
    bool bad;
    int64_t now;
};

static struct scheduler_options options(void)
{
    return (struct scheduler_options){
        .max_num_seqs = 4,
        .max_num_batched_tokens = 16,
        .max_model_len = TEST_MAX_LEN,
        .max_sequences = 64,
        .num_blocks = 32,
        .block_size = TEST_BLOCK_SIZE,
        .vocab_size = TEST_VOCAB,
        .num_plans = 1,
        .policy = POLICY_FCFS,
        .enable_prefix_caching = true,
        .eos = {{EOS}, 1},
    };
}

static void open_bench(struct bench *bench, struct scheduler_options o)
{
    struct err err = { 0 };

    memset(bench, 0, sizeof *bench);
    bench->draw = TOKEN_NONE;
    assert_int_equal(scheduler_init(&bench->s, &o, &err), 0);
}

static void drain_finished(struct bench *bench)
{
    struct submission *sub;

    scheduler_clear_outcomes(&bench->s);
    while ((sub = scheduler_take_finished(&bench->s))) submission_free(sub);
}

static void close_bench(struct bench *bench)
{
    scheduler_check(&bench->s);
    drain_finished(bench);
    scheduler_release(&bench->s);
}

static void run_plan(struct bench *bench, const struct step_plan *plan)
{
    struct step_result result = { .step = plan->step, .num_rows = plan->num_rows, .rows = bench->rows };
    struct err err = { 0 };

    assert_int_equal(step_plan_check(plan, bench->s.kv.num_blocks, TEST_VOCAB, &err), 0);
    for (int32_t r = 0; r < plan->num_rows; r++) {
        token_id last = plan_input_ids(plan)[plan_rows(plan)[r].token];
        token_id target = plan_rows(plan)[r].target;
        bench->rows[r] = (struct result_row){ .token = target >= 0 ? target : bench->draw != TOKEN_NONE ? bench->draw : (last + 1) % EOS,
                                              .logprob = -1, .rank = 3, .num_top = 2, .bad = bench->bad };
    }
    scheduler_commit(&bench->s, plan, &result, ++bench->now);
    scheduler_check(&bench->s);
}

static const struct step_plan *next(struct bench *bench)
{
    drain_finished(bench);
    const struct step_plan *plan = scheduler_next_step(&bench->s, ++bench->now);
    scheduler_check(&bench->s);
    return plan;
}

static const struct step_plan *step(struct bench *bench)
{
    const struct step_plan *plan = next(bench);

    assert_non_null(plan);
    run_plan(bench, plan);
    return plan;
}

static void add(struct bench *bench, uint64_t id, token_id first, uint32_t num_prompt, int32_t max_tokens)
{
    scheduler_add(&bench->s, test_submission(id, first, num_prompt, max_tokens));
    scheduler_check(&bench->s);
}

static int32_t q_len(const struct step_plan *plan, int32_t b)
{
    return plan_cu_seqlens_q(plan)[b + 1] - plan_cu_seqlens_q(plan)[b];
}
static const struct token_event *event(struct bench *bench, int i)
{
    assert_true(i < bench->s.num_outcomes);
    return &bench->s.outcomes[i].event;
}
static struct sequence *seq(struct bench *bench, uint64_t id) { return sequence_pool_find(&bench->s.pool, id); }

static void one_request_runs_to_its_length(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 5, 3);
    for (uint32_t i = 1; i <= 3; i++) {
        const struct step_plan *plan = step(&bench);
        assert_int_equal(plan->num_tokens, i == 1 ? 5 : 1);
        assert_int_equal(plan->num_decode_seqs, i > 1);
        assert_int_equal(bench.s.num_outcomes, 1);
        assert_int_equal(event(&bench, 0)->id, 1);
        assert_int_equal(event(&bench, 0)->token, 14 + i);
        assert_int_equal(event(&bench, 0)->index, i);
        assert_int_equal(event(&bench, 0)->finish, i == 3 ? FINISH_LENGTH : FINISH_NONE);
    }
    assert_null(next(&bench));
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    assert_int_equal(scheduler_stats(&bench.s)->prompt_tokens, 5);
    assert_int_equal(scheduler_stats(&bench.s)->generation_tokens, 3);
    close_bench(&bench);
}

static void decodes_go_first_and_prompts_fill_the_budget(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 4, 20);
    step(&bench);
    add(&bench, 2, 100, 40, 20);
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_seqs, 2);
    assert_int_equal(plan->num_decode_seqs, 1);
    assert_int_equal(q_len(plan, 0), 1);
    assert_int_equal(q_len(plan, 1), 15);              /* the rest of 16 */
    assert_int_equal(plan->num_rows, 1);               /* an unfinished prompt has none */
    step(&bench);
    plan = step(&bench);
    assert_int_equal(q_len(plan, 1), 10);
    assert_int_equal(plan->num_rows, 2);
    close_bench(&bench);
}

static void long_prefill_chunk_lets_others_in(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.long_prefill_chunk = 6;
    open_bench(&bench, o);
    add(&bench, 1, 10, 40, 20);
    add(&bench, 2, 100, 7, 20);
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_tokens, 16);            /* 6 and 6, then what is left in order */
    assert_int_equal(q_len(plan, 0), 10);
    assert_int_equal(q_len(plan, 1), 6);
    close_bench(&bench);
}

/* fair: a step with a first token is no longer than it must be; the next makes up for it. */
static void fair_gives_no_more_beside_a_first_token(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.policy = POLICY_FAIR;
    o.long_prefill_chunk = 6;
    open_bench(&bench, o);
    add(&bench, 1, 10, 40, 20);
    add(&bench, 2, 100, 5, 20);
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_tokens, 6 + 5);         /* of 16 */
    assert_int_equal(plan->num_rows, 1);
    plan = step(&bench);
    assert_int_equal(plan->num_tokens, 16);
    assert_int_equal(plan->num_decode_seqs, 1);
    close_bench(&bench);
}

static void fair_serves_short_prompts_beside_a_long_one(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;
    int steps = 0;

    (void)state;
    o.policy = POLICY_FAIR;
    o.max_num_batched_tokens = 512;                    /* quantum 64 */
    o.max_model_len = 4096;
    o.num_blocks = 2048;
    open_bench(&bench, o);
    static token_id prompt[4000];
    struct engine_request req = test_request(1, 0, 1, 5);
    struct submission_limits limits = test_limits;
    limits.max_model_len = 4096;
    req.tokens = prompt;
    req.num_prompt = 4000;
    scheduler_add(&bench.s, submission_new(&req, &limits));
    add(&bench, 2, 100, 60, 5);
    add(&bench, 3, 200, 60, 5);
    step(&bench);
    assert_int_equal(bench.s.num_outcomes, 2);         /* both short ones got their first token beside it */
    assert_true(seq(&bench, 1)->num_computed > 0);
    while (seq(&bench, 1)->num_computed < 4000) {
        step(&bench);
        assert_true(++steps < 20);                     /* and the long one gets the rest */
    }
    close_bench(&bench);
}

static void stops_end_a_sequence(void **state)
{
    struct bench bench;
    token_id stop_ids[] = { 77 };

    (void)state;
    open_bench(&bench, options());
    struct engine_request req = test_request(1, 10, 4, 20);
    req.num_stop_ids = 1;
    req.stop_ids = stop_ids;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    req.id = 2;
    req.ignore_eos = true;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    bench.draw = EOS;
    step(&bench);
    assert_int_equal(event(&bench, 0)->finish, FINISH_EOS);
    assert_int_equal(event(&bench, 0)->token, EOS);
    assert_int_equal(event(&bench, 1)->finish, FINISH_NONE);
    bench.draw = 77;
    step(&bench);
    assert_int_equal(event(&bench, 0)->id, 2);
    assert_int_equal(event(&bench, 0)->finish, FINISH_STOP_TOKEN);
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    close_bench(&bench);
}

static void min_tokens_masks_the_ends(void **state)
{
    struct bench bench;
    token_id stop_ids[] = { 77 }, bias_ids[] = { 5 };
    float bias_values[] = { 1.5f };

    (void)state;
    open_bench(&bench, options());
    struct engine_request req = test_request(1, 10, 4, 20);
    req.num_stop_ids = req.num_bias = 1;
    req.stop_ids = stop_ids;
    req.bias_ids = bias_ids;
    req.bias_values = bias_values;
    req.min_tokens = 1;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    const struct step_plan *plan = step(&bench);
    const struct sampling_row *row = &plan_rows(plan)[0];
    assert_int_equal(row->bias_count, 3);
    assert_int_equal(plan_bias_ids(plan)[row->bias_begin], 5);
    assert_true(plan_bias_values(plan)[row->bias_begin] == 1.5f);
    assert_int_equal(plan_bias_ids(plan)[row->bias_begin + 1], 77);
    assert_int_equal(plan_bias_ids(plan)[row->bias_begin + 2], EOS);
    assert_true(plan_bias_values(plan)[row->bias_begin + 2] == -INFINITY);
    plan = step(&bench);                               /* one token generated: masks are off, the bias stays */
    assert_int_equal(plan_rows(plan)[0].bias_count, 1);
    close_bench(&bench);
}

static void penalties_send_the_history_once_per_admission(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    struct engine_request req = test_request(1, 10, 20, 20);
    req.sampling.presence_penalty = 1;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_history, 0);            /* the prompt is not through */
    plan = step(&bench);
    assert_int_equal(plan->num_history, 1);
    assert_int_equal(plan_history(plan)[0].num_prompt, 20);
    assert_int_equal(plan_history(plan)[0].num_output, 0);
    assert_int_equal(plan_rows(plan)[0].use_penalties, 1);
    plan = step(&bench);
    assert_int_equal(plan->num_history, 0);
    close_bench(&bench);
}

static void a_resumed_sequence_goes_on_where_it_was(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    struct engine_request req = test_request(1, 10, 8, 5);
    req.num_prompt = 5;
    req.num_output = 3;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_tokens, 8);
    assert_int_equal(plan_rows(plan)[0].num_generated, 3);
    assert_int_equal(event(&bench, 0)->index, 4);
    step(&bench);
    assert_int_equal(event(&bench, 0)->finish, FINISH_LENGTH);
    close_bench(&bench);
}

static void fair_lets_resumed_streams_go_first(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.policy = POLICY_FAIR;
    open_bench(&bench, o);
    add(&bench, 1, 100, 40, 5);
    add(&bench, 2, 200, 40, 5);
    step(&bench);
    struct engine_request req = test_request(3, 10, 8, 5);
    req.num_prompt = 5;
    req.num_output = 3;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    req.id = 4;
    req.num_prompt = 12;               /* with the other more than a step */
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(bench.s.num_outcomes, 1);
    assert_int_equal(event(&bench, 0)->id, 3);         /* the one that came first of both */
    close_bench(&bench);
}

static void out_of_blocks_the_newest_gives_way_and_comes_back_first(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;
    int finished = 0;

    (void)state;
    o.max_model_len = 32;
    o.num_blocks = 8;                                  /* one full context and no more */
    o.enable_prefix_caching = false;
    open_bench(&bench, o);
    add(&bench, 1, 10, 8, 20);
    add(&bench, 2, 100, 8, 20);
    add(&bench, 3, 200, 8, 4);
    for (int i = 0; i < 200 && scheduler_num_sequences(&bench.s); i++) {
        step(&bench);
        if (seq(&bench, 2) && seq(&bench, 2)->state == SEQ_WAITING && seq(&bench, 3) &&
            scheduler_stats(&bench.s)->preemptions)
            assert_int_equal(seq(&bench, 3)->state, SEQ_WAITING);      /* does not pass the one that was pushed out */
        for (int e = 0; e < bench.s.num_outcomes; e++) {
            if (!event(&bench, e)->finish) continue;
            assert_int_equal(event(&bench, e)->finish, FINISH_LENGTH);
            finished++;
            assert_int_equal(event(&bench, e)->token, event(&bench, e)->id == 1   ? 37
                                                      : event(&bench, e)->id == 2 ? 127
                                                                                  : 211);
        }
    }
    assert_int_equal(finished, 3);
    assert_true(scheduler_stats(&bench.s)->preemptions > 0);
    assert_int_equal(bench.s.kv.num_free, 8);
    close_bench(&bench);
}

static void priority_pushes_out_the_lower(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.policy = POLICY_PRIORITY;
    o.max_num_seqs = 1;
    open_bench(&bench, o);
    struct engine_request req = test_request(1, 10, 8, 20);
    req.priority = 5;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    req.id = 2;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(seq(&bench, 1)->state, SEQ_RUNNING);      /* equal value: waits */
    req.id = 3;
    req.priority = 1;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(seq(&bench, 3)->state, SEQ_RUNNING);
    assert_int_equal(seq(&bench, 1)->state, SEQ_WAITING);
    assert_int_equal(seq(&bench, 1)->num_tokens, 10);          /* keeps what it has generated */
    close_bench(&bench);
}

static void choices_of_one_prompt_compute_it_once(void **state)
{
    struct bench bench;
    int32_t computed = 0;

    (void)state;
    open_bench(&bench, options());
    for (uint64_t id = 1; id <= 3; id++) {
        struct engine_request req = test_request(id, 10, 21, 3);
        req.group = 50;
        req.sampling.choice = (uint32_t)id;
        scheduler_add(&bench.s, submission_new(&req, &test_limits));
    }
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_seqs, 1);               /* two wait for the first */
    computed += plan->num_tokens;
    plan = step(&bench);
    computed += plan->num_tokens;
    assert_int_equal(plan->num_seqs, 1);
    plan = step(&bench);
    computed += plan->num_tokens;
    assert_int_equal(plan->num_seqs, 3);
    assert_int_equal(computed, 21 + 1 + 2);            /* prompt, a decode, the last token of the two others */
    assert_int_equal(seq(&bench, 2)->num_cached, 20);
    assert_int_equal(scheduler_stats(&bench.s)->cache_hit_tokens, 40);
    close_bench(&bench);
}

static struct engine_request urgent_request(uint64_t id, token_id first, uint32_t num_prompt, int32_t priority)
{
    struct engine_request req = test_request(id, first, num_prompt, 20);

    req.priority = priority;
    return req;
}

static void priority_pushes_out_only_when_that_makes_room(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.policy = POLICY_PRIORITY;
    o.max_model_len = 32;
    o.num_blocks = 8;                                  /* of 4 tokens */
    o.enable_prefix_caching = false;
    open_bench(&bench, o);
    struct engine_request req = urgent_request(1, 10, 14, 1);
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    req = urgent_request(2, 100, 6, 5);
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    step(&bench);
    assert_int_equal(bench.s.num_running, 2);          /* 4 and 2 blocks of 8 */
    req = urgent_request(3, 200, 18, 1);               /* 5 blocks: too many even without the second */
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(seq(&bench, 2)->state, SEQ_RUNNING);
    assert_int_equal(seq(&bench, 3)->state, SEQ_WAITING);
    scheduler_abort(&bench.s, 3, 0);
    req = urgent_request(4, 200, 4, 1);                /* fits when the second goes */
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(seq(&bench, 1)->state, SEQ_RUNNING);
    assert_int_equal(seq(&bench, 2)->state, SEQ_WAITING);
    assert_int_equal(seq(&bench, 4)->state, SEQ_RUNNING);
    close_bench(&bench);
}

static void a_low_priority_ages(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.policy = POLICY_PRIORITY;
    o.max_num_seqs = 1;
    open_bench(&bench, o);
    struct engine_request req = urgent_request(1, 10, 8, 2);
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    req = urgent_request(2, 10, 8, 1);
    req.arrival_ms = PRIORITY_STEP_MS + 2;             /* the first waits for longer than one step of priority is worth */
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(seq(&bench, 1)->state, SEQ_RUNNING);
    req = urgent_request(3, 10, 8, 0);
    req.arrival_ms = PRIORITY_STEP_MS + 3;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    step(&bench);
    assert_int_equal(seq(&bench, 1)->state, SEQ_WAITING);      /* but for less than two */
    assert_int_equal(seq(&bench, 3)->state, SEQ_RUNNING);
    scheduler_abort(&bench.s, 3, 0);
    step(&bench);
    assert_int_equal(seq(&bench, 1)->state, SEQ_RUNNING);      /* before 2, whose value is better */
    close_bench(&bench);
}

static void fair_lets_small_prompts_pass_one_without_room_but_not_for_ever(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;
    int steps = 0;

    (void)state;
    o.policy = POLICY_FAIR;
    o.num_blocks = 16;
    o.enable_prefix_caching = false;
    open_bench(&bench, o);
    add(&bench, 1, 10, 4, 2);
    step(&bench);
    add(&bench, 2, 100, 62, 2);                        /* the whole pool */
    add(&bench, 3, 200, 4, 2);
    step(&bench);
    assert_int_equal(seq(&bench, 2)->state, SEQ_WAITING);
    assert_int_equal(seq(&bench, 3)->state, SEQ_RUNNING);
    for (uint64_t id = 4; seq(&bench, 2); id++) {      /* there are always small ones */
        add(&bench, id, (token_id)(7 * id), 4, 2);
        step(&bench);
        assert_true(++steps < 300);
    }
    assert_true(steps > 64);
    close_bench(&bench);
}

static void throttled_nobody_is_admitted_while_one_runs(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    scheduler_throttle(&bench.s, true);
    add(&bench, 1, 10, 8, 3);
    add(&bench, 2, 100, 8, 3);
    while (seq(&bench, 1)) {
        assert_int_equal(step(&bench)->num_seqs, 1);   /* one at a time: slow, but nothing hangs */
        assert_int_equal(seq(&bench, 2)->state, SEQ_WAITING);
    }
    step(&bench);
    add(&bench, 3, 200, 8, 3);
    step(&bench);
    assert_int_equal(seq(&bench, 3)->state, SEQ_WAITING);
    scheduler_throttle(&bench.s, false);
    step(&bench);
    assert_int_equal(bench.s.num_running, 2 - (seq(&bench, 2) == NULL));
    assert_int_equal(seq(&bench, 3)->state, SEQ_RUNNING);
    close_bench(&bench);
}

static void run_too_late(enum scheduler_policy policy)
{
    struct scheduler_options o = options();
    struct engine_request req = test_request(2, 100, 8, 3);
    struct bench bench;

    o.policy = policy;
    o.max_num_seqs = 1;
    open_bench(&bench, o);
    add(&bench, 1, 10, 8, 3);
    step(&bench);
    req.start_by_ms = 1;
    for (req.id = 2; req.id <= 3; req.id++) {          /* the first in the queue, both of them */
        req.priority = -1;
        scheduler_add(&bench.s, submission_new(&req, &test_limits));
    }
    add(&bench, 4, 200, 8, 3);
    req = test_request(5, 300, 8, 3);
    req.start_by_ms = 3;
    scheduler_add(&bench.s, submission_new(&req, &test_limits));
    bench.now = 2000000;
    while (seq(&bench, 1) || seq(&bench, 4)) step(&bench);
    for (uint64_t id = 2; id <= 3; id++) {
        assert_int_equal(seq(&bench, id)->state, SEQ_WAITING);
        assert_int_equal(seq(&bench, id)->scheduled_ns, 0);
    }
    assert_int_equal(bench.s.num_begun, 0);
    bench.now = 3000000 - 1;
    step(&bench);                                      /* just in time */
    assert_int_equal(bench.s.num_begun, 1);
    assert_int_equal(bench.s.begun[0], 5);
    bench.now = 4000000;                               /* what has begun goes on */
    while (seq(&bench, 5)) step(&bench);
    assert_null(next(&bench));
    scheduler_abort(&bench.s, 2, 0);
    scheduler_abort(&bench.s, 3, 0);
    assert_int_equal(event(&bench, 1)->finish, FINISH_ABORTED);
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    close_bench(&bench);
}

static void too_late_nobody_begins(void **state)
{
    (void)state;
    run_too_late(POLICY_FAIR);
    run_too_late(POLICY_FCFS);
    run_too_late(POLICY_PRIORITY);
}

/* Eight choices of a prompt of 61 tokens: blocks of 4, so 15 full ones and one token more. */
static void eight_choices(bool prefix_caching)
{
    struct scheduler_options o = options();
    struct submission_limits limits = test_limits;
    struct bench bench;
    int32_t computed = 0, decodes = 0;

    o.max_num_seqs = 8;
    o.num_blocks = 64;
    o.enable_prefix_caching = prefix_caching;
    limits.group_domains = !prefix_caching;
    open_bench(&bench, o);
    for (uint64_t id = 1; id <= 8; id++) {
        struct engine_request req = test_request(id, 10, 61, 3);
        req.group = 9;
        req.sampling.choice = (uint32_t)id - 1;
        scheduler_add(&bench.s, submission_new(&req, &limits));
    }
    while (bench.s.num_running < 8) {
        const struct step_plan *plan = step(&bench);
        computed += plan->num_tokens;
        decodes += bench.s.num_outcomes - (bench.s.num_running == 8 ? 7 : bench.s.num_outcomes > 0);
    }
    assert_int_equal(computed - decodes, 61 + 7);      /* one prefill, and the last token of seven more */
    assert_int_equal(bench.s.kv.num_used, 15 + 8);     /* one set of full blocks, a last block each */
    assert_int_equal(bench.s.kv.ref_counts[seq(&bench, 1)->blocks[0]], 8);
    assert_int_equal(bench.s.kv.ref_counts[seq(&bench, 8)->blocks[15]], 1);
    while (scheduler_num_sequences(&bench.s)) step(&bench);
    assert_int_equal(bench.s.kv.num_used, 0);
    assert_int_equal(bench.s.kv.num_free, prefix_caching ? 64 - 15 : 64);      /* nothing outlives the group */
    close_bench(&bench);
}

static void eight_choices_cost_one_prefill(void **state)
{
    (void)state;
    eight_choices(true);
}

static void eight_choices_cost_one_prefill_without_prefix_caching(void **state)
{
    (void)state;
    eight_choices(false);
}

static void aborts_are_told_at_once_and_free_with_the_plan(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 8, 20);
    add(&bench, 2, 100, 8, 20);
    scheduler_abort(&bench.s, 2, 0);                      /* waiting */
    assert_int_equal(event(&bench, 0)->finish, FINISH_ABORTED);
    scheduler_abort(&bench.s, 2, 0);                      /* unknown by now */
    assert_int_equal(bench.s.num_outcomes, 1);
    const struct step_plan *plan = next(&bench);
    scheduler_abort(&bench.s, 1, 0);                      /* in a plan: its blocks are being written */
    assert_int_equal(bench.s.num_outcomes, 1);
    assert_int_equal(event(&bench, 0)->finish, FINISH_ABORTED);
    assert_true(bench.s.kv.num_used > 0);
    scheduler_check(&bench.s);
    scheduler_abort(&bench.s, 1, 0);
    assert_int_equal(bench.s.num_outcomes, 1);         /* told once */
    assert_int_equal(scheduler_stats(&bench.s)->running, 0);
    run_plan(&bench, plan);
    assert_int_equal(bench.s.num_outcomes, 1);
    assert_int_equal(bench.s.kv.num_used, 0);
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    assert_int_equal(scheduler_stats(&bench.s)->aborted, 2);
    close_bench(&bench);
}

static void bad_numbers_end_one_sequence_only(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 9, 20);
    bench.bad = true;
    step(&bench);
    assert_int_equal(event(&bench, 0)->finish, FINISH_ERROR);
    assert_int_equal(event(&bench, 0)->err_code, ERR_INTERNAL);
    bench.bad = false;
    add(&bench, 2, 10, 9, 20);
    const struct step_plan *plan = step(&bench);
    assert_int_equal(plan->num_tokens, 9);             /* nothing of the bad one is reused */
    assert_int_equal(event(&bench, 0)->finish, FINISH_NONE);
    assert_int_equal(scheduler_stats(&bench.s)->corrupted, 1);
    close_bench(&bench);
}

static void two_plans_in_flight_hold_different_sequences(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.num_plans = 2;
    open_bench(&bench, o);
    for (uint64_t id = 1; id <= 4; id++) add(&bench, id, (token_id)(100 * id), 4, 10);
    for (int i = 0; i < 5; i++) {
        const struct step_plan *a = next(&bench);
        const struct step_plan *b = next(&bench);
        assert_non_null(a);
        assert_non_null(b);
        assert_int_equal(a->num_seqs, 2);
        assert_int_equal(b->num_seqs, 2);
        assert_null(next(&bench));                     /* no third */
        for (int x = 0; x < 2; x++) {
            for (int y = 0; y < 2; y++) assert_int_not_equal(plan_seq_slots(a)[x], plan_seq_slots(b)[y]);
        }
        run_plan(&bench, a);
        drain_finished(&bench);
        run_plan(&bench, b);
    }
    close_bench(&bench);
}

static void too_many_and_impossible_requests_are_refused(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;
    struct err err = { 0 };

    (void)state;
    o.max_sequences = 4;
    open_bench(&bench, o);
    for (uint64_t id = 1; id <= 4; id++) add(&bench, id, 10, 4, 10);
    add(&bench, 5, 10, 4, 10);
    assert_int_equal(event(&bench, 0)->id, 5);
    assert_int_equal(event(&bench, 0)->err_code, ERR_QUEUE_FULL);
    add(&bench, 6, 10, TEST_MAX_LEN, 10);
    assert_int_equal(event(&bench, 1)->finish, FINISH_ERROR);
    assert_int_equal(event(&bench, 1)->err_code, ERR_CONTEXT_LENGTH);
    close_bench(&bench);
    o.num_blocks = TEST_MAX_LEN / TEST_BLOCK_SIZE - 1;
    assert_int_equal(scheduler_init(&bench.s, &o, &err), ERR_CONFIG);
}

/* ---- scored prompts ---- */

static void add_scored(struct bench *bench, uint64_t id, token_id first, uint32_t num_prompt, int32_t max_tokens)
{
    struct engine_request req = test_request(id, first, num_prompt, max_tokens);

    req.score_prompt = true;
    req.num_prompt_logprobs = 2;
    struct submission *sub = submission_new(&req, &test_limits);
    assert_non_null(sub);
    scheduler_add(&bench->s, sub);
    scheduler_check(&bench->s);
}

/* Steps until id has ended; checks that positions come in order, each once, before the first token. Returns the last. */
static uint32_t run_scored(struct bench *bench, uint64_t id, token_id first)
{
    uint32_t position = 0;

    for (int i = 0; i < 200; i++) {
        step(bench);
        for (int32_t k = 0; k < bench->s.num_scores; k++) {
            const struct step_score *score = &bench->s.scores[k];
            if (score->id != id) continue;
            assert_int_equal(score->position, ++position);
            assert_int_equal(score->row->token, first + (token_id)position);
        }
        for (int32_t k = 0; k < bench->s.num_outcomes; k++) {
            const struct token_event *ended = &bench->s.outcomes[k].event;
            if (ended->id == id && ended->finish != FINISH_NONE) return position;
        }
    }
    return 0;
}

static void a_prompt_is_scored_once_whatever_the_rows(void **state)
{
    struct scheduler_options o = options();

    (void)state;
    for (int32_t rows = 1; rows <= 4; rows++) {
        struct bench bench;
        o.max_num_seqs = rows;
        open_bench(&bench, o);
        add_scored(&bench, 1, 100, 30, 3);
        add(&bench, 2, 300, 20, 20);
        assert_int_equal(run_scored(&bench, 1, 100), 29);
        close_bench(&bench);
    }
}

static void scoring_alone_ends_with_the_prompt(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add_scored(&bench, 1, 100, TEST_MAX_LEN, 0);         /* fills the context */
    assert_int_equal(run_scored(&bench, 1, 100), TEST_MAX_LEN - 1);
    assert_int_equal(event(&bench, 0)->finish, FINISH_LENGTH);
    assert_int_equal(event(&bench, 0)->token, TOKEN_NONE);
    assert_int_equal(event(&bench, 0)->index, 0);
    assert_int_equal(bench.s.num_running, 0);
    close_bench(&bench);
}

static void scoring_reads_no_cached_blocks_but_leaves_some(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 100, 20, 1);
    while (bench.s.pool.num_used) step(&bench);
    add_scored(&bench, 2, 100, 20, 1);
    assert_int_equal(run_scored(&bench, 2, 100), 19);
    assert_int_equal(event(&bench, 0)->num_cached, 0);
    add(&bench, 3, 100, 20, 1);
    while (bench.s.pool.num_used) step(&bench);
    assert_int_equal(event(&bench, 0)->num_cached, 16);
    close_bench(&bench);
}

/* Few blocks: the scored prompt is pushed out and computed again, and yet no position is told twice. */
static void a_preempted_prompt_goes_on_where_its_scores_ended(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.num_blocks = 16;
    o.max_num_seqs = 2;                                  /* two rows: one for the other's tokens, one to score */
    open_bench(&bench, o);
    add(&bench, 1, 300, 12, 48);
    add_scored(&bench, 2, 100, 30, 2);
    assert_int_equal(run_scored(&bench, 2, 100), 29);
    assert_true(bench.s.stats.preemptions > 0);
    close_bench(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_runs_to_its_length),
        cmocka_unit_test(decodes_go_first_and_prompts_fill_the_budget),
        cmocka_unit_test(long_prefill_chunk_lets_others_in),
        cmocka_unit_test(fair_gives_no_more_beside_a_first_token),
        cmocka_unit_test(fair_serves_short_prompts_beside_a_long_one),
        cmocka_unit_test(stops_end_a_sequence),
        cmocka_unit_test(min_tokens_masks_the_ends),
        cmocka_unit_test(penalties_send_the_history_once_per_admission),
        cmocka_unit_test(a_resumed_sequence_goes_on_where_it_was),
        cmocka_unit_test(fair_lets_resumed_streams_go_first),
        cmocka_unit_test(out_of_blocks_the_newest_gives_way_and_comes_back_first),
        cmocka_unit_test(priority_pushes_out_the_lower),
        cmocka_unit_test(priority_pushes_out_only_when_that_makes_room),
        cmocka_unit_test(a_low_priority_ages),
        cmocka_unit_test(fair_lets_small_prompts_pass_one_without_room_but_not_for_ever),
        cmocka_unit_test(throttled_nobody_is_admitted_while_one_runs),
        cmocka_unit_test(too_late_nobody_begins),
        cmocka_unit_test(eight_choices_cost_one_prefill),
        cmocka_unit_test(eight_choices_cost_one_prefill_without_prefix_caching),
        cmocka_unit_test(choices_of_one_prompt_compute_it_once),
        cmocka_unit_test(aborts_are_told_at_once_and_free_with_the_plan),
        cmocka_unit_test(bad_numbers_end_one_sequence_only),
        cmocka_unit_test(two_plans_in_flight_hold_different_sequences),
        cmocka_unit_test(a_prompt_is_scored_once_whatever_the_rows),
        cmocka_unit_test(scoring_alone_ends_with_the_prompt),
        cmocka_unit_test(scoring_reads_no_cached_blocks_but_leaves_some),
        cmocka_unit_test(a_preempted_prompt_goes_on_where_its_scores_ended),
        cmocka_unit_test(too_many_and_impossible_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
