/* dispatch.c - which replica runs a choice, and what becomes of its choices when it dies. The policy is in affinity.c. */
#include "router_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum {
    EXPECTED_OUTPUT_TOKENS = 256,    /* what a choice is expected to generate at most, for the load of its replica */
    MAX_LOSSES = 5,                  /* replicas that may crash under a choice without one token between: it may be what kills them */
};
static const size_t MAX_BACKLOG_BYTES = 64 << 20;     /* requests an engine has not read yet; more wait here */

/* The engine holds max_num_seqs + max_queue_requests + 1,024 sequences (ended ones may still be in there for a step). */
static void look_at_replicas(const struct router *router, struct placement placements[METRICS_MAX_REPLICAS])
{
    for (int i = 0; i < router->num_replicas; i++) {
        const struct replica_view *view = &router->replicas[i];
        int64_t window = view->max_num_seqs + router->config->max_queue_requests;
        bool room = view->ready && view->num_sent < window &&
                    view->out.len + supervisor_backlog(router->supervisor, i) < MAX_BACKLOG_BYTES;
        placements[i] = (struct placement){ .ready = room, .num_sent = view->num_sent, .max_num_seqs = view->max_num_seqs,
                                            .outstanding_tokens = view->outstanding_tokens, .num_given = view->num_given };
    }
}

/* A session stays where it is, a prompt goes where its beginning was computed, while these are not overloaded. */
static int pick_replica(const struct router *router, const struct choice *choice)
{
    const struct generation_spec *spec = &choice->gen->spec;
    const struct prompt_tokens *prompt = &spec->prompts[choice->prompt];
    struct placement placements[METRICS_MAX_REPLICAS];
    int n = router->num_replicas;

    look_at_replicas(router, placements);
    for (int i = 0; i < n; i++) placements[i].ready &= !(choice->stale >> i & 1);     /* it would have the id twice */
    int home = spec->session ? placement_session(placements, n, spec->session) : -1;
    if (home >= 0 && !placement_overloaded(placements, n, home)) return home;
    uint32_t among = 0;
    for (int i = 0; i < n; i++) among |= (uint32_t)placements[i].ready << i;
    uint32_t liked = n > 1 ? affinity_match(&router->affinity, prompt->ids, prompt->n, spec->cache_domain, among, NULL) : 0;
    return placement_choose(placements, n, liked);
}

static bool scratch_reserve(struct router *router, size_t n)
{
    if (n <= router->scratch_cap) return true;
    token_id *scratch = realloc(router->scratch, n * sizeof *scratch);
    if (!scratch) return false;
    router->scratch = scratch;
    router->scratch_cap = n;
    return true;
}

static bool send_choice(struct router *router, struct choice *choice, int replica)
{
    struct replica_view *view = &router->replicas[replica];
    const struct generation_spec *spec = &choice->gen->spec;
    const struct generation_params *params = spec->params;
    const struct prompt_tokens *prompt = &spec->prompts[choice->prompt];

    if (!scratch_reserve(router, prompt->n + choice->num_log)) return false;
    memcpy(router->scratch, prompt->ids, prompt->n * sizeof *prompt->ids);
    if (choice->num_log) memcpy(router->scratch + prompt->n, choice->log, choice->num_log * sizeof *choice->log);
    struct engine_request req = {
        .id = choice->gen->id << CHOICE_BITS | (uint64_t)choice->index,
        .group = choice->gen->id << CHOICE_BITS | (uint64_t)choice->prompt,
        .arrival_ms = spec->arrival_ms,
        .start_by_ms = choice->index ? 0 : generation_start_by_ms(choice->gen),      /* the others follow the first */
        .priority = params->priority,
        .max_tokens = (int32_t)choice->max_tokens,
        .min_tokens = params->min_tokens,
        .ignore_eos = params->ignore_eos,
        .sampling = params->sampling,
        .num_prompt = (uint32_t)prompt->n,
        .num_output = choice->num_log,
        .num_stop_ids = (uint32_t)params->n_stop_token_ids,
        .num_bias = (uint32_t)params->n_bias,
        .num_allowed = (uint32_t)params->n_allowed,
        .num_bad_ints = (uint32_t)params->n_bad_ints,
        .num_prompt_logprobs = params->num_prompt_logprobs,
        .score_prompt = params->score_prompt && (choice->num_scored + 1 < prompt->n || !choice->max_tokens),
        .tokens = router->scratch,
        .stop_ids = params->stop_token_ids,
        .bias_ids = params->bias_ids,
        .bias_values = params->bias_values,
        .allowed_ids = params->allowed_ids,
        .bad_words = params->bad_words,
    };
    req.sampling.choice = (uint32_t)(choice->index % params->n);
    memcpy(req.cache_domain, spec->cache_domain, sizeof req.cache_domain);
    ipc_put_submit(&view->out, &req);

    list_remove(&choice->link);
    list_push_back(&view->sent, &choice->link);
    if (choice->lost_ms) choice->gen->num_orphans--;
    if (router->num_replicas > 1) affinity_note(&router->affinity, prompt->ids, prompt->n, spec->cache_domain, replica);
    uint32_t left = choice->max_tokens - choice->num_log;
    choice->state = CHOICE_SENT;
    choice->sent_log = choice->num_log;
    choice->replica = replica;
    choice->reserved_tokens = (int64_t)prompt->n + choice->num_log + (left < EXPECTED_OUTPUT_TOKENS ? left : EXPECTED_OUTPUT_TOKENS);
    view->outstanding_tokens += choice->reserved_tokens;
    view->num_sent++;
    view->num_given++;
    return true;
}

void dispatch_waiting(struct router *router)
{
    list_for_each_safe(it, tmp, &router->waiting) {
        struct choice *choice = list_entry(it, struct choice, link);
        if (choice->gen->doomed) continue;
        int replica = pick_replica(router, choice);
        if (replica < 0 && choice->stale) continue;
        if (replica < 0 || !send_choice(router, choice, replica)) return;
    }
}

void dispatch_release(struct router *router, struct choice *choice)
{
    if (choice->state == CHOICE_FINISHED) return;
    list_remove(&choice->link);
    if (choice->state == CHOICE_SENT) {
        router->replicas[choice->replica].outstanding_tokens -= choice->reserved_tokens;
        router->replicas[choice->replica].num_sent--;
    } else if (choice->lost_ms) {
        choice->gen->num_orphans--;
    }
    router_leave_queue(router, choice);
    router->num_live_choices--;
    router->finished_total++;
    choice->state = CHOICE_FINISHED;
}

void dispatch_abort(struct router *router, struct choice *choice)
{
    struct msg_abort abort_msg = { .id = choice->gen->id << CHOICE_BITS | (uint64_t)choice->index, .seen_ns = choice->gen->cancel_seen_ns };

    if (choice->state == CHOICE_SENT) ipc_put(&router->replicas[choice->replica].out, MSG_ABORT, &abort_msg, sizeof abort_msg);
}

/* To the head of the queue; callers go from the newest to the oldest, so that they keep their order. */
static void wait_again(struct router *router, struct choice *choice, int64_t now_ms)
{
    struct replica_view *view = &router->replicas[choice->replica];
    struct generation *gen = choice->gen;

    list_remove(&choice->link);
    list_push_front(&router->waiting, &choice->link);
    view->outstanding_tokens -= choice->reserved_tokens;
    view->num_sent--;
    choice->state = CHOICE_WAITING;
    if (!choice->lost_ms) return;
    if (!gen->num_orphans++) gen->orphan_since_ms = now_ms;
    deadlines_update(router, gen);
}

/* From the newest: what a replica has not begun is taken back while it has more than its share. */
static void take_back(struct router *router, int replica, int32_t share, int64_t now_ms)
{
    struct replica_view *view = &router->replicas[replica];

    for (struct list *it = view->sent.prev, *before; it != &view->sent && view->num_sent > share; it = before) {
        struct choice *choice = list_entry(it, struct choice, link);
        before = it->prev;
        if (choice->num_log != choice->sent_log) continue;
        dispatch_abort(router, choice);
        choice->stale |= UINT32_C(1) << replica;
        wait_again(router, choice, now_ms);
    }
}

void dispatch_rebalance(struct router *router)
{
    int64_t now_ms = clock_now_ms();
    int32_t sent = 0, ready = 0;

    for (int i = 0; i < router->num_replicas; i++) {
        sent += router->replicas[i].num_sent;
        ready += router->replicas[i].ready;
    }
    for (int i = 0; ready > 1 && i < router->num_replicas; i++) {
        if (router->replicas[i].ready) take_back(router, i, (sent + ready - 1) / ready, now_ms);
    }
}

/* A dead replica says no end any more. */
static void forget_stale(struct router *router, int replica)
{
    list_for_each(it, &router->generations) {
        struct generation *gen = list_entry(it, struct generation, link);
        for (int32_t i = 0; i < gen->num_choices; i++) gen->choices[i].stale &= ~(UINT32_C(1) << replica);
    }
}

void dispatch_lost(struct router *router, int replica, bool crashed)
{
    struct replica_view *view = &router->replicas[replica];
    int64_t now_ms = clock_now_ms();

    while (!list_empty(&view->sent)) {
        struct choice *choice = list_entry(view->sent.prev, struct choice, link);
        if (!choice->lost_ms) choice->lost_ms = now_ms;
        choice->num_losses += crashed;
        if (choice->num_losses >= MAX_LOSSES) choice->gen->doomed = true;
        wait_again(router, choice, now_ms);
    }
    forget_stale(router, replica);
    view->logprobs_len = view->logprobs_pos = 0;
    buf_reset(&view->out);
    affinity_forget(&router->affinity, replica);
}

void dispatch_flush(struct router *router)
{
    for (int i = 0; i < router->num_replicas; i++) {
        struct replica_view *view = &router->replicas[i];
        if (!view->out.len && !view->out.failed) continue;
        if (!view->ready) {
            buf_reset(&view->out);
            continue;
        }
        if (view->out.failed || supervisor_send(router->supervisor, i, &view->out) < 0) {
            buf_reset(&view->out);
            supervisor_kill(router->supervisor, i, "engine does not take its requests");
        }
    }
}
