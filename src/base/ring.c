#include "base/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include <sluice/err.h>

int ring_init(struct ring *ring, size_t cap)
{
    pthread_condattr_t attributes;

    *ring = (struct ring){ .cap = cap };
    ring->slots = calloc(cap, sizeof *ring->slots);
    if (!ring->slots) return ERR_NO_MEMORY;
    pthread_mutex_init(&ring->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&ring->nonempty, &attributes);
    pthread_condattr_destroy(&attributes);
    return 0;
}

int ring_push(struct ring *ring, void *item)
{
    int rc = 0;

    pthread_mutex_lock(&ring->lock);
    if (ring->closed) {
        rc = ERR_ENDED;
    } else if (ring->count == ring->cap) {
        rc = ERR_QUEUE_FULL;
    } else {
        ring->slots[(ring->head + ring->count++) % ring->cap] = item;
        pthread_cond_signal(&ring->nonempty);
    }
    pthread_mutex_unlock(&ring->lock);
    return rc;
}

static void *take(struct ring *ring)
{
    if (!ring->count) return NULL;
    void *item = ring->slots[ring->head];
    ring->head = (ring->head + 1) % ring->cap;
    ring->count--;
    return item;
}

void *ring_pop(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    void *item = take(ring);
    pthread_mutex_unlock(&ring->lock);
    return item;
}

void *ring_pop_wait(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    while (!ring->count && !ring->closed) pthread_cond_wait(&ring->nonempty, &ring->lock);
    void *item = take(ring);
    pthread_mutex_unlock(&ring->lock);
    return item;
}

void *ring_pop_within(struct ring *ring, int64_t ms)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000 + (until.tv_nsec + ms % 1000 * 1000000) / 1000000000;
    until.tv_nsec = (until.tv_nsec + ms % 1000 * 1000000) % 1000000000;
    pthread_mutex_lock(&ring->lock);
    while (!ring->count && !ring->closed && rc != ETIMEDOUT) rc = pthread_cond_timedwait(&ring->nonempty, &ring->lock, &until);
    void *item = take(ring);
    pthread_mutex_unlock(&ring->lock);
    return item;
}

size_t ring_count(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    size_t count = ring->count;
    pthread_mutex_unlock(&ring->lock);
    return count;
}

void ring_close(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->closed = true;
    pthread_cond_broadcast(&ring->nonempty);
    pthread_mutex_unlock(&ring->lock);
}

void ring_release(struct ring *ring)
{
    if (!ring->slots) return;
    free(ring->slots);
    pthread_mutex_destroy(&ring->lock);
    pthread_cond_destroy(&ring->nonempty);
    *ring = (struct ring){ 0 };
}
