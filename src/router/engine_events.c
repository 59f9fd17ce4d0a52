/* engine_events.c - what the engines say, as the supervisor passes it on: their state, and their frames. A frame that breaks the
 * protocol ends its engine. */
#include "router_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static const float MAX_SAMPLE = 1e9f;        /* an engine's seconds or tokens: more is not believed */
_Static_assert((int)SAMPLE_STEP_PREFILL == (int)PHASE_PREFILL && (int)SAMPLE_STEP_MIXED == (int)PHASE_MIXED, "samples of steps are phases");

/* ---- an engine's life ---- */

static void on_progress(void *arg, int replica, double share)
{
    struct router *router = arg;

    (void)replica;
    snapshot_store(&router->progress_bits, share);
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
    router_end_turn(router);
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
    router_end_turn(router);
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
    snapshot_store(&router->kv_usage_bits, ready ? usage / ready : 0);
}

/* ---- frames: none of them is believed before it is checked ---- */

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
    else if (head->type == MSG_EVENTS) router_end_turn(router);
}

static void on_stopped(void *arg)
{
    struct router *router = arg;

    router->supervisor_stopped = true;
    uv_close((uv_handle_t *)&router->wake, NULL);
}

const struct supervisor_events router_engine_events = {
    .progress = on_progress, .ready = on_ready, .lost = on_lost, .refused = on_refused, .busy = on_busy,
    .frame = on_frame, .stopped = on_stopped,
};
