/* scheduler.h - who runs in the next step, with how many tokens, in which blocks; and what a finished step means.
 * Flow: engine_receive -> scheduler_add / abort -> scheduler_next_step -> step_plan -> ranks -> scheduler_commit ->
 * outcomes.
 * Thread: engine only, no locks. Owns: sequences, kv_cache, plans. Never allocates after init.
 *
 * A step has a token budget. Sequences that decode come first, in the order of seq_before; what is left goes to prompts
 * in chunks, by policy:
 *   fair      deficit round robin over the prompts; a prompt's share grows while it waits (aging), and one that found
 *   no
 *             room for long gets the next room, whatever its size
 *   fcfs      in order of arrival; the first that does not fit holds up the rest
 *   priority  lower value first, then arrival; a waiting one may push out running ones of strictly worse value; every
 *   eighth
 *             admission is given to the one that came first (aging)
 * A prompt gets at most long_prefill_chunk tokens per step until every other has had its turn.
 * Out of blocks: the worst sequence by seq_before that is not in a step gives its blocks back and is computed again
 * later (recompute preemption); it keeps its place. The best one can always push out all others and fits alone: no
 * deadlock, and because the order never changes, no livelock.
 * n > 1: sequences of a group wait until the first has computed the prompt, then find it in the prefix cache.
 * Pipelining: up to num_plans plans in flight; a sequence is in one of them at most.
 *
 * Invariants (scheduler_check): every sequence is waiting or running; running ones have a slot of their own; waiting
 * ones hold no block; num_scheduled > 0 exactly for the sequences of plans in flight; and those of kv_cache.h. */
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

enum scheduler_policy { POLICY_FAIR, POLICY_FCFS, POLICY_PRIORITY };

struct scheduler_options {
    int32_t max_num_seqs, max_num_batched_tokens, max_model_len;
    int32_t max_sequences;             /* running and waiting */
    int32_t num_blocks, block_size, vocab_size;
    int32_t num_plans;                 /* pipeline slots */
    int32_t long_prefill_chunk;        /* 0 = no limit */
    enum scheduler_policy policy;
    bool enable_prefix_caching;
    struct eos_ids eos;
};

/* scheduler_add and scheduler_abort calls between two scheduler_clear_outcomes */
enum { SCHEDULER_MAX_NOTES = 1024 };

/* What one step means for one sequence. row: its logprobs, in the step's result (valid until the next submit), or
 * NULL. */
struct step_outcome { struct token_event event; const struct result_row *row; };

struct batch {                         /* the sequences of one plan */
    struct step_plan *plan;
    struct sequence **seqs;            /* [max_num_seqs] in plan order */
    int32_t *rows;                     /* [max_num_seqs] row of each, -1 = none */
    int32_t num_seqs;
    bool in_flight;
};

/* The step that is being put together. */
struct step_draft {
    struct batch *batch;
    int32_t budget;                    /* tokens left */
    int32_t max_seqs;                  /* a pipeline's share of the running ones */
    int32_t committed;                 /* blocks that running sequences still need for the tokens they have */
    int32_t admissions_left;
    int32_t chunk_cap;
    struct row_need used;
    int64_t now_ns;
};

struct scheduler {
    struct scheduler_options options;
    struct kv_cache kv;
    struct sequence_pool pool;
    struct list waiting, running;      /* both in the order of seq_before */
    struct list ring;                  /* fair: prompts with tokens to compute; first = whose turn it is */
    int32_t num_waiting, num_running, num_in_ring;
    struct sequence *reserved;         /* fair: the next room is for this one */
    struct id_map leaders;             /* group -> pool index of the sequence that computes its prompt */
    block_id *block_tables;            /* [max_num_seqs, max_blocks_per_seq] */
    int32_t *free_slots;               /* [max_num_seqs] */
    int32_t num_free_slots;
    struct batch *batches;             /* [num_plans] */
    struct step_draft draft;
    uint64_t step, num_arrivals, num_admissions;
    struct step_outcome *outcomes;     /* [max_num_seqs + SCHEDULER_MAX_NOTES] */
    int32_t num_outcomes;
    struct submission *finished;       /* list: no longer used here, to be freed by who made them */
    struct engine_stats stats;
    struct sequence **check_seqs;      /* [max_num_seqs] for scheduler_check */
    int32_t *check_scratch;            /* [num_blocks] */
};

/* max_num_seqs is lowered to max_num_batched_tokens; needs max_model_len <= num_blocks * block_size. ERR_CONFIG,
 * ERR_NO_MEMORY. */
int  scheduler_init(struct scheduler *s, const struct scheduler_options *options, struct err *err);
void scheduler_release(struct scheduler *s);

/* Takes the submission: it comes back in `finished`. Too many or an id in use: an outcome with ERR_QUEUE_FULL or
 * ERR_INTERNAL. */
void scheduler_add(struct scheduler *s, struct submission *sub);
/* O(1). The outcome is there at once, or with the commit of the plan that the sequence is in. Unknown ids are
 * ignored. */
void scheduler_abort(struct scheduler *s, uint64_t id);
static inline int32_t scheduler_num_sequences(const struct scheduler *s) { return s->pool.num_used; }

/* NULL: nothing to run until a plan in flight is committed or a request arrives. */
const struct step_plan *scheduler_next_step(struct scheduler *s, int64_t now_ns);
/* result must be the one of plan; now_ns: when the step ended. */
void scheduler_commit(struct scheduler *s, const struct step_plan *plan, const struct step_result *result,
                      int64_t now_ns);

/* After the outcomes were published. */
void scheduler_clear_outcomes(struct scheduler *s);
struct submission *scheduler_take_finished(struct scheduler *s);       /* one, or NULL */
const struct engine_stats *scheduler_stats(struct scheduler *s);       /* gauges refreshed */
void scheduler_check(struct scheduler *s);                             /* aborts with the first broken invariant */

#endif
