#include "headroom.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"

struct headroom_watch {
    uint64_t (*free_memory)(void *arg);
    void *free_memory_arg;
    uint64_t floor_bytes;
    int32_t interval_ms;
    _Atomic uint64_t free_bytes;
    _Atomic bool throttled;
    pthread_mutex_t lock;              /* stopping */
    pthread_cond_t wake;
    pthread_t thread;
    bool stopping;
};

bool headroom_is_short(uint64_t free_bytes, uint64_t floor_bytes, bool was_short)
{
    return free_bytes < (was_short ? floor_bytes + floor_bytes / 4 : floor_bytes);
}

static void look(struct headroom_watch *watch)
{
    uint64_t free_bytes = watch->free_memory(watch->free_memory_arg);
    bool was = atomic_load_explicit(&watch->throttled, memory_order_relaxed);

    if (!free_bytes) return;           /* unknown: leave it as it is */
    bool is_short = headroom_is_short(free_bytes, watch->floor_bytes, was);
    atomic_store_explicit(&watch->free_bytes, free_bytes, memory_order_relaxed);
    atomic_store_explicit(&watch->throttled, is_short, memory_order_relaxed);
    if (is_short == was) return;
    unsigned long long free_mib = free_bytes >> 20, floor_mib = watch->floor_bytes >> 20;
    if (is_short) log_warn("memory_short", "%llu MiB free, below %llu: admission is throttled", free_mib, floor_mib);
    else log_info("memory_back", "%llu MiB free: admission is normal again", free_mib);
}

static void *watch_main(void *arg)
{
    struct headroom_watch *watch = arg;
    struct timespec until;

    pthread_setname_np(pthread_self(), "headroom");
    pthread_mutex_lock(&watch->lock);
    while (!watch->stopping) {
        pthread_mutex_unlock(&watch->lock);
        look(watch);
        clock_gettime(CLOCK_MONOTONIC, &until);
        int64_t ns = until.tv_nsec + (int64_t)watch->interval_ms * 1000000;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        pthread_mutex_lock(&watch->lock);
        while (!watch->stopping && pthread_cond_timedwait(&watch->wake, &watch->lock, &until) == 0) continue;
    }
    pthread_mutex_unlock(&watch->lock);
    return NULL;
}

int headroom_open(struct headroom_watch **out, uint64_t headroom_bytes, uint64_t (*free_memory)(void *arg),
                  void *free_memory_arg, int32_t interval_ms, struct err *err)
{
    struct headroom_watch *watch = calloc(1, sizeof *watch);
    uint64_t now = free_memory(free_memory_arg);
    pthread_condattr_t attributes;

    if (!watch) return err_set(err, ERR_NO_MEMORY, "headroom watch: out of memory");
    watch->free_memory = free_memory;
    watch->free_memory_arg = free_memory_arg;
    watch->interval_ms = interval_ms;
    watch->floor_bytes = now && headroom_bytes > now / 2 ? now / 2 : headroom_bytes;
    atomic_store(&watch->free_bytes, now);
    pthread_mutex_init(&watch->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    if (pthread_create(&watch->thread, NULL, watch_main, watch)) {
        pthread_cond_destroy(&watch->wake);
        pthread_mutex_destroy(&watch->lock);
        free(watch);
        return err_set(err, ERR_NO_MEMORY, "headroom watch: no thread");
    }
    *out = watch;
    return 0;
}

bool headroom_throttled(const struct headroom_watch *watch)
{
    return atomic_load_explicit(&watch->throttled, memory_order_relaxed);
}

void headroom_gauges(const struct headroom_watch *watch, uint64_t *free_bytes, uint64_t *floor_bytes)
{
    *free_bytes = atomic_load_explicit(&watch->free_bytes, memory_order_relaxed);
    *floor_bytes = watch->floor_bytes;
}

void headroom_close(struct headroom_watch *watch)
{
    if (!watch) return;
    pthread_mutex_lock(&watch->lock);
    watch->stopping = true;
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&watch->lock);
    pthread_join(watch->thread, NULL);
    pthread_cond_destroy(&watch->wake);
    pthread_mutex_destroy(&watch->lock);
    free(watch);
}
