/* sequence.h - one choice of one prompt inside the engine: what was asked, its tokens, how far they are computed.
 * Flow: I/O thread: MSG_SUBMIT -> submission (all memory that the sequence will ever need, in one piece)
 *       -> engine: sequence_pool_take -> scheduler -> ... -> finished: the submission goes back to the I/O thread to be
 *       freed.
 * Thread: submission_new/free on the I/O thread; everything else on the engine thread, which never allocates.
 * Owns: a sequence borrows its submission and the block table row of its device slot. */
#ifndef SLUICE_ENGINE_SEQUENCE_H
#define SLUICE_ENGINE_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/request.h>

#include "base/list.h"
#include "base/sha256.h"

/* What the I/O thread needs to know to make submissions. */
struct submission_limits {
    int32_t max_model_len, block_size;
    struct sha256 cache_root;          /* of this process and model; domain and prompt are hashed under it */
    bool hash_prompt;                  /* compute the keys of the prompt's full blocks here */
    bool group_domains;                /* prefix caching off: only sequences of one group share blocks */
};

enum submission_kind { SUBMISSION_START, SUBMISSION_ABORT, SUBMISSION_REFUSED };

struct submission {
    enum submission_kind kind;
    uint64_t id;
    int err_code;                      /* REFUSED: why */
    int64_t seen_ns;                   /* ABORT: as in msg_abort */
    struct submission *next;           /* scheduler's list of those to hand back */
    /* START only: */
    struct engine_request req;         /* arrays point behind the struct */
    int32_t max_total;                 /* prompt + generated tokens at most; length of `tokens` */
    int32_t num_tokens;                /* known at the start: prompt + resumed output */
    int32_t num_bad_runs;              /* in req.bad_words */
    int32_t num_keys;                  /* keys known: full blocks of those, when prompts are hashed */
    token_id *tokens;                  /* [max_total] */
    struct sha256 *keys;               /* [max_total / block_size] prefix-cache key of each full block */
    struct sha256 root;                /* parent key of block 0 */
};

/* A request that can never run becomes REFUSED with ERR_CONTEXT_LENGTH. NULL without memory. */
struct submission *submission_new(const struct engine_request *req, const struct submission_limits *limits);
/* ABORT and REFUSED carry an id and a code only. */
struct submission *submission_note(enum submission_kind kind, uint64_t id, int err_code);
void submission_free(struct submission *sub);

/* ENDED: its end was reported while a plan in flight still holds it; slot and blocks go when the last one is back. */
enum seq_state { SEQ_FREE, SEQ_WAITING, SEQ_RUNNING, SEQ_ENDED };

/* What a step touches comes first. */
struct sequence {
    _Alignas(64) struct list link;     /* in the pool's free list, or the scheduler's waiting list */
    uint64_t id;
    enum seq_state state;
    int32_t num_pending;               /* tokens that plans in flight draw and that the next plan may build on */
    struct submission *sub;
    token_id *tokens;                  /* [sub->max_total] */
    int32_t num_prompt, num_tokens;    /* num_tokens counts generated ones */
    int32_t num_computed;              /* tokens whose keys and values are in the blocks */
    int32_t num_scheduled;             /* of the plans in flight and of the one being put together; 0 = in none */
    int32_t slot;                      /* device slot, -1 while waiting */
    int32_t num_drafted;               /* of num_scheduled: in the plan being put together */
    block_id *blocks;                  /* [max_blocks_per_seq] row of the slot; NULL while waiting */
    int32_t num_blocks;
    uint64_t admission;                /* number of the admission that gave it slot and blocks, from 1 on */
    int32_t num_shared;                /* first blocks that came from the prefix cache at this admission */
    int32_t num_published;             /* first blocks that were offered to the prefix cache (or came from it) */
    int32_t max_total, num_known;      /* tokens at most; tokens when it came */
    int32_t num_stop_ids;
    bool ignore_eos, wants_logprobs;
    bool only_scores;                  /* ends with its prompt: nothing is drawn */
    bool is_plain;                     /* its rows need no bias, masks, scores or penalties, whatever comes */
    bool feeds_back;                   /* may be planned again before what it draws is known (overlap) */
    struct sampling_params sampling;   /* a copy: decodes then touch no other page than this and their last token's */
    struct list ring;                  /* fair policy: in one of the two lists of prompts with tokens to compute */
    int64_t turn;                      /* fair policy: lower goes first */
    int64_t rank;                      /* arrival and priority in one number, see seq_before */
    uint64_t order;                    /* number of arrival at this engine */
    int32_t priority;                  /* of the request */
    int32_t num_to_score;              /* prompt tokens 1.. below this are reported with their logprobs; 0 = none */
    int32_t num_scored;                /* 1..this are; a preemption does not undo it */
    int32_t num_cached;                /* prompt tokens found at the first admission; reported in events */
    int64_t scheduled_ns;              /* when its first step began; 0 = not yet */
    int64_t start_by_ns;               /* its first step begins no later; 0 = whenever */
    uint64_t waiting_since;            /* step number, for aging */
    int64_t deficit;                   /* fair policy: tokens it may still take in its turn */
    int32_t passed_over;               /* turns in which there was no room for it */
    uint64_t held_step;                /* overlap: in this step it gets nothing, so that it can be pushed out in the next */
    bool has_penalties;
    bool history_sent;                 /* penalty counts of this slot are on the device */
    bool leads_group;                  /* others of its group wait until its prompt is computed */
    int64_t cancel_seen_ns;            /* its abort's seen_ns; 0 = none */
    bool publish_off;                  /* its numbers were bad: its blocks must not be reused */
};

/* Position of the next token that no plan holds yet. */
static inline int32_t seq_next_position(const struct sequence *seq) { return seq->num_computed + seq->num_scheduled; }
/* Tokens that the next plan may hold; a drawn one that is not known here yet is the last of them. */
static inline int32_t seq_num_left(const struct sequence *seq)
{
    return seq->state == SEQ_ENDED ? 0 : seq->num_tokens + seq->num_pending - seq_next_position(seq);
}
/* It waits for the result of a plan in flight: what its next one holds depends on it. */
static inline bool seq_waits(const struct sequence *seq)
{
    return seq->num_scheduled > seq->num_drafted && !seq->feeds_back;
}
static inline int32_t seq_num_generated(const struct sequence *seq) { return seq->num_tokens - seq->num_prompt; }
/* Pending ones too: how many come before what the next plan draws. */
static inline int32_t seq_num_drawn(const struct sequence *seq) { return seq_num_generated(seq) + seq->num_pending; }
/* The rows that a plan holds for it must be known before the next one is made: bad words of several tokens look at the
 * last ones, a prompt that is being scored counts on. */
bool seq_needs_results(const struct sequence *seq);
/* Of `n` tokens from position `from` on: how many have a row that scores the token behind them. */
static inline int32_t seq_num_scores(const struct sequence *seq, int32_t from, int32_t n)
{
    int32_t first = from < seq->num_scored ? seq->num_scored : from, last = from + n - 1;

    if (last > seq->num_to_score - 2) last = seq->num_to_score - 2;
    return last >= first ? last - first + 1 : 0;
}
/* Runs before b. One step of priority is worth PRIORITY_STEP_MS of waiting: rank = arrival_ms + priority *
 * PRIORITY_STEP_MS, so a low priority ages, and yet the order of two sequences never changes: nothing can livelock. */
enum { PRIORITY_STEP_MS = 10000 };
static inline bool seq_before(const struct sequence *a, const struct sequence *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->order < b->order;
}

/* 64-bit key -> index, open addressing, fixed capacity, never allocates after init. */
struct id_map { uint64_t *keys; int32_t *values; uint32_t mask; uint32_t count; };
int     id_map_init(struct id_map *map, uint32_t max_entries);
void    id_map_put(struct id_map *map, uint64_t key, int32_t value);      /* key must be absent */
int32_t id_map_get(const struct id_map *map, uint64_t key);               /* -1 if absent */
void    id_map_remove(struct id_map *map, uint64_t key);                  /* absent is fine */
void    id_map_release(struct id_map *map);

/* Every sequence that can exist, allocated once. */
struct sequence_pool {
    struct sequence *all;              /* [capacity]; entries from num_touched on were never used */
    int32_t capacity, num_touched, num_used;
    struct list free;
    struct id_map by_id;
};
int  sequence_pool_init(struct sequence_pool *pool, int32_t capacity);
/* NULL when full or when the id is in use. */
struct sequence *sequence_pool_take(struct sequence_pool *pool, struct submission *sub);
struct sequence *sequence_pool_find(const struct sequence_pool *pool, uint64_t id);
/* The caller has taken it off its lists and keeps the submission. */
void sequence_pool_give(struct sequence_pool *pool, struct sequence *seq);
void sequence_pool_release(struct sequence_pool *pool);

#endif
