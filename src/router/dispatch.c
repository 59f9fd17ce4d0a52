/* dispatch.c - which replica runs a choice: the least loaded one, but the one that has seen the same beginning of the prompt
 * while it is not overloaded, because its prefix cache then saves the prefill. */
#include "router_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"

enum {
    AFFINITY_TOKENS = 64,            /* the first KV block at its default size decides */
    AFFINITY_SLACK_TOKENS = 4096,    /* the favourite may be this much busier than the idlest, plus a quarter */
};

/* Rendezvous hashing: each replica scores the prompt's head, the highest score wins; a replica that comes or goes moves only
 * its own share of the prompts. */
static int favourite(const struct router *router, const struct prompt_tokens *prompt, const uint8_t domain[32])
{
    size_t n = prompt->n < AFFINITY_TOKENS ? prompt->n : AFFINITY_TOKENS;
    uint64_t head = hash_bytes(prompt->ids, n * sizeof *prompt->ids, hash_bytes(domain, 32, 0)), best_score = 0;
    int best = -1;

    for (int i = 0; i < router->num_replicas; i++) {
        if (!router->replicas[i].ready) continue;
        uint64_t score = hash_bytes(&i, sizeof i, head);
        if (best >= 0 && score <= best_score) continue;
        best = i;
        best_score = score;
    }
    return best;
}

static int pick_replica(const struct router *router, const struct choice *choice)
{
    const struct generation_spec *spec = &choice->gen->spec;
    int idlest = -1;

    for (int i = 0; i < router->num_replicas; i++) {
        if (!router->replicas[i].ready) continue;
        if (idlest < 0 || router->replicas[i].outstanding_tokens < router->replicas[idlest].outstanding_tokens) idlest = i;
    }
    if (idlest < 0) return -1;
    int liked = favourite(router, &spec->prompts[choice->prompt], spec->cache_domain);
    int64_t least = router->replicas[idlest].outstanding_tokens;
    return router->replicas[liked].outstanding_tokens <= least + least / 4 + AFFINITY_SLACK_TOKENS ? liked : idlest;
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
        .priority = params->priority,
        .max_tokens = (int32_t)choice->max_tokens,
        .min_tokens = params->min_tokens,
        .ignore_eos = params->ignore_eos,
        .sampling = params->sampling,
        .num_prompt = (uint32_t)prompt->n,
        .num_output = choice->num_log,
        .num_stop_ids = (uint32_t)params->n_stop_token_ids,
        .num_bias = (uint32_t)params->n_bias,
        .tokens = router->scratch,
        .stop_ids = params->stop_token_ids,
        .bias_ids = params->bias_ids,
        .bias_values = params->bias_values,
    };
    req.sampling.choice = (uint32_t)(choice->index % params->n);
    memcpy(req.cache_domain, spec->cache_domain, sizeof req.cache_domain);
    ipc_put_submit(&view->out, &req);

    list_remove(&choice->link);
    list_push_back(&view->sent, &choice->link);
    choice->state = CHOICE_SENT;
    choice->replica = replica;
    choice->reserved_tokens = (int64_t)prompt->n + choice->max_tokens;
    view->outstanding_tokens += choice->reserved_tokens;
    view->num_sent++;
    return true;
}

void dispatch_waiting(struct router *router)
{
    list_for_each_safe(it, tmp, &router->waiting) {
        struct choice *choice = list_entry(it, struct choice, link);
        int replica = pick_replica(router, choice);
        if (replica < 0 || !send_choice(router, choice, replica)) return;
    }
}

void dispatch_release(struct router *router, struct choice *choice)
{
    list_remove(&choice->link);
    if (choice->state == CHOICE_SENT) {
        router->replicas[choice->replica].outstanding_tokens -= choice->reserved_tokens;
        router->replicas[choice->replica].num_sent--;
    }
    choice->state = CHOICE_FINISHED;
}

void dispatch_abort(struct router *router, struct choice *choice)
{
    struct msg_abort abort_msg = { .id = choice->gen->id << CHOICE_BITS | (uint64_t)choice->index };

    if (choice->state == CHOICE_SENT) ipc_put(&router->replicas[choice->replica].out, MSG_ABORT, &abort_msg, sizeof abort_msg);
}

void dispatch_lost(struct router *router, int replica)
{
    struct replica_view *view = &router->replicas[replica];
    int64_t now = clock_now_ms();

    /* from the back, each to the front: they keep their order and stand before requests that never ran */
    while (!list_empty(&view->sent)) {
        struct choice *choice = list_entry(view->sent.prev, struct choice, link);
        list_remove(&choice->link);
        list_push_front(&router->waiting, &choice->link);
        choice->state = CHOICE_WAITING;
        if (!choice->lost_ms) choice->lost_ms = now;
    }
    view->outstanding_tokens = 0;
    view->num_sent = 0;
    view->logprobs_len = 0;
    buf_reset(&view->out);
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
