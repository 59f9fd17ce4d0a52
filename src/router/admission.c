/* admission.c - which generations the router has: who is taken in, the map of them, the counters of the queue, and the check that
 * they all agree. */
#include "router_impl.h"

#include <stdlib.h>

#include "base/bug.h"

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

/* ---- in and out ---- */

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

void router_admit(struct router *router, struct generation *gen)
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

/* ---- check ---- */

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
