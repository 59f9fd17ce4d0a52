/* plan_builder.h - step plans by hand, for tests and tools that run a model without a scheduler. */
#ifndef SLUICE_TESTS_PLAN_BUILDER_H
#define SLUICE_TESTS_PLAN_BUILDER_H

#include <stdlib.h>

#include <sluice/step_plan.h>

/* A sequence's tokens and where its KV lives; `done` of them were computed by earlier plans. */
struct plan_seq {
    const token_id *tokens;
    int32_t done, len;                 /* this step computes tokens[done .. done + len - 1] */
    const block_id *blocks;
    int32_t slot;
};

static struct step_plan *plan_new(int32_t max_tokens, int32_t max_seqs, int32_t max_rows, int32_t max_blocks_per_seq,
                                  int32_t block_size)
{
    struct step_plan_caps caps = { .max_tokens = max_tokens, .max_seqs = max_seqs, .max_rows = max_rows,
                                   .max_blocks_per_seq = max_blocks_per_seq, .max_bias = 0, .max_history_tokens = 0 };
    struct step_plan *plan = aligned_alloc(64, step_plan_bytes(&caps));
    if (!plan) abort();
    step_plan_init(plan, &caps);
    plan->block_size = block_size;
    return plan;
}

/* Decodes (len 1) first, as everywhere. */
static void plan_add_seq(struct step_plan *plan, const struct plan_seq *seq)
{
    int32_t b = plan->num_seqs++, end = seq->done + seq->len;
    block_id *table = plan_block_tables(plan) + (int64_t)b * plan->caps.max_blocks_per_seq;
    for (int32_t i = 0; i < plan->caps.max_blocks_per_seq; i++) {
        table[i] = i * plan->block_size < end ? seq->blocks[i] : BLOCK_NONE;
    }
    for (int32_t position = seq->done; position < end; position++) {
        int32_t t = plan->num_tokens++;
        plan_input_ids(plan)[t] = seq->tokens[position];
        plan_positions(plan)[t] = position;
        plan_slot_mapping(plan)[t] =
            (int64_t)table[position / plan->block_size] * plan->block_size + position % plan->block_size;
    }
    plan_cu_seqlens_q(plan)[b + 1] = plan->num_tokens;
    plan_context_lens(plan)[b] = end;
    plan_seq_slots(plan)[b] = seq->slot;
    if (seq->len == 1 && plan->num_decode_seqs == b) plan->num_decode_seqs++;
    if (seq->len > plan->max_q_len) plan->max_q_len = seq->len;
    if (end > plan->max_context_len) plan->max_context_len = end;
}

/* A row on token t of the step: a greedy draw (target TOKEN_NONE) or the target's logprob. */
static void plan_add_row(struct step_plan *plan, int32_t seq, int32_t t, token_id target)
{
    plan_rows(plan)[plan->num_rows++] = (struct sampling_row){
        .token = t, .seq = seq, .slot = plan_seq_slots(plan)[seq], .target = target,
        .params = { .temperature = 0, .top_p = 1, .repetition_penalty = 1, .num_logprobs = 0 } };
}

#endif
