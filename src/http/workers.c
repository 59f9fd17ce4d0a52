#include "workers.h"

#include <stdlib.h>

#include "exchange.h"

static void *worker_main(void *arg)
{
    struct workers *workers = arg;
    struct exchange *ex;

    while ((ex = ring_pop_wait(&workers->queue))) {
        workers->run(ex);
        exchange_unref(ex);
    }
    return NULL;
}

int workers_start(struct workers *workers, size_t threads, size_t queue_cap, void (*run)(struct exchange *ex),
                  struct err *err)
{
    *workers = (struct workers){ .run = run };
    workers->threads = calloc(threads, sizeof *workers->threads);
    if (!workers->threads || ring_init(&workers->queue, queue_cap) < 0) {
        free(workers->threads);
        workers->threads = NULL;
        return err_set(err, ERR_NO_MEMORY, "out of memory");
    }
    for (; workers->n < threads; workers->n++) {
        if (pthread_create(&workers->threads[workers->n], NULL, worker_main, workers) != 0) {
            workers_stop(workers);
            return err_set(err, ERR_INTERNAL, "cannot start a worker thread");
        }
    }
    return 0;
}

int workers_give(struct workers *workers, struct exchange *ex)
{
    exchange_ref(ex);
    int rc = ring_push(&workers->queue, ex);
    if (rc < 0) exchange_unref(ex);
    return rc;
}

void workers_stop(struct workers *workers)
{
    if (!workers->threads) return;
    ring_close(&workers->queue);
    for (size_t i = 0; i < workers->n; i++) pthread_join(workers->threads[i], NULL);
    ring_release(&workers->queue);
    free(workers->threads);
    *workers = (struct workers){ 0 };
}
