/* What is said of plans that were lost with their ranks. */
#include "helpers.h"

#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "crash_record.h"

static struct scheduler scheduler;
static struct result_row rows[256];

static void open_scheduler(int32_t max_num_seqs, int32_t num_plans)
{
    struct scheduler_options o = { .max_num_seqs = max_num_seqs, .max_num_batched_tokens = 20 * max_num_seqs, .max_model_len = TEST_MAX_LEN, .max_sequences = 512,
                                   .num_blocks = 16 * max_num_seqs, .block_size = TEST_BLOCK_SIZE, .vocab_size = TEST_VOCAB, .num_plans = num_plans,
                                   .policy = POLICY_FCFS };
    struct err err = { 0 };
    assert_int_equal(scheduler_init(&scheduler, &o, &err), 0);
}

static void commit(const struct step_plan *plan)
{
    struct step_result result = { .step = plan->step, .num_rows = plan->num_rows, .rows = rows };
    for (int32_t r = 0; r < plan->num_rows; r++) rows[r] = (struct result_row){ .token = 5, .logprob = -1, .rank = 1 };
    scheduler_commit(&scheduler, plan, &result, 1);
    scheduler_clear_outcomes(&scheduler);
}

static const struct batch *in_flight(void)
{
    for (int32_t i = 0; i < scheduler.options.num_plans; i++)
        if (scheduler.batches[i].in_flight) return &scheduler.batches[i];
    fail();
    return NULL;
}

/* All are aborted, the plans that hold them come back. */
static void close_scheduler(void)
{
    struct submission *sub;
    for (uint64_t step = 1; step <= scheduler.step; step++)
        for (int32_t i = 0; i < scheduler.options.num_plans; i++) {
            struct batch *batch = &scheduler.batches[i];
            if (!batch->in_flight || batch->plan->step != step) continue;
            for (int32_t b = 0; b < batch->num_seqs; b++) scheduler_abort(&scheduler, batch->seqs[b]->id, 0);
            commit(batch->plan);
        }
    assert_int_equal(scheduler_num_sequences(&scheduler), 0);
    while ((sub = scheduler_take_finished(&scheduler))) submission_free(sub);
    scheduler_release(&scheduler);
}

static void a_plan_names_its_shapes_and_sequences(void **state)
{
    char text[CRASH_RECORD_MAX];
    (void)state;
    open_scheduler(4, 1);
    scheduler_add(&scheduler, test_submission(41, 0, 19, 8));
    commit(scheduler_next_step(&scheduler, 0));
    scheduler_add(&scheduler, test_submission(1234567890123ull, 100, 18, 8));
    assert_non_null(scheduler_next_step(&scheduler, 0));
    crash_record_text(text, in_flight());
    assert_string_equal(text, "step 2: 19 tokens in 2 sequences (1 decodes), 2 rows, longest context 20; sequences 1234567890123 (18 from 0), 41 (1 from 19)");
    close_scheduler();
}

static void what_does_not_fit_is_counted(void **state)
{
    char text[CRASH_RECORD_MAX], *at;
    int named = 0, more = 0;
    (void)state;
    open_scheduler(200, 1);
    for (uint64_t i = 0; i < 200; i++) scheduler_add(&scheduler, test_submission(UINT64_MAX - i, (token_id)i, 3, 8));
    assert_int_equal(scheduler_next_step(&scheduler, 0)->num_seqs, 200);
    memset(text, 'x', sizeof text);
    crash_record_text(text, in_flight());
    assert_non_null(memchr(text, '\0', sizeof text));
    assert_true(strlen(text) > CRASH_RECORD_MAX - 80);
    for (at = text; (at = strstr(at, " (3 from 0)")); at++) named++;
    at = strstr(text, " and ");
    assert_non_null(at);
    assert_int_equal(sscanf(at, " and %d more", &more), 1);
    assert_int_equal(named + more, 200);
    close_scheduler();
}

/* Two plans in flight at once, and the log as it goes to stderr. */
static void the_oldest_plan_comes_first(void **state)
{
    char log[4096] = { 0 };
    int fds[2], saved = dup(STDERR_FILENO);
    (void)state;
    open_scheduler(4, 2);
    scheduler_add(&scheduler, test_submission(7, 0, 5, 8));
    assert_non_null(scheduler_next_step(&scheduler, 0));
    scheduler_add(&scheduler, test_submission(8, 50, 6, 8));
    assert_non_null(scheduler_next_step(&scheduler, 0));
    assert_int_equal(pipe(fds), 0);
    dup2(fds[1], STDERR_FILENO);
    crash_record(&scheduler);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fds[1]);
    assert_true(read(fds[0], log, sizeof log - 1) > 0);
    close(fds[0]);
    char *first = strstr(log, "step 1: 5 tokens in 1 sequences (0 decodes), 1 rows, longest context 5; sequences 7 (5 from 0)\"");
    char *second = strstr(log, "step 2: 6 tokens in 1 sequences (0 decodes), 1 rows, longest context 6; sequences 8 (6 from 0)\"");
    assert_non_null(first);
    assert_non_null(second);
    assert_true(first < second);
    assert_non_null(strstr(log, "\"event\":\"step_lost\""));
    close_scheduler();
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(a_plan_names_its_shapes_and_sequences), cmocka_unit_test(what_does_not_fit_is_counted),
                                        cmocka_unit_test(the_oldest_plan_comes_first) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
