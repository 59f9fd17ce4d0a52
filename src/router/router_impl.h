/* router_impl.h - the router's own nouns. All of it belongs to the loop thread, but for the fields marked "any thread".
 *
 * generation  one HTTP request being served: its choices, its sink, its deadlines. Born in router_submit (worker), given to the
 *             loop through the inbox, freed after done().
 * choice      one sequence: its token log (what makes it resumable), detokenizer, stop state and text not yet shown.
 *             In exactly one state:  WAITING (no replica has it) -> SENT -> FINISHED.
 * The engine_request id of a choice is  generation id << 10 | choice index: unique, never reused, found without a map of its own. */
#ifndef SLUICE_ROUTER_IMPL_H
#define SLUICE_ROUTER_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <uv.h>

#include <sluice/metrics.h>
#include <sluice/router.h>
#include <sluice/supervisor.h>

#include "affinity.h"
#include "base/buf.h"
#include "base/list.h"
#include "base/ring.h"

enum { CHOICE_BITS = 10, MAX_GENERATION_CHOICES = 1 << CHOICE_BITS };     /* prompts x n <= 1,024 */
_Static_assert((int)MAX_GENERATION_CHOICES >= (int)MAX_PROMPTS, "a choice index fits its bits");

enum { MAX_SCORED = 32 };                                                 /* rows of MSG_PROMPT_LOGPROBS taken at once */

enum choice_state { CHOICE_WAITING, CHOICE_SENT, CHOICE_FINISHED };

struct choice {
    struct generation *gen;
    struct list link;              /* in router->waiting or in its replica's list */
    enum choice_state state;
    int32_t index;                 /* prompt * n + choice */
    int32_t prompt;
    int32_t replica;               /* while SENT */
    uint32_t max_tokens;           /* resolved for its prompt; 0 = nothing to generate */
    uint32_t num_scored;           /* prompt tokens 1..num_scored were reported with their logprobs */
    token_id *log;                 /* generated tokens, all of them: what a resume needs */
    uint32_t num_log, cap_log;
    struct detok detok;
    struct stop_state stop;
    struct buf tail;               /* text that may still turn out to be a stop string */
    size_t fed_len;                /* bytes of text made so far; the tail is its end */
    struct delta_token *held;      /* tokens whose text is not out yet */
    size_t num_held, cap_held;
    struct token_logprob *held_top;/* their top logprobs, MAX_TOP_LOGPROBS each; NULL unless asked */
    int64_t first_ns, last_ns;     /* of its tokens */
    int64_t scheduled_ns;          /* when its first step began */
    int64_t lost_ms;               /* when its replica died; 0 = not resuming */
    int64_t reserved_tokens;       /* charged to the replica: what it is expected to compute */
    uint32_t sent_log;             /* num_log when its replica got it: equal = it has not begun there */
    uint32_t stale;                /* bit mask: replicas it was taken back from that still have to say its end */
    uint32_t num_losses;           /* replicas that crashed under it since its last token */
    bool queued;                   /* counted in num_waiting_choices: no token yet */
};

struct generation {
    struct list link;              /* router->generations */
    uint64_t id;
    int64_t cancel_seen_ns;        /* when the reason to abort it was seen; 0 = none */
    struct generation_spec spec;
    struct stop_set *stop_set;     /* NULL: none */
    struct choice *choices;
    int32_t num_choices, num_finished;
    int64_t deadline_queue_ms, deadline_ttft_ms, deadline_total_ms;   /* CLOCK_MONOTONIC; 0 = none */
    int64_t due_ms; size_t due_at; /* deadlines.c: key and place in the heap; 0 = not in it */
    bool begun;                    /* some engine began its first step: it waits in no queue */
    bool started;                  /* some token arrived */
    bool admitted;
    bool doomed;                   /* too many replicas died under one of its choices: it runs nowhere again */
    int32_t num_orphans;           /* choices WAITING because their replica died */
    int64_t orphan_since_ms;       /* of the first of them */
    struct generation_usage usage;
};

struct replica_view {
    struct list sent;              /* its choices */
    int64_t outstanding_tokens;
    uint64_t num_given;            /* choices it ever got */
    int32_t max_num_seqs, vocab_size, num_sent;
    struct buf out;                /* frames of this turn of the loop */
    uint8_t *logprobs; size_t logprobs_len, logprobs_cap, logprobs_pos;   /* MSG_LOGPROBS waiting for its MSG_EVENTS */
    struct engine_stats stats;
    bool ready;
};

struct router {
    const struct config *config;
    const struct tokenizer *tokenizer;
    int32_t max_model_len;
    struct supervisor *supervisor;
    uv_loop_t loop;
    uv_async_t wake;
    uv_timer_t tick;               /* deadlines */
    pthread_t thread;
    struct ring inbox;             /* any thread pushes: struct inbox_message */
    struct list generations, waiting;        /* all; choices without a replica, oldest first */
    struct generation **by_id; size_t by_id_cap;      /* open addressing by generation id */
    size_t num_generations;
    struct generation **due; size_t num_due, due_cap;  /* heap of deadlines, from [1] on */
    struct affinity affinity;
    int64_t now_ns;                          /* when the frame in hand came */
    struct replica_view replicas[METRICS_MAX_REPLICAS];
    int num_replicas;
    uint32_t num_live_choices;               /* admitted, not finished: WAITING or SENT */
    uint32_t num_waiting_choices;            /* of them: no token yet */
    uint64_t num_waiting_tokens;             /* prompt tokens of these */
    token_id *scratch; size_t scratch_cap;   /* prompt + log of one submit */
    bool stopping;
    /* any thread, relaxed or under state_lock */
    uint64_t next_id;                        /* atomic */
    int32_t state;                           /* atomic, enum router_state */
    uint32_t in_server;                      /* atomic: generations submitted and not done */
    uint32_t running, waiting_count;         /* atomic snapshots */
    uint64_t kv_usage_bits, progress_bits;   /* atomic snapshots of doubles */
    uint64_t finished_per_s_bits;            /* drain rate of the queue, for Retry-After */
    uint64_t finished_total; int64_t rate_at_ms; uint64_t rate_finished;   /* choices; loop only */
    pthread_mutex_t state_lock;
    pthread_cond_t state_changed;
    uint32_t refused_mask;                           /* under state_lock: replicas that could not start */
    int refused_code; char refused_message[512];     /* under state_lock: no start any more; 0 = not so */
    bool supervisor_stopped;                         /* loop only */
};

/* ---- generation.c: life of a request and its choices ---- */
/* Any thread. Copies spec (not what it points to). NULL: out of memory. */
struct generation *generation_new(const struct router *router, const struct generation_spec *spec, uint64_t id, struct err *err);
void generation_free(struct generation *gen);
/* A token (or the end) arrived for a choice. Returns false when the event breaks the protocol (the replica is to be killed). */
bool choice_token(struct router *router, struct choice *choice, const struct token_event *event, const struct token_logprob *top);
/* Prompt tokens of a choice were scored: rows of MSG_PROMPT_LOGPROBS that follow each other, all of this choice. False as above. */
struct scored_token { struct prompt_row_head head; struct token_logprob top[MAX_TOP_LOGPROBS]; };
bool choice_scored(struct choice *choice, const struct scored_token *scored, size_t n);
/* There is something for an engine to do: tokens to make, or prompt tokens to score. */
bool choice_has_work(const struct choice *choice);
/* Ends a request from this side: aborts what its replicas still run, calls done(err), frees it. */
void generation_fail(struct router *router, struct generation *gen, const struct err *err);
/* All choices ended: done(NULL), freed. */
void generation_finish(struct router *router, struct generation *gen);

/* ---- dispatch.c: which replica runs a choice ---- */
void dispatch_waiting(struct router *router);                              /* sends what can be sent, oldest first */
void dispatch_abort(struct router *router, struct choice *choice);         /* tells its replica to drop it; idempotent */
void dispatch_release(struct router *router, struct choice *choice);       /* takes it off its replica's or the waiting list */
void dispatch_rebalance(struct router *router);                            /* a replica came up: its share of what waits elsewhere */
void dispatch_lost(struct router *router, int replica, bool crashed);      /* its choices wait again, at the head */
void dispatch_flush(struct router *router);                                /* writes the frames of this turn */

/* ---- deadlines.c ---- */
/* When the generation has to have ended, and why it then fails; 0 = never. */
int64_t generation_due_ms(const struct router *router, const struct generation *gen, enum abort_cause *cause);
/* Its first step is worth nothing when it begins later; 0 = whenever. */
int64_t generation_start_by_ms(const struct generation *gen);
bool deadlines_reserve(struct router *router, size_t n);                   /* room for n generations; false: out of memory */
void deadlines_update(struct router *router, struct generation *gen);      /* its limits changed */
void deadlines_remove(struct router *router, struct generation *gen);      /* idempotent */
struct generation *deadlines_first(const struct router *router, int64_t now_ms);   /* one that is due, or NULL */

/* ---- admission.c: which generations there are ---- */
/* Takes it in, or ends it with done(why not); it belongs to the loop from here on. */
void router_admit(struct router *router, struct generation *gen);
struct generation *router_find(const struct router *router, uint64_t generation_id);
void router_forget(struct router *router, struct generation *gen);         /* out of the map and counters */
void router_leave_queue(struct router *router, struct choice *choice);     /* its first token, or its end; idempotent */
/* Aborts when counters and lists disagree. O(choices); runs whenever the router goes idle and before it stops. */
void router_check(const struct router *router);

/* ---- engine_events.c: what the engines say ---- */
extern const struct supervisor_events router_engine_events;                /* arg: the router */

/* ---- router.c ---- */
void router_set_state(struct router *router, enum router_state state);
void router_end_turn(struct router *router);                               /* after each event: what can be sent is, counts are published */

/* A double that the loop writes and any thread reads. */
static inline void snapshot_store(uint64_t *bits, double value)
{
    uint64_t fresh;

    memcpy(&fresh, &value, sizeof fresh);
    __atomic_store_n(bits, fresh, __ATOMIC_RELAXED);
}

static inline double snapshot_load(const uint64_t *bits)
{
    uint64_t now = __atomic_load_n(bits, __ATOMIC_RELAXED);
    double value;

    memcpy(&value, &now, sizeof value);
    return value;
}

#endif
