/* scheduler.h - who runs in the next step, with how many tokens, in which blocks; and what a finished step means.
 * Flow: engine_receive -> scheduler_add / abort -> scheduler_next_step -> step_plan -> ranks -> scheduler_commit ->
 * outcomes.
 * Thread: engine only, no locks. Owns: sequences, kv_cache, plans. Never allocates after init.
 *
 * A step has a token budget. Sequences that decode come first, in the order of seq_before; what is left goes to prompts
 * in chunks, by policy:
 *   fair      deficit round robin by the tokens of the prompts: a turn is worth one quantum (an eighth of the budget),
 *             more after long waiting (aging, up to half of the budget). One that found no room for long gets the next
 *             room, whatever its size. Streams that another replica began take the first turns
 *   fcfs      in order of arrival; the first that does not fit holds up the rest
 *   priority  in the order of seq_before, where priority ages; a waiting one pushes out running ones that come after
 *             it and have a strictly worse value, when that makes room for it
 * A prompt gets at most long_prefill_chunk tokens per step until every other has had its turn; fair: and no more in a step that
 * gives another its first token. With itl_target_ms,
 * prompts beside decodes get only as many tokens as the fitted step time (step_time.h) leaves under the target, but
 * always a few.
 * Out of blocks: the worst sequence by seq_before that is not in a step gives its blocks back and is computed again
 * later (recompute preemption); it keeps its place. The best one can always push out all others and fits alone: no
 * deadlock, and because the order never changes, no livelock.
 * n > 1: sequences of a group wait until the first has computed the prompt, then share its full blocks and compute what
 * is left of the prompt (less than a block) each for itself.
 * Too late (start_by_ns has passed before its first step): never admitted; an abort ends it.
 * Throttled (memory is short): nobody is admitted while anything runs.
 * Up to num_plans plans are in flight, committed in the order they were made.
 * Pipelining: a sequence is in one of them at most; each plan has its share of the running ones.
 * Overlap: a sequence may be in all of them. What an earlier plan draws for it is TOKEN_FEEDBACK in the next, and its
 * row there counts it as generated. One whose next plan depends on the token itself (seq_needs_results), or that ends
 * by its length with it, waits for the commit. Ended by the token or by an abort while a later plan holds it, it is
 * reported at once and stays, as SEQ_ENDED, until that plan is back; the row there is dropped. All that run are in
 * flight whenever a plan is made: one that should give its blocks back is held out of a step first.
 *
 * Invariants (scheduler_check): every sequence is waiting, running or ended; running and ended ones have a slot of their
 * own; waiting ones hold no block; num_scheduled are the tokens in plans in flight; ended ones are in such a plan; and
 * those of kv_cache.h. */
#ifndef SLUICE_ENGINE_SCHEDULER_H
#define SLUICE_ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/ipc.h>
#include <sluice/step_plan.h>
#include <sluice/token_event.h>

#include "kv_cache.h"
#include "plan_fill.h"
#include "sequence.h"
#include "step_time.h"

enum scheduler_policy { POLICY_FAIR, POLICY_FCFS, POLICY_PRIORITY };

struct scheduler_options {
    int32_t max_num_seqs, max_num_batched_tokens, max_model_len;
    int32_t max_sequences;             /* running and waiting */
    int32_t num_blocks, block_size, vocab_size;
    int32_t num_plans;                 /* in flight at once */
    bool overlap;                      /* a sequence may be in several of them */
    int32_t long_prefill_chunk;        /* 0 = no limit */
    int32_t itl_target_ms;             /* 0 = none */
    enum scheduler_policy policy;
    bool enable_prefix_caching;
    struct eos_ids eos;
};

/* scheduler_add and scheduler_abort calls between two scheduler_clear_outcomes */
enum { SCHEDULER_MAX_NOTES = 1024, SCHEDULER_LAST = 16 };

/* What one step means for one sequence. row: its logprobs, in the step's result (valid until the next submit), or
 * NULL. */
struct step_outcome { struct token_event event; const struct result_row *row; };

/* One prompt token's logprobs; row as above. */
struct step_score { uint64_t id; uint32_t position; const struct result_row *row; };

struct batch {                         /* the sequences of one plan */
    struct step_plan *plan;
    struct sequence **seqs;            /* [max_num_seqs] in plan order */
    int32_t *places;                   /* [max_num_seqs] by slot: where its decode last was */
    int32_t *rows;                     /* [max_num_seqs] row of each, -1 = none */
    struct plan_owners owners;
    int32_t num_seqs;
    int64_t num_keys;                  /* step_time.h */
    bool in_flight;
};

/* The step that is being put together. */
struct step_draft {
    struct batch *batch;
    int32_t budget;                    /* tokens left */
    int32_t max_seqs;                  /* a pipeline's share of the running ones */
    bool committed_known;
    int64_t committed;                 /* when known: blocks that running ones still need for the tokens they have */
    int32_t admissions_left;
    int32_t num_held;                  /* overlap: running ones that get nothing in this step */
    int32_t num_prompts;               /* running ones with more than one token to compute */
    int32_t num_ending;                /* prompts whose last token is in this step */
    int32_t chunk_cap;
    struct row_need used;
    bool timed;                        /* itl_target_ms holds for this step: */
    double ms_left;                    /* prompts may take so much, */
    int32_t tokens_granted;            /* and so many tokens in any case */
    int64_t now_ns;
};

/* fair: prompts with tokens to compute, by turn. */
struct turns { struct list list; int32_t num; };

struct scheduler {
    struct scheduler_options options;
    struct kv_cache kv;
    struct sequence_pool pool;
    struct list waiting;               /* in the order of seq_before, */
    struct sequence *last_of[SCHEDULER_LAST];  /* by priority: who began to wait last; a hint for insertion only */
    struct sequence **running;         /* [max_num_seqs] these too; ended ones among them */
    int32_t num_waiting, num_running, num_ended;
    struct turns prefilling, queue;    /* fair: of the running and of the waiting ones */
    int64_t first_turn, last_turn;     /* numbers given so far, downwards and upwards */
    int64_t resumed_turn;              /* below all of these, upwards */
    struct sequence *last_resumed;     /* whose turn this is; a hint: it may be gone */
    struct sequence *reserved;         /* fair: the next room is for this one */
    struct id_map leaders;             /* group -> pool index of the sequence that computes its prompt */
    struct sequence **placed;          /* [max_num_seqs] scratch: seqs of the next batch */
    block_id *block_tables;            /* [max_num_seqs, max_blocks_per_seq] */
    int32_t *free_slots;               /* [max_num_seqs] */
    int32_t num_free_slots;
    struct batch *batches;             /* [num_plans] */
    struct step_draft draft;
    struct step_time step_time;
    struct samples *samples;           /* NULL: nobody wants them */
    bool throttled;
    uint64_t step, num_arrivals, num_admissions;
    struct step_outcome *outcomes;     /* [max_num_seqs + SCHEDULER_MAX_NOTES] */
    int32_t num_outcomes;
    struct step_score *scores;         /* [max_rows] of the step; they precede its outcomes */
    int32_t num_scores;
    uint64_t *begun;                   /* [max_num_seqs] ids with start_by_ns that were admitted for the first time */
    int32_t num_begun;
    struct submission *finished;       /* list: no longer used here, to be freed by who made them */
    struct engine_stats stats;
    int32_t *check_scratch;            /* [num_blocks] */
};

/* max_num_seqs is lowered to max_num_batched_tokens; needs max_model_len <= num_blocks * block_size. ERR_CONFIG,
 * ERR_NO_MEMORY. */
int  scheduler_init(struct scheduler *s, const struct scheduler_options *options, struct err *err);
void scheduler_release(struct scheduler *s);
/* Cancels, and with blocks the ages of blocks, go to samples (borrowed) from now on. ERR_NO_MEMORY. */
int  scheduler_sample(struct scheduler *s, struct samples *samples, bool blocks, struct err *err);
/* As after init, but for the count of steps: nothing cached, nothing measured. Only without sequences. */
void scheduler_forget(struct scheduler *s);

/* Takes the submission: it comes back in `finished`. Too many or an id in use: an outcome with ERR_QUEUE_FULL or
 * ERR_INTERNAL. */
void scheduler_add(struct scheduler *s, struct submission *sub);
/* O(1). The outcome is there at once; blocks and slot follow with the commit of the last plan that holds the sequence.
 * Unknown ids are ignored. seen_ns: as in msg_abort. */
void scheduler_abort(struct scheduler *s, uint64_t id, int64_t seen_ns);
/* Ended ones that a plan in flight holds are among them. */
static inline int32_t scheduler_num_sequences(const struct scheduler *s) { return s->pool.num_used; }

/* NULL: nothing to run until a plan in flight is committed or a request arrives. */
const struct step_plan *scheduler_next_step(struct scheduler *s, int64_t now_ns);
/* How long plan took on the ranks; before its commit. */
void scheduler_measured(struct scheduler *s, const struct step_plan *plan, double step_ms);
/* How long it will take, by what others took; of one that next_step just gave. Of use only with itl_target_ms or overlap. */
double scheduler_expected_ms(const struct scheduler *s, const struct step_plan *plan);
/* Memory is short: from the next step on, until false. */
static inline void scheduler_throttle(struct scheduler *s, bool throttled) { s->throttled = throttled; }
/* plan: the oldest in flight. result must be the one of plan; now_ns: when the step ended. */
void scheduler_commit(struct scheduler *s, const struct step_plan *plan, const struct step_result *result,
                      int64_t now_ns);

/* After outcomes and begun were published; between two scheduler_next_step. */
void scheduler_clear_outcomes(struct scheduler *s);
struct submission *scheduler_take_finished(struct scheduler *s);       /* one, or NULL */
const struct engine_stats *scheduler_stats(struct scheduler *s);       /* gauges refreshed */
void scheduler_check(struct scheduler *s);                             /* aborts with the first broken invariant */

#endif
