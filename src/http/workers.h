/* workers.h - the pool that does what grows with the prompt: JSON, template, tokenizing, submitting.
 * Queue: one bounded ring of exchanges; full = 429. Each queued exchange carries a reference that the worker drops. */
#ifndef SLUICE_HTTP_WORKERS_H
#define SLUICE_HTTP_WORKERS_H

#include <pthread.h>
#include <stddef.h>

#include <sluice/err.h>

#include "base/ring.h"

struct exchange;

struct workers {
    struct ring queue;
    pthread_t *threads;
    size_t n;
    void (*run)(struct exchange *ex);
};

int  workers_start(struct workers *workers, size_t threads, size_t queue_cap, void (*run)(struct exchange *ex),
                   struct err *err);
/* 0 and a reference taken, or ERR_QUEUE_FULL, ERR_ENDED. HTTP threads. */
int  workers_give(struct workers *workers, struct exchange *ex);
void workers_stop(struct workers *workers);     /* runs what is queued, then joins */

#endif
