/* A trace that the real scheduler wrote is read, dumped and replayed; broken ones end politely. */
#include "helpers.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "replay.h"

enum { EOS = 999 };

struct bench {
    struct scheduler s;
    struct trace *trace;
    char path[64];
    struct result_row rows[8];
    uint8_t *data;
    size_t len;
    int64_t now;
};

static struct scheduler_options options(bool overlap)
{
    return (struct scheduler_options){ .overlap = overlap,
        .max_num_seqs = 8, .max_num_batched_tokens = 24, .max_model_len = TEST_MAX_LEN, .max_sequences = 64,
        .num_blocks = 20, .block_size = TEST_BLOCK_SIZE, .vocab_size = TEST_VOCAB, .num_plans = 2,
        .policy = POLICY_FAIR, .itl_target_ms = 3, .enable_prefix_caching = true, .eos = {{EOS}, 1},
    };
}

static void open_bench_of(struct bench *bench, uint64_t bytes, bool overlap)
{
    struct scheduler_options o = options(overlap);
    struct err err = { 0 };

    memset(bench, 0, sizeof *bench);
    strncpy(bench->path, "/tmp/sluice-trace-XXXXXX", sizeof bench->path - 1);
    int fd = mkstemp(bench->path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(scheduler_init(&bench->s, &o, &err), 0);
    assert_int_equal(trace_open(&bench->trace, bench->path, bytes, &bench->s.options, &err), 0);
}

static void open_bench(struct bench *bench, uint64_t bytes) { open_bench_of(bench, bytes, false); }

static void load_file(struct bench *bench)
{
    struct stat status;
    FILE *file = fopen(bench->path, "rb");

    assert_non_null(file);
    assert_int_equal(stat(bench->path, &status), 0);
    assert_int_equal(status.st_mode & 077, 0);         /* it holds prompts */
    bench->len = (size_t)status.st_size;
    free(bench->data);
    assert_non_null(bench->data = malloc(bench->len));
    assert_int_equal(fread(bench->data, 1, bench->len, file), bench->len);
    fclose(file);
}

static void close_bench(struct bench *bench)
{
    trace_close(bench->trace);
    scheduler_release(&bench->s);
    unlink(bench->path);
    free(bench->data);
}

static void drain(struct bench *bench)
{
    struct submission *sub;

    scheduler_clear_outcomes(&bench->s);
    while ((sub = scheduler_take_finished(&bench->s))) submission_free(sub);
}

static void tell(struct bench *bench, struct submission *sub)
{
    assert_non_null(sub);
    trace_submission(bench->trace, sub);
    scheduler_add(&bench->s, sub);
    drain(bench);
}

static const struct step_plan *plan(struct bench *bench)
{
    const struct step_plan *next = scheduler_next_step(&bench->s, ++bench->now);

    trace_step(bench->trace, &bench->s, next, bench->now);
    return next;
}

static void land(struct bench *bench, const struct step_plan *flying)
{
    struct step_result result = { .step = flying->step, .num_rows = flying->num_rows, .rows = bench->rows };
    double ms = 0.5 + 0.01 * flying->num_tokens;

    for (int32_t r = 0; r < flying->num_rows; r++)
        bench->rows[r] = (struct result_row){ .token = (token_id)((flying->step * 7 + (uint64_t)r) % EOS),
                                              .bad = flying->step % 50 == 0 };
    trace_result(bench->trace, flying, &result, ms, ++bench->now);
    scheduler_measured(&bench->s, flying, ms);
    scheduler_commit(&bench->s, flying, &result, bench->now);
    drain(bench);
}

/* Requests of all kinds until all have ended; two plans in flight. */
static void serve(struct bench *bench, uint64_t first_id, int requests)
{
    const struct step_plan *flying[2] = { NULL, NULL };

    for (int i = 0; i < requests || scheduler_num_sequences(&bench->s); i++) {
        uint64_t id = first_id + (uint64_t)i;
        if (i < requests) {
            struct engine_request req = test_request(id, (token_id)(i % 5 * 30), 5 + (uint32_t)(i * 13 % 50), 1 + i % 9);
            req.group = id / 3;
            tell(bench, submission_new(&req, &test_limits));
            if (i % 11 == 0) tell(bench, submission_note(SUBMISSION_ABORT, id - 2, 0));
            if (i % 17 == 0) tell(bench, submission_note(SUBMISSION_REFUSED, id + 100000, ERR_INTERNAL));
        }
        scheduler_throttle(&bench->s, i % 40 > 35);
        if (!flying[0]) flying[0] = plan(bench);
        else if (!flying[1]) flying[1] = plan(bench);
        if (!flying[0]) continue;
        if (flying[1] || i % 3 == 0) {
            land(bench, flying[0]);
            flying[0] = flying[1];
            flying[1] = NULL;
        }
    }
    while (flying[0]) {
        land(bench, flying[0]);
        flying[0] = flying[1];
        flying[1] = NULL;
    }
}

static int replay(const struct bench *bench, struct replay_result *result, struct err *err)
{
    struct trace_view view;
    int rc = trace_view_open(&view, bench->data, bench->len, err);

    return rc < 0 ? rc : trace_replay(&view, result, err);
}

static void replay_of(bool overlap)
{
    struct replay_result result;
    struct bench bench;
    struct err err = { 0 };

    open_bench_of(&bench, 4 << 20, overlap);
    serve(&bench, 1, 300);
    load_file(&bench);
    assert_int_equal(replay(&bench, &result, &err), 0);
    assert_int_equal(result.submissions, 300);
    assert_int_equal(result.plans, bench.s.stats.steps);
    assert_true(bench.s.stats.preemptions > 0 && bench.s.stats.cache_hit_tokens > 0);      /* there was something to get wrong */
    close_bench(&bench);
}

static void a_replay_plans_the_same(void **state)
{
    (void)state;
    replay_of(false);
    replay_of(true);
}

static void a_ring_that_wrapped_is_replayed_from_its_last_start(void **state)
{
    struct replay_result result;
    struct bench bench;
    struct err err = { 0 };
    int restarts = 0;

    (void)state;
    open_bench(&bench, TRACE_MIN_BYTES);
    for (uint64_t round = 0; round < 40; round++) {
        serve(&bench, 1 + round * 1000, 20);
        if (!trace_wants_start(bench.trace)) continue;
        trace_restart(bench.trace, &bench.s);
        scheduler_check(&bench.s);
        restarts++;
    }
    serve(&bench, 100000, 5);
    load_file(&bench);
    assert_true(restarts > 4);
    assert_int_equal(replay(&bench, &result, &err), 0);
    assert_true(result.submissions >= 5 && result.submissions < 800);
    assert_true(result.plans > 5 && result.plans < bench.s.stats.steps);
    close_bench(&bench);
}

static void a_ring_without_a_start_is_said_to_be_one(void **state)
{
    struct replay_result result;
    struct bench bench;
    struct err err = { 0 };

    (void)state;
    open_bench(&bench, TRACE_MIN_BYTES);
    serve(&bench, 1, 800);
    load_file(&bench);
    assert_int_equal(replay(&bench, &result, &err), ERR_NOT_FOUND);
    assert_int_equal(result.plans, 0);
    close_bench(&bench);
}

/* One token drawn differently changes what follows: the replay says at which step. */
static void a_changed_result_is_noticed(void **state)
{
    struct replay_result result;
    struct bench bench;
    struct trace_view view;
    struct trace_record record;
    const void *payload;
    struct err err = { 0 };
    struct trace_commit commit = { 0 };

    (void)state;
    open_bench(&bench, 4 << 20);
    serve(&bench, 1, 30);
    load_file(&bench);
    assert_int_equal(trace_view_open(&view, bench.data, bench.len, &err), 0);
    while (trace_view_next(&view, &record, &payload, &err) == 1) {
        if (record.type != TRACE_COMMIT) continue;
        memcpy(&commit, payload, sizeof commit);
        if (commit.num_rows && commit.step > 4) break;
    }
    struct trace_row *row = (struct trace_row *)(bench.data + ((const uint8_t *)payload - bench.data) + sizeof commit);
    row->token = EOS;                                  /* ends there */
    assert_int_equal(replay(&bench, &result, &err), ERR_PROTOCOL);
    assert_non_null(strstr(err.message, "planned differently"));
    close_bench(&bench);
}

static void the_dump_has_a_line_for_each_record(void **state)
{
    struct bench bench;
    struct trace_view view;
    struct err err = { 0 };
    char *text = NULL;
    size_t len = 0;

    (void)state;
    open_bench(&bench, 4 << 20);
    serve(&bench, 1, 12);
    load_file(&bench);
    FILE *out = open_memstream(&text, &len);
    assert_int_equal(trace_view_open(&view, bench.data, bench.len, &err), 0);
    assert_int_equal(trace_dump(&view, out, &err), 0);
    fclose(out);
    assert_ptr_equal(strstr(text, "start after step 0\n"), text);
    assert_non_null(strstr(text, "submit 12: group 4, 48 prompt and 0 other tokens, at most 3, priority 0\n"));
    assert_non_null(strstr(text, "plan 1: 1 seqs, 5 tokens, 1 rows; 0 waiting, 1 running"));
    assert_non_null(strstr(text, "\n  1: 0 + 5\ncommit 1: 0.550 ms, tokens 7\n"));
    assert_non_null(strstr(text, "abort 10\n"));
    assert_non_null(strstr(text, "refused 100001\n"));
    free(text);
    close_bench(&bench);
}

/* Every byte of the head and of the first records, one at a time: no crash, no endless loop. */
static void damage_is_survived(void **state)
{
    struct replay_result result;
    struct bench bench;
    struct err err = { 0 };
    int refused = 0;

    (void)state;
    open_bench(&bench, TRACE_MIN_BYTES);
    serve(&bench, 1, 20);
    load_file(&bench);
    for (size_t i = 0; i < TRACE_HEAD_BYTES + 3000; i++) {
        if (i >= sizeof(struct trace_head) && i < TRACE_HEAD_BYTES) continue;
        uint8_t was = bench.data[i];
        /* sizes that are allowed but large would only cost time here */
        bench.data[i] = was ^ (i < sizeof(struct trace_head) ? 0x03 : 0xff);
        refused += replay(&bench, &result, &err) < 0;
        bench.data[i] = was;
    }
    assert_true(refused > 1000);
    bench.len -= 8;
    assert_int_equal(replay(&bench, &result, &err), ERR_PROTOCOL);
    close_bench(&bench);
}

/* A record of no bytes where a result should be was once read beyond the file. */
static void an_empty_result_is_refused(void **state)
{
    struct trace_record record = { .len = 0, .type = TRACE_COMMIT };
    struct replay_result result;
    struct bench bench;
    struct err err = { 0 };

    (void)state;
    open_bench(&bench, TRACE_MIN_BYTES);
    load_file(&bench);
    for (int type = TRACE_PLAN; type <= TRACE_COMMIT; type++) {
        struct trace_head *head = (struct trace_head *)bench.data;
        record.type = (uint16_t)type;
        head->head = head->tail + sizeof record;
        memcpy(bench.data + TRACE_HEAD_BYTES + head->tail, &record, sizeof record);
        assert_int_equal(replay(&bench, &result, &err), ERR_PROTOCOL);
        assert_non_null(strstr(err.message, "broken record"));
    }
    close_bench(&bench);
}

static void what_is_too_large_is_lost_but_said(void **state)
{
    struct submission_limits limits = test_limits;
    struct replay_result result;
    struct bench bench;
    struct err err = { 0 };
    static token_id prompt[10000];

    (void)state;
    open_bench(&bench, TRACE_MIN_BYTES);
    limits.max_model_len = 20000;
    struct engine_request req = test_request(1, 0, 1, 5);
    req.tokens = prompt;
    req.num_prompt = 10000;
    struct submission *sub = submission_new(&req, &limits);
    trace_submission(bench.trace, sub);
    submission_free(sub);
    load_file(&bench);
    assert_int_equal(replay(&bench, &result, &err), ERR_PROTOCOL);
    assert_non_null(strstr(err.message, "too large"));
    close_bench(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replay_plans_the_same),
        cmocka_unit_test(a_ring_that_wrapped_is_replayed_from_its_last_start),
        cmocka_unit_test(a_ring_without_a_start_is_said_to_be_one),
        cmocka_unit_test(a_changed_result_is_noticed),
        cmocka_unit_test(the_dump_has_a_line_for_each_record),
        cmocka_unit_test(damage_is_survived),
        cmocka_unit_test(an_empty_result_is_refused),
        cmocka_unit_test(what_is_too_large_is_lost_but_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
