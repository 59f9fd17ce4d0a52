/* idle_test.c - a device's own work is done between plans only, some time after the last one, a slice at a time, and a plan that comes
 * meanwhile is run right behind the slice. The device is cpu-ref with an idle of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <sluice/rank.h>

#include "base/clock.h"
#include "base/log.h"
#include "unit/model/tiny_model.h"
#include "unit/rank/plan_builder.h"

enum { BLOCK_SIZE = 16, MAX_BLOCKS = 2, MAX_TOKENS = 16, SLICES = 6, PATIENCE_MS = 20000 };
static const int64_t QUIET_NS = (int64_t)RANKS_IDLE_MS * 1000000;

static struct {
    atomic_int slices, too_early, too_late, in_flight;
    atomic_bool plan_waits;
    int slice_ms, fail_at;
    bool forever;
    _Atomic int64_t since_ns;              /* of the last step; 0: none yet */
} device;

static const struct step_plan *noting_upload(struct backend *b, const struct step_plan *plan)
{
    atomic_fetch_add(&device.in_flight, 1);
    return backend_cpu_ref.upload(b, plan);
}

static int noting_collect(struct backend *b, struct step_result *result)
{
    int rc = backend_cpu_ref.collect(b, result);
    atomic_fetch_sub(&device.in_flight, 1);
    atomic_store(&device.since_ns, clock_now_ns());
    return rc;
}

static int noting_idle(struct backend *b)
{
    int slice = atomic_fetch_add(&device.slices, 1) + 1;
    (void)b;
    if (device.in_flight || clock_now_ns() - device.since_ns < QUIET_NS) atomic_fetch_add(&device.too_early, 1);
    if (device.plan_waits) atomic_fetch_add(&device.too_late, 1);
    usleep((useconds_t)device.slice_ms * 1000);
    if (slice == device.fail_at) return ERR_INTERNAL;
    return device.forever || slice < SLICES;
}

struct run { struct backend_ops ops; struct ranks *ranks; struct step_plan *plan; struct step_result result; };

static void run_open(struct run *run)
{
    static const block_id blocks[MAX_BLOCKS] = { 0, 1 };
    static const token_id tokens[3] = { 5, 6, 7 };
    struct model_source *src = tiny_open(0, true, "");
    struct err err = { 0 };
    *run = (struct run){ .ops = backend_cpu_ref };
    run->ops.upload = noting_upload;
    run->ops.collect = noting_collect;
    run->ops.idle = noting_idle;
    atomic_store(&device.since_ns, clock_now_ns());
    run->plan = plan_new(MAX_TOKENS, 1, 1, MAX_BLOCKS, BLOCK_SIZE);
    run->result.rows = calloc(1, sizeof(struct result_row));
    plan_add_seq(run->plan, &(struct plan_seq){ .tokens = tokens, .len = 3, .blocks = blocks });
    plan_add_row(run->plan, 0, 2, TOKEN_NONE);
    struct ranks_options options = {
        .ops = &run->ops, .tp_size = 1, .pp_size = 1, .threads = 1, .kv_dtype = DTYPE_F32, .max_num_seqs = 1,
        .max_num_batched_tokens = MAX_TOKENS, .max_model_len = 32, .block_size = BLOCK_SIZE, .headroom = 0.1,
        .num_blocks_override = MAX_BLOCKS };
    assert_non_null(src);
    if (ranks_start(&run->ranks, src, &options, NULL, NULL, &err) < 0) fail_msg("%s", err.message);
    model_source_close(src);
}

static void run_close(struct run *run)
{
    ranks_stop(run->ranks);
    free(run->plan);
    free(run->result.rows);
}

static void device_new(int slice_ms)
{
    memset(&device, 0, sizeof device);
    device.slice_ms = slice_ms;
}

static void await_slices(int n)
{
    for (int ms = 0; device.slices < n; ms++) {
        if (ms > PATIENCE_MS) fail_msg("%d slices of %d", device.slices, n);
        usleep(1000);
    }
}

static void all_slices_are_done_and_no_more(void **state)
{
    struct run run;
    (void)state;
    device_new(1);
    run_open(&run);
    await_slices(SLICES);
    usleep(2 * RANKS_IDLE_MS * 1000);
    assert_int_equal(device.slices, SLICES);
    assert_int_equal(device.too_early, 0);
    assert_int_equal(ranks_execute(run.ranks, run.plan, &run.result), 0);
    usleep(2 * RANKS_IDLE_MS * 1000);
    assert_int_equal(device.slices, SLICES);
    run_close(&run);
}

/* Steps one behind the other: slices only where the machine itself stood still for so long, which `too_early` sees. */
static void not_between_steps(void **state)
{
    struct run run;
    (void)state;
    device_new(1);
    run_open(&run);
    for (int64_t until_ns = clock_now_ns() + 3 * QUIET_NS; clock_now_ns() < until_ns;) {
        assert_int_equal(ranks_execute(run.ranks, run.plan, &run.result), 0);
        usleep(1000);
    }
    assert_int_equal(device.too_early, 0);
    await_slices(SLICES);
    assert_int_equal(device.too_early, 0);
    run_close(&run);
}

static void a_plan_waits_for_one_slice(void **state)
{
    struct step_result *finished;
    struct run run;
    (void)state;
    device_new(50);
    device.forever = true;
    run_open(&run);
    await_slices(1);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ranks_submit(run.ranks, run.plan, &run.result), 0);
        atomic_store(&device.plan_waits, true);
        assert_int_equal(ranks_wait(run.ranks, &finished), 0);
        atomic_store(&device.plan_waits, false);
        assert_int_equal(run.result.num_rows, 1);
        assert_in_range(device.too_late, 0, i + 1);        /* one may begin while the plan is submitted */
        await_slices(device.slices + 1);
    }
    run_close(&run);                                       /* and the end waits for one, too */
}

static void a_failure_is_told(void **state)
{
    struct run run;
    (void)state;
    device_new(1);
    device.fail_at = 2;
    run_open(&run);
    await_slices(2);
    for (int ms = 0; !ranks_error(run.ranks) && ms < PATIENCE_MS; ms++) usleep(1000);
    assert_int_equal(ranks_error(run.ranks), ERR_INTERNAL);
    assert_non_null(strstr(ranks_failure(run.ranks), "rank 0"));
    assert_int_equal(ranks_execute(run.ranks, run.plan, &run.result), ERR_INTERNAL);
    usleep(RANKS_IDLE_MS * 1000);
    assert_int_equal(device.slices, 2);
    run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(all_slices_are_done_and_no_more), cmocka_unit_test(not_between_steps),
                                        cmocka_unit_test(a_plan_waits_for_one_slice), cmocka_unit_test(a_failure_is_told) };
    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
