/* load.h - the real scheduler under a given load in virtual time: a device that takes as long as a formula says.
 * For what random episodes (sched_sim.c) do not show: who waits for how long. Deterministic: no clock is read. With
 * options.overlap two plans are in flight. */
#ifndef SLUICE_TESTS_LOAD_H
#define SLUICE_TESTS_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler.h"

enum { LOAD_VOCAB = 50000, LOAD_TOKEN = 7 };

struct load_request {
    double arrival_ms;
    int32_t num_prompt, max_tokens, priority;
    int32_t num_shared;                /* first tokens that are the same in all requests */
    uint64_t group;
    /* out */
    double first_ms, end_ms;           /* of the first token, of the last */
    double longest_gap_ms;             /* between two tokens */
    int32_t num_tokens, num_cached;
};

struct load {
    struct scheduler_options options;
    struct load_request *requests;     /* by arrival */
    int32_t num_requests;
    /* what a step takes: ms = step + tokens * token + keys * key (step_time.h), times slowdown(now) */
    double step_ms, token_ms, key_ms;
    double (*slowdown)(double now_ms);
    /* out */
    double end_ms;
    int64_t steps, tokens;             /* tokens computed, prompts included */
    struct engine_stats stats;
    struct step_time fitted;
};

/* Runs until every request has ended; aborts when one cannot. */
void load_run(struct load *load);
/* The value that `share` of the n values do not exceed. */
double load_percentile(double *values, int32_t n, double share);

#define LOAD_CHECK(cond) do { if (!(cond)) load_fail(__FILE__, __LINE__, #cond); } while (0)
void load_fail(const char *file, int line, const char *cond) __attribute__((noreturn));

#endif
