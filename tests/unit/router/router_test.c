/* The router over the real supervisor and sockets; the engines are build/bin/fake-engine, scripted by SLUICE_FAKE_ENGINE.
 * Each stop of a router runs router_check(): counters that drifted abort the test. */
#include <sluice/router.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sluice/metrics.h>

#include "base/buf.h"
#include "base/clock.h"
#include "unit/base/cmocka_all.h"
#include "unit/text/tiny_tokenizer.h"

enum { MAX_TEST_CHOICES = 8, WAIT_MS = 30000 };

static struct tokenizer *tokenizer;
static char engine_path[4096], scratch_dir[64];

/* ---- one client: a request, and what came back ---- */

struct client {
    struct generation_params params;
    struct prompt_tokens prompts[2];
    token_id ids[2][64];
    struct generation_spec spec;
    uint64_t id;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct buf text[MAX_TEST_CHOICES];
    uint8_t finish[MAX_TEST_CHOICES];
    int32_t stop_index[MAX_TEST_CHOICES];
    size_t num_tokens[MAX_TEST_CHOICES], num_tops;
    uint32_t num_deltas;
    int done, code;
    struct generation_usage usage;
};

static void on_delta(void *arg, const struct text_delta *delta, const struct generation_usage *usage)
{
    struct client *c = arg;

    (void)usage;
    pthread_mutex_lock(&c->lock);
    assert_false(c->done || c->finish[delta->choice]);
    buf_append(&c->text[delta->choice], delta->text, delta->len);
    c->num_tokens[delta->choice] += delta->num_tokens;
    for (size_t i = 0; i < delta->num_tokens; i++) c->num_tops += (size_t)delta->tokens[i].num_top;
    c->finish[delta->choice] = delta->finish;
    c->stop_index[delta->choice] = delta->stop_index;
    c->num_deltas++;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void on_done(void *arg, const struct generation_usage *usage, const struct err *err)
{
    struct client *c = arg;

    pthread_mutex_lock(&c->lock);
    c->done++;
    c->code = err ? err->code : 0;
    c->usage = *usage;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static const struct generation_sink sink = { on_delta, on_done };

static struct client *client_new(int64_t max_tokens)
{
    struct client *c = calloc(1, sizeof *c);

    assert_non_null(c);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->params = (struct generation_params){ .n = 1, .max_tokens = max_tokens, .skip_special_tokens = true };
    c->params.sampling = (struct sampling_params){ .temperature = 0, .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1, .seed = 1 };
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < 64; i++) c->ids[p][i] = 'A' + (i + p) % 26;
        c->prompts[p] = (struct prompt_tokens){ c->ids[p], 20 };
    }
    c->spec = (struct generation_spec){ .params = &c->params, .prompts = c->prompts, .n_prompts = 1, .sink = &sink, .sink_arg = c };
    return c;
}

static int submit(struct router *router, struct client *c)
{
    struct err err = { 0 };

    c->spec.arrival_ms = clock_now_ms();
    return router_submit(router, &c->spec, &c->id, &err);
}

static bool wait_for(struct client *c, bool (*holds)(const struct client *, uint32_t), uint32_t n)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_MS / 1000;
    pthread_mutex_lock(&c->lock);
    while (!holds(c, n) && !rc) rc = pthread_cond_timedwait(&c->changed, &c->lock, &until);
    pthread_mutex_unlock(&c->lock);
    return !rc;
}

static bool is_done(const struct client *c, uint32_t n) { (void)n; return c->done > 0; }
static bool has_deltas(const struct client *c, uint32_t n) { return c->num_deltas >= n; }

static int finish(struct client *c)
{
    assert_true(wait_for(c, is_done, 0));
    return c->code;
}

static const char *text_of(const struct client *c, int choice) { return c->text[choice].data ? c->text[choice].data : ""; }

static void client_free(struct client *c)
{
    assert_int_equal(c->done, 1);
    for (int i = 0; i < MAX_TEST_CHOICES; i++) buf_release(&c->text[i]);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c);
}

/* ---- a router with fake engines ---- */

struct bed { struct config config; struct router *router; };

/* options: further flags, NULL-terminated. Returns router_start's code. */
static int bed_start(struct bed *bed, const char *script, int replicas, const char *const *options)
{
    char dp[16], path[4200];
    char *argv[24] = { "--engine-path", path, "--data-parallel-size", dp, "--cpu-threads", "1" };
    struct metrics_info info = { .model_name = "m", .num_replicas = replicas, .version = "t", .commit = "t" };
    struct err err = { 0 };
    bool help = false;
    int argc = 6;

    snprintf(dp, sizeof dp, "%d", replicas);
    snprintf(path, sizeof path, "%s", engine_path);
    for (; options && *options; options++) argv[argc++] = (char *)*options;
    setenv("SLUICE_FAKE_ENGINE", script, 1);
    assert_int_equal(config_load(&bed->config, argc, argv, &help, &err), 0);
    metrics_init(&info);
    struct router_options router_options = { &bed->config, tokenizer, 2048 };
    int rc = router_start(&bed->router, &router_options, &err);
    if (rc < 0) {
        config_release(&bed->config);
        bed->router = NULL;
    }
    return rc;
}

static void bed_ready(struct bed *bed, const char *script, int replicas, const char *const *options)
{
    struct err err = { 0 };

    assert_int_equal(bed_start(bed, script, replicas, options), 0);
    if (router_wait_ready(bed->router, WAIT_MS, &err) != 0) fail_msg("not ready: %s", err.message);
}

static void bed_stop(struct bed *bed)
{
    router_stop(bed->router);
    config_release(&bed->config);
}

static void nap(int ms)
{
    struct timespec t = { ms / 1000, ms % 1000 * 1000000L };

    nanosleep(&t, NULL);
}

/* Sum of a metric's series. */
static double metric_sum(const char *name)
{
    struct buf out = BUF_INIT;
    double sum = 0;

    metrics_write(&out);
    for (char *line = out.data; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        size_t n = strlen(name);
        if (!strncmp(line, name, n) && (line[n] == ' ' || line[n] == '{')) sum += strtod(strchr(line + n, line[n] == '{' ? '}' : ' ') + 1, NULL);
    }
    buf_release(&out);
    return sum;
}

static void wait_metric(const char *name, double at_least)
{
    for (int i = 0; i < WAIT_MS / 10 && metric_sum(name) < at_least; i++) nap(10);
    if (metric_sum(name) < at_least) fail_msg("%s never reached %g", name, at_least);
}

/* Processes of the engines (children of this one that run fake-engine). */
static int engine_pids(pid_t pids[8])
{
    char command[96], line[32];
    int n = 0;

    snprintf(command, sizeof command, "pgrep -P %d fake-engine", (int)getpid());
    FILE *out = popen(command, "r");
    assert_non_null(out);
    while (n < 8 && fgets(line, sizeof line, out)) pids[n++] = (pid_t)strtol(line, NULL, 10);
    pclose(out);
    return n;
}

static void signal_engines(int sig, int most)
{
    pid_t pids[8];
    int n = engine_pids(pids);

    assert_true(n >= 1);
    for (int i = 0; i < n && i < most; i++) kill(pids[i], sig);
}

static const char *once_script(const char *script)
{
    static char out[512];
    static int serial;

    snprintf(out, sizeof out, "%s,once=%s/%d", script, scratch_dir, serial++);
    return out;
}

/* ---- plain service ---- */

static void test_stream(void **state)
{
    struct client *c = client_new(8);
    struct bed bed;

    (void)state;
    bed_ready(&bed, "rule=count,first=97,cached=16", 1, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), 0);
    assert_string_equal(text_of(c, 0), "abcdefgh");
    assert_int_equal(c->finish[0], FINISH_LENGTH);
    assert_int_equal(c->num_tokens[0], 8);
    assert_int_equal(c->usage.prompt_tokens, 20);
    assert_int_equal(c->usage.completion_tokens, 8);
    assert_int_equal(c->usage.cached_tokens, 16);
    bed_stop(&bed);
    client_free(c);
}

static void test_choices_and_prompts(void **state)
{
    struct client *c = client_new(6);
    struct bed bed;

    (void)state;
    c->params.n = 3;
    c->params.sampling.temperature = 1;
    c->params.sampling.num_logprobs = 2;
    c->spec.n_prompts = 2;
    bed_ready(&bed, "rule=echo,cached=20", 2, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), 0);
    for (int i = 0; i < 6; i++) assert_string_equal(text_of(c, i), i < 3 ? "ABCDEF" : "BCDEFG");
    assert_int_equal(c->usage.prompt_tokens, 40);
    assert_int_equal(c->usage.completion_tokens, 36);
    assert_int_equal(c->usage.cached_tokens, 40);                 /* the prompt of n choices counts once */
    assert_int_equal(c->num_tops, 72);
    bed_stop(&bed);
    client_free(c);
}

static void test_nothing_to_generate(void **state)
{
    struct client *c = client_new(0);
    struct bed bed;

    (void)state;
    c->params.n = 2;
    bed_ready(&bed, "", 1, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), 0);
    assert_int_equal(c->finish[0], FINISH_LENGTH);
    assert_int_equal(c->finish[1], FINISH_LENGTH);
    assert_int_equal(c->usage.completion_tokens, 0);
    bed_stop(&bed);
    client_free(c);
}

static void run_stop(const char *ids, const char *stop, int min_tokens, bool include, const char *expected, int expected_finish)
{
    const char *stops[] = { "never seen", stop };
    size_t lens[] = { 10, strlen(stop) };
    struct client *c = client_new(12);
    struct bed bed;

    c->params.stop = stops;
    c->params.stop_lens = lens;
    c->params.n_stop = 2;
    c->params.min_tokens = min_tokens;
    c->params.include_stop_str_in_output = include;
    bed_ready(&bed, ids, 1, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), 0);
    assert_string_equal(text_of(c, 0), expected);
    assert_int_equal(c->finish[0], expected_finish);
    assert_int_equal(c->stop_index[0], expected_finish == FINISH_STOP_STRING ? 1 : -1);
    bed_stop(&bed);
    client_free(c);
}

static void test_stop_strings(void **state)
{
    (void)state;
    run_stop("ids=97:98:99:100:101", "cd", 0, false, "ab", FINISH_STOP_STRING);
    run_stop("ids=97:98:99:100:101", "dea", 0, true, "abcdea", FINISH_STOP_STRING);
    run_stop("ids=97:98:99", "b", 4, false, "abca", FINISH_STOP_STRING);           /* the first b came too early */
    run_stop("ids=97:98:99", "abd", 0, false, "abcabcabcabc", FINISH_LENGTH);      /* what was held back comes out */
    run_stop("ids=97:98:99:226:130:172", "\xe2\x82\xac", 0, false, "abc", FINISH_STOP_STRING);     /* a character over three tokens */
}

static void test_cancel(void **state)
{
    struct client *c = client_new(1000), *after = client_new(4);
    struct bed bed;

    (void)state;
    bed_ready(&bed, "delay_ms=5,rule=count,first=97", 1, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_true(wait_for(c, has_deltas, 3));
    router_cancel(bed.router, c->id, CANCEL_CLIENT_GONE);
    assert_int_equal(finish(c), ERR_ENDED);
    router_cancel(bed.router, c->id, CANCEL_CLIENT_GONE);         /* it is gone already */
    router_cancel(bed.router, 12345, CANCEL_KILLED);
    assert_int_equal(submit(bed.router, after), 0);
    assert_int_equal(finish(after), 0);
    assert_string_equal(text_of(after, 0), "abcd");
    bed_stop(&bed);
    client_free(c);
    client_free(after);
}

/* Cancels that race with the end of the request: done() comes once, whoever wins. */
static void test_cancel_races_with_done(void **state)
{
    struct client *c[64];
    int ended = 0;
    struct bed bed;

    (void)state;
    bed_ready(&bed, "rule=count,first=97", 2, NULL);
    for (int i = 0; i < 64; i++) {
        c[i] = client_new(1 + i % 8);
        assert_int_equal(submit(bed.router, c[i]), 0);
        if (i >= 8) router_cancel(bed.router, c[i - 8]->id, CANCEL_CLIENT_GONE);
    }
    for (int i = 0; i < 64; i++) {
        int code = finish(c[i]);
        assert_true(code == 0 || code == ERR_ENDED);
        ended += code == 0;
    }
    assert_true(ended >= 8);
    bed_stop(&bed);
    for (int i = 0; i < 64; i++) client_free(c[i]);
}

static void test_full_queue(void **state)
{
    const char *options[] = { "--max-num-seqs", "2", "--max-queue-requests", "3", NULL };
    struct client *c[7];
    struct bed bed;

    (void)state;
    bed_ready(&bed, "delay_ms=200", 1, options);
    for (int i = 0; i < 6; i++) assert_int_equal(submit(bed.router, c[i] = client_new(100)), 0);
    assert_int_equal(finish(c[5]), ERR_QUEUE_FULL);               /* two run, three wait */
    for (int i = 0; i < 5; i++) assert_false(c[i]->done);
    router_cancel(bed.router, c[4]->id, CANCEL_CLIENT_GONE);
    finish(c[4]);
    assert_int_equal(submit(bed.router, c[6] = client_new(1)), 0);
    nap(50);
    assert_false(c[6]->done && c[6]->code == ERR_QUEUE_FULL);     /* its place was free */
    assert_in_range(router_retry_after_s(bed.router), 1, 120);
    bed_stop(&bed);
    for (int i = 0; i < 7; i++) client_free(c[i]);
}

static void test_full_queue_of_tokens(void **state)
{
    const char *options[] = { "--max-num-seqs", "1", "--max-queue-tokens", "30", NULL };
    struct client *c[3];
    struct bed bed;

    (void)state;
    bed_ready(&bed, "hang_at=1", 1, options);
    for (int i = 0; i < 3; i++) c[i] = client_new(10);
    c[0]->prompts[0].n = 50;                                      /* more than the queue may hold, but it need not wait */
    assert_int_equal(submit(bed.router, c[0]), 0);
    assert_int_equal(submit(bed.router, c[1]), 0);
    assert_int_equal(finish(c[1]), ERR_QUEUE_FULL);
    router_cancel(bed.router, c[0]->id, CANCEL_CLIENT_GONE);
    finish(c[0]);
    assert_int_equal(submit(bed.router, c[2]), 0);
    nap(50);
    assert_false(c[2]->done);
    bed_stop(&bed);
    for (int i = 0; i < 3; i++) client_free(c[i]);
}

/* ---- deadlines ---- */

static void run_deadline(const char *script, const char *const *options, int64_t queue_ms, int64_t ttft_ms, int64_t total_ms, int expected)
{
    struct client *c = client_new(1000);
    struct bed bed;

    c->params.timeout_queue_ms = queue_ms;
    c->params.timeout_ttft_ms = ttft_ms;
    c->params.timeout_total_ms = total_ms;
    bed_ready(&bed, script, 1, options);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), expected);
    bed_stop(&bed);
    client_free(c);
}

static void test_deadlines(void **state)
{
    const char *configured[] = { "--timeout-total-ms", "60", NULL };

    (void)state;
    run_deadline("hang_at=1", NULL, 50, 0, 0, ERR_QUEUE_TIMEOUT);
    run_deadline("hang_at=1", NULL, 0, 50, 0, ERR_TTFT_TIMEOUT);
    run_deadline("hang_at=1,begun=1", NULL, 50, 150, 0, ERR_TTFT_TIMEOUT);          /* it waits in no queue any more */
    run_deadline("hang_at=1,begun=1", NULL, 50, 0, 150, ERR_TOTAL_TIMEOUT);
    run_deadline("delay_ms=5", NULL, 5000, 5000, 80, ERR_TOTAL_TIMEOUT);
    run_deadline("delay_ms=5", configured, 0, 0, 0, ERR_TOTAL_TIMEOUT);
    run_deadline("delay_ms=5", configured, 0, 0, 86400000, ERR_TOTAL_TIMEOUT);     /* no request lengthens the configured limit */
}

/* Many at once: each ends at its own time, in order. */
static void test_deadlines_in_order(void **state)
{
    enum { COUNT = 40 };
    struct client *c[COUNT];
    struct bed bed;

    (void)state;
    bed_ready(&bed, "hang_at=1", 1, NULL);
    for (int i = 0; i < COUNT; i++) {
        c[i] = client_new(10);
        c[i]->params.timeout_total_ms = i % 4 == 3 ? 0 : i % 2 ? 60000 : 100 + i * 37 % 200;
        assert_int_equal(submit(bed.router, c[i]), 0);
    }
    for (int i = 0; i < COUNT; i += 2) assert_int_equal(finish(c[i]), ERR_TOTAL_TIMEOUT);
    for (int i = 1; i < COUNT; i += 2) assert_false(c[i]->done);
    bed_stop(&bed);
    for (int i = 0; i < COUNT; i++) client_free(c[i]);
}

/* ---- the end ---- */

static void test_drain(void **state)
{
    struct client *c = client_new(20), *late = client_new(1);
    struct bed bed;

    (void)state;
    bed_ready(&bed, "delay_ms=10,rule=count,first=97", 1, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_true(wait_for(c, has_deltas, 1));
    router_drain(bed.router, WAIT_MS);
    assert_int_equal(finish(c), 0);
    assert_string_equal(text_of(c, 0), "abcdefghijklmnopqrst");
    assert_int_equal(submit(bed.router, late), ERR_DRAINING);
    assert_int_equal(router_state(bed.router), ROUTER_DRAINING);
    bed_stop(&bed);
    client_free(c);
    late->done = 1;                                               /* refused at once: no call comes */
    client_free(late);
}

static void test_drain_gives_up(void **state)
{
    struct client *c = client_new(100);
    struct bed bed;

    (void)state;
    bed_ready(&bed, "hang_at=3", 1, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    router_drain(bed.router, 50);
    assert_int_equal(finish(c), ERR_DRAINING);
    bed_stop(&bed);
    client_free(c);
}

static void test_stop_ends_streams_and_engines(void **state)
{
    struct client *c = client_new(1000);
    struct bed bed;
    pid_t pids[8];

    (void)state;
    bed_ready(&bed, "vocab=127,delay_ms=5", 2, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_true(wait_for(c, has_deltas, 1));
    bed_stop(&bed);
    assert_int_equal(finish(c), ERR_DRAINING);
    assert_int_equal(engine_pids(pids), 0);
    client_free(c);
}

/* ---- failover ---- */

static void run_undisturbed(const char *script, struct client *const *clients, int n)
{
    struct bed bed;

    bed_ready(&bed, script, 1, NULL);
    for (int i = 0; i < n; i++) assert_int_equal(submit(bed.router, clients[i]), 0);
    for (int i = 0; i < n; i++) assert_int_equal(finish(clients[i]), 0);
    bed_stop(&bed);
}

static void wait_replicas(double n)
{
    wait_metric("sluice_replica_up", n);
}

static void compare_and_free(struct client *const *got, struct client *const *expected, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(finish(got[i]), 0);
        for (int k = 0; k < got[i]->params.n; k++) {
            assert_string_equal(text_of(got[i], k), text_of(expected[i], k));
            assert_int_equal(got[i]->num_tokens[k], expected[i]->num_tokens[k]);
            assert_int_equal(got[i]->finish[k], expected[i]->finish[k]);
        }
        assert_int_equal(got[i]->num_tops, expected[i]->num_tops);
        client_free(got[i]);
        client_free(expected[i]);
    }
}

enum { STREAMS = 24 };

static void make_streams(struct client **clients)
{
    static const char *const stops[] = { "zq" };
    static const size_t lens[] = { 2 };

    for (int i = 0; i < STREAMS; i++) {
        struct client *c = clients[i] = client_new(60 + i);
        for (int k = 0; k < 20; k++) c->ids[0][k] = 'A' + (i * 7 + k) % 26;
        c->params.n = i % 3 == 0 ? 3 : 1;
        c->params.sampling.temperature = i % 2 ? 1 : 0;
        c->params.sampling.seed = (uint64_t)i;
        c->params.sampling.num_logprobs = i % 4 == 0 ? 2 : -1;
        if (i % 5) continue;
        c->params.stop = stops;
        c->params.stop_lens = lens;
        c->params.n_stop = 1;
        c->params.min_tokens = 10;
    }
}

static void test_engine_killed_mid_stream(void **state)
{
    struct client *expected[STREAMS], *got[STREAMS];
    struct bed bed;

    (void)state;
    make_streams(expected);
    make_streams(got);
    run_undisturbed("vocab=127", expected, STREAMS);
    bed_ready(&bed, "vocab=127,delay_ms=5", 2, NULL);
    wait_replicas(2);
    for (int i = 0; i < STREAMS; i++) assert_int_equal(submit(bed.router, got[i]), 0);
    assert_true(wait_for(got[STREAMS - 1], has_deltas, 4));
    signal_engines(SIGKILL, 1);
    compare_and_free(got, expected, STREAMS);
    assert_true(metric_sum("sluice_streams_resumed_total") >= 1);
    assert_int_equal(router_state(bed.router), ROUTER_READY);
    bed_stop(&bed);
}

static void test_all_engines_killed(void **state)
{
    struct client *expected[STREAMS], *got[STREAMS], *late = client_new(1);
    struct bed bed;

    (void)state;
    make_streams(expected);
    make_streams(got);
    run_undisturbed("vocab=127", expected, STREAMS);
    bed_ready(&bed, "vocab=127,delay_ms=5", 2, NULL);
    wait_replicas(2);
    for (int i = 0; i < STREAMS; i++) assert_int_equal(submit(bed.router, got[i]), 0);
    assert_true(wait_for(got[STREAMS - 1], has_deltas, 4));
    signal_engines(SIGKILL, 2);
    for (int i = 0; i < 500 && router_state(bed.router) != ROUTER_DOWN; i++) nap(1);
    assert_int_equal(router_state(bed.router), ROUTER_DOWN);
    assert_int_equal(submit(bed.router, late), ERR_NO_REPLICA);
    late->done = 1;
    client_free(late);
    compare_and_free(got, expected, STREAMS);
    assert_int_equal(router_state(bed.router), ROUTER_READY);
    bed_stop(&bed);
}

/* A link to the engine that can be taken away, so that no restart succeeds. */
static void link_engine(char link[128], char saved[4096])
{
    snprintf(link, 128, "%s/fake-engine", scratch_dir);
    unlink(link);
    assert_int_equal(symlink(engine_path, link), 0);
    memcpy(saved, engine_path, 4096);
    snprintf(engine_path, sizeof engine_path, "%s", link);
}

static void run_never_back(const char *const *options, int64_t total_ms)
{
    struct client *c = client_new(1000);
    char link[128], saved[4096];
    struct bed bed;

    c->params.timeout_total_ms = total_ms;
    link_engine(link, saved);
    bed_ready(&bed, "vocab=127,delay_ms=5", 1, options);
    memcpy(engine_path, saved, sizeof engine_path);
    assert_int_equal(submit(bed.router, c), 0);
    assert_true(wait_for(c, has_deltas, 2));
    unlink(link);
    signal_engines(SIGKILL, 1);
    assert_int_equal(finish(c), ERR_REPLICA_LOST);
    assert_true(c->num_deltas >= 2);
    bed_stop(&bed);
    client_free(c);
}

static void test_replica_never_back(void **state)
{
    const char *options[] = { "--engine-start-timeout", "1", NULL };

    (void)state;
    run_never_back(NULL, 300);
    run_never_back(options, 0);
}

static void test_lost_replica_beside_one_that_serves(void **state)
{
    char link[128], saved[4096];
    struct client *c = client_new(5);
    struct bed bed;

    (void)state;
    link_engine(link, saved);
    bed_ready(&bed, "rule=count,first=97", 2, NULL);
    memcpy(engine_path, saved, sizeof engine_path);
    wait_replicas(2);
    unlink(link);
    signal_engines(SIGKILL, 1);
    wait_metric("sluice_replica_restarts_total", 2);              /* its exit, and a start that failed */
    assert_int_equal(router_state(bed.router), ROUTER_READY);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), 0);
    assert_string_equal(text_of(c, 0), "abcde");
    bed_stop(&bed);
    client_free(c);
}

/* A replica that comes back takes its share of what waits at the other; what was taken back there is not answered twice. */
static void test_replica_that_comes_back_takes_its_share(void **state)
{
    const char *options[] = { "--max-num-seqs", "4", NULL };
    struct client *expected[STREAMS], *got[STREAMS];
    struct bed bed;

    (void)state;
    make_streams(expected);
    make_streams(got);
    run_undisturbed("vocab=127", expected, STREAMS);
    bed_ready(&bed, "vocab=127,delay_ms=4", 2, options);
    wait_replicas(2);
    signal_engines(SIGKILL, 1);
    for (int i = 0; i < 500 && metric_sum("sluice_replica_up") > 1; i++) nap(1);
    for (int i = 0; i < STREAMS; i++) assert_int_equal(submit(bed.router, got[i]), 0);
    wait_metric("sluice_requests_running", 5);                    /* one alone runs four */
    compare_and_free(got, expected, STREAMS);
    assert_true(metric_sum("sluice_replica_restarts_total") == 1);
    bed_stop(&bed);
}

/* A request that crashes every engine it meets ends. */
static void test_poison_request(void **state)
{
    struct client *c = client_new(10);
    struct bed bed;

    (void)state;
    bed_ready(&bed, "exit_at=1", 4, NULL);
    wait_replicas(4);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), ERR_REPLICA_LOST);
    assert_int_equal(c->num_deltas, 0);
    bed_stop(&bed);
    client_free(c);
}

/* ---- engines that misbehave ---- */

static void run_hostile(const char *evil)
{
    struct client *expected = client_new(30), *got = client_new(30);
    char script[160];
    struct bed bed;

    expected->params.sampling.num_logprobs = got->params.sampling.num_logprobs = 2;
    run_undisturbed("vocab=127", &expected, 1);
    snprintf(script, sizeof script, "vocab=127,delay_ms=1,%s", evil);
    bed_ready(&bed, once_script(script), 2, NULL);
    wait_replicas(2);
    assert_int_equal(submit(bed.router, got), 0);
    compare_and_free(&got, &expected, 1);
    wait_metric("sluice_replica_restarts_total", 1);
    assert_true(metric_sum("sluice_streams_resumed_total") == 1);
    bed_stop(&bed);
}

static void test_hostile_frames(void **state)
{
    static const char *const evils[] = {
        "garbage_at=5", "evil_at=5,evil=token", "evil_at=5,evil=index", "evil_at=5,evil=finish", "evil_at=5,evil=choice",
        "evil_at=5,evil=future_id", "evil_at=5,evil=top", "evil_at=5,evil=nan", "evil_at=5,evil=row", "evil_at=5,evil=extra_row",
        "evil_at=5,evil=half", "evil_at=5,evil=type", "evil_at=5,evil=stats", "evil_at=5,evil=sample", "evil_at=5,evil=sample_nan",
        "die_at=5", "exit_at=5",
    };

    (void)state;
    for (size_t i = 0; i < sizeof evils / sizeof evils[0]; i++) {
        print_message("           %s\n", evils[i]);
        run_hostile(evils[i]);
    }
}

static void test_engine_reports_an_error(void **state)
{
    struct client *c = client_new(30);
    struct bed bed;

    (void)state;
    c->params.n = 3;
    bed_ready(&bed, "error_at=4", 2, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), ERR_INTERNAL);
    bed_stop(&bed);
    client_free(c);
}

static void run_stall(const char *script, bool stop_while_idle)
{
    const char *options[] = { "--replica-stall-timeout", "500ms", NULL };
    struct client *expected[4], *got[4];
    struct bed bed;

    for (int i = 0; i < 4; i++) {
        expected[i] = client_new(30);
        got[i] = client_new(30);
    }
    run_undisturbed("vocab=127", expected, 4);
    bed_ready(&bed, script, 2, options);
    wait_replicas(2);
    if (stop_while_idle) signal_engines(SIGSTOP, 1);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(submit(bed.router, got[i]), 0);
    }
    compare_and_free(got, expected, 4);
    wait_metric("sluice_replica_restarts_total", 1);
    bed_stop(&bed);
}

static void test_stall(void **state)
{
    (void)state;
    run_stall(once_script("vocab=127,hang_at=5"), false);
    run_stall(once_script("vocab=127,deaf_at=5"), false);
}

/* Its page says "nothing pending" for ever: only the router knows better. Prompts alike go to one replica, so these differ. */
static void test_engine_stopped_while_idle(void **state)
{
    const char *options[] = { "--replica-stall-timeout", "500ms", NULL };
    struct client *c[6];
    struct bed bed;

    (void)state;
    bed_ready(&bed, "rule=count,first=97", 2, options);
    wait_replicas(2);
    signal_engines(SIGSTOP, 1);
    for (int i = 0; i < 6; i++) {
        c[i] = client_new(5);
        assert_int_equal(submit(bed.router, c[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        assert_int_equal(finish(c[i]), 0);
        assert_string_equal(text_of(c[i], 0), "abcde");
    }
    assert_true(metric_sum("sluice_streams_resumed_total") >= 1);
    bed_stop(&bed);
    for (int i = 0; i < 6; i++) client_free(c[i]);
}

/* ---- start ---- */

static void run_refused(const char *script, int replicas, const char *const *options, int expected, const char *part)
{
    struct err err = { 0 };
    struct bed bed;

    assert_int_equal(bed_start(&bed, script, replicas, options), 0);
    assert_int_equal(router_wait_ready(bed.router, WAIT_MS, &err), expected);
    if (!strstr(err.message, part)) fail_msg("'%s' does not tell '%s'", err.message, part);
    bed_stop(&bed);
}

static void test_refused_start(void **state)
{
    const char *quick[] = { "--engine-start-timeout", "1", NULL };

    (void)state;
    for (int i = 0; i < 10; i++) run_refused("fail=78", 1, NULL, EXIT_CONFIG, "scripted failure");    /* message and exit race */
    run_refused("fail=70", 2, NULL, EXIT_FAULT, "scripted failure");
    run_refused("version=99", 1, NULL, EXIT_FAULT, "READY");
    run_refused("never_ready=1", 1, quick, EXIT_FAULT, "engine_start_timeout");
}

static void test_one_of_two_cannot_start(void **state)
{
    struct client *c = client_new(3);
    struct bed bed;

    (void)state;
    bed_ready(&bed, once_script("fail=70,ready_delay_ms=100,rule=count,first=97"), 2, NULL);
    assert_int_equal(submit(bed.router, c), 0);
    assert_int_equal(finish(c), 0);
    assert_string_equal(text_of(c, 0), "abc");
    wait_replicas(2);                                             /* the other comes by backoff */
    bed_stop(&bed);
    client_free(c);
}

static void test_engine_missing(void **state)
{
    char saved[4096];
    struct bed bed;

    (void)state;
    memcpy(saved, engine_path, sizeof saved);
    snprintf(engine_path, sizeof engine_path, "%s/none", scratch_dir);
    assert_int_equal(bed_start(&bed, "", 1, NULL), ERR_CONFIG);
    memcpy(engine_path, saved, sizeof saved);
    assert_int_equal(bed_start(&bed, "", 9, NULL), ERR_CONFIG);   /* more than the metrics have room for */
}

static int setup(void **state)
{
    struct tiny tiny = { 0 };
    struct err err = { 0 };

    (void)state;
    signal(SIGPIPE, SIG_IGN);      /* as in sluiced */
    ssize_t len = readlink("/proc/self/exe", engine_path, sizeof engine_path - 1);
    if (len <= 0) return -1;
    engine_path[len] = '\0';
    for (int up = 0; up < 2; up++) *strrchr(engine_path, '/') = '\0';
    size_t used = strlen(engine_path);
    snprintf(engine_path + used, sizeof engine_path - used, "/bin/fake-engine");
    snprintf(scratch_dir, sizeof scratch_dir, "/tmp/sluice-router-XXXXXX");
    if (!mkdtemp(scratch_dir)) return -1;
    return tiny_load(&tokenizer, &tiny, &err);
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    tokenizer_free(tokenizer);
    snprintf(command, sizeof command, "rm -rf '%s'", scratch_dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream), cmocka_unit_test(test_choices_and_prompts), cmocka_unit_test(test_nothing_to_generate),
        cmocka_unit_test(test_stop_strings), cmocka_unit_test(test_cancel), cmocka_unit_test(test_cancel_races_with_done),
        cmocka_unit_test(test_full_queue), cmocka_unit_test(test_full_queue_of_tokens), cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_deadlines_in_order), cmocka_unit_test(test_drain), cmocka_unit_test(test_drain_gives_up),
        cmocka_unit_test(test_stop_ends_streams_and_engines), cmocka_unit_test(test_engine_killed_mid_stream),
        cmocka_unit_test(test_all_engines_killed), cmocka_unit_test(test_replica_never_back),
        cmocka_unit_test(test_lost_replica_beside_one_that_serves), cmocka_unit_test(test_poison_request),
        cmocka_unit_test(test_replica_that_comes_back_takes_its_share),
        cmocka_unit_test(test_hostile_frames), cmocka_unit_test(test_engine_reports_an_error), cmocka_unit_test(test_stall),
        cmocka_unit_test(test_engine_stopped_while_idle), cmocka_unit_test(test_refused_start),
        cmocka_unit_test(test_one_of_two_cannot_start), cmocka_unit_test(test_engine_missing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
