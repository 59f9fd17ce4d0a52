/* The whole engine over a socketpair with ranks of this file: a device that draws "last token + 1". */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer) && !__has_feature(memory_sanitizer)
#define GUARD_MALLOC
#endif
#else
#define GUARD_MALLOC
#endif
#endif
#ifdef GUARD_MALLOC
#include "fake_engine/malloc_guard.c"
#endif

#include "helpers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sluice/ipc.h>

#include "base/buf.h"
#include "base/clock.h"
#include "engine.h"

enum { EOS = 999, MAX_SLOTS = 4 };

/* ---- the device ---- */

struct ranks {
    const struct step_plan *plans[MAX_SLOTS];
    struct step_result *results[MAX_SLOTS];
    int num_slots, num_in_flight;
    bool overlap;
    token_id last_tokens[8];           /* by slot */
    int most_in_flight, steps, fail_at;
    _Atomic bool hold;                 /* no step ends while this is set, */
    _Atomic int credits;               /* but so many */
    _Atomic int error;                 /* found between plans */
    _Atomic int step_ms;               /* one behind the other they take so long */
    int64_t ends_ns[MAX_SLOTS], last_end_ns;
};

int32_t ranks_num_blocks(const struct ranks *ranks) { return ranks ? 32 : 0; }
int32_t ranks_num_slots(const struct ranks *ranks) { return ranks->num_slots; }
bool ranks_overlaps(const struct ranks *ranks) { return ranks->overlap; }
int ranks_error(const struct ranks *ranks) { return ranks->error; }
const char *ranks_describe(const struct ranks *ranks) { return ranks ? "test device" : ""; }

int ranks_submit(struct ranks *ranks, const struct step_plan *plan, struct step_result *result)
{
    int64_t now_ns = clock_now_ns(), begins_ns = now_ns > ranks->last_end_ns ? now_ns : ranks->last_end_ns;

    ranks->last_end_ns = ranks->ends_ns[ranks->num_in_flight] = begins_ns + (int64_t)ranks->step_ms * 1000000;
    ranks->plans[ranks->num_in_flight] = plan;
    ranks->results[ranks->num_in_flight++] = result;
    if (ranks->num_in_flight > ranks->most_in_flight) ranks->most_in_flight = ranks->num_in_flight;
    return 0;
}

bool ranks_finished(const struct ranks *ranks) { return !ranks->num_in_flight || clock_now_ns() >= ranks->ends_ns[0]; }

int ranks_wait(struct ranks *ranks, struct step_result **out)
{
    const struct step_plan *plan = ranks->plans[0];
    struct step_result *result = ranks->results[0];

    while (!ranks_finished(ranks)) usleep(100);
    while (ranks->hold && !ranks->credits) usleep(100);
    if (ranks->hold) ranks->credits--;
    result->step = plan->step;
    result->num_rows = plan->num_rows;
    result->rc = ++ranks->steps == ranks->fail_at ? ERR_INTERNAL : 0;
    for (int32_t r = 0; r < plan->num_rows; r++) {
        const struct sampling_row *row = &plan_rows(plan)[r];
        token_id input = plan_input_ids(plan)[row->token];
        if (input == TOKEN_FEEDBACK) input = ranks->last_tokens[row->slot];
        token_id token = ranks->last_tokens[row->slot] = (input + 1) % EOS;
        result->rows[r] = (struct result_row){ .token = token, .logprob = -0.25f, .rank = 1 };
        if (row->params.num_logprobs < 1) continue;
        result->rows[r].num_top = row->params.num_logprobs;
        for (int32_t i = 0; i < row->params.num_logprobs; i++)
            result->rows[r].top[i] = (struct token_logprob){token + i, -0.25f - (float)i};
    }
    memmove(ranks->plans, ranks->plans + 1, (size_t)--ranks->num_in_flight * sizeof *ranks->plans);
    memmove(ranks->results, ranks->results + 1, (size_t)ranks->num_in_flight * sizeof *ranks->results);
    memmove(ranks->ends_ns, ranks->ends_ns + 1, (size_t)ranks->num_in_flight * sizeof *ranks->ends_ns);
    *out = result;
    return 0;
}

/* ---- the gateway's side ---- */

struct bench {
    struct ranks ranks;
    pthread_t thread;
    int fd, engine_fd, page_fd, rc;
    struct ipc_reader reader;
    struct engine_page *page;
    struct engine_stats stats;
    int num_samples[SAMPLE_KINDS];
    double sum_samples[SAMPLE_KINDS];
    bool watch;                        /* headroom of 1000 bytes, */
    _Atomic uint64_t free_bytes;       /* and what is free */
};

static uint64_t free_memory(void *arg) { return ((struct bench *)arg)->free_bytes; }

static void *run_engine(void *arg)
{
    struct bench *bench = arg;
    struct engine *engine = NULL;
    struct err err = { 0 };
    struct engine_setup setup = {
        .ranks = &bench->ranks,
        .load_ms = 5,
        .free_memory = bench->watch ? free_memory : NULL,
        .free_memory_arg = bench,
        .headroom_bytes = 1000,
        .scheduler = {.max_num_seqs = 8,
                      .max_num_batched_tokens = 64,
                      .max_model_len = 1000,
                      .max_sequences = 64,
                      .block_size = TEST_BLOCK_SIZE,
                      .vocab_size = TEST_VOCAB,
                      .enable_prefix_caching = true,
                      .eos = {{EOS}, 1}},
    };

    bench->rc = engine_open(&engine, bench->engine_fd, bench->page_fd, NULL, &err);
    if (!bench->rc) engine_progress(engine, 0.5);
    if (!bench->rc) engine_progress(engine, 0.6);      /* within 100 ms: not sent */
    if (!bench->rc) bench->rc = engine_start(engine, &setup, &err);
    if (!bench->rc) bench->rc = engine_run(engine);
    engine_close(engine);
    return NULL;
}

/* The next frame, payload copied into memory of its own size. NULL at the end of the stream. */
static void *read_frame(struct bench *bench, struct frame_head *head)
{
    char chunk[4096];
    const void *payload;
    int rc;

    while ((rc = ipc_reader_next(&bench->reader, head, &payload)) == 0) {
        ssize_t n = read(bench->fd, chunk, sizeof chunk);
        if (n <= 0) return NULL;
        assert_int_equal(ipc_reader_feed(&bench->reader, chunk, (size_t)n), 0);
    }
    assert_int_equal(rc, 1);
    void *copy = malloc(head->len + 1u);
    assert_non_null(copy);
    memcpy(copy, payload, head->len);
    return copy;
}

static void keep_samples(struct bench *bench, const struct frame_head *head, const void *payload)
{
    const struct engine_sample *samples = payload;

    assert_int_equal(head->len % sizeof samples[0], 0);
    for (size_t i = 0; i < head->len / sizeof samples[0]; i++) {
        assert_true(samples[i].kind < SAMPLE_KINDS && samples[i].value >= 0);
        bench->num_samples[samples[i].kind]++;
        bench->sum_samples[samples[i].kind] += samples[i].value;
    }
}

/* Skips MSG_STATS (kept in bench->stats) and MSG_SAMPLES (counted). */
static void *expect_frame(struct bench *bench, enum msg_type type, size_t *len)
{
    struct frame_head head;
    void *payload;

    while ((payload = read_frame(bench, &head)) && head.type != type && (head.type == MSG_STATS || head.type == MSG_SAMPLES)) {
        if (head.type == MSG_STATS) memcpy(&bench->stats, payload, sizeof bench->stats);
        else keep_samples(bench, &head, payload);
        free(payload);
    }
    assert_non_null(payload);
    assert_int_equal(head.type, type);
    *len = head.len;
    return payload;
}

static int setup_bench(void **state, int num_slots, bool overlap, uint64_t free_bytes)
{
    struct bench *bench = calloc(1, sizeof *bench);
    int pair[2];
    size_t len;

    if (!bench || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return -1;
    bench->ranks.num_slots = num_slots;
    bench->ranks.overlap = overlap;
    bench->watch = free_bytes != 0;
    bench->free_bytes = free_bytes;
    bench->fd = pair[0];
    bench->engine_fd = pair[1];
    bench->page_fd = memfd_create("page", MFD_CLOEXEC);
    if (ftruncate(bench->page_fd, sizeof *bench->page) < 0) return -1;
    bench->page = mmap(NULL, sizeof *bench->page, PROT_READ, MAP_SHARED, bench->page_fd, 0);
    if (bench->page == MAP_FAILED || pthread_create(&bench->thread, NULL, run_engine, bench)) return -1;
    ipc_reader_init(&bench->reader);
    *state = bench;
    free(expect_frame(bench, MSG_PROGRESS, &len));
    struct msg_ready *ready = expect_frame(bench, MSG_READY, &len);
    assert_int_equal(len, sizeof *ready);
    assert_int_equal(ready->version, IPC_VERSION);
    assert_int_equal(ready->num_blocks, 32);
    assert_int_equal(ready->max_model_len, 128);       /* shrunk from 1000 to 32 blocks of 4 */
    assert_int_equal(ready->load_ms, 5);
    assert_string_equal(ready->describe, "test device");
    free(ready);
    return 0;
}

static int setup(void **state) { return setup_bench(state, 1, false, 0); }
static int setup_pipeline(void **state) { return setup_bench(state, 2, false, 0); }
static int setup_overlap(void **state) { return setup_bench(state, 2, true, 0); }
static int setup_watched(void **state) { return setup_bench(state, 2, true, 10000); }

static void join(struct bench *bench)
{
    if (bench->thread) pthread_join(bench->thread, NULL);
    bench->thread = 0;
}

static int teardown(void **state)
{
    struct bench *bench = *state;

    if (bench->fd >= 0) close(bench->fd);
    join(bench);
    munmap(bench->page, sizeof *bench->page);
    close(bench->page_fd);
    ipc_reader_release(&bench->reader);
    free(bench);
    return 0;
}

static void send_frame(struct bench *bench, enum msg_type type, const void *payload, size_t len)
{
    struct buf frame = BUF_INIT;

    ipc_put(&frame, type, payload, len);
    assert_int_equal(write(bench->fd, frame.data, frame.len), frame.len);
    buf_release(&frame);
}

static void submit(struct bench *bench, const struct engine_request *req)
{
    struct buf frame = BUF_INIT;

    ipc_put_submit(&frame, req);
    assert_int_equal(write(bench->fd, frame.data, frame.len), frame.len);
    buf_release(&frame);
}

/* Reads events until `ends` sequences have ended; counts tokens and checks that each sequence counts up. */
static void collect(struct bench *bench, int ends, token_id last[], uint8_t finish[])
{
    while (ends) {
        size_t len;
        struct token_event *events = expect_frame(bench, MSG_EVENTS, &len);
        assert_int_equal(len % sizeof *events, 0);
        for (size_t i = 0; i < len / sizeof *events; i++) {
            if (events[i].token != TOKEN_NONE) {
                assert_int_equal(events[i].token, last[events[i].id] + 1);
                assert_true(events[i].scheduled_ns > 0 && events[i].step_ns >= events[i].scheduled_ns);
                last[events[i].id] = events[i].token;
            }
            finish[events[i].id] = events[i].finish;
            ends -= events[i].finish != FINISH_NONE;
        }
        free(events);
    }
}

/* ---- tests ---- */

static void requests_are_served_side_by_side(void **state)
{
    struct bench *bench = *state;
    token_id last[21];
    uint8_t finish[21] = { 0 };

    for (uint64_t id = 1; id <= 20; id++) {            /* more than max_num_seqs */
        struct engine_request req = test_request(id, (token_id)id, 10, (int32_t)id + 2);
        last[id] = (token_id)id + 9;
        submit(bench, &req);
    }
    collect(bench, 20, last, finish);
    for (uint64_t id = 1; id <= 20; id++) {
        assert_int_equal(finish[id], FINISH_LENGTH);
        assert_int_equal(last[id], id + 9 + id + 2);
    }
    size_t len;
    free(expect_frame(bench, MSG_STATS, &len));        /* on going idle */
    assert_int_equal(len, sizeof(struct engine_stats));
    assert_int_equal(bench->page->magic, ENGINE_PAGE_MAGIC);
    assert_int_equal(bench->page->steps, bench->ranks.steps);
    assert_true(bench->page->longest_step_ns > 0);
    assert_int_equal(bench->page->step_began_ns, 0);
}

static void logprobs_come_just_before_their_events(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(3, 10, 4, 2);
    size_t len;

    req.sampling.num_logprobs = 5;
    submit(bench, &req);
    for (uint32_t i = 1; i <= 2; i++) {
        char *rows = expect_frame(bench, MSG_LOGPROBS, &len);
        struct logprob_row_head head;
        struct token_logprob top;
        assert_int_equal(len, sizeof head + 5 * sizeof top);
        memcpy(&head, rows, sizeof head);
        assert_int_equal(head.id, 3);
        assert_int_equal(head.index, i);
        assert_int_equal(head.n, 5);
        memcpy(&top, rows + sizeof head + 4 * sizeof top, sizeof top);
        assert_int_equal(top.id, 13 + i + 4);
        assert_true(top.logprob == -4.25f);
        free(rows);
        struct token_event *event = expect_frame(bench, MSG_EVENTS, &len);
        assert_int_equal(event->num_top, 5);
        assert_true(event->logprob == -0.25f);
        assert_int_equal(event->rank, 1);
        free(event);
    }
}

static void a_bad_request_harms_no_other(void **state)
{
    struct bench *bench = *state;
    struct engine_request good = test_request(1, 10, 4, 30), bad = test_request(2, 10, 4, 30);
    token_id outside[] = { 1, TEST_VOCAB };
    token_id last[4] = { 0, 13 };
    uint8_t finish[4] = { 0 };

    submit(bench, &good);
    bad.tokens = outside;
    bad.num_prompt = 2;
    submit(bench, &bad);
    bad = test_request(3, 10, 128, 1);                 /* no room for a single token */
    submit(bench, &bad);
    collect(bench, 3, last, finish);
    assert_int_equal(finish[1], FINISH_LENGTH);
    assert_int_equal(finish[2], FINISH_ERROR);
    assert_int_equal(finish[3], FINISH_ERROR);
    assert_int_equal(last[1], 43);
}

static void an_abort_ends_with_an_event(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 4, 120);
    struct msg_abort message = { .id = 1, .seen_ns = clock_now_ns() }, unknown = { .id = 77, .seen_ns = 1 };
    uint8_t finish = FINISH_NONE;
    int unread = 1, tokens = 0;
    size_t len;

    /* one step at a time, so that 120 tokens outlast the abort's way */
    bench->ranks.hold = true;
    submit(bench, &req);
    send_frame(bench, MSG_ABORT, &unknown, sizeof unknown);
    send_frame(bench, MSG_ABORT, &message, sizeof message);
    while (unread) assert_int_equal(ioctl(bench->engine_fd, FIONREAD, &unread), 0);
    while (finish == FINISH_NONE) {
        bench->ranks.credits = 1;
        struct token_event *event = expect_frame(bench, MSG_EVENTS, &len);
        assert_int_equal(event->id, 1);
        finish = event->finish;
        tokens += event->token != TOKEN_NONE;
        free(event);
    }
    assert_int_equal(finish, FINISH_ABORTED);
    assert_true(tokens < 120);
    bench->ranks.credits = 1;                          /* a plan may still hold it */
    while (!bench->num_samples[SAMPLE_CANCEL]) free(expect_frame(bench, MSG_STATS, &len));
    assert_int_equal(bench->num_samples[SAMPLE_CANCEL], 1);
    assert_true(bench->sum_samples[SAMPLE_CANCEL] > 0 && bench->sum_samples[SAMPLE_CANCEL] < 600);
}

/* 10 tokens of a prompt and 3 of the 4 generated ones are computed. */
static void steps_are_sampled(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 10, 4);
    size_t len;

    submit(bench, &req);
    for (int i = 0; i < 4; i++) free(expect_frame(bench, MSG_EVENTS, &len));
    while (bench->num_samples[SAMPLE_STEP_TOKENS] < 4) free(expect_frame(bench, MSG_STATS, &len));
    assert_int_equal(bench->num_samples[SAMPLE_STEP_TOKENS], 4);
    assert_true(bench->sum_samples[SAMPLE_STEP_TOKENS] == 13 && bench->sum_samples[SAMPLE_STEP_SEQUENCES] == 4);
    assert_int_equal(bench->num_samples[SAMPLE_STEP_PREFILL], 1);
    assert_int_equal(bench->num_samples[SAMPLE_STEP_DECODE], 3);
    assert_int_equal(bench->num_samples[SAMPLE_STEP_MIXED], 0);
    assert_int_equal(bench->num_samples[SAMPLE_STEP_HOST], 4);
    assert_true(bench->sum_samples[SAMPLE_STEP_HOST] > 0);
}

static void stop_ends_a_busy_engine(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 4, 100);

    submit(bench, &req);                               /* work is pending: it is dropped */
    send_frame(bench, MSG_STOP, NULL, 0);
    join(bench);
    assert_int_equal(bench->rc, 0);
}

static void a_hang_up_ends_an_idle_engine(void **state)
{
    struct bench *bench = *state;

    close(bench->fd);
    bench->fd = -1;
    join(bench);
    assert_int_equal(bench->rc, 0);
}

static void failing_ranks_end_the_run_with_their_error(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 4, 100);

    bench->ranks.fail_at = 3;
    submit(bench, &req);
    join(bench);
    assert_int_equal(bench->rc, ERR_INTERNAL);
}

static void a_device_that_fails_while_idle_ends_the_run(void **state)
{
    struct bench *bench = *state;

    bench->ranks.error = ERR_INTERNAL;
    join(bench);
    assert_int_equal(bench->rc, ERR_INTERNAL);
}

static void a_pipeline_is_kept_full(void **state)
{
    struct bench *bench = *state;
    token_id last[9];
    uint8_t finish[9] = { 0 };

    bench->ranks.hold = true;
    for (uint64_t id = 1; id <= 8; id++) {
        struct engine_request req = test_request(id, (token_id)(20 * id), 6, 40);
        last[id] = (token_id)(20 * id) + 5;
        submit(bench, &req);
    }
    bench->ranks.hold = false;
    collect(bench, 8, last, finish);
    for (uint64_t id = 1; id <= 8; id++) assert_int_equal(last[id], 20 * id + 45);
    assert_int_equal(bench->ranks.most_in_flight, 2);
}

/* A stop is seen one step late: that costs the device one token, and nobody sees it. */
static void overlap_drops_what_comes_after_the_end(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 4, 100);
    token_id stop = 20, last[2] = { 0, 13 };
    uint8_t finish[2] = { 0 };
    size_t len;

    req.num_stop_ids = 1;
    req.stop_ids = &stop;
    submit(bench, &req);
    collect(bench, 1, last, finish);
    assert_int_equal(finish[1], FINISH_STOP_TOKEN);
    assert_int_equal(last[1], 20);
    free(expect_frame(bench, MSG_STATS, &len));        /* idle: nothing else came */
    assert_int_equal(bench->ranks.steps, 8);           /* seven tokens and the dropped one */
    assert_int_equal(bench->ranks.most_in_flight, 2);
    req = test_request(1, 10, 4, 7);                   /* its end is known: no step too many */
    submit(bench, &req);
    last[1] = 13;
    collect(bench, 1, last, finish);
    assert_int_equal(finish[1], FINISH_LENGTH);
    free(expect_frame(bench, MSG_STATS, &len));
    assert_int_equal(bench->ranks.steps, 8 + 7);
}

static void overlap_publishes_a_step_before_it_waits_for_the_next(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 4, 5);
    size_t len;

    bench->ranks.hold = true;
    submit(bench, &req);
    for (int i = 1; i <= 5; i++) {
        bench->ranks.credits = 1;                      /* and no other step ends until this one's event is here */
        struct token_event *event = expect_frame(bench, MSG_EVENTS, &len);
        assert_int_equal(event->token, 13 + i);
        free(event);
    }
}

/* Two plans may be in flight, but the one behind a long step waits for who comes while that runs. */
static void a_request_joins_the_step_behind_a_long_one(void **state)
{
    struct bench *bench = *state;
    struct engine_request first = test_request(1, 10, 4, 8), second = test_request(2, 20, 4, 1);
    size_t len;

    bench->ranks.step_ms = 200;
    submit(bench, &first);
    for (int i = 1; i <= 4; i++) free(expect_frame(bench, MSG_EVENTS, &len));
    submit(bench, &second);                            /* the fifth step has just begun */
    free(expect_frame(bench, MSG_EVENTS, &len));
    assert_int_equal(len, sizeof(struct token_event));
    struct token_event *sixth = expect_frame(bench, MSG_EVENTS, &len);
    assert_int_equal(len, 2 * sizeof *sixth);
    assert_int_equal(sixth[0].id + sixth[1].id, 3);
    free(sixth);
    assert_int_equal(bench->ranks.most_in_flight, 2);
}

static void too_late_costs_no_step(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(1, 10, 4, 5);
    struct msg_abort message = { .id = 1 };
    size_t len;

    req.start_by_ms = 1;
    submit(bench, &req);
    usleep(50000);                                     /* it waits for its abort, and does not run meanwhile */
    send_frame(bench, MSG_ABORT, &message, sizeof message);
    struct token_event *event = expect_frame(bench, MSG_EVENTS, &len);
    assert_int_equal(event->finish, FINISH_ABORTED);
    free(event);
    assert_int_equal(bench->ranks.steps, 0);
}

static void what_begins_in_time_is_told_before_its_step_ends(void **state)
{
    struct bench *bench = *state;
    struct engine_request req = test_request(7, 10, 4, 1);
    size_t len;

    bench->ranks.hold = true;
    req.start_by_ms = clock_now_ms() + 60000;
    submit(bench, &req);
    uint64_t *begun = expect_frame(bench, MSG_BEGUN, &len);
    assert_int_equal(len, sizeof *begun);
    assert_int_equal(*begun, 7);
    free(begun);
    bench->ranks.hold = false;
    struct token_event *event = expect_frame(bench, MSG_EVENTS, &len);
    assert_int_equal(event->finish, FINISH_LENGTH);
    free(event);
}

/* Gauges come while the engine is idle, too. */
static void await_throttled(struct bench *bench, bool throttled, uint64_t free_bytes)
{
    bench->free_bytes = free_bytes;
    do {
        size_t len;
        struct engine_stats *stats = expect_frame(bench, MSG_STATS, &len);
        bench->stats = *stats;
        free(stats);
    } while (bench->stats.throttled != throttled);
    assert_int_equal(bench->stats.free_bytes, free_bytes);
    assert_int_equal(bench->stats.headroom_bytes, 1000);
}

/* Two requests of 20 tokens: are they in the same steps? */
static bool run_together(struct bench *bench)
{
    token_id last[3] = { 0, 13, 33 };
    uint8_t finish[3] = { 0 };
    int32_t other_began = 0;

    bench->ranks.hold = true;
    for (uint64_t id = 1; id <= 2; id++) {
        struct engine_request req = test_request(id, 20 * (token_id)id - 10, 4, 20);
        submit(bench, &req);
    }
    usleep(50 * 1000);                 /* both are in the engine: the fake ranks make 20 steps faster than a socket is read */
    bench->ranks.hold = false;
    while (!finish[1] || !finish[2]) {
        size_t len;
        struct token_event *events = expect_frame(bench, MSG_EVENTS, &len);
        for (size_t i = 0; i < len / sizeof *events; i++) {
            assert_int_equal(events[i].token, ++last[events[i].id]);
            finish[events[i].id] = events[i].finish;
            other_began |= events[i].id == 2 && !finish[1];
        }
        free(events);
    }
    return other_began;
}

static void short_memory_throttles_until_it_is_back(void **state)
{
    struct bench *bench = *state;

    assert_true(run_together(bench));
    await_throttled(bench, true, 900);
    assert_false(run_together(bench));                 /* one after the other: slow, but both are served */
    await_throttled(bench, false, 1300);
    assert_true(run_together(bench));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(requests_are_served_side_by_side, setup, teardown),
        cmocka_unit_test_setup_teardown(logprobs_come_just_before_their_events, setup, teardown),
        cmocka_unit_test_setup_teardown(a_bad_request_harms_no_other, setup, teardown),
        cmocka_unit_test_setup_teardown(an_abort_ends_with_an_event, setup, teardown),
        cmocka_unit_test_setup_teardown(steps_are_sampled, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_ends_a_busy_engine, setup, teardown),
        cmocka_unit_test_setup_teardown(a_hang_up_ends_an_idle_engine, setup, teardown),
        cmocka_unit_test_setup_teardown(failing_ranks_end_the_run_with_their_error, setup, teardown),
        cmocka_unit_test_setup_teardown(a_pipeline_is_kept_full, setup_pipeline, teardown),
        cmocka_unit_test_setup_teardown(requests_are_served_side_by_side, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(logprobs_come_just_before_their_events, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(a_bad_request_harms_no_other, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(an_abort_ends_with_an_event, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(stop_ends_a_busy_engine, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(failing_ranks_end_the_run_with_their_error, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(a_pipeline_is_kept_full, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(overlap_drops_what_comes_after_the_end, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(overlap_publishes_a_step_before_it_waits_for_the_next, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(a_request_joins_the_step_behind_a_long_one, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(too_late_costs_no_step, setup, teardown),
        cmocka_unit_test_setup_teardown(too_late_costs_no_step, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(what_begins_in_time_is_told_before_its_step_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(what_begins_in_time_is_told_before_its_step_ends, setup_overlap, teardown),
        cmocka_unit_test_setup_teardown(short_memory_throttles_until_it_is_back, setup_watched, teardown),
        cmocka_unit_test_setup_teardown(a_device_that_fails_while_idle_ends_the_run, setup_watched, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
