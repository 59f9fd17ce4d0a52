/* router.c - the loop: its inbox, its tick, its state, and the doors for other threads. */
#include "router_impl.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { TICK_MS = 20, INBOX_SLACK = 4096 };

enum inbox_kind { INBOX_SUBMIT, INBOX_CANCEL, INBOX_DRAIN_END, INBOX_STOP };

struct inbox_message {
    enum inbox_kind kind;
    struct generation *gen;          /* SUBMIT */
    uint64_t id;                     /* CANCEL */
    enum cancel_cause cause;
    int64_t at_ns;
};

/* ---- snapshots any thread may read ---- */

enum router_state router_state(const struct router *router)
{
    return (enum router_state)__atomic_load_n(&router->state, __ATOMIC_ACQUIRE);
}

double router_load_progress(const struct router *router) { return snapshot_load(&router->progress_bits); }

void router_load(const struct router *router, struct router_load *load)
{
    load->in_server = __atomic_load_n(&router->in_server, __ATOMIC_RELAXED);
    load->running = __atomic_load_n(&router->running, __ATOMIC_RELAXED);
    load->waiting = __atomic_load_n(&router->waiting_count, __ATOMIC_RELAXED);
    load->kv_usage = snapshot_load(&router->kv_usage_bits);
}

int router_retry_after_s(const struct router *router)
{
    double rate = snapshot_load(&router->finished_per_s_bits);
    double wait = rate > 0 ? (double)__atomic_load_n(&router->waiting_count, __ATOMIC_RELAXED) / rate : 5;

    if (router_state(router) != ROUTER_READY) return 5;
    return wait < 1 ? 1 : wait > 120 ? 120 : (int)(wait + 0.999);
}

/* DRAINING is final: nothing that a replica does undoes it. */
void router_set_state(struct router *router, enum router_state state)
{
    pthread_mutex_lock(&router->state_lock);
    if (router->state != ROUTER_DRAINING) __atomic_store_n(&router->state, (int32_t)state, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&router->state_changed);
    pthread_mutex_unlock(&router->state_lock);
}

/* ---- inbox ---- */

static void cancel(struct router *router, uint64_t id, enum cancel_cause cause, int64_t seen_ns)
{
    static const enum abort_cause causes[] = { [CANCEL_CLIENT_GONE] = ABORT_CLIENT_GONE, [CANCEL_SLOW_READER] = ABORT_SLOW_READER,
                                               [CANCEL_KILLED] = ABORT_KILLED, [CANCEL_DRAIN] = ABORT_DRAIN };
    struct generation *gen = router_find(router, id);
    struct err err = { 0 };

    if (!gen) return;
    gen->cancel_seen_ns = seen_ns;
    metric_add(M_REQUESTS_ABORTED, causes[cause], 1);
    if (cause == CANCEL_KILLED) err_set(&err, ERR_KILLED, "The request was killed by the operator.");
    else if (cause == CANCEL_DRAIN) err_set(&err, ERR_DRAINING, "The server is shutting down.");
    else err_set(&err, ERR_ENDED, "cancelled");
    generation_fail(router, gen, &err);
}

static void fail_all(struct router *router)
{
    struct err err = { 0 };

    router_check(router);
    err_set(&err, ERR_DRAINING, "The server is shutting down.");
    while (!list_empty(&router->generations)) {
        metric_add(M_REQUESTS_ABORTED, ABORT_DRAIN, 1);
        generation_fail(router, list_entry(router->generations.next, struct generation, link), &err);
    }
}

static void begin_stop(struct router *router)
{
    router->stopping = true;
    fail_all(router);
    dispatch_flush(router);
    uv_close((uv_handle_t *)&router->tick, NULL);
    if (router->supervisor) supervisor_stop(router->supervisor);
    else uv_close((uv_handle_t *)&router->wake, NULL);
}

static void publish_counts(struct router *router)
{
    uint32_t running = 0;

    for (int i = 0; i < router->num_replicas; i++) running += router->replicas[i].stats.running;
    __atomic_store_n(&router->running, running, __ATOMIC_RELAXED);
    __atomic_store_n(&router->waiting_count, router->num_waiting_choices, __ATOMIC_RELAXED);
}

void router_end_turn(struct router *router)
{
    if (!router->stopping) dispatch_waiting(router);
    dispatch_flush(router);
    publish_counts(router);
}

static void on_wake(uv_async_t *wake)
{
    struct router *router = wake->data;
    struct inbox_message *message;

    while ((message = ring_pop(&router->inbox))) {
        switch (message->kind) {
        case INBOX_SUBMIT: router_admit(router, message->gen); break;
        case INBOX_CANCEL: cancel(router, message->id, message->cause, message->at_ns); break;
        case INBOX_DRAIN_END: fail_all(router); break;
        case INBOX_STOP:
            if (!router->stopping) begin_stop(router);
            break;
        }
        free(message);
    }
    router_end_turn(router);
}

/* ---- deadlines ---- */

static void fail_expired(struct router *router, struct generation *gen, enum abort_cause cause)
{
    struct err err = { 0 };

    switch (cause) {
    case ABORT_QUEUE_TIMEOUT: err_set(&err, ERR_QUEUE_TIMEOUT, "The request waited in the queue longer than allowed."); break;
    case ABORT_TTFT_TIMEOUT: err_set(&err, ERR_TTFT_TIMEOUT, "No token was produced within the request's time limit."); break;
    case ABORT_TOTAL_TIMEOUT: err_set(&err, ERR_TOTAL_TIMEOUT, "The request did not finish within its time limit."); break;
    default:
        err_set(&err, ERR_REPLICA_LOST, "The replica that served this request was lost and none took over in time.");
        break;
    }
    gen->cancel_seen_ns = clock_now_ns();
    metric_add(M_REQUESTS_ABORTED, cause, 1);
    generation_fail(router, gen, &err);
}

static double oldest_wait_s(const struct router *router, int64_t now_ms)
{
    list_for_each(it, &router->generations) {
        const struct generation *gen = list_entry(it, struct generation, link);
        if (!gen->started) return (double)(now_ms - gen->spec.arrival_ms) / 1e3;
    }
    return 0;
}

/* Choices that ended per second, for Retry-After: a second in which nothing was asked says nothing. */
static void measure_rate(struct router *router, int64_t now_ms)
{
    int64_t took_ms = now_ms - router->rate_at_ms;

    if (took_ms < 1000) return;
    if (router->finished_total != router->rate_finished || router->num_live_choices) {
        double rate = (double)(router->finished_total - router->rate_finished) * 1e3 / (double)took_ms;
        double old = snapshot_load(&router->finished_per_s_bits);
        snapshot_store(&router->finished_per_s_bits, old > 0 ? 0.7 * old + 0.3 * rate : rate);
    }
    metric_set(M_QUEUE_OLDEST, 0, oldest_wait_s(router, now_ms));
    router->rate_at_ms = now_ms;
    router->rate_finished = router->finished_total;
}

static void on_tick(uv_timer_t *timer)
{
    struct router *router = timer->data;
    int64_t now_ms = clock_now_ms();
    struct generation *gen;

    while ((gen = deadlines_first(router, now_ms))) {
        enum abort_cause cause = ABORT_REPLICA_LOST;
        int64_t due_ms = generation_due_ms(router, gen, &cause);
        if (due_ms && due_ms <= now_ms) fail_expired(router, gen, cause);
        else deadlines_update(router, gen);
    }
    measure_rate(router, now_ms);
    router_end_turn(router);
}

/* ---- doors for other threads ---- */

static struct inbox_message *message_new(enum inbox_kind kind)
{
    struct inbox_message *message = calloc(1, sizeof *message);

    if (message) message->kind = kind;
    return message;
}

int router_submit(struct router *router, const struct generation_spec *spec, uint64_t *id, struct err *err)
{
    struct inbox_message *message = message_new(INBOX_SUBMIT);
    enum router_state state = router_state(router);
    int rc;

    if (!message) return err_set(err, ERR_NO_MEMORY, "out of memory");
    if (state == ROUTER_DRAINING) {
        free(message);
        return err_set(err, ERR_DRAINING, "The server is shutting down.");
    }
    if (state != ROUTER_READY) {
        free(message);
        return err_set(err, ERR_NO_REPLICA, "No replica is ready to serve this request.");
    }
    *id = __atomic_add_fetch(&router->next_id, 1, __ATOMIC_RELAXED);
    message->gen = generation_new(router, spec, *id, err);
    if (!message->gen) {
        free(message);
        return err->code;
    }
    __atomic_fetch_add(&router->in_server, 1, __ATOMIC_RELAXED);
    rc = ring_push(&router->inbox, message);
    if (rc < 0) {
        __atomic_fetch_sub(&router->in_server, 1, __ATOMIC_RELAXED);
        generation_free(message->gen);
        free(message);
        return rc == ERR_QUEUE_FULL ? err_set(err, rc, "The queue is full.") : err_set(err, ERR_DRAINING, "The server is shutting down.");
    }
    uv_async_send(&router->wake);
    return 0;
}

/* A control message is never lost for want of room: the loop is draining the ring, so the wait is short. */
static void push_control(struct router *router, enum inbox_kind kind, uint64_t id, enum cancel_cause cause)
{
    struct inbox_message *message;

    while (!(message = message_new(kind))) sched_yield();
    message->id = id;
    message->cause = cause;
    message->at_ns = clock_now_ns();
    int rc;
    while ((rc = ring_push(&router->inbox, message)) == ERR_QUEUE_FULL) {
        uv_async_send(&router->wake);
        sched_yield();
    }
    if (rc < 0) free(message);
    else uv_async_send(&router->wake);
}

void router_cancel(struct router *router, uint64_t id, enum cancel_cause cause) { push_control(router, INBOX_CANCEL, id, cause); }

void router_drain(struct router *router, int64_t timeout_ms)
{
    int64_t until = clock_now_ms() + timeout_ms;
    struct timespec nap = { .tv_nsec = 10 * 1000000 };

    router_set_state(router, ROUTER_DRAINING);
    while (__atomic_load_n(&router->in_server, __ATOMIC_RELAXED) && clock_now_ms() < until) nanosleep(&nap, NULL);
    push_control(router, INBOX_DRAIN_END, 0, CANCEL_DRAIN);
}

int router_wait_ready(struct router *router, int64_t timeout_ms, struct err *err)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&router->state_lock);
    while (router->state == ROUTER_LOADING && !router->refused_code && !rc)
        rc = pthread_cond_timedwait(&router->state_changed, &router->state_lock, &until);
    if (router->state != ROUTER_LOADING) {
        rc = 0;
    } else if (router->refused_code) {
        err_set(err, ERR_CONFIG, "%s", router->refused_message);
        rc = router->refused_code;
    } else {
        rc = err_set(err, ERR_NO_REPLICA, "no replica was ready in time");
    }
    pthread_mutex_unlock(&router->state_lock);
    return rc;
}

/* ---- life ---- */

static void *loop_main(void *arg)
{
    struct router *router = arg;

    uv_run(&router->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* The monotonic clock for timed waits, so that a clock jump wakes nobody. */
static void init_condition(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

static void router_free(struct router *router)
{
    for (int i = 0; i < METRICS_MAX_REPLICAS; i++) {
        buf_release(&router->replicas[i].out);
        free(router->replicas[i].logprobs);
    }
    affinity_release(&router->affinity);
    free(router->due);
    supervisor_free(router->supervisor);
    uv_loop_close(&router->loop);
    ring_release(&router->inbox);
    pthread_mutex_destroy(&router->state_lock);
    pthread_cond_destroy(&router->state_changed);
    free(router->scratch);
    free(router->by_id);
    free(router);
}

int router_start(struct router **out, const struct router_options *options, struct err *err)
{
    struct router *router;
    int rc;

    if (options->config->data_parallel_size > METRICS_MAX_REPLICAS)
        return err_set(err, ERR_CONFIG, "data_parallel_size %lld: at most %d replicas", (long long)options->config->data_parallel_size,
                       METRICS_MAX_REPLICAS);
    router = calloc(1, sizeof *router);
    if (!router) return err_set(err, ERR_NO_MEMORY, "router: out of memory");
    router->config = options->config;
    router->tokenizer = options->tokenizer;
    router->max_model_len = options->max_model_len;
    router->num_replicas = (int)options->config->data_parallel_size;
    router->rate_at_ms = clock_now_ms();
    list_init(&router->generations);
    list_init(&router->waiting);
    for (int i = 0; i < METRICS_MAX_REPLICAS; i++) list_init(&router->replicas[i].sent);
    pthread_mutex_init(&router->state_lock, NULL);
    init_condition(&router->state_changed);
    router->by_id_cap = 1024;
    router->by_id = calloc(router->by_id_cap, sizeof(struct generation *));
    uv_loop_init(&router->loop);
    uv_async_init(&router->loop, &router->wake, on_wake);
    uv_timer_init(&router->loop, &router->tick);
    router->wake.data = router->tick.data = router;
    uv_timer_start(&router->tick, on_tick, TICK_MS, TICK_MS);
    metric_set(M_QUEUE_LIMIT, 0, (double)options->config->max_queue_requests);
    rc = router->by_id ? affinity_init(&router->affinity, options->config->block_size) : ERR_NO_MEMORY;
    if (rc == 0) rc = ring_init(&router->inbox, (size_t)options->config->max_queue_requests + INBOX_SLACK);
    if (rc < 0) err_set(err, rc, "router: out of memory");
    if (rc == 0) rc = supervisor_start(&router->supervisor, &router->loop, options->config, &router_engine_events, router, err);
    if (rc == 0 && pthread_create(&router->thread, NULL, loop_main, router) != 0) rc = err_sys(err, ERR_INTERNAL, "router thread");
    if (rc == 0) {
        *out = router;
        return 0;
    }
    begin_stop(router);                       /* engines that were spawned are stopped on this thread */
    uv_run(&router->loop, UV_RUN_DEFAULT);
    router_free(router);
    return rc;
}

void router_stop(struct router *router)
{
    struct inbox_message *message;

    if (!router) return;
    router_set_state(router, ROUTER_DRAINING);
    push_control(router, INBOX_STOP, 0, CANCEL_DRAIN);
    pthread_join(router->thread, NULL);
    ring_close(&router->inbox);
    while ((message = ring_pop(&router->inbox))) {        /* submitted after the loop ended */
        struct err err = { 0 };
        if (message->kind == INBOX_SUBMIT) {
            struct generation_usage usage = { 0 };
            err_set(&err, ERR_DRAINING, "The server is shutting down.");
            message->gen->spec.sink->done(message->gen->spec.sink_arg, &usage, &err);
            generation_free(message->gen);
        }
        free(message);
    }
    router_free(router);
}
