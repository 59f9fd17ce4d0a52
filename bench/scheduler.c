/* scheduler.c - what a step costs on the engine thread, without any device: scheduler_next_step + scheduler_commit, and
 * scheduler_add for what arrives; and what the prefix cache costs a prompt on the I/O thread.
 *   bench/scheduler_bench [steps]                all scenarios, JSON lines
 *   valgrind --tool=callgrind --toggle-collect=measured_step bench/scheduler_bench 50 1024     instructions of the
 * scenarios with 1024 running ones */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "scheduler.h"

enum { CONTEXT = 4096, BLOCK_SIZE = 64, PROMPT = 512, VOCAB = 32000 };

struct scenario {
    const char *name;
    int32_t running, waiting;
    enum scheduler_policy policy;
    bool prefix_caching;
    bool churn;                        /* answers end and others are admitted, as fast as with 250 tokens each */
    bool overlap;                      /* a plan is made while the one before is in flight */
};

static const struct scenario scenarios[] = {
    { "decode", 256, 0, POLICY_FAIR, true, false, false },
    { "decode, overlap", 256, 0, POLICY_FAIR, true, false, true },
    { "decode, cache off", 256, 0, POLICY_FAIR, false, false, false },
    { "decode, fcfs", 256, 0, POLICY_FCFS, true, false, false },
    { "decode", 1024, 4096, POLICY_FAIR, true, false, false },
    { "decode, overlap", 1024, 4096, POLICY_FAIR, true, false, true },
    { "decode, fcfs", 1024, 4096, POLICY_FCFS, true, false, false },
    { "decode, priority", 1024, 4096, POLICY_PRIORITY, true, false, false },
    { "churn", 256, 64, POLICY_FAIR, true, true, false },
    { "churn, overlap", 256, 64, POLICY_FAIR, true, true, true },
    { "churn", 1024, 4096, POLICY_FAIR, true, true, false },
    { "churn, overlap", 1024, 4096, POLICY_FAIR, true, true, true },
    { "churn, cache off", 1024, 4096, POLICY_FAIR, false, true, false },
    { "churn, priority", 1024, 4096, POLICY_PRIORITY, true, true, false },
};

struct bench {
    const struct scenario *scenario;
    struct scheduler s;
    struct submission_limits limits;
    struct step_result result;
    const struct step_plan *flights[2];        /* oldest first */
    int num_flights;
    token_id prompt[PROMPT];
    uint64_t next_id, random;
    int64_t now;
    struct submission **arriving;      /* made outside of the measured time, as the I/O thread does */
    int32_t num_arriving;
};

static uint32_t below(struct bench *bench, uint32_t n)
{
    bench->random = bench->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((bench->random >> 33) % n);
}

static void must(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "scheduler_bench: %s\n", what);
    exit(1);
}

static struct submission *make(struct bench *bench)
{
    bool churn = bench->scenario->churn;
    struct engine_request req = {
        .id = ++bench->next_id, .group = bench->next_id, .arrival_ms = (int64_t)bench->next_id / 16,
        .priority = bench->scenario->policy == POLICY_PRIORITY ? (int32_t)below(bench, 3) : 0,
        .max_tokens = churn ? 100 + (int32_t)below(bench, 300) : CONTEXT,
        .num_prompt = churn ? 32 + below(bench, PROMPT - 32) : PROMPT, .tokens = bench->prompt,
        .sampling = { .temperature = 1, .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 },
    };

    for (int32_t i = 0; i < PROMPT; i++) bench->prompt[i] = (token_id)below(bench, VOCAB);
    struct submission *sub = submission_new(&req, &bench->limits);
    must(sub != NULL, "out of memory");
    return sub;
}

/* The engine thread's share of a step; the device's is not in it. */
static inline void step(struct bench *bench)
{
    if (bench->num_flights == bench->s.options.num_plans) {
        scheduler_commit(&bench->s, bench->flights[0], &bench->result, bench->now);
        bench->flights[0] = bench->flights[1];
        bench->num_flights--;
    }
    scheduler_clear_outcomes(&bench->s);
    for (int32_t i = 0; i < bench->num_arriving; i++) scheduler_add(&bench->s, bench->arriving[i]);
    const struct step_plan *plan = scheduler_next_step(&bench->s, bench->now);
    if (plan) bench->flights[bench->num_flights++] = plan;
}

__attribute__((noinline)) void measured_step(struct bench *bench);
void measured_step(struct bench *bench) { step(bench); }

/* The oldest plan's result. */
static void device(struct bench *bench)
{
    must(bench->num_flights > 0, "nothing to run");
    const struct step_plan *plan = bench->flights[0];
    bench->result.step = plan->step;
    bench->result.num_rows = plan->num_rows;
    for (int32_t i = 0; i < plan->num_rows; i++)
        bench->result.rows[i] = (struct result_row){ .token = (token_id)(i + plan->step) % VOCAB };
    bench->now += 10000000;
}

static void replace_finished(struct bench *bench)
{
    struct submission *sub;

    bench->num_arriving = 0;
    while ((sub = scheduler_take_finished(&bench->s))) {
        submission_free(sub);
        bench->arriving[bench->num_arriving++] = make(bench);
    }
}

static void open_bench(struct bench *bench, const struct scenario *scenario)
{
    int32_t all = scenario->running + scenario->waiting;
    struct scheduler_options o = {
        .max_num_seqs = scenario->running, .max_num_batched_tokens = 8192, .max_model_len = CONTEXT,
        .max_sequences = all + 64, .num_blocks = scenario->running * (CONTEXT / BLOCK_SIZE), .block_size = BLOCK_SIZE,
        .vocab_size = VOCAB, .num_plans = 1 + scenario->overlap, .overlap = scenario->overlap, .long_prefill_chunk = 512, .policy = scenario->policy,
        .enable_prefix_caching = scenario->prefix_caching, .eos = { { VOCAB }, 1 },
    };
    uint8_t secret[32] = { 1 };
    struct err err = { 0 };

    *bench = (struct bench){ .scenario = scenario, .random = 1 };
    must(scheduler_init(&bench->s, &o, &err) == 0, err.message);
    bench->limits = (struct submission_limits){ CONTEXT, BLOCK_SIZE, prefix_root(secret, secret),
                                                scenario->prefix_caching, !scenario->prefix_caching };
    bench->result.rows = calloc((size_t)scenario->running, sizeof *bench->result.rows);
    bench->arriving = calloc((size_t)all, sizeof *bench->arriving);
    must(bench->result.rows && bench->arriving, "out of memory");
    for (int32_t i = 0; i < all; i++) scheduler_add(&bench->s, make(bench));
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void run(const struct scenario *scenario, int64_t steps)
{
    static struct bench bench;
    int64_t *took = calloc((size_t)steps, sizeof *took), sum = 0, tokens = 0;

    must(took != NULL, "out of memory");
    open_bench(&bench, scenario);
    do {                               /* until all places are taken and every prompt is through */
        step(&bench);
        bench.num_arriving = 0;
        device(&bench);
        replace_finished(&bench);
    } while (bench.flights[0]->num_decode_seqs < scenario->running * (scenario->churn ? 95 : 100) / 100);
    for (int64_t i = 0; i < steps; i++) {
        int64_t began = clock_now_ns();
        measured_step(&bench);
        sum += took[i] = clock_now_ns() - began;
        bench.num_arriving = 0;
        tokens += bench.flights[0]->num_tokens;
        device(&bench);
        if (scenario->churn) replace_finished(&bench);
    }
    qsort(took, (size_t)steps, sizeof *took, by_value);
    printf("{\"scenario\": \"%s\", \"running\": %d, \"waiting\": %d, \"steps\": %lld, \"tokens_per_step\": %.0f, "
           "\"mean_us\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           scenario->name, bench.s.num_running, bench.s.num_waiting, (long long)steps, (double)tokens / (double)steps,
           (double)sum / (double)steps / 1e3, (double)took[steps / 2] / 1e3, (double)took[steps * 99 / 100] / 1e3);
    scheduler_release(&bench.s);
    free(bench.result.rows);
    free(bench.arriving);
    free(took);
}

/* What the prefix cache costs a prompt that shares nothing, on the I/O thread: the keys of its blocks. */
static void run_keys(int64_t times)
{
    static struct bench bench;
    static const struct scenario scenario = { .running = 1, .prefix_caching = true };
    int64_t took[2] = { INT64_MAX, INT64_MAX };

    open_bench(&bench, &scenario);
    for (int64_t i = 0; i < times; i++) {
        for (int hashed = 0; hashed < 2; hashed++) {
            bench.limits.hash_prompt = hashed;
            int64_t began = clock_now_ns();
            submission_free(make(&bench));
            int64_t ns = clock_now_ns() - began;
            if (ns < took[hashed]) took[hashed] = ns;
        }
    }
    printf("{\"scenario\": \"keys of a prompt\", \"tokens\": %d, \"best_us\": %.2f, \"ns_per_token\": %.2f}\n", PROMPT,
           (double)(took[1] - took[0]) / 1e3, (double)(took[1] - took[0]) / PROMPT);
    scheduler_release(&bench.s);
    free(bench.result.rows);
    free(bench.arriving);
}

int main(int argc, char **argv)
{
    int64_t steps = argc > 1 ? strtoll(argv[1], NULL, 10) : 1000;
    int32_t running = argc > 2 ? (int32_t)strtol(argv[2], NULL, 10) : 0;
    const char *name = argc > 3 ? argv[3] : NULL;

    must(steps > 0 && steps <= 1000000, "steps: 1 to 1000000");
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        if (running && scenarios[i].running != running) continue;
        if (!name || !strcmp(scenarios[i].name, name)) run(&scenarios[i], steps);
    }
    if (!running) run_keys(steps);
    return 0;
}
