/* fairness_sim.c - four prompts of near-maximum length arrive together with forty short ones. What the short ones wait
 * for their first token under fair and under fcfs, and what that costs the long ones; and the inter-token time that
 * itl_target_ms keeps while a long prompt is computed beside running answers. */
#include <stdio.h>
#include <string.h>

#include "load.h"

enum { NUM_LONG = 4, NUM_SHORT = 40, NUM_ALL = NUM_LONG + NUM_SHORT, BUDGET = 256, CONTEXT = 4096 };

/* About what a small model does on two CPU cores. */
static const double STEP_MS = 8, TOKEN_MS = 0.25, KEY_MS = 2e-5;

static bool overlap;                   /* of all runs: a step more to wait for the first token */

struct result { double short_p95_ms, long_end_ms; };

static struct scheduler_options options_of(enum scheduler_policy policy)
{
    return (struct scheduler_options){
        .max_num_seqs = 64, .max_num_batched_tokens = BUDGET, .max_model_len = CONTEXT, .max_sequences = 256,
        .num_blocks = 1024, .block_size = 64, .long_prefill_chunk = 512, .policy = policy,
        .enable_prefix_caching = true, .overlap = overlap,
    };
}

static struct result run(enum scheduler_policy policy, int num_long)
{
    struct load_request requests[NUM_ALL] = { 0 };
    double ttft[NUM_SHORT];
    struct result result = { 0 };
    int32_t n = 0;

    for (int i = 0; i < num_long; i++)
        requests[n++] = (struct load_request){ .num_prompt = CONTEXT - 64, .max_tokens = 32 };
    for (int i = 0; i < NUM_SHORT; i++)
        requests[n++] = (struct load_request){ .num_prompt = 16 + i % 17, .max_tokens = 16 };
    struct load load = { .options = options_of(policy), .requests = requests, .num_requests = n, .step_ms = STEP_MS,
                         .token_ms = TOKEN_MS, .key_ms = KEY_MS };
    load_run(&load);
    for (int i = 0; i < NUM_SHORT; i++) ttft[i] = requests[num_long + i].first_ms - requests[num_long + i].arrival_ms;
    result.short_p95_ms = load_percentile(ttft, NUM_SHORT, 0.95);
    for (int i = 0; i < num_long; i++) {
        if (requests[i].end_ms > result.long_end_ms) result.long_end_ms = requests[i].end_ms;
    }
    return result;
}

static void short_ones_do_not_wait_for_long_ones(void)
{
    struct result alone = run(POLICY_FAIR, 0), fair = run(POLICY_FAIR, NUM_LONG), fcfs = run(POLICY_FCFS, NUM_LONG);
    double chunk_ms = STEP_MS + BUDGET * TOKEN_MS + KEY_MS * BUDGET * CONTEXT;

    printf("short TTFT p95: alone %.0f ms, with long ones fair %.0f ms, fcfs %.0f ms; one chunk %.0f ms\n",
           alone.short_p95_ms, fair.short_p95_ms, fcfs.short_p95_ms, chunk_ms);
    printf("last long prompt ends: fair %.0f ms, fcfs %.0f ms (%+.1f %%)\n", fair.long_end_ms, fcfs.long_end_ms,
           100 * (fair.long_end_ms / fcfs.long_end_ms - 1));
    LOAD_CHECK(fair.short_p95_ms <= 1.5 * alone.short_p95_ms + (1 + overlap) * chunk_ms);
    LOAD_CHECK(5 * fair.short_p95_ms <= fcfs.short_p95_ms);
    LOAD_CHECK(fair.long_end_ms <= 1.15 * fcfs.long_end_ms);
}

/* Short ones keep coming, as many as the device can bear: the long ones must still end. */
static void long_ones_do_not_starve(void)
{
    enum { MANY = 3000 };
    static struct load_request requests[1 + MANY];

    memset(requests, 0, sizeof requests);
    requests[0] = (struct load_request){ .num_prompt = CONTEXT - 64, .max_tokens = 4 };
    /* 256 tokens take 72 ms: four short ones per step are all there is time for */
    for (int i = 1; i <= MANY; i++)
        requests[i] = (struct load_request){ .arrival_ms = 72.0 * (i / 4), .num_prompt = 62, .max_tokens = 2 };
    struct load load = { .options = options_of(POLICY_FAIR), .requests = requests, .num_requests = 1 + MANY,
                         .step_ms = STEP_MS, .token_ms = TOKEN_MS, .key_ms = KEY_MS };
    load_run(&load);
    printf("under constant short load the long prompt ends after %.0f of %.0f ms\n", requests[0].end_ms, load.end_ms);
    LOAD_CHECK(requests[0].end_ms < 0.25 * load.end_ms);
}

static double twice_as_slow_later(double now_ms) { return now_ms > 4000 ? 2 : 1; }

/* The longest time between two tokens of answers that run while long prompts come, after `from_ms`. */
static double longest_gap(int32_t itl_target_ms, double (*slowdown)(double now_ms), double *end_ms)
{
    enum { RUNNING = 8, PROMPTS = 6 };
    struct load_request requests[RUNNING + PROMPTS] = { 0 };
    double longest = 0;

    for (int i = 0; i < RUNNING; i++) requests[i] = (struct load_request){ .num_prompt = 30, .max_tokens = 600 };
    for (int i = 0; i < PROMPTS; i++)
        requests[RUNNING + i] =
            (struct load_request){ .arrival_ms = 1000 + 200 * i, .num_prompt = 3000, .max_tokens = 2 };
    struct load load = { .options = options_of(POLICY_FAIR), .requests = requests, .num_requests = RUNNING + PROMPTS,
                         .step_ms = STEP_MS, .token_ms = TOKEN_MS, .key_ms = KEY_MS, .slowdown = slowdown };
    load.options.itl_target_ms = itl_target_ms;
    load.options.max_num_batched_tokens = 2048;
    load_run(&load);
    for (int i = 0; i < RUNNING; i++) {
        if (requests[i].longest_gap_ms > longest) longest = requests[i].longest_gap_ms;
    }
    *end_ms = load.end_ms;
    return longest;
}

static void itl_target_is_kept(void)
{
    double end_off, end_on, end_slow, off = longest_gap(0, NULL, &end_off), on = longest_gap(40, NULL, &end_on);
    double slow = longest_gap(40, twice_as_slow_later, &end_slow);

    printf("longest time between tokens: no target %.0f ms, target 40 ms %.1f ms, device twice as slow later %.1f ms\n",
           off, on, slow);
    printf("all ended after: no target %.0f ms, target %.0f ms, slower device %.0f ms\n", end_off, end_on, end_slow);
    LOAD_CHECK(off > 400);
    LOAD_CHECK(on <= 40);
    LOAD_CHECK(slow <= 80);            /* the first steps after the change; the fit follows */
    LOAD_CHECK(end_on < 1.6 * end_off);
}

int main(void)
{
    for (int i = 0; i < 2; i++) {
        overlap = i;
        printf(overlap ? "overlap\n" : "one plan in flight\n");
        short_ones_do_not_wait_for_long_ones();
        long_ones_do_not_starve();
        itl_target_is_kept();
    }
    return 0;
}
