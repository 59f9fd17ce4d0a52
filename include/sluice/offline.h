/* offline.h - a replica without a gateway, in this process: prompts in, steps on the ranks, tokens out.
 * Flow: offline_add -> scheduler -> ranks -> offline_step says what the step was and took.
 * Runs the loop of the engine (engine.c) turn by turn: the next plan is made, given to the ranks, and the oldest one in
 * flight is waited for when all slots are taken. So a step here is a step there, overlap included.
 * Thread: the caller's only. Owns model, ranks, scheduler. */
#ifndef SLUICE_OFFLINE_H
#define SLUICE_OFFLINE_H

#include <stdint.h>

#include <sluice/config.h>
#include <sluice/err.h>
#include <sluice/loader.h>
#include <sluice/rank.h>
#include <sluice/token_event.h>

struct offline;

/* One request: greedy, the model's end ids ignored, so that it ends after max_tokens (or its context). */
struct offline_request {
    uint64_t id;                   /* unique among those alive */
    const token_id *prompt;        /* copied */
    int32_t num_prompt, max_tokens;
};

/* One finished step. */
struct offline_step {
    int32_t num_tokens, num_seqs, num_decode_seqs;
    int64_t context_tokens;        /* sum of context_lens: KV that attention reads */
    int64_t submitted_ns, landed_ns;   /* to the ranks, back from them */
    int64_t since_ns;              /* since the step before landed, or, for the first after an idle time, since submitted_ns */
    int64_t host_ns;               /* this turn's planning, submitting and committing */
    int64_t busy_ns;               /* of the last stage, as its rank saw it; 0 = not told */
    int32_t num_events;
};

/* What follows from model and configuration. */
struct offline_info {
    const char *describe;          /* ranks_describe */
    const struct model_config *model;
    int32_t num_blocks, block_size, max_model_len, max_num_seqs, max_num_batched_tokens, num_slots, num_ranks;
    uint64_t weights_bytes;        /* in memory, of all ranks */
    uint64_t step_weights_bytes;   /* that a decode step reads: all but the embedding table, which gives single rows */
    uint64_t kv_bytes_per_token;   /* of all ranks */
    double load_s;
};

/* max_sequences: alive at once, at least max_num_seqs. Errors as engine_load's; exit code: offline_exit_code. */
int  offline_open(struct offline **out, const struct config *config, int32_t max_sequences, struct err *err);
void offline_close(struct offline *offline);
int  offline_exit_code(int code);
/* What offline_open asks its ranks for; layers: storage that options points into. ERR_CONFIG. */
int  offline_ranks_options(struct ranks_options *options, int layers[MAX_PP], const struct config *config, const struct model_config *model,
                           struct err *err);
const struct offline_info *offline_info(const struct offline *offline);
/* ERR_QUEUE_FULL, ERR_CONTEXT_LENGTH, ERR_NO_MEMORY. Ends the validity of the last step's events. */
int  offline_add(struct offline *offline, const struct offline_request *request);
void offline_abort(struct offline *offline, uint64_t id);
/* Until a step has landed: 1 with *step filled; 0: nothing is left to do. Negative: the ranks failed. */
int  offline_step(struct offline *offline, struct offline_step *step, struct err *err);
/* Of the last step, 0 <= i < num_events. */
const struct token_event *offline_event(const struct offline *offline, int32_t i);
uint64_t offline_preemptions(struct offline *offline);
/* Ends all that is alive: aborts, then steps until nothing is in flight. */
int  offline_drain(struct offline *offline, struct err *err);

#endif
