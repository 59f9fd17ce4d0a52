#include "plan_fill.h"

#include <math.h>
#include <string.h>

#include "base/bug.h"

static bool masks_ends(const struct sequence *seq) { return seq_num_generated(seq) < seq->sub->req.min_tokens; }

struct row_need row_need_of(const struct sequence *seq, const struct eos_ids *eos)
{
    const struct engine_request *req = &seq->sub->req;
    struct row_need need = { .rows = 1 };

    if (seq->is_plain) return need;
    need.bias = (int32_t)req->num_bias;
    if (masks_ends(seq)) need.bias += (int32_t)req->num_stop_ids + (req->ignore_eos ? 0 : eos->num);
    if (seq->has_penalties && !seq->history_sent) need.history_tokens = seq->num_tokens;
    return need;
}

bool row_need_fits(const struct row_need *used, const struct row_need *more, const struct step_plan_caps *caps)
{
    return used->rows + more->rows <= caps->max_rows && used->bias + more->bias <= caps->max_bias &&
           used->history_tokens + more->history_tokens <= caps->max_history_tokens;
}

static void add_bias(struct step_plan *plan, token_id id, float value)
{
    BUG_ON(plan->num_bias >= plan->caps.max_bias);
    plan_bias_ids(plan)[plan->num_bias] = id;
    plan_bias_values(plan)[plan->num_bias++] = value;
}

static void add_biases(struct step_plan *plan, const struct sequence *seq, const struct eos_ids *eos)
{
    const struct engine_request *req = &seq->sub->req;

    for (uint32_t i = 0; i < req->num_bias; i++) add_bias(plan, req->bias_ids[i], req->bias_values[i]);
    if (!masks_ends(seq)) return;
    for (uint32_t i = 0; i < req->num_stop_ids; i++) add_bias(plan, req->stop_ids[i], -INFINITY);
    for (int i = 0; !req->ignore_eos && i < eos->num; i++) add_bias(plan, eos->ids[i], -INFINITY);
}

static void add_history(struct step_plan *plan, const struct sequence *seq)
{
    BUG_ON(seq->num_tokens > plan->caps.max_history_tokens - plan->num_history_tokens);
    plan_history(plan)[plan->num_history++] = (struct history_entry){
        .slot = seq->slot, .begin = (uint32_t)plan->num_history_tokens, .num_prompt = (uint32_t)seq->num_prompt,
        .num_output = (uint32_t)seq_num_generated(seq),
    };
    memcpy(plan_history_tokens(plan) + plan->num_history_tokens, seq->tokens,
           (size_t)seq->num_tokens * sizeof(token_id));
    plan->num_history_tokens += seq->num_tokens;
}

static int32_t add_row(struct step_plan *plan, struct sequence *seq, int32_t b, const struct eos_ids *eos)
{
    struct sampling_row *row = &plan_rows(plan)[plan->num_rows];

    BUG_ON(plan->num_rows >= plan->caps.max_rows);
    *row = (struct sampling_row){
        .token = plan->num_tokens - 1, .seq = b, .slot = seq->slot, .target = TOKEN_NONE,
        .num_generated = (uint32_t)seq_num_generated(seq), .bias_begin = (uint32_t)plan->num_bias,
        .use_penalties = seq->has_penalties, .params = seq->sub->req.sampling,
    };
    if (!seq->is_plain) add_biases(plan, seq, eos);
    row->bias_count = (uint32_t)plan->num_bias - row->bias_begin;
    if (seq->has_penalties && !seq->history_sent) {
        add_history(plan, seq);
        seq->history_sent = true;
    }
    return plan->num_rows++;
}

int32_t plan_fill_add(struct step_plan *plan, struct sequence *seq, const struct eos_ids *eos)
{
    int32_t b = plan->num_seqs++, q_len = seq->num_scheduled, context = seq->num_computed + q_len;
    int32_t max_blocks = plan->caps.max_blocks_per_seq, block_size = plan->block_size;
    block_id *table = plan_block_tables(plan) + (int64_t)b * max_blocks;
    int32_t num_table = (context - 1) / block_size + 1;

    BUG_ON(q_len < 1 || plan->num_tokens + q_len > plan->caps.max_tokens || b >= plan->caps.max_seqs);
    BUG_ON(num_table > seq->num_blocks || context > seq->num_tokens);
    for (int32_t pos = seq->num_computed; pos < context; pos++) {
        int32_t t = plan->num_tokens++;
        plan_input_ids(plan)[t] = seq->tokens[pos];
        plan_positions(plan)[t] = pos;
        plan_slot_mapping(plan)[t] = (int64_t)seq->blocks[pos / block_size] * block_size + pos % block_size;
    }
    plan_cu_seqlens_q(plan)[b + 1] = plan->num_tokens;
    plan_context_lens(plan)[b] = context;
    plan_seq_slots(plan)[b] = seq->slot;
    memcpy(table, seq->blocks, (size_t)num_table * sizeof *table);
    for (int32_t i = num_table; i < max_blocks; i++) table[i] = BLOCK_NONE;
    if (q_len > plan->max_q_len) plan->max_q_len = q_len;
    if (context > plan->max_context_len) plan->max_context_len = context;
    return context == seq->num_tokens ? add_row(plan, seq, b, eos) : -1;
}
