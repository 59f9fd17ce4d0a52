/* fake_router.h - the router's door with a thread of its own that echoes: each choice gets its prompt back, token by
 * token, until
 * max_tokens (length) or the prompt's end (stop). It stands in for src/router in tests of http/ only.
 * A prompt that begins with "!" is an order: !hang never ends, !fail fails at once, !late fails after two tokens. */
#ifndef FAKE_ROUTER_H
#define FAKE_ROUTER_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sluice/router.h>

#include "base/list.h"

struct fake_job {
    struct list link;
    struct generation_spec spec;
    uint64_t id;
    uint32_t step;
    bool cancelled;
};

struct router {
    pthread_t thread;
    pthread_mutex_t lock;
    struct list jobs;
    uint64_t next_id;
    int submitted, finished, cancelled;     /* under lock */
    int refuse_with;                        /* error code of every submit; 0 = accept */
    enum router_state state;                /* under lock */
    int pause_us;                           /* between steps */
    bool stopping;
    const struct tokenizer *tokenizer;
};

enum router_state router_state(const struct router *router)
{
    struct router *own = (struct router *)router;

    pthread_mutex_lock(&own->lock);
    enum router_state state = own->state;
    pthread_mutex_unlock(&own->lock);
    return state;
}

void router_load(const struct router *router, struct router_load *load)
{
    (void)router;
    *load = (struct router_load){ .in_server = 3, .running = 2, .waiting = 1, .kv_usage = 0.5 };
}

int router_retry_after_s(const struct router *router) { (void)router; return 7; }

int router_submit(struct router *router, const struct generation_spec *spec, uint64_t *id, struct err *err)
{
    struct fake_job *job = calloc(1, sizeof *job);

    pthread_mutex_lock(&router->lock);
    if (router->refuse_with || !job) {
        int code = router->refuse_with ? router->refuse_with : ERR_NO_MEMORY;
        pthread_mutex_unlock(&router->lock);
        free(job);
        return err_set(err, code, "refused by the test");
    }
    job->spec = *spec;
    *id = job->id = ++router->next_id;
    router->submitted++;
    list_push_back(&router->jobs, &job->link);
    pthread_mutex_unlock(&router->lock);
    return 0;
}

void router_cancel(struct router *router, uint64_t id, enum cancel_cause cause)
{
    (void)cause;
    pthread_mutex_lock(&router->lock);
    list_for_each(node, &router->jobs) {
        struct fake_job *job = list_entry(node, struct fake_job, link);
        if (job->id != id || job->cancelled) continue;
        job->cancelled = true;
        router->cancelled++;
    }
    pthread_mutex_unlock(&router->lock);
}

static bool fake_order(const struct fake_job *job, const char *order)
{
    const struct prompt_tokens *prompt = &job->spec.prompts[0];

    for (size_t i = 0; order[i]; i++) {
        if (i >= prompt->n || prompt->ids[i] != order[i]) return false;
    }
    return true;
}

/* All of a scored prompt at once. */
static void fake_scores(struct fake_job *job, int32_t choice, const struct generation_usage *usage)
{
    const struct prompt_tokens *prompt = &job->spec.prompts[choice / job->spec.params->n];
    struct token_logprob top[MAX_TOP_LOGPROBS] = { { 'x', -0.5f }, { 'y', -1.25f } };

    for (uint32_t i = 1; i < prompt->n; i++) {
        struct delta_token token = { .id = prompt->ids[i], .logprob = -0.75f, .num_top = job->spec.params->num_prompt_logprobs > 2 ? 2 :
            job->spec.params->num_prompt_logprobs, .top = top, .rank = 3 };
        struct text_delta delta = { .choice = choice, .text = "", .tokens = &token, .num_tokens = 1, .stop_index = -1,
            .stop_token = TOKEN_NONE, .prompt_begin = i };
        job->spec.sink->delta(job->spec.sink_arg, &delta, usage);
    }
}

/* One token of one choice. Returns true when the choice goes on. */
static bool fake_choice_step(struct router *router, struct fake_job *job, int32_t choice,
                             const struct generation_usage *usage)
{
    const struct prompt_tokens *prompt = &job->spec.prompts[choice / job->spec.params->n];
    int64_t max = job->spec.params->max_tokens < 0 ? 1 << 20 : job->spec.params->max_tokens;
    uint32_t last = (uint32_t)((int64_t)prompt->n < max ? (int64_t)prompt->n : max);
    struct token_logprob top[2] = { { 'x', -0.5f }, { 'y', -1.25f } };
    struct delta_token token = { .logprob = -0.5f, .num_top = 2, .top = top };
    struct text_delta delta = { .choice = choice, .stop_index = -1, .stop_token = TOKEN_NONE,
        .num_generated = job->step + 1 };

    if (job->step >= last && job->step > 0) return false;
    if (job->step == 0 && job->spec.params->score_prompt) fake_scores(job, choice, usage);
    if (last > 0) {
        token.id = prompt->ids[job->step];
        tokenizer_token_bytes(router->tokenizer, token.id, &delta.text, &delta.len);
        delta.tokens = &token;
        delta.num_tokens = 1;
    }
    bool ends = job->step + 1 >= last;
    if (ends) delta.finish = (int64_t)prompt->n > max ? FINISH_LENGTH : FINISH_EOS;
    job->spec.sink->delta(job->spec.sink_arg, &delta, usage);
    return !ends;
}

static void fake_usage(const struct fake_job *job, struct generation_usage *usage)
{
    *usage = (struct generation_usage){ 0 };
    for (size_t i = 0; i < job->spec.n_prompts; i++) usage->prompt_tokens += job->spec.prompts[i].n;
    for (size_t i = 0; i < job->spec.n_prompts; i++) {
        uint64_t made = job->step < job->spec.prompts[i].n ? job->step : job->spec.prompts[i].n;
        int64_t max = job->spec.params->max_tokens;
        if (max >= 0 && made > (uint64_t)max) made = (uint64_t)max;
        usage->completion_tokens += made * (uint64_t)job->spec.params->n;
    }
}

/* Returns true when the job is over; done() was called then. */
static bool fake_step(struct router *router, struct fake_job *job, bool cancelled)
{
    struct generation_usage usage;
    struct err err = { 0 };
    bool more = false;

    fake_usage(job, &usage);
    if (cancelled) err_set(&err, ERR_ENDED, "cancelled");
    else if (fake_order(job, "!fail") || (fake_order(job, "!late") && job->step == 2)) err_set(&err, ERR_REPLICA_LOST,
            "The replica was lost.");
    if (err.code) { job->spec.sink->done(job->spec.sink_arg, &usage, &err); return true; }
    if (fake_order(job, "!hang")) return false;
    int32_t choices = (int32_t)(job->spec.n_prompts * (size_t)job->spec.params->n);
    for (int32_t i = 0; i < choices; i++) more |= fake_choice_step(router, job, i, &usage);
    job->step++;
    if (more) return false;
    fake_usage(job, &usage);
    job->spec.sink->done(job->spec.sink_arg, &usage, NULL);
    return true;
}

static void *fake_main(void *arg)
{
    struct router *router = arg;
    struct timespec idle = { .tv_nsec = 200000 };

    for (;;) {
        pthread_mutex_lock(&router->lock);
        bool stop = router->stopping && list_empty(&router->jobs);
        struct list *node = router->jobs.next;
        pthread_mutex_unlock(&router->lock);
        if (stop) return NULL;
        if (router->pause_us) idle.tv_nsec = router->pause_us * 1000L;
        if (node == &router->jobs || router->pause_us) nanosleep(&idle, NULL);
        while (node != &router->jobs) {
            struct fake_job *job = list_entry(node, struct fake_job, link);
            pthread_mutex_lock(&router->lock);
            bool cancelled = job->cancelled || router->stopping;
            pthread_mutex_unlock(&router->lock);
            bool over = fake_step(router, job, cancelled);
            pthread_mutex_lock(&router->lock);
            node = job->link.next;
            if (over) {
                list_remove(&job->link);
                router->finished++;
                free(job);
            }
            pthread_mutex_unlock(&router->lock);
        }
    }
}

/* pause: microseconds between two steps, or NULL. */
static void fake_router_start(struct router *router, const struct tokenizer *tokenizer, const char *pause)
{
    *router = (struct router){ .state = ROUTER_READY, .tokenizer = tokenizer, .pause_us = pause ? (int)strtol(pause, NULL, 10) : 0 };
    pthread_mutex_init(&router->lock, NULL);
    list_init(&router->jobs);
    pthread_create(&router->thread, NULL, fake_main, router);
}

static void fake_router_stop(struct router *router)
{
    pthread_mutex_lock(&router->lock);
    router->stopping = true;
    pthread_mutex_unlock(&router->lock);
    pthread_join(router->thread, NULL);
    pthread_mutex_destroy(&router->lock);
}

static inline void fake_router_set(struct router *router, enum router_state state, int refuse_with)
{
    pthread_mutex_lock(&router->lock);
    router->state = state;
    router->refuse_with = refuse_with;
    pthread_mutex_unlock(&router->lock);
}

static inline int fake_router_count(struct router *router, const int *count)
{
    pthread_mutex_lock(&router->lock);
    int value = *count;
    pthread_mutex_unlock(&router->lock);
    return value;
}

#endif
