/* samples.h - single measurements on their way to the gateway's histograms: steps, cancels, blocks of the prefix cache.
 * Flow: engine, scheduler, kv_cache -> samples -> MSG_SAMPLES, told with MSG_STATS.      Thread: engine only.
 * Bounded: what comes while it is full is left out. */
#ifndef SLUICE_ENGINE_SAMPLES_H
#define SLUICE_ENGINE_SAMPLES_H

#include <sluice/ipc.h>

enum { SAMPLES_MAX = 2048, SAMPLES_PLENTY = SAMPLES_MAX / 2 };     /* from PLENTY on they are told without waiting */

struct samples { int32_t num; struct engine_sample at[SAMPLES_MAX]; };

static inline void sample_add(struct samples *samples, enum sample_kind kind, double value)
{
    if (samples->num == SAMPLES_MAX) return;
    samples->at[samples->num++] = (struct engine_sample){ (uint32_t)kind, value > 0 ? (float)value : 0 };
}

#endif
