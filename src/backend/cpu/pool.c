/* pool.c - see pool.h.
 * state is one word: generation << 16 | OPEN | number of workers inside. A worker enters a loop by a compare-and-swap that
 * adds one to an OPEN state; the caller closes the state when the range is used up and waits for the count to fall to zero.
 * The job fields are written only while the state is closed and empty, so whoever entered may read them freely. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/bug.h"
#include "base/clock.h"
#include "base/futex.h"

enum { SPIN_NS = 30000, CACHE_LINE = 64 };
static const int64_t SLEEP_NS = 1000000000;  /* then a look around; wakes come by the futex */
#define STATE_OPEN   0x8000u
#define STATE_INSIDE 0x7fffu
#define STATE_NEXT   0x10000u

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    _Alignas(CACHE_LINE) _Atomic uint32_t state;
    _Atomic uint32_t wake;                 /* futex word: rises with every job and at the end */
    _Atomic uint32_t sleepers;
    _Atomic bool stopping;
    _Alignas(CACHE_LINE) _Atomic int64_t next;
    _Alignas(CACHE_LINE) pool_body *body;
    void *arg;
    int64_t n, grain;
    struct worker *workers;
    int num_workers;
};

static void claim_chunks(struct pool *pool, int thread)
{
    int64_t n = pool->n, grain = pool->grain;
    for (;;) {
        int64_t begin = atomic_fetch_add_explicit(&pool->next, grain, memory_order_relaxed);
        if (begin >= n) return;
        pool->body(pool->arg, thread, begin, n - begin < grain ? n : begin + grain);
    }
}

/* Enters the open job, if there is one not served yet. Returns whether the state held a new job. */
static bool serve(struct worker *worker, uint32_t *served)
{
    struct pool *pool = worker->pool;
    uint32_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
    for (;;) {
        if (!(state & STATE_OPEN) || state / STATE_NEXT == *served) return false;
        if (atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) break;
    }
    *served = state / STATE_NEXT;
    claim_chunks(pool, worker->index);
    atomic_fetch_sub_explicit(&pool->state, 1, memory_order_acq_rel);
    return true;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct pool *pool = worker->pool;
    uint32_t served = UINT32_MAX;

    for (;;) {
        /* wake is read before stopping: a stop that this check misses changes wake, and the futex does not sleep */
        uint32_t seen = atomic_load(&pool->wake);
        if (atomic_load(&pool->stopping)) break;
        int64_t until = clock_now_ns() + SPIN_NS;
        do {
            for (int i = 0; i < 64; i++) {
                if (serve(worker, &served)) until = clock_now_ns() + SPIN_NS;
                cpu_relax();
            }
        } while (clock_now_ns() < until);
        atomic_fetch_add(&pool->sleepers, 1);
        if (atomic_load(&pool->wake) == seen) futex_wait(&pool->wake, seen, 0, SLEEP_NS);
        atomic_fetch_sub(&pool->sleepers, 1);
    }
    return NULL;
}

static void ring(struct pool *pool)
{
    atomic_fetch_add(&pool->wake, 1);
    if (atomic_load(&pool->sleepers) > 0) futex_wake_all(&pool->wake);
}

void pool_run(struct pool *pool, int64_t n, int64_t grain, pool_body *body, void *arg)
{
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    if (pool->num_workers == 0 || n <= grain) {
        body(arg, 0, 0, n);
        return;
    }
    pool->body = body;
    pool->arg = arg;
    pool->n = n;
    pool->grain = grain;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    uint32_t state = atomic_load_explicit(&pool->state, memory_order_relaxed);
    BUG_ON(state & (STATE_OPEN | STATE_INSIDE));      /* a second job inside a job */
    atomic_store_explicit(&pool->state, state + STATE_NEXT + STATE_OPEN, memory_order_release);
    ring(pool);

    claim_chunks(pool, 0);
    atomic_fetch_and_explicit(&pool->state, ~STATE_OPEN, memory_order_acq_rel);
    for (int spins = 0; atomic_load_explicit(&pool->state, memory_order_acquire) & STATE_INSIDE; spins++) {
        cpu_relax();
        if (spins > 4096) sched_yield();              /* a worker lost its core in the middle of a chunk */
    }
}

int pool_threads(const struct pool *pool)
{
    return pool->num_workers + 1;
}

int pool_new(struct pool **out, int threads, struct err *err)
{
    *out = NULL;
    if (threads < 1 || threads > (int)STATE_INSIDE) return err_set(err, ERR_CONFIG, "threads: %d", threads);
    struct pool *pool = aligned_alloc(CACHE_LINE, sizeof *pool);
    if (!pool) return err_set(err, ERR_NO_MEMORY, "thread pool");
    *pool = (struct pool){ 0 };
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    if (!pool->workers) {
        free(pool);
        return err_set(err, ERR_NO_MEMORY, "thread pool of %d", threads);
    }
    for (int i = 0; i < threads - 1; i++) {
        struct worker *worker = &pool->workers[i];
        *worker = (struct worker){ .pool = pool, .index = i + 1 };
        int rc = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (rc != 0) {
            pool_free(pool);
            return err_set(err, ERR_NO_MEMORY, "cannot start thread %d of %d", i + 2, threads);
        }
        pool->num_workers++;
    }
    *out = pool;
    return 0;
}

void pool_free(struct pool *pool)
{
    if (!pool) return;
    atomic_store(&pool->stopping, true);
    ring(pool);
    for (int i = 0; i < pool->num_workers; i++) pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}
