/* ring.h - a bounded queue of pointers between threads: many writers, one or many readers, a mutex inside.
 * The ring owns nothing it holds. Waking the reader is the caller's business (uv_async) unless ring_pop_wait is used. */
#ifndef SLUICE_BASE_RING_H
#define SLUICE_BASE_RING_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    pthread_mutex_t lock;
    pthread_cond_t nonempty;
    void **slots;
    size_t cap, head, count;
    bool closed;
};

int  ring_init(struct ring *ring, size_t cap);     /* 0 or ERR_NO_MEMORY */
/* 0, ERR_QUEUE_FULL or ERR_ENDED (closed). Never blocks on a full ring. */
int  ring_push(struct ring *ring, void *item);
void *ring_pop(struct ring *ring);                 /* NULL when empty */
void *ring_pop_wait(struct ring *ring);            /* blocks; NULL once closed and empty */
void *ring_pop_within(struct ring *ring, int64_t ms);      /* the same, and NULL when nothing came in time */
size_t ring_count(struct ring *ring);
void ring_close(struct ring *ring);                /* wakes every waiter; pushes answer ERR_ENDED */
void ring_release(struct ring *ring);              /* must be empty or its items owned elsewhere */

#endif
