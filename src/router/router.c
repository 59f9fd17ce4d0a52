/* router.c - the loop: inbox, events of the engines, deadlines, state. Choices live in generation.c, placement in dispatch.c. */
#include "router_impl.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/clock.h"
#include "base/log.h"

enum { TICK_MS = 20, INBOX_SLACK = 4096 };
static const float MAX_SAMPLE = 1e9f;        /* an engine's seconds or tokens: more is not believed */
_Static_assert((int)SAMPLE_STEP_PREFILL == (int)PHASE_PREFILL && (int)SAMPLE_STEP_MIXED == (int)PHASE_MIXED, "samples of steps are phases");

enum inbox_kind { INBOX_SUBMIT, INBOX_CANCEL, INBOX_DRAIN_END, INBOX_STOP };

struct inbox_message {
    enum inbox_kind kind;
    struct generation *gen;          /* SUBMIT */
    uint64_t id;                     /* CANCEL */
    enum cancel_cause cause;
    int64_t at_ns;
};

/* ---- snapshots any thread may read ---- */

static void store_double(uint64_t *bits, double value)
{
    uint64_t fresh;

    memcpy(&fresh, &value, sizeof fresh);
    __atomic_store_n(bits, fresh, __ATOMIC_RELAXED);
}

static double load_double(const uint64_t *bits)
{
    uint64_t now = __atomic_load_n(bits, __ATOMIC_RELAXED);
    double value;

    memcpy(&value, &now, sizeof value);
    return value;
}

enum router_state router_state(const struct router *router)
{
    return (enum router_state)__atomic_load_n(&router->state, __ATOMIC_ACQUIRE);
}

double router_load_progress(const struct router *router) { return load_double(&router->progress_bits); }

void router_load(const struct router *router, struct router_load *load)
{
    load->in_server = __atomic_load_n(&router->in_server, __ATOMIC_RELAXED);
    load->running = __atomic_load_n(&router->running, __ATOMIC_RELAXED);
    load->waiting = __atomic_load_n(&router->waiting_count, __ATOMIC_RELAXED);
    load->kv_usage = load_double(&router->kv_usage_bits);
}

int router_retry_after_s(const struct router *router)
{
    double rate = load_double(&router->finished_per_s_bits);
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

/* ---- map of generations: open addressing, at most half full ---- */

static size_t home_of(const struct router *router, uint64_t id) { return (id * 0x9e3779b97f4a7c15u >> 20) & (router->by_id_cap - 1); }

struct generation *router_find(const struct router *router, uint64_t id)
{
    for (size_t i = home_of(router, id); router->by_id[i]; i = (i + 1) & (router->by_id_cap - 1)) {
        if (router->by_id[i]->id == id) return router->by_id[i];
    }
    return NULL;
}

static void map_put(struct router *router, struct generation *gen)
{
    size_t i = home_of(router, gen->id);

    while (router->by_id[i]) i = (i + 1) & (router->by_id_cap - 1);
    router->by_id[i] = gen;
}

static bool map_grow(struct router *router)
{
    struct generation **old = router->by_id;
    size_t old_cap = router->by_id_cap;

    if ((router->num_generations + 1) * 2 <= old_cap) return true;
    struct generation **bigger = calloc(old_cap * 2, sizeof(struct generation *));
    if (!bigger) return false;
    router->by_id = bigger;
    router->by_id_cap = old_cap * 2;
    for (size_t i = 0; i < old_cap; i++) {
        if (old[i]) map_put(router, old[i]);
    }
    free(old);
    return true;
}

static void map_remove(struct router *router, uint64_t id)
{
    size_t mask = router->by_id_cap - 1, i = home_of(router, id);

    while (router->by_id[i] && router->by_id[i]->id != id) i = (i + 1) & mask;
    if (!router->by_id[i]) return;
    router->by_id[i] = NULL;
    /* what stood behind it in the same run moves up, or look-ups would end too early */
    for (i = (i + 1) & mask; router->by_id[i]; i = (i + 1) & mask) {
        struct generation *gen = router->by_id[i];
        router->by_id[i] = NULL;
        map_put(router, gen);
    }
}

static void publish_counts(struct router *router)
{
    uint32_t running = 0;

    for (int i = 0; i < router->num_replicas; i++) running += router->replicas[i].stats.running;
    __atomic_store_n(&router->running, running, __ATOMIC_RELAXED);
    __atomic_store_n(&router->waiting_count, router->num_waiting_choices, __ATOMIC_RELAXED);
}

void router_leave_queue(struct router *router, struct choice *choice)
{
    if (!choice->queued) return;
    choice->queued = false;
    router->num_waiting_choices--;
    router->num_waiting_tokens -= choice->gen->spec.prompts[choice->prompt].n;
}

void router_forget(struct router *router, struct generation *gen)
{
    if (!gen->admitted) return;
    gen->admitted = false;
    deadlines_remove(router, gen);
    map_remove(router, gen->id);
    list_remove(&gen->link);
    router->num_generations--;
    __atomic_fetch_sub(&router->in_server, 1, __ATOMIC_RELAXED);
    if (!router->num_generations) router_check(router);
}

void router_check(const struct router *router)
{
    uint64_t live = 0, waiting = 0, tokens = 0, sent = 0, num_generations = 0;

    list_for_each(it, &router->generations) {
        const struct generation *gen = list_entry(it, struct generation, link);
        int32_t orphans = 0;
        num_generations++;
        BUG_ON(router_find(router, gen->id) != gen || (gen->due_at && router->due[gen->due_at] != gen));
        for (int32_t i = 0; i < gen->num_choices; i++) {
            const struct choice *choice = &gen->choices[i];
            live += choice->state != CHOICE_FINISHED;
            waiting += choice->queued;
            if (choice->queued) tokens += gen->spec.prompts[choice->prompt].n;
            sent += choice->state == CHOICE_SENT;
            orphans += choice->state == CHOICE_WAITING && choice->lost_ms;
        }
        BUG_ON(orphans != gen->num_orphans);
    }
    BUG_ON(num_generations != router->num_generations || router->num_due > num_generations);
    BUG_ON(live != router->num_live_choices || waiting != router->num_waiting_choices || tokens != router->num_waiting_tokens);
    for (int i = 0; i < router->num_replicas; i++) {
        const struct replica_view *view = &router->replicas[i];
        BUG_ON(view->num_sent < 0 || view->outstanding_tokens < 0 || (!view->num_sent && view->outstanding_tokens));
        BUG_ON(list_empty(&view->sent) != !view->num_sent);
        sent -= (uint64_t)view->num_sent;
    }
    BUG_ON(sent || (!live && !list_empty(&router->waiting)));
}

/* ---- admission ---- */

/* 0 with room made in map and heap, or why the request is not taken. What runs at once never counts as queued, so that a
 * request larger than the queue is served by an idle server. */
static int refuse(struct router *router, const struct generation *gen, uint64_t prompt_tokens, struct err *err)
{
    const struct config *config = router->config;
    int64_t live = router->num_live_choices, capacity = 0;

    switch (router_state(router)) {
    case ROUTER_DRAINING: return err_set(err, ERR_DRAINING, "The server is shutting down.");
    case ROUTER_READY: break;
    default: return err_set(err, ERR_NO_REPLICA, "No replica is ready to serve this request.");
    }
    for (int i = 0; i < router->num_replicas; i++) {
        if (router->replicas[i].ready) capacity += router->replicas[i].max_num_seqs;
    }
    if (live + gen->num_choices > capacity && live - capacity >= config->max_queue_requests)
        return err_set(err, ERR_QUEUE_FULL, "The queue is full: %lld requests are waiting.", (long long)(live - capacity));
    if (live + gen->num_choices > capacity && router->num_waiting_tokens &&
        router->num_waiting_tokens + prompt_tokens > (uint64_t)config->max_queue_tokens)
        return err_set(err, ERR_QUEUE_FULL, "The queue is full: %llu prompt tokens are waiting.",
                       (unsigned long long)router->num_waiting_tokens);
    if (!map_grow(router) || !deadlines_reserve(router, router->num_generations + 1)) return err_set(err, ERR_NO_MEMORY, "out of memory");
    return 0;
}

/* A choice with nothing to generate ends at once. */
static void finish_empty(struct generation *gen, struct choice *choice)
{
    struct text_delta delta = { .choice = choice->index, .text = "", .finish = FINISH_LENGTH, .stop_index = -1, .stop_token = TOKEN_NONE };

    choice->state = CHOICE_FINISHED;
    gen->num_finished++;
    gen->spec.sink->delta(gen->spec.sink_arg, &delta, &gen->usage);
}

static void enqueue(struct router *router, struct choice *choice)
{
    choice->queued = true;
    router->num_live_choices++;
    router->num_waiting_choices++;
    router->num_waiting_tokens += choice->gen->spec.prompts[choice->prompt].n;
    list_push_back(&router->waiting, &choice->link);
}

static void admit(struct router *router, struct generation *gen)
{
    uint64_t prompt_tokens = gen->usage.prompt_tokens;
    struct err err = { 0 };

    if (refuse(router, gen, prompt_tokens * (uint64_t)gen->spec.params->n, &err) < 0) {
        __atomic_fetch_sub(&router->in_server, 1, __ATOMIC_RELAXED);
        gen->spec.sink->done(gen->spec.sink_arg, &gen->usage, &err);
        generation_free(gen);
        return;
    }
    gen->admitted = true;
    router->num_generations++;
    map_put(router, gen);
    list_push_back(&router->generations, &gen->link);
    deadlines_update(router, gen);
    metric_add(M_PROMPT_TOKENS, 0, (int64_t)prompt_tokens);
    metric_observe(M_REQ_PROMPT_TOKENS, 0, (double)prompt_tokens);
    metric_observe(M_PARAMS_N, 0, gen->spec.params->n);
    metric_observe(M_PARAMS_MAX_TOKENS, 0, gen->choices[0].max_tokens);
    for (int32_t i = 0; i < gen->num_choices; i++) {
        if (!choice_has_work(&gen->choices[i])) finish_empty(gen, &gen->choices[i]);
        else enqueue(router, &gen->choices[i]);
    }
    if (gen->num_finished == gen->num_choices) generation_finish(router, gen);
}

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

static void end_of_turn(struct router *router)
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
        case INBOX_SUBMIT: admit(router, message->gen); break;
        case INBOX_CANCEL: cancel(router, message->id, message->cause, message->at_ns); break;
        case INBOX_DRAIN_END: fail_all(router); break;
        case INBOX_STOP:
            if (!router->stopping) begin_stop(router);
            break;
        }
        free(message);
    }
    end_of_turn(router);
}

/* ---- events of the supervisor ---- */

static void on_progress(void *arg, int replica, double share)
{
    struct router *router = arg;

    (void)replica;
    store_double(&router->progress_bits, share);
}

static void on_ready(void *arg, int replica, const struct msg_ready *info)
{
    struct router *router = arg;
    struct replica_view *view = &router->replicas[replica];

    view->ready = true;
    view->max_num_seqs = info->max_num_seqs < router->config->max_num_seqs ? info->max_num_seqs : (int32_t)router->config->max_num_seqs;
    view->vocab_size = info->vocab_size;
    view->stats = (struct engine_stats){ .blocks_total = (uint32_t)info->num_blocks };
    metric_set(M_KV_BLOCKS, replica, info->num_blocks);
    metric_set(M_KV_FREE, replica, info->num_blocks);
    router_set_state(router, ROUTER_READY);
    dispatch_rebalance(router);
    end_of_turn(router);
}

static void on_lost(void *arg, int replica, const struct err *why, bool crashed)
{
    struct router *router = arg;
    bool any = false;

    (void)why;
    router->replicas[replica].ready = false;
    router->replicas[replica].stats = (struct engine_stats){ 0 };
    metric_set(M_RUNNING, replica, 0);
    metric_set(M_WAITING, replica, 0);
    metric_set(M_THROTTLED, replica, 0);
    dispatch_lost(router, replica, crashed);
    for (int i = 0; i < router->num_replicas; i++) any |= router->replicas[i].ready;
    if (!any) router_set_state(router, ROUTER_DOWN);
    end_of_turn(router);
}

/* The same configuration and model will not do better elsewhere; anything else is final once no replica could start. */
static void on_refused(void *arg, int replica, int exit_code, const char *message)
{
    struct router *router = arg;
    uint32_t all = (UINT32_C(1) << router->num_replicas) - 1;

    pthread_mutex_lock(&router->state_lock);
    router->refused_mask |= UINT32_C(1) << replica;
    if (!router->refused_code && (exit_code == EXIT_CONFIG || router->refused_mask == all)) {
        router->refused_code = exit_code;
        memcpy(router->refused_message, message, strnlen(message, sizeof router->refused_message - 1));
    }
    pthread_cond_broadcast(&router->state_changed);
    pthread_mutex_unlock(&router->state_lock);
}

static bool on_busy(void *arg, int replica) { return ((struct router *)arg)->replicas[replica].num_sent > 0; }

static void mirror_stats(struct router *router, int replica, const struct engine_stats *stats)
{
    double usage = 0;
    int ready = 0;

    router->replicas[replica].stats = *stats;
    metric_set(M_RUNNING, replica, stats->running);
    metric_set(M_WAITING, replica, stats->waiting);
    metric_set(M_KV_USED, replica, stats->blocks_used);
    metric_set(M_KV_CACHED, replica, stats->blocks_cached);
    metric_set(M_KV_FREE, replica, (double)stats->blocks_total - stats->blocks_used - stats->blocks_cached);
    metric_set(M_KV_USAGE, replica, stats->blocks_total ? (double)stats->blocks_used / stats->blocks_total : 0);
    metric_set(M_CACHE_HIT, replica, (double)stats->cache_hit_tokens);
    metric_set(M_CACHE_MISS, replica, (double)stats->cache_miss_tokens);
    metric_set(M_PREEMPTIONS, replica, (double)stats->preemptions);
    metric_set(M_CORRUPTED, replica, (double)stats->corrupted);
    metric_set(M_MEMORY_FREE, replica, (double)stats->free_bytes);
    metric_set(M_MEMORY_HEADROOM, replica, (double)stats->free_bytes - (double)stats->headroom_bytes);
    metric_set(M_THROTTLED, replica, stats->throttled);
    for (int i = 0; i < router->num_replicas; i++) {
        const struct replica_view *view = &router->replicas[i];
        if (!view->ready || !view->stats.blocks_total) continue;
        usage += (double)view->stats.blocks_used / view->stats.blocks_total;
        ready++;
    }
    store_double(&router->kv_usage_bits, ready ? usage / ready : 0);
}

static bool keep_logprobs(struct replica_view *view, const void *payload, size_t len)
{
    if (len > view->logprobs_cap) {
        uint8_t *bigger = realloc(view->logprobs, len);
        if (!bigger) return false;
        view->logprobs = bigger;
        view->logprobs_cap = len;
    }
    memcpy(view->logprobs, payload, len);
    view->logprobs_len = len;
    view->logprobs_pos = 0;
    return true;
}

/* The row of this event in the frame that came before; rows stand in the order of the events. They are copied out: the
 * payload is not aligned. */
static bool take_logprobs(struct replica_view *view, const struct token_event *event, struct token_logprob top[MAX_TOP_LOGPROBS])
{
    struct logprob_row_head head;

    if (!event->num_top) return true;
    if (event->num_top > MAX_TOP_LOGPROBS || view->logprobs_len - view->logprobs_pos < sizeof head) return false;
    memcpy(&head, view->logprobs + view->logprobs_pos, sizeof head);
    size_t bytes = event->num_top * sizeof *top;
    if (head.id != event->id || head.index != event->index || head.n != event->num_top ||
        view->logprobs_len - view->logprobs_pos - sizeof head < bytes)
        return false;
    memcpy(top, view->logprobs + view->logprobs_pos + sizeof head, bytes);
    view->logprobs_pos += sizeof head + bytes;
    for (uint16_t i = 0; i < event->num_top; i++) {
        if (top[i].id < 0 || top[i].id >= view->vocab_size || isnan(top[i].logprob)) return false;
    }
    return true;
}

/* The choice of an event. *found stays NULL for one that has ended here (cancelled, or stopped by a string) or was taken back
 * while the event was under way. False: this replica cannot know of such a choice. */
static bool find_choice(const struct router *router, int replica, uint64_t id, uint8_t finish, struct choice **found)
{
    struct generation *gen = router_find(router, id >> CHOICE_BITS);
    uint64_t index = id & (MAX_GENERATION_CHOICES - 1);
    uint32_t bit = UINT32_C(1) << replica;

    if (!gen) return id >> CHOICE_BITS <= __atomic_load_n(&router->next_id, __ATOMIC_RELAXED);
    if (index >= (uint64_t)gen->num_choices) return false;
    struct choice *choice = &gen->choices[index];
    if (choice->stale & bit) {
        if (finish != FINISH_NONE) choice->stale &= ~bit;      /* that was its last word about it */
        return true;
    }
    if (choice->state == CHOICE_FINISHED) return true;
    if (choice->state != CHOICE_SENT || choice->replica != replica) return false;
    *found = choice;
    return true;
}

static bool on_events(struct router *router, int replica, const uint8_t *payload, size_t len)
{
    struct replica_view *view = &router->replicas[replica];
    struct token_logprob top[MAX_TOP_LOGPROBS];

    if (len % sizeof(struct token_event)) return false;
    router->now_ns = clock_now_ns();
    for (size_t at = 0; at < len; at += sizeof(struct token_event)) {
        struct choice *choice = NULL;
        struct token_event event;
        memcpy(&event, payload + at, sizeof event);
        if (!take_logprobs(view, &event, top) || !find_choice(router, replica, event.id, event.finish, &choice)) return false;
        if (choice && !choice_token(router, choice, &event, event.num_top ? top : NULL)) return false;
    }
    bool all_taken = view->logprobs_pos == view->logprobs_len;
    view->logprobs_len = view->logprobs_pos = 0;
    return all_taken;
}

/* One row; *at moves behind it. */
static bool read_scored(const struct replica_view *view, const uint8_t *payload, size_t len, size_t *at, struct scored_token *out)
{
    if (len - *at < sizeof out->head) return false;
    memcpy(&out->head, payload + *at, sizeof out->head);
    size_t bytes = out->head.n * sizeof out->top[0];
    *at += sizeof out->head;
    if (out->head.n > MAX_TOP_LOGPROBS || len - *at < bytes) return false;
    memcpy(out->top, payload + *at, bytes);
    *at += bytes;
    for (uint32_t i = 0; i < out->head.n; i++) {
        if (out->top[i].id < 0 || out->top[i].id >= view->vocab_size || isnan(out->top[i].logprob)) return false;
    }
    return true;
}

static bool pass_scored(struct router *router, int replica, const struct scored_token *scored, size_t n)
{
    struct choice *choice = NULL;

    if (!n) return true;
    if (!find_choice(router, replica, scored[0].head.id, FINISH_NONE, &choice)) return false;
    return !choice || choice_scored(choice, scored, n);
}

static bool on_prompt_logprobs(struct router *router, int replica, const uint8_t *payload, size_t len)
{
    struct scored_token scored[MAX_SCORED];
    size_t n = 0;

    for (size_t at = 0; at < len; n++) {
        struct scored_token next;
        if (!read_scored(&router->replicas[replica], payload, len, &at, &next)) return false;
        if (n == MAX_SCORED || (n && next.head.id != scored[0].head.id)) {
            if (!pass_scored(router, replica, scored, n)) return false;
            n = 0;
        }
        scored[n] = next;
    }
    return pass_scored(router, replica, scored, n);
}

/* Into the histograms, once all of them are sane. */
static bool on_samples(int replica, const uint8_t *payload, size_t len)
{
    static const enum metric metrics[SAMPLE_KINDS] = {
        [SAMPLE_STEP_PREFILL] = M_STEP, [SAMPLE_STEP_DECODE] = M_STEP, [SAMPLE_STEP_MIXED] = M_STEP, [SAMPLE_STEP_HOST] = M_STEP_HOST,
        [SAMPLE_STEP_TOKENS] = M_STEP_TOKENS, [SAMPLE_STEP_SEQUENCES] = M_STEP_SEQUENCES, [SAMPLE_CANCEL] = M_CANCEL_LATENCY,
        [SAMPLE_BLOCK_LIFETIME] = M_BLOCK_LIFETIME, [SAMPLE_BLOCK_IDLE] = M_BLOCK_IDLE, [SAMPLE_BLOCK_REUSE] = M_BLOCK_REUSE,
    };
    struct engine_sample sample;

    if (len % sizeof sample) return false;
    for (size_t at = 0; at < len; at += sizeof sample) {
        memcpy(&sample, payload + at, sizeof sample);
        if (sample.kind >= SAMPLE_KINDS || !(sample.value >= 0 && sample.value <= MAX_SAMPLE)) return false;
    }
    for (size_t at = 0; at < len; at += sizeof sample) {
        memcpy(&sample, payload + at, sizeof sample);
        int index = sample.kind <= SAMPLE_STEP_MIXED ? replica * PHASE_COUNT + (int)sample.kind : sample.kind == SAMPLE_CANCEL ? 0 : replica;
        metric_observe(metrics[sample.kind], index, sample.value);
    }
    return true;
}

static bool on_begun(struct router *router, int replica, const uint8_t *payload, size_t len)
{
    if (len % sizeof(uint64_t)) return false;
    for (size_t at = 0; at < len; at += sizeof(uint64_t)) {
        struct choice *choice = NULL;
        uint64_t id;
        memcpy(&id, payload + at, sizeof id);
        if (!find_choice(router, replica, id, FINISH_NONE, &choice)) return false;
        if (choice) choice->gen->begun = true;
    }
    return true;
}

static void on_frame(void *arg, int replica, const struct frame_head *head, const void *payload)
{
    struct router *router = arg;
    struct engine_stats stats;
    bool ok = false;

    switch (head->type) {
    case MSG_LOGPROBS: ok = keep_logprobs(&router->replicas[replica], payload, head->len); break;
    case MSG_EVENTS: ok = on_events(router, replica, payload, head->len); break;
    case MSG_BEGUN: ok = on_begun(router, replica, payload, head->len); break;
    case MSG_SAMPLES: ok = on_samples(replica, payload, head->len); break;
    case MSG_PROMPT_LOGPROBS: ok = on_prompt_logprobs(router, replica, payload, head->len); break;
    case MSG_STATS:
        ok = head->len == sizeof stats;
        if (!ok) break;
        memcpy(&stats, payload, sizeof stats);
        ok = (uint64_t)stats.blocks_used + stats.blocks_cached <= stats.blocks_total;
        if (ok) mirror_stats(router, replica, &stats);
        break;
    }
    if (!ok) supervisor_kill(router->supervisor, replica, "engine broke the protocol");
    else if (head->type == MSG_EVENTS) end_of_turn(router);
}

static void on_stopped(void *arg)
{
    struct router *router = arg;

    router->supervisor_stopped = true;
    uv_close((uv_handle_t *)&router->wake, NULL);
}

static const struct supervisor_events supervisor_callbacks = {
    .progress = on_progress, .ready = on_ready, .lost = on_lost, .refused = on_refused, .busy = on_busy,
    .frame = on_frame, .stopped = on_stopped,
};

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
        double old = load_double(&router->finished_per_s_bits);
        store_double(&router->finished_per_s_bits, old > 0 ? 0.7 * old + 0.3 * rate : rate);
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
    end_of_turn(router);
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
    if (rc == 0) rc = supervisor_start(&router->supervisor, &router->loop, options->config, &supervisor_callbacks, router, err);
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
