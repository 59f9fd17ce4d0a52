/* pipeline_test.c - the timeline of a pipeline in steady decode has no bubble beyond the imbalance of its stages.
 * Time is a logical clock per rank: attention costs a layer's time on it, a message carries its sender's clock and a
 * send ends when the receiver has come, as in comm_cpu. The engine's loop is played with pp_size micro-batches in
 * flight: a plan may begin when the plan pp_size before it has ended (its tokens are the next one's input). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/comm.h>
#include <sluice/rank.h>

#include "base/log.h"
#include "unit/model/tiny_model.h"
#include "unit/rank/plan_builder.h"

enum { BLOCK_SIZE = 16, PLANS = 24, WARM = 8, LAYERS = 9, LAYER_TIME = 10 };

static _Thread_local int64_t my_time;
static _Thread_local int my_stage;
/* [from, to, message parity]: clocks of both ends at a message. A slot is written again only after the message behind
 * it has gone through, so the mailboxes order these plain words. */
static int64_t sent_at[MAX_PP][MAX_PP][2], came_at[MAX_PP][MAX_PP][2];
static _Thread_local unsigned num_sent, num_received;
static int64_t ready_at[PLANS];                    /* when the engine could submit plan i; written before the submit */

static int64_t logical_now(void) { return my_time; }

static void take_time(int64_t at)
{
    if (at > my_time) my_time = at;
}

static int timed_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    my_time = 0;
    my_stage = options->device;                    /* tp_size 1: the rank is the stage */
    return backend_cpu_ref.open(out, options, err);
}

static const struct step_plan *timed_upload(struct backend *b, const struct step_plan *plan)
{
    if (my_stage == 0) take_time(ready_at[plan->step]);
    return backend_cpu_ref.upload(b, plan);
}

static void timed_attention(struct backend *b, const struct attention_args *args)
{
    backend_cpu_ref.attention(b, args);
    my_time += LAYER_TIME;
}

static int timed_send(struct comm *c, const void *data, int64_t bytes, int peer)
{
    unsigned slot = num_sent++ % 2;
    sent_at[my_stage][peer][slot] = my_time;
    int rc = comm_cpu_ops.send(c, data, bytes, peer);
    take_time(came_at[my_stage][peer][slot]);
    return rc;
}

static int timed_recv(struct comm *c, void *data, int64_t bytes, int peer)
{
    unsigned slot = num_received++ % 2;
    came_at[peer][my_stage][slot] = my_time;
    int rc = comm_cpu_ops.recv(c, data, bytes, peer);
    take_time(sent_at[peer][my_stage][slot]);
    return rc;
}

static struct ranks *start(int pp_size, const int *layers, const struct backend_ops *ops,
                           const struct comm_ops *comm_ops)
{
    struct model_source *src = tiny_open_shape(0, true, &(struct tiny_shape){ LAYERS, 12, 12, 2, 40 }, "");
    struct ranks_options options = {
        .ops = ops, .comm_ops = comm_ops, .tp_size = 1, .pp_size = pp_size, .layer_partition = layers, .threads = 1,
        .kv_dtype = DTYPE_F32, .max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = BLOCK_SIZE,
        .block_size = BLOCK_SIZE, .headroom = 0.1, .num_blocks_override = MAX_PP, .now_ns = logical_now };
    struct ranks *ranks = NULL;
    struct err err = { 0 };
    assert_non_null(src);
    if (ranks_start(&ranks, src, &options, NULL, NULL, &err) < 0) fail_msg("%s", err.message);
    model_source_close(src);
    return ranks;
}

/* PLANS decodes with `in_flight` at a time; the stage times of each. */
static void run_timeline(int pp_size, const int *layers, int in_flight, struct stage_time times[PLANS][MAX_STAGES])
{
    struct backend_ops ops = backend_cpu_ref;
    struct comm_ops comm_ops = comm_cpu_ops;
    struct step_plan *plans[MAX_PP];
    struct step_result results[MAX_PP] = { 0 }, *finished;
    static const token_id token = 5;
    ops.open = timed_open;
    ops.upload = timed_upload;
    ops.attention = timed_attention;
    comm_ops.send = timed_send;
    comm_ops.recv = timed_recv;
    struct ranks *ranks = start(pp_size, layers, &ops, &comm_ops);
    for (int i = 0; i < in_flight; i++) {
        block_id block = i;
        plans[i] = plan_new(8, 1, 1, 1, BLOCK_SIZE);
        results[i].rows = calloc(1, sizeof(struct result_row));
        plan_add_seq(plans[i], &(struct plan_seq){ .tokens = &token, .len = 1, .blocks = &block });
        plan_add_row(plans[i], 0, 0, TOKEN_NONE);
    }
    for (int submitted = 0, waited = 0; waited < PLANS; waited++) {
        for (; submitted < PLANS && submitted < waited + in_flight; submitted++) {
            int before = submitted - in_flight;
            ready_at[submitted] = before >= 0 ? times[before][pp_size - 1].end_ns : 0;
            plans[submitted % in_flight]->step = (uint64_t)submitted;
            assert_int_equal(ranks_submit(ranks, plans[submitted % in_flight], &results[submitted % in_flight]), 0);
        }
        assert_int_equal(ranks_wait(ranks, &finished), 0);
        assert_int_equal(finished->step, waited);
        assert_int_equal(finished->num_stages, pp_size);
        memcpy(times[waited], finished->stages, sizeof(finished->stages));
    }
    ranks_stop(ranks);
    for (int i = 0; i < in_flight; i++) {
        free(plans[i]);
        free(results[i].rows);
    }
}

static int64_t most_layers(int pp_size, const int *layers)
{
    int most = 0;
    for (int stage = 0; stage < pp_size; stage++) most = layers[stage] > most ? layers[stage] : most;
    return most;
}

/* Between two plans a stage may rest only as long as the longest stage works more than it. */
static void check_no_bubble(int pp_size, const int *layers)
{
    struct stage_time times[PLANS][MAX_STAGES];
    int64_t slowest = most_layers(pp_size, layers) * LAYER_TIME;
    run_timeline(pp_size, layers, pp_size, times);
    for (int i = WARM; i < PLANS; i++) {
        for (int stage = 0; stage < pp_size; stage++) {
            const struct stage_time *now = &times[i][stage], *before = &times[i - 1][stage];
            assert_int_equal(now->end_ns - now->begin_ns, layers[stage] * LAYER_TIME);
            assert_int_equal(now->begin_ns - before->end_ns, slowest - layers[stage] * LAYER_TIME);
            if (stage > 0) assert_true(now->begin_ns >= times[i][stage - 1].end_ns);
        }
    }
}

static void steady_decode_has_no_bubble(void **state)
{
    static const struct { int pp_size, layers[MAX_PP]; } cases[] = {
        { 1, { 9 } }, { 2, { 4, 5 } }, { 2, { 7, 2 } }, { 2, { 1, 8 } }, { 3, { 3, 3, 3 } }, { 3, { 1, 7, 1 } },
        { 3, { 2, 2, 5 } }, { 3, { 6, 2, 1 } }, { 4, { 2, 3, 2, 2 } } };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) check_no_bubble(cases[i].pp_size, cases[i].layers);
}

/* The measure works: with one plan in flight all stages but one rest at any time. */
static void one_plan_in_flight_shows_bubbles(void **state)
{
    static const int layers[] = { 3, 3, 3 };
    struct stage_time times[PLANS][MAX_STAGES];
    (void)state;
    run_timeline(3, layers, 1, times);
    for (int i = WARM; i < PLANS; i++) {
        assert_int_equal(times[i][0].begin_ns - times[i - 1][0].end_ns, 6 * LAYER_TIME);
        assert_int_equal(times[i][2].end_ns - times[i - 1][2].end_ns, LAYERS * LAYER_TIME);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steady_decode_has_no_bubble), cmocka_unit_test(one_plan_in_flight_shows_bubbles),
    };
    log_set_level(LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
