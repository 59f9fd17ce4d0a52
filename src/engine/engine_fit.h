/* engine_fit.h - what follows for the scheduler and for submissions from the ranks that were loaded: for engine.c and offline.c. */
#ifndef SLUICE_ENGINE_FIT_H
#define SLUICE_ENGINE_FIT_H

#include <sluice/rank.h>

#include "scheduler.h"

/* What the loaded ranks decide: plans in flight, overlap, blocks, and the longest context that fits into them. */
void engine_fit_scheduler(struct scheduler_options *options, const struct ranks *ranks);
/* Of a scheduler with these options; secret: 32 bytes that make this process' prefix keys its own. */
struct submission_limits engine_submission_limits(const struct scheduler_options *options, const uint8_t secret[32],
                                                  const uint8_t model_digest[32]);

#endif
