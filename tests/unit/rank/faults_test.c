/* faults_test.c - a rank that fails or hangs at some step ends the ranks: nobody waits for ever, and the failure names
 * rank and step. The faults come from an ops table around cpu-ref and one around comm_cpu. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <sluice/comm.h>
#include <sluice/rank.h>

#include "base/clock.h"
#include "base/log.h"
#include "unit/model/tiny_model.h"
#include "unit/rank/plan_builder.h"

enum { BLOCK_SIZE = 16, MAX_BLOCKS = 2, MAX_TOKENS = 16, FAULT_STEP = 7 };
enum fault_kind { FAIL_IN_ALL_REDUCE, FAIL_IN_SEND, FAIL_IN_RECV, HANG_IN_ATTENTION, HANG_AND_PEER_GIVES_UP, SLOW_LAYERS };

/* Set before the ranks start, read by their threads. */
static struct { enum fault_kind kind; int rank; atomic_bool hangs, released; } fault;
static _Thread_local int my_rank;
static _Thread_local uint64_t my_step;

static bool here(enum fault_kind kind)
{
    return fault.kind == kind && my_rank == fault.rank && my_step == FAULT_STEP;
}

static int noting_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    my_rank = options->device;
    return backend_cpu_ref.open(out, options, err);
}

static void hang(void)
{
    atomic_store(&fault.hangs, true);
    while (!atomic_load(&fault.released)) usleep(1000);
}

static const struct step_plan *noting_upload(struct backend *b, const struct step_plan *plan)
{
    my_step = plan->step;
    if (here(HANG_AND_PEER_GIVES_UP)) hang();
    return backend_cpu_ref.upload(b, plan);
}

static void hanging_attention(struct backend *b, const struct attention_args *args)
{
    if (here(HANG_IN_ATTENTION)) hang();
    if (here(SLOW_LAYERS)) usleep(800 * 1000);
    backend_cpu_ref.attention(b, args);
}

static int failing_all_reduce(struct comm *c, void *data, int64_t n, enum dtype dtype)
{
    if (here(FAIL_IN_ALL_REDUCE)) return ERR_IO;
    if (fault.kind == HANG_AND_PEER_GIVES_UP && my_rank != fault.rank && my_step == FAULT_STEP) {
        while (!atomic_load(&fault.hangs)) usleep(1000);
        return ERR_ENDED;                          /* as when the communicator's own time is up */
    }
    return comm_cpu_ops.all_reduce(c, data, n, dtype);
}

static int failing_send(struct comm *c, const void *data, int64_t bytes, int peer)
{
    return here(FAIL_IN_SEND) ? ERR_IO : comm_cpu_ops.send(c, data, bytes, peer);
}

static int failing_recv(struct comm *c, void *data, int64_t bytes, int peer)
{
    return here(FAIL_IN_RECV) ? ERR_IO : comm_cpu_ops.recv(c, data, bytes, peer);
}

struct run {
    struct backend_ops ops;
    struct comm_ops comm_ops;
    struct ranks *ranks;
    struct step_plan *plans[MAX_PP];
    struct step_result results[MAX_PP];
    int pp_size;
};

static void run_open(struct run *run, int tp_size, int pp_size, enum fault_kind kind, int rank)
{
    bool hangs = kind == HANG_IN_ATTENTION || kind == HANG_AND_PEER_GIVES_UP || kind == SLOW_LAYERS;
    static const block_id blocks[MAX_BLOCKS] = { 0, 1 };
    static const token_id tokens[3] = { 5, 6, 7 };
    struct model_source *src = tiny_open(0, true, "");
    struct err err = { 0 };
    *run = (struct run){ .ops = backend_cpu_ref, .comm_ops = comm_cpu_ops, .pp_size = pp_size };
    run->ops.open = noting_open;
    run->ops.upload = noting_upload;
    run->ops.attention = hanging_attention;
    run->comm_ops.all_reduce = failing_all_reduce;
    run->comm_ops.send = failing_send;
    run->comm_ops.recv = failing_recv;
    fault.kind = kind;
    fault.rank = rank;
    atomic_store(&fault.hangs, false);
    atomic_store(&fault.released, false);
    for (int i = 0; i < pp_size; i++) {
        run->plans[i] = plan_new(MAX_TOKENS, 1, 1, MAX_BLOCKS, BLOCK_SIZE);
        run->results[i].rows = calloc(1, sizeof(struct result_row));
        plan_add_seq(run->plans[i], &(struct plan_seq){ .tokens = tokens, .len = 3, .blocks = blocks });
        plan_add_row(run->plans[i], 0, 2, TOKEN_NONE);
    }
    struct ranks_options options = {
        .ops = &run->ops, .comm_ops = &run->comm_ops, .tp_size = tp_size, .pp_size = pp_size, .threads = 1,
        .kv_dtype = DTYPE_F32, .max_num_seqs = 1, .max_num_batched_tokens = MAX_TOKENS, .max_model_len = 32,
        .block_size = BLOCK_SIZE, .headroom = 0.1, .num_blocks_override = MAX_BLOCKS, .stall_timeout_ms = hangs ? 1500 : 0 };
    assert_non_null(src);
    if (ranks_start(&run->ranks, src, &options, NULL, NULL, &err) < 0) fail_msg("%s", err.message);
    model_source_close(src);
}

static void run_close(struct run *run)
{
    ranks_stop(run->ranks);
    for (int i = 0; i < run->pp_size; i++) {
        free(run->plans[i]);
        free(run->results[i].rows);
    }
}

/* Steps with the pipeline kept full, until one does not end well: its error. */
static int run_until_error(struct run *run)
{
    struct step_result *finished = NULL;
    uint64_t submitted = 0;
    for (uint64_t waited = 0;; waited++) {
        while (submitted < waited + (uint64_t)run->pp_size) {
            int slot = (int)(submitted % (uint64_t)run->pp_size);
            run->plans[slot]->step = submitted;
            int rc = ranks_submit(run->ranks, run->plans[slot], &run->results[slot]);
            if (rc < 0) return rc;
            submitted++;
        }
        int rc = ranks_wait(run->ranks, &finished);
        if (rc < 0) return rc;
        assert_int_equal(finished->step, waited);
        assert_true(waited < FAULT_STEP);          /* the step of the fault cannot end well */
    }
}

static void assert_failure(const struct run *run, int tp_size, const char *how)
{
    char want[80];
    const char *text = ranks_failure(run->ranks);
    int tp_rank, pp_stage;
    rank_place(fault.rank, tp_size, &tp_rank, &pp_stage);
    snprintf(want, sizeof(want), "rank %d (stage %d, tp %d) %s at step %d", fault.rank, pp_stage, tp_rank, how,
             FAULT_STEP);
    if (strncmp(text, want, strlen(want)) != 0) fail_msg("expected '%s...', found '%s'", want, text);
}

static void check_fault(int tp_size, int pp_size, enum fault_kind kind, int rank, int want_rc)
{
    struct run run;
    struct step_result *finished;
    run_open(&run, tp_size, pp_size, kind, rank);
    assert_string_equal(ranks_failure(run.ranks), "");
    assert_int_equal(run_until_error(&run), want_rc);
    assert_failure(&run, tp_size, want_rc == ERR_ENDED ? "stalled" : "failed");
    assert_int_equal(ranks_submit(run.ranks, run.plans[0], &run.results[0]), want_rc);
    for (int rc; (rc = ranks_wait(run.ranks, &finished)) != ERR_NOT_FOUND;) assert_int_equal(rc, want_rc);
    atomic_store(&fault.released, true);
    run_close(&run);
}

static void a_failing_rank_is_named(void **state)
{
    (void)state;
    for (int rank = 0; rank < 3; rank++) check_fault(3, 1, FAIL_IN_ALL_REDUCE, rank, ERR_IO);
    for (int rank = 0; rank < 4; rank++) check_fault(2, 2, FAIL_IN_ALL_REDUCE, rank, ERR_IO);
    for (int rank = 0; rank < 2; rank++) check_fault(1, 3, FAIL_IN_SEND, rank, ERR_IO);
    for (int rank = 2; rank < 6; rank++) check_fault(2, 3, FAIL_IN_RECV, rank, ERR_IO);
}

static void a_hanging_rank_is_named(void **state)
{
    (void)state;
    check_fault(1, 1, HANG_IN_ATTENTION, 0, ERR_ENDED);
    check_fault(3, 1, HANG_IN_ATTENTION, 1, ERR_ENDED);
    for (int rank = 1; rank < 3; rank++) check_fault(2, 2, HANG_IN_ATTENTION, rank, ERR_ENDED);
    check_fault(1, 3, HANG_IN_ATTENTION, 2, ERR_ENDED);
    check_fault(2, 1, HANG_AND_PEER_GIVES_UP, 1, ERR_ENDED);
}

/* A step that takes longer than the limit, on a host with too much to do, but gets on. */
static void a_slow_step_is_no_stall(void **state)
{
    struct step_result *finished = NULL;
    struct run run;

    (void)state;
    run_open(&run, 1, 1, SLOW_LAYERS, 0);
    int64_t began_ms = clock_now_ms();
    run.plans[0]->step = FAULT_STEP;
    assert_int_equal(ranks_submit(run.ranks, run.plans[0], &run.results[0]), 0);
    assert_int_equal(ranks_wait(run.ranks, &finished), 0);
    assert_true(clock_now_ms() - began_ms > 1500);
    run_close(&run);
}

/* What the hanging thread still holds; its program would end now. */
static struct run left_behind;

static void ranks_stop_leaves_a_hanging_rank_behind(void **state)
{
    (void)state;
    run_open(&left_behind, 2, 1, HANG_IN_ATTENTION, 1);
    assert_int_equal(run_until_error(&left_behind), ERR_ENDED);
    ranks_stop(left_behind.ranks);                 /* returns although rank 1 still hangs */
    assert_false(atomic_load(&fault.released));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failing_rank_is_named), cmocka_unit_test(a_hanging_rank_is_named), cmocka_unit_test(a_slow_step_is_no_stall),
        cmocka_unit_test(ranks_stop_leaves_a_hanging_rank_behind),
    };
    log_set_level(LOG_WARNING);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
