/* step_plan.h - one step of one micro-batch: everything the ranks need, in flat arrays without pointers.
 * Made by the scheduler (engine thread), read by every rank (const), copied, logged or replayed as plain bytes.
 * step_result is what comes back from the last stage's tp_rank 0.
 *
 * T = num_tokens, B = num_seqs, R = num_rows. Sequence b owns tokens cu_seqlens_q[b] .. cu_seqlens_q[b+1]-1, which are the
 * positions context_lens[b] - q_len .. context_lens[b]-1 of its context (context_lens counts this step's tokens).
 * Token t is stored in KV slot slot_mapping[t] = block * block_size + offset.
 * Invariants (step_plan_check): cu_seqlens_q rises from 0 to T; q_len >= 1; every slot lies in the sequence's block table;
 * row.token is the last token of a sequence, or any of its tokens when row.target >= 0.
 * Plans that are in flight together may hold the same sequence (ranks_overlaps). Its input id is TOKEN_FEEDBACK where the
 * token is drawn by a plan before this one: the last that was drawn for its slot. Only ever the one token of a decode, so
 * that token t < num_decode_seqs is of sequence t. Everything else of the plan is known when it is made. */
#ifndef SLUICE_STEP_PLAN_H
#define SLUICE_STEP_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/request.h>
#include <sluice/types.h>

/* One row of logits: which token's hidden state, and what to draw from it. */
struct sampling_row {
    int32_t token;                 /* index into the step's tokens, 0..T-1 */
    int32_t seq;                   /* index b of its sequence */
    int32_t slot;                  /* the sequence's device slot, 0..max_num_seqs-1 (penalty counts live there) */
    token_id target;               /* >= 0: no draw; report this token's logprob and rank (prompt logprobs) */
    uint32_t num_generated;        /* tokens generated before this one: Philox counter */
    uint32_t bias_begin, bias_count;   /* in bias_ids/bias_values: logit_bias; -INFINITY masks (min_tokens, EOS) */
    uint32_t allow_begin, allow_count; /* in bias_ids: when not empty, every other id is masked */
    uint32_t use_penalties;        /* 0/1 */
    struct sampling_params params;
};

/* Penalty counts of a slot are rebuilt from the full token history before this step's rows are drawn (first row after a
 * prefill); afterwards the sampler adds each token that it draws. Only sequences with penalties have entries. */
struct history_entry {
    int32_t slot;
    uint32_t begin;                /* in history_tokens */
    uint32_t num_prompt, num_output;
};

struct step_plan_caps {            /* fixed at start; sizes of all arrays */
    int32_t max_tokens, max_seqs, max_rows, max_blocks_per_seq, max_bias, max_history_tokens;
};

struct step_plan {
    uint64_t step;
    uint64_t total_bytes;          /* of the struct with its arrays */
    struct step_plan_caps caps;
    int32_t num_tokens, num_seqs, num_rows;
    int32_t num_bias, num_history, num_history_tokens;
    int32_t micro_batch;           /* plan slot, 0..num_slots-1 */
    int32_t max_q_len, max_context_len;
    int32_t block_size;
    int32_t num_decode_seqs;       /* the first sequences with q_len 1 (decodes come first) */
    int32_t reserved_;
    /* byte offsets from the start of the struct */
    uint64_t off_input_ids, off_positions, off_slot_mapping, off_cu_seqlens_q, off_context_lens, off_block_tables,
             off_seq_slots, off_rows, off_bias_ids, off_bias_values, off_history, off_history_tokens;
};

#define PLAN_ARRAY(name, type) \
    static inline type *plan_##name(const struct step_plan *plan) { return (type *)((char *)plan + plan->off_##name); }
PLAN_ARRAY(input_ids, token_id)            /* [T] TOKEN_FEEDBACK: see above */
PLAN_ARRAY(positions, int32_t)             /* [T] */
PLAN_ARRAY(slot_mapping, int64_t)          /* [T] block * block_size + offset */
PLAN_ARRAY(cu_seqlens_q, int32_t)          /* [B+1] */
PLAN_ARRAY(context_lens, int32_t)          /* [B] */
PLAN_ARRAY(block_tables, block_id)         /* [B, max_blocks_per_seq], unused entries BLOCK_NONE */
PLAN_ARRAY(seq_slots, int32_t)             /* [B] device slot of each sequence */
PLAN_ARRAY(rows, struct sampling_row)      /* [R] */
PLAN_ARRAY(bias_ids, token_id)             /* [num_bias] */
PLAN_ARRAY(bias_values, float)             /* [num_bias] */
PLAN_ARRAY(history, struct history_entry)  /* [num_history] */
PLAN_ARRAY(history_tokens, token_id)       /* [num_history_tokens] prompt then output of each entry */
#undef PLAN_ARRAY

size_t step_plan_bytes(const struct step_plan_caps *caps);
/* Lays the arrays out in memory of step_plan_bytes(caps) bytes, 64-byte aligned; empty plan. */
void   step_plan_init(struct step_plan *plan, const struct step_plan_caps *caps);
void   step_plan_reset(struct step_plan *plan);                    /* counts to 0, layout kept */
/* ERR_PROTOCOL with the first broken invariant. */
int    step_plan_check(const struct step_plan *plan, int32_t num_blocks, int32_t vocab_size, struct err *err);

struct token_logprob { token_id id; float logprob; };

/* One row's outcome. */
struct result_row {
    token_id token;                /* drawn, or the target */
    float logprob;                 /* raw distribution, natural log, before temperature and penalties */
    int32_t rank;                  /* 1 = most likely, of the raw distribution; 0 when num_logprobs < 0 */
    int32_t num_top;               /* entries in top: min(params.num_logprobs, vocab), falling, ties to the lower id */
    uint32_t bad;                  /* 1: logits held NaN or nothing could be drawn; token is TOKEN_NONE */
    struct token_logprob top[MAX_TOP_LOGPROBS];
};

enum { MAX_STAGES = 8 };

/* When one pipeline stage worked on the step: from its input at hand to its output ready, CLOCK_MONOTONIC. */
struct stage_time { int64_t begin_ns, end_ns; };

struct step_result {
    uint64_t step;
    int32_t num_rows;
    int32_t rc;                    /* 0, or the error that ends the engine */
    struct result_row *rows;       /* [max_rows], allocated once */
    int32_t num_stages;
    struct stage_time stages[MAX_STAGES];    /* as tp_rank 0 of each saw it */
};

#endif
