/* The supervisor on a loop of its own; engines are build/bin/fake-engine. Order of events, exit codes, backoff, no process left. */
#include <sluice/supervisor.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include <sluice/metrics.h>

#include "base/buf.h"
#include "base/clock.h"
#include "unit/base/cmocka_all.h"

static char engine_path[4096];

struct bed {
    struct config config;
    uv_loop_t loop;
    uv_timer_t guard;
    struct supervisor *sup;
    int num_ready, num_lost, num_refused, num_crashed, num_stopped, num_frames;
    int last_code;
    char message[512];
    uint32_t pid;
    int64_t ready_ms[8];
    bool busy;
};

static void on_progress(void *arg, int replica, double share)
{
    (void)arg;
    (void)replica;
    assert_true(share >= 0 && share <= 1);
}

static void on_ready(void *arg, int replica, const struct msg_ready *info)
{
    struct bed *bed = arg;

    assert_int_equal(supervisor_state(bed->sup, replica), REPLICA_READY);
    bed->pid = info->pid;
    if (bed->num_ready < 8) bed->ready_ms[bed->num_ready] = clock_now_ms();
    bed->num_ready++;
}

static void on_lost(void *arg, int replica, const struct err *why, bool crashed)
{
    struct bed *bed = arg;

    assert_int_equal(supervisor_state(bed->sup, replica), REPLICA_DOWN);
    snprintf(bed->message, sizeof bed->message, "%s", why->message);
    bed->num_lost++;
    bed->num_crashed += crashed;
}

static void on_refused(void *arg, int replica, int exit_code, const char *message)
{
    struct bed *bed = arg;

    (void)replica;
    bed->last_code = exit_code;
    snprintf(bed->message, sizeof bed->message, "%s", message);
    bed->num_refused++;
}

static bool on_busy(void *arg, int replica) { (void)replica; return ((struct bed *)arg)->busy; }

static void on_frame(void *arg, int replica, const struct frame_head *head, const void *payload)
{
    (void)replica;
    (void)head;
    (void)payload;
    ((struct bed *)arg)->num_frames++;
}

static void on_stopped(void *arg)
{
    struct bed *bed = arg;

    bed->num_stopped++;
    uv_close((uv_handle_t *)&bed->guard, NULL);
}

static const struct supervisor_events events = { on_progress, on_ready, on_lost, on_refused, on_busy, on_frame, on_stopped };

static void on_guard(uv_timer_t *timer)
{
    (void)timer;
    fail_msg("nothing happened for 30 s");
}

static void start(struct bed *bed, const char *script, const char *option, const char *value)
{
    char *argv[] = { "--engine-path", engine_path, (char *)option, (char *)value };
    struct metrics_info info = { .model_name = "m", .num_replicas = 1, .version = "t", .commit = "t" };
    struct err err = { 0 };
    bool help = false;

    *bed = (struct bed){ 0 };
    setenv("SLUICE_FAKE_ENGINE", script, 1);
    metrics_init(&info);
    assert_int_equal(config_load(&bed->config, option ? 4 : 2, argv, &help, &err), 0);
    assert_int_equal(uv_loop_init(&bed->loop), 0);
    uv_timer_init(&bed->loop, &bed->guard);
    uv_timer_start(&bed->guard, on_guard, 30000, 0);
    assert_int_equal(supervisor_start(&bed->sup, &bed->loop, &bed->config, &events, bed, &err), 0);
}

static void run_until(struct bed *bed, const int *count, int n)
{
    while (*count < n) uv_run(&bed->loop, UV_RUN_ONCE);
}

static void stop(struct bed *bed)
{
    supervisor_stop(bed->sup);
    uv_run(&bed->loop, UV_RUN_DEFAULT);               /* to the last handle */
    assert_int_equal(bed->num_stopped, 1);
    assert_int_equal(uv_loop_close(&bed->loop), 0);
    supervisor_free(bed->sup);
    config_release(&bed->config);
}

static void test_ready_killed_and_back(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "", NULL, NULL);
    assert_int_equal(supervisor_state(bed.sup, 0), REPLICA_STARTING);
    run_until(&bed, &bed.num_ready, 1);
    uint32_t first = bed.pid;
    kill((pid_t)first, SIGKILL);
    run_until(&bed, &bed.num_lost, 1);
    int64_t lost_ms = clock_now_ms();
    assert_int_equal(bed.num_crashed, 0);             /* somebody killed it */
    run_until(&bed, &bed.num_ready, 2);
    assert_int_not_equal(bed.pid, first);
    assert_true(bed.ready_ms[1] - lost_ms >= 990);    /* the first backoff */
    supervisor_kill(bed.sup, 0, "because");
    assert_int_equal(bed.num_lost, 2);                /* at once: nothing is sent there any more */
    assert_string_equal(bed.message, "because");
    assert_int_equal(bed.num_crashed, 1);
    lost_ms = clock_now_ms();
    run_until(&bed, &bed.num_ready, 3);
    assert_true(bed.ready_ms[2] - lost_ms >= 1990);   /* the second: it did not serve for long */
    assert_int_equal(bed.num_refused, 0);
    stop(&bed);
    assert_int_not_equal(kill((pid_t)bed.pid, 0), 0);
    assert_int_equal(bed.num_lost, 2);                /* a stop is no loss */
}

/* The engine has steps to make. */
static void give_work(struct bed *bed)
{
    token_id prompt[4] = { 5, 6, 7, 8 };
    struct engine_request req = { .id = 1, .max_tokens = 100, .num_prompt = 4, .tokens = prompt,
                                  .sampling = { .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 } };
    struct buf frames = BUF_INIT;

    ipc_put_submit(&frames, &req);
    assert_int_equal(supervisor_send(bed->sup, 0, &frames), 0);
    buf_release(&frames);
}

/* Whoever did some work is back after a second, three times more; only then the backoff doubles. */
static void test_short_lives_with_work_are_cheap(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "die_at=3", NULL, NULL);
    for (int life = 1; life <= 5; life++) {
        run_until(&bed, &bed.num_ready, life);
        give_work(&bed);
        run_until(&bed, &bed.num_lost, life);
        int64_t lost_ms = clock_now_ms();
        run_until(&bed, &bed.num_ready, life + 1);
        int64_t waited_ms = bed.ready_ms[life] - lost_ms;
        if (life < 5) assert_in_range(waited_ms, 990, 1900);
        else assert_true(waited_ms >= 1990);
    }
    stop(&bed);
}

static void test_stop_while_it_starts(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "never_ready=1", NULL, NULL);
    stop(&bed);
    start(&bed, "never_ready=1", NULL, NULL);
    for (int i = 0; i < 3; i++) uv_run(&bed.loop, UV_RUN_NOWAIT);
    stop(&bed);
    assert_int_equal(bed.num_ready + bed.num_lost + bed.num_refused, 0);
}

static void test_stop_during_backoff(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "", NULL, NULL);
    run_until(&bed, &bed.num_ready, 1);
    kill((pid_t)bed.pid, SIGKILL);
    run_until(&bed, &bed.num_lost, 1);
    stop(&bed);
    assert_int_equal(bed.num_ready, 1);
}

/* MSG_FAILED and the exit reach the loop in either order. */
static void test_last_words_are_heard(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct bed bed;
        start(&bed, "fail=78", NULL, NULL);
        run_until(&bed, &bed.num_refused, 1);
        assert_int_equal(bed.last_code, EXIT_CONFIG);
        assert_non_null(strstr(bed.message, "scripted failure"));
        stop(&bed);
    }
}

static void test_not_ready_in_time(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "never_ready=1", "--engine-start-timeout", "1");
    run_until(&bed, &bed.num_refused, 1);
    assert_int_equal(bed.last_code, EXIT_FAULT);
    assert_non_null(strstr(bed.message, "engine_start_timeout"));
    stop(&bed);
}

static void test_stalled_while_the_router_waits(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "", "--replica-stall-timeout", "500ms");
    run_until(&bed, &bed.num_ready, 1);
    int64_t until = clock_now_ms() + 1500;
    while (clock_now_ms() < until) uv_run(&bed.loop, UV_RUN_ONCE);
    assert_int_equal(bed.num_lost, 0);                /* idle is not stalled */
    bed.busy = true;
    run_until(&bed, &bed.num_lost, 1);
    assert_non_null(strstr(bed.message, "no step"));
    stop(&bed);
}

/* This process stood still, not the engine: what it has to say is still in the socket. */
static void test_own_standstill_kills_nobody(void **state)
{
    struct bed bed;

    (void)state;
    start(&bed, "", "--replica-stall-timeout", "1s");
    run_until(&bed, &bed.num_ready, 1);
    for (int i = 0; i < 2; i++) uv_run(&bed.loop, UV_RUN_ONCE);
    bed.busy = true;
    for (int i = 0; i < 2; i++) uv_run(&bed.loop, UV_RUN_ONCE);
    usleep(2500000);
    uv_run(&bed.loop, UV_RUN_ONCE);
    assert_int_equal(bed.num_lost, 0);
    stop(&bed);
}

static int setup(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);      /* as in sluiced */
    ssize_t len = readlink("/proc/self/exe", engine_path, sizeof engine_path - 32);
    if (len <= 0) return -1;
    engine_path[len] = '\0';
    for (int up = 0; up < 2; up++) *strrchr(engine_path, '/') = '\0';
    size_t used = strlen(engine_path);
    snprintf(engine_path + used, sizeof engine_path - used, "/bin/fake-engine");
    return access(engine_path, X_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ready_killed_and_back), cmocka_unit_test(test_stop_while_it_starts),
        cmocka_unit_test(test_stop_during_backoff),
        cmocka_unit_test(test_short_lives_with_work_are_cheap), cmocka_unit_test(test_last_words_are_heard),
        cmocka_unit_test(test_not_ready_in_time), cmocka_unit_test(test_stalled_while_the_router_waits),
        cmocka_unit_test(test_own_standstill_kills_nobody),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
