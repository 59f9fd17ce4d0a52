/* What the scheduler does when a sequence may be in two plans at once; the device's part is played by this file. */
#include "helpers.h"

#include <math.h>

#include "scheduler.h"

enum { EOS = 999, MAX_SEQS = 8 };

/* Two plans in flight at most. The device draws: last token + 1; a sequence whose next token would be `stop_at` draws EOS. */
struct bench {
    struct scheduler s;
    struct result_row rows[MAX_SEQS];
    token_id last_tokens[MAX_SEQS];    /* by slot */
    const struct step_plan *flights[2];
    int num_flights;
    token_id stop_at;
    bool bad;
    int64_t now;
};

static struct scheduler_options options(void)
{
    return (struct scheduler_options){
        .max_num_seqs = MAX_SEQS, .max_num_batched_tokens = 16, .max_model_len = TEST_MAX_LEN, .max_sequences = 64,
        .num_blocks = 64, .block_size = TEST_BLOCK_SIZE, .vocab_size = TEST_VOCAB, .num_plans = 2, .overlap = true,
        .policy = POLICY_FCFS, .enable_prefix_caching = true, .eos = {{EOS}, 1},
    };
}

static void open_bench(struct bench *bench, struct scheduler_options o)
{
    struct err err = { 0 };

    *bench = (struct bench){ .stop_at = TOKEN_NONE };
    assert_int_equal(scheduler_init(&bench->s, &o, &err), 0);
}

static void forget_outcomes(struct bench *bench)
{
    struct submission *sub;

    scheduler_clear_outcomes(&bench->s);
    while ((sub = scheduler_take_finished(&bench->s))) submission_free(sub);
}

/* The next plan is in flight; NULL: there was nothing to run. */
static const struct step_plan *launch(struct bench *bench)
{
    struct err err = { 0 };

    forget_outcomes(bench);
    const struct step_plan *plan = scheduler_next_step(&bench->s, ++bench->now);
    scheduler_check(&bench->s);
    if (!plan) return NULL;
    if (step_plan_check(plan, bench->s.kv.num_blocks, TEST_VOCAB, &err) < 0) fail_msg("%s", err.message);
    bench->flights[bench->num_flights++] = plan;
    return plan;
}

/* The oldest plan runs and is committed. */
static void land(struct bench *bench)
{
    const struct step_plan *plan = bench->flights[0];
    struct step_result result = { .step = plan->step, .num_rows = plan->num_rows, .rows = bench->rows };

    forget_outcomes(bench);
    for (int32_t r = 0; r < plan->num_rows; r++) {
        const struct sampling_row *row = &plan_rows(plan)[r];
        token_id input = plan_input_ids(plan)[row->token];
        if (input == TOKEN_FEEDBACK) input = bench->last_tokens[row->slot];
        token_id token = (input + 1) % EOS == bench->stop_at ? EOS : (input + 1) % EOS;
        bench->last_tokens[row->slot] = token;
        bench->rows[r] = (struct result_row){ .token = token, .bad = bench->bad };
    }
    scheduler_commit(&bench->s, plan, &result, ++bench->now);
    bench->flights[0] = bench->flights[1];
    bench->num_flights--;
    scheduler_check(&bench->s);
}

static void close_bench(struct bench *bench)
{
    while (bench->num_flights) land(bench);
    forget_outcomes(bench);
    scheduler_release(&bench->s);
}

static void add(struct bench *bench, uint64_t id, token_id first, uint32_t num_prompt, int32_t max_tokens)
{
    scheduler_add(&bench->s, test_submission(id, first, num_prompt, max_tokens));
    scheduler_check(&bench->s);
}

static void add_request(struct bench *bench, const struct engine_request *req)
{
    struct submission *sub = submission_new(req, &test_limits);

    assert_non_null(sub);
    scheduler_add(&bench->s, sub);
    scheduler_check(&bench->s);
}

static const struct token_event *only_event(struct bench *bench)
{
    assert_int_equal(bench->s.num_outcomes, 1);
    return &bench->s.outcomes[0].event;
}

static struct sequence *seq(struct bench *bench, uint64_t id) { return sequence_pool_find(&bench->s.pool, id); }

static void a_decode_follows_before_its_token_is_known(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 6, 3);
    launch(&bench);
    const struct step_plan *plan = launch(&bench);
    assert_non_null(plan);
    assert_int_equal(plan->num_decode_seqs, 1);
    assert_int_equal(plan_input_ids(plan)[0], TOKEN_FEEDBACK);
    assert_int_equal(plan_positions(plan)[0], 6);
    assert_int_equal(plan_context_lens(plan)[0], 7);
    assert_int_equal(plan_rows(plan)[0].num_generated, 1);
    assert_null(launch(&bench));                       /* two are in flight */
    land(&bench);
    assert_int_equal(only_event(&bench)->token, 16);
    plan = launch(&bench);
    assert_int_equal(plan_positions(plan)[0], 7);      /* the third and last token */
    land(&bench);
    assert_int_equal(only_event(&bench)->token, 17);
    assert_null(launch(&bench));                       /* its length is known: no step too many */
    land(&bench);
    assert_int_equal(only_event(&bench)->token, 18);
    assert_int_equal(only_event(&bench)->finish, FINISH_LENGTH);
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    close_bench(&bench);
}

static void chunks_follow_each_other(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    open_bench(&bench, o);
    add(&bench, 1, 10, 40, 5);
    const struct step_plan *plan = launch(&bench);
    assert_int_equal(plan->num_tokens, 16);
    plan = launch(&bench);
    assert_int_equal(plan->num_tokens, 16);
    assert_int_equal(plan_positions(plan)[0], 16);
    assert_int_equal(plan->num_rows, 0);
    land(&bench);
    assert_int_equal(seq(&bench, 1)->num_published, 4);        /* only what a plan that is back has computed */
    plan = launch(&bench);
    assert_int_equal(plan->num_tokens, 8);
    assert_int_equal(plan->num_rows, 1);
    land(&bench);
    plan = launch(&bench);
    assert_int_equal(plan_input_ids(plan)[0], TOKEN_FEEDBACK);
    close_bench(&bench);
}

static void every_plan_holds_all_decodes(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    for (uint64_t id = 1; id <= MAX_SEQS; id++) add(&bench, id, (token_id)(100 * id), 4, 30);
    for (int i = 0; i < 10; i++) {
        const struct step_plan *plan = launch(&bench);
        if (i > 2) assert_int_equal(plan->num_decode_seqs, MAX_SEQS);
        if (bench.num_flights == 2) land(&bench);
    }
    close_bench(&bench);
}

static void a_late_end_costs_a_row_that_nobody_sees(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 7, 20);
    bench.stop_at = 18;
    launch(&bench);
    launch(&bench);
    land(&bench);
    assert_int_equal(only_event(&bench)->token, 17);
    launch(&bench);                                    /* holds it once more */
    land(&bench);
    assert_int_equal(only_event(&bench)->token, EOS);
    assert_int_equal(only_event(&bench)->finish, FINISH_EOS);
    assert_int_equal(seq(&bench, 1)->state, SEQ_ENDED);
    assert_true(bench.s.kv.num_used > 0);              /* its blocks are still written */
    assert_int_equal(scheduler_stats(&bench.s)->running, 0);
    scheduler_abort(&bench.s, 1, 0);
    assert_int_equal(bench.s.num_outcomes, 1);
    assert_null(launch(&bench));
    land(&bench);
    assert_int_equal(bench.s.num_outcomes, 0);
    assert_int_equal(scheduler_stats(&bench.s)->generation_tokens, 2);
    assert_int_equal(bench.s.kv.num_used, 0);
    assert_null(seq(&bench, 1));
    close_bench(&bench);
}

static void an_abort_is_told_at_once_and_holds_its_blocks(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 40, 20);                        /* in the middle of its prompt */
    launch(&bench);
    launch(&bench);
    scheduler_abort(&bench.s, 1, 0);
    assert_int_equal(only_event(&bench)->finish, FINISH_ABORTED);
    scheduler_check(&bench.s);
    assert_null(launch(&bench));
    land(&bench);
    assert_int_equal(bench.s.num_outcomes, 0);
    assert_int_equal(bench.s.kv.num_used, 8);
    assert_null(launch(&bench));
    land(&bench);
    assert_int_equal(bench.s.kv.num_used, 0);
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    add(&bench, 2, 10, 40, 20);                        /* what was computed is worth keeping */
    launch(&bench);
    assert_int_equal(seq(&bench, 2)->num_cached, 32);
    close_bench(&bench);
}

static void bad_numbers_end_what_follows_too(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    add(&bench, 1, 10, 8, 20);
    launch(&bench);
    launch(&bench);
    bench.bad = true;
    land(&bench);
    assert_int_equal(only_event(&bench)->finish, FINISH_ERROR);
    bench.bad = false;
    land(&bench);
    assert_int_equal(bench.s.num_outcomes, 0);
    assert_int_equal(scheduler_num_sequences(&bench.s), 0);
    assert_int_equal(bench.s.kv.prefix.num_indexed, 0);        /* nothing of it is reused */
    close_bench(&bench);
}

static void rows_count_what_is_pending(void **state)
{
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    struct engine_request req = test_request(1, 10, 4, 20);
    req.min_tokens = 2;
    req.sampling.presence_penalty = 1;
    add_request(&bench, &req);
    const struct step_plan *plan = launch(&bench);
    assert_int_equal(plan->num_history, 1);            /* sent once, with what is known */
    assert_int_equal(plan_history(plan)[0].num_output, 0);
    assert_int_equal(plan_rows(plan)[0].bias_count, 1);
    plan = launch(&bench);
    assert_int_equal(plan->num_history, 0);            /* the device has counted the pending one */
    assert_int_equal(plan_rows(plan)[0].use_penalties, 1);
    assert_int_equal(plan_rows(plan)[0].num_generated, 1);
    assert_int_equal(plan_rows(plan)[0].bias_count, 1);
    land(&bench);
    plan = launch(&bench);                             /* two come before: the ends are no longer masked */
    assert_int_equal(plan_rows(plan)[0].num_generated, 2);
    assert_int_equal(plan_rows(plan)[0].bias_count, 0);
    close_bench(&bench);
}

static void what_looks_at_the_last_token_waits_for_it(void **state)
{
    static const int32_t single[] = { 1, 5 }, pair[] = { 2, 14, 15 };
    struct bench bench;

    (void)state;
    open_bench(&bench, options());
    struct engine_request req = test_request(1, 10, 4, 20);
    req.num_bad_ints = 2;
    req.bad_words = single;
    add_request(&bench, &req);
    req.id = 2;
    req.num_bad_ints = 3;
    req.bad_words = pair;
    add_request(&bench, &req);
    req = test_request(3, 50, 4, 20);
    req.score_prompt = true;
    add_request(&bench, &req);
    const struct step_plan *plan = launch(&bench);
    assert_int_equal(plan->num_seqs, 3);
    plan = launch(&bench);
    assert_int_equal(plan->num_seqs, 1);               /* a word of one token is always masked */
    assert_int_equal(plan_seq_slots(plan)[0], seq(&bench, 1)->slot);
    land(&bench);
    plan = launch(&bench);
    assert_int_equal(plan->num_seqs, 3);
    for (int32_t b = 0; b < 3; b++)                    /* 14 was drawn: 15 is masked now */
        if (plan_seq_slots(plan)[b] == seq(&bench, 2)->slot) assert_int_equal(plan_rows(plan)[b].bias_count, 1);
    land(&bench);
    plan = launch(&bench);                             /* the prompt's scores are there: nothing to wait for any more */
    assert_int_equal(plan->num_seqs, 2);
    assert_int_equal(plan_input_ids(plan)[1], TOKEN_FEEDBACK);
    close_bench(&bench);
}

/* Steps until all have ended; the longest time that one of them waited for a token. */
static int run_all(struct bench *bench, uint64_t num, token_id first[])
{
    int since[9] = { 0 }, longest = 0;

    for (int i = 0; i < 400 && scheduler_num_sequences(&bench->s); i++) {
        const struct step_plan *plan = launch(bench);
        assert_true(plan || bench->num_flights);
        if (!plan || bench->num_flights == 2) land(bench);
        for (uint64_t id = 1; id <= num; id++) longest = ++since[id] > longest ? since[id] : longest;
        for (int32_t e = 0; e < bench->s.num_outcomes; e++) {
            const struct token_event *event = &bench->s.outcomes[e].event;
            assert_int_equal(event->token, first[event->id] + (token_id)event->index);
            since[event->id] = event->finish == FINISH_NONE ? 0 : -1000;
        }
    }
    assert_int_equal(scheduler_num_sequences(&bench->s), 0);
    return longest;
}

static void out_of_blocks_one_in_flight_is_held_then_pushed_out(void **state)
{
    struct scheduler_options o = options();
    token_id first[] = { 0, 13, 103, 203 };
    struct bench bench;

    (void)state;
    o.max_model_len = 32;
    o.num_blocks = 8;                                  /* one whole context and no more */
    o.enable_prefix_caching = false;
    open_bench(&bench, o);
    add(&bench, 1, 10, 4, 25);
    add(&bench, 2, 100, 4, 25);
    add(&bench, 3, 200, 4, 25);
    for (int i = 0; i < 200 && seq(&bench, 1); i++) {
        int32_t before = seq(&bench, 1)->num_tokens;
        if (!launch(&bench) || bench.num_flights == 2) land(&bench);
        /* the best one never stands still for longer than it takes to get another's blocks */
        static int still;
        still = seq(&bench, 1) && seq(&bench, 1)->num_tokens == before ? still + 1 : 0;
        assert_true(still <= 4);
    }
    assert_null(seq(&bench, 1));
    assert_true(scheduler_stats(&bench.s)->preemptions > 0);
    run_all(&bench, 3, first);
    assert_int_equal(bench.s.kv.num_free, 8);
    close_bench(&bench);
}

static void priority_holds_then_pushes_out_the_lower(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.policy = POLICY_PRIORITY;
    o.max_num_seqs = 2;
    open_bench(&bench, o);
    struct engine_request req = test_request(1, 10, 8, 30);
    req.priority = 5;
    add_request(&bench, &req);
    req.id = 2;
    req.priority = 2;
    add_request(&bench, &req);
    launch(&bench);
    launch(&bench);
    land(&bench);
    req.id = 3;
    req.priority = 1;
    add_request(&bench, &req);
    const struct step_plan *plan = launch(&bench);
    assert_int_equal(plan->num_seqs, 1);               /* the lowest is kept out */
    assert_int_equal(plan_seq_slots(plan)[0], seq(&bench, 2)->slot);
    land(&bench);
    plan = launch(&bench);
    assert_int_equal(seq(&bench, 1)->state, SEQ_WAITING);
    assert_int_equal(seq(&bench, 3)->state, SEQ_RUNNING);
    assert_int_equal(plan->num_seqs, 2);
    close_bench(&bench);
}

static void ended_ones_take_no_place_from_new_requests(void **state)
{
    struct scheduler_options o = options();
    struct bench bench;

    (void)state;
    o.max_num_seqs = o.max_sequences = 2;
    open_bench(&bench, o);
    add(&bench, 1, 10, 4, 20);
    add(&bench, 2, 20, 4, 20);
    launch(&bench);
    launch(&bench);
    scheduler_abort(&bench.s, 1, 0);
    scheduler_abort(&bench.s, 2, 0);
    add(&bench, 3, 30, 4, 2);
    add(&bench, 4, 40, 4, 2);
    assert_int_equal(bench.s.num_outcomes, 2);         /* the aborts: nobody was refused */
    add(&bench, 5, 50, 4, 2);
    assert_int_equal(bench.s.num_outcomes, 3);
    assert_int_equal(bench.s.outcomes[2].event.err_code, ERR_QUEUE_FULL);
    assert_null(launch(&bench));                       /* no slot is free yet */
    land(&bench);
    land(&bench);
    assert_non_null(launch(&bench));
    close_bench(&bench);
}

/* A place comes free while a plan is in flight: who is too late for it by then gets no token in the next one. */
static void too_late_nobody_begins(void **state)
{
    struct scheduler_options o = options();
    struct engine_request req = test_request(2, 40, 4, 5);
    struct bench bench;

    (void)state;
    o.max_num_seqs = 1;
    open_bench(&bench, o);
    add(&bench, 1, 10, 4, 2);
    req.start_by_ms = 1;
    add_request(&bench, &req);
    add(&bench, 3, 70, 4, 2);
    launch(&bench);
    launch(&bench);
    land(&bench);
    bench.now = 2000000;
    land(&bench);
    const struct step_plan *plan = launch(&bench);
    assert_int_equal(plan->num_seqs, 1);
    assert_int_equal(plan_input_ids(plan)[0], 70);
    assert_int_equal(seq(&bench, 2)->state, SEQ_WAITING);
    scheduler_abort(&bench.s, 2, 0);
    assert_null(seq(&bench, 2));                       /* no plan holds it: it is gone at once */
    close_bench(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_decode_follows_before_its_token_is_known),
        cmocka_unit_test(chunks_follow_each_other),
        cmocka_unit_test(every_plan_holds_all_decodes),
        cmocka_unit_test(a_late_end_costs_a_row_that_nobody_sees),
        cmocka_unit_test(an_abort_is_told_at_once_and_holds_its_blocks),
        cmocka_unit_test(bad_numbers_end_what_follows_too),
        cmocka_unit_test(rows_count_what_is_pending),
        cmocka_unit_test(what_looks_at_the_last_token_waits_for_it),
        cmocka_unit_test(out_of_blocks_one_in_flight_is_held_then_pushed_out),
        cmocka_unit_test(priority_holds_then_pushes_out_the_lower),
        cmocka_unit_test(ended_ones_take_no_place_from_new_requests),
        cmocka_unit_test(too_late_nobody_begins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
