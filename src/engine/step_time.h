/* step_time.h - how long a step takes: ms = a + b * tokens + c * keys, fitted while running.
 * tokens: computed in the step. keys: for every one of them the positions it attends to, summed.
 * Recursive least squares with forgetting, so that the fit follows a machine that gets slower or faster; one
 * measurement counts at most four times what was expected, so that a hiccup does not spoil it.
 * Flow: commit -> step_time_learn; draft -> step_time_of, step_time_fit.      Thread: engine only. Pure arithmetic. */
#ifndef SLUICE_ENGINE_STEP_TIME_H
#define SLUICE_ENGINE_STEP_TIME_H

#include <stdbool.h>
#include <stdint.h>

enum { STEP_TIME_TERMS = 3 };

struct step_time {
    double terms[STEP_TIME_TERMS];                     /* a, b, c in scaled units */
    double cov[STEP_TIME_TERMS][STEP_TIME_TERMS];
    uint32_t num_seen;
};

void step_time_init(struct step_time *t);
void step_time_learn(struct step_time *t, int64_t tokens, int64_t keys, double ms);
/* Enough was seen to rely on it. */
bool step_time_ready(const struct step_time *t);
double step_time_of(const struct step_time *t, int64_t tokens, int64_t keys);
/* Most tokens, up to want, that a prompt with `held` computed tokens may take in ms more of a step. */
int32_t step_time_fit(const struct step_time *t, double ms, int64_t held, int32_t want);
/* Keys that `tokens` tokens attend to when `held` come before them. */
static inline int64_t step_time_keys(int64_t held, int64_t tokens) { return tokens * held + tokens * (tokens + 1) / 2; }

#endif
