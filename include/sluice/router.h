/* router.h - from a validated request to its replica and back: the place where both lanes meet.
 * Flow in:  worker -> router_submit -> (ring) -> loop: admission, replica choice, engine_request per choice -> ipc.
 * Flow out: ipc -> loop: token log, detokenize, stop strings -> sink callbacks -> http/stream outbox.
 * Thread: all state belongs to the loop thread; router_submit, router_cancel, router_state, router_load may be called from any.
 * Bounds: max_queue_requests and max_queue_tokens waiting; the ring holds max_queue_requests + 1024 messages. */
#ifndef SLUICE_ROUTER_H
#define SLUICE_ROUTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/config.h>
#include <sluice/err.h>
#include <sluice/request.h>
#include <sluice/step_plan.h>
#include <sluice/text.h>
#include <sluice/token_event.h>

struct router;

/* One token of a delta, for logprobs and token ids. */
struct delta_token {
    token_id id;
    float logprob;
    int32_t num_top;
    const struct token_logprob *top;       /* falling; valid during the callback */
    int32_t rank;                          /* 1 = most likely; 0 when not asked */
};

/* What became visible of one choice. Valid during the callback only. */
struct text_delta {
    int32_t choice;                        /* prompt_number * n + choice */
    const char *text; size_t len;          /* complete UTF-8, may be empty */
    const struct delta_token *tokens; size_t num_tokens;   /* the tokens this delta accounts for, held ones included */
    uint8_t finish;                        /* enum finish_reason; not FINISH_NONE: last delta of the choice */
    int32_t stop_index;                    /* FINISH_STOP_STRING: index into params->stop */
    token_id stop_token;                   /* FINISH_STOP_TOKEN */
    uint32_t num_generated;                /* tokens of this choice so far */
    uint32_t prompt_begin;                 /* not 0: tokens are those of the prompt from here on, scored; no text, no end */
};

struct generation_usage { uint64_t prompt_tokens, completion_tokens, cached_tokens; };

/* Called on the loop thread; must not block. */
struct generation_sink {
    void (*delta)(void *arg, const struct text_delta *delta, const struct generation_usage *usage);
    /* The last call. err == NULL: all choices ended. Else the request failed or was cancelled (ERR_ENDED); deltas may have
     * come before. After it the router holds no pointer of the spec. */
    void (*done)(void *arg, const struct generation_usage *usage, const struct err *err);
};

/* Everything points into memory that the caller keeps until done() was called. */
struct generation_spec {
    const struct generation_params *params;    /* sampling.seed set, random if the client gave none; max_tokens resolved per prompt by the router */
    const struct prompt_tokens *prompts;       /* n >= 1 tokens each, fits the context */
    size_t n_prompts;
    uint8_t cache_domain[32];
    uint64_t session;                          /* requests of one session go to one replica while it is not overloaded; 0 = none */
    int64_t arrival_ms;                        /* CLOCK_MONOTONIC; deadlines count from here */
    const struct generation_sink *sink;
    void *sink_arg;
};

enum cancel_cause { CANCEL_CLIENT_GONE, CANCEL_SLOW_READER, CANCEL_KILLED, CANCEL_DRAIN };

/* Any thread. 0 and *id (never 0, never reused), or ERR_QUEUE_FULL / ERR_DRAINING / ERR_NO_REPLICA at once (then no callback
 * ever comes). Other refusals come through done(). */
int  router_submit(struct router *router, const struct generation_spec *spec, uint64_t *id, struct err *err);
/* Any thread, idempotent, O(1); done() still comes (once). */
void router_cancel(struct router *router, uint64_t id, enum cancel_cause cause);

enum router_state { ROUTER_LOADING, ROUTER_READY, ROUTER_DOWN, ROUTER_DRAINING };
enum router_state router_state(const struct router *router);          /* any thread */
double router_load_progress(const struct router *router);             /* 0..1 while loading; any thread */
struct router_load { uint32_t in_server, running, waiting; double kv_usage; };
void router_load(const struct router *router, struct router_load *load);   /* any thread; relaxed snapshot */
int  router_retry_after_s(const struct router *router);               /* 1..120, for 429 and 503; any thread */

/* ---- wiring, main thread ---- */
struct router_options {
    const struct config *config;
    const struct tokenizer *tokenizer;
    int32_t max_model_len;
};
/* Creates the loop thread, the supervisor and the engines. Returns at once (state LOADING). The program ignores SIGPIPE. */
int  router_start(struct router **out, const struct router_options *options, struct err *err);
/* Not ready from now on; new requests ERR_DRAINING; returns when all streams ended or after timeout_ms (the rest get
 * ERR_DRAINING through done()). */
void router_drain(struct router *router, int64_t timeout_ms);
/* Blocks until an engine is ready (0), or until none can be: one refused the configuration or the model, or each of them failed
 * to start once (exit code > 0, message in err), or timeout. */
int  router_wait_ready(struct router *router, int64_t timeout_ms, struct err *err);
void router_stop(struct router *router);       /* stops engines, joins the loop, frees; every spec gets done() before */

#endif
