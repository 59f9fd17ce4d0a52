/* pool.h - the threads of one rank: the caller and threads-1 workers share one loop at a time.
 * The range is claimed in chunks of `grain` from an atomic counter, so who computes an index is not fixed; a body must
 * therefore give the same result for an index whoever runs it and whatever its neighbours are.
 * The caller never waits for a worker that has not joined: a late or descheduled worker costs nothing, so more threads than
 * cores is slow at worst. Workers spin for about 30 us after a loop, then sleep on a futex.
 * Thread: pool_run from one thread at a time (the rank's). */
#ifndef SLUICE_BACKEND_CPU_POOL_H
#define SLUICE_BACKEND_CPU_POOL_H

#include <stdint.h>

#include <sluice/err.h>

struct pool;

/* thread: 0 = caller, 1.. = workers: index of per-thread scratch. */
typedef void pool_body(void *arg, int thread, int64_t begin, int64_t end);

int  pool_new(struct pool **out, int threads, struct err *err);
void pool_free(struct pool *pool);
int  pool_threads(const struct pool *pool);
/* Runs body over 0..n in chunks of at most grain (>= 1); returns when all are done. Runs inline when one chunk is enough. */
void pool_run(struct pool *pool, int64_t n, int64_t grain, pool_body *body, void *arg);

#endif
