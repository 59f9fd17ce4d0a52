/* step_plan.c - layout of a step_plan's arrays behind the struct, and the check of what the ranks rely on. */
#include <sluice/step_plan.h>

#include <string.h>

#include "base/bug.h"

enum { PLAN_ALIGN = 64 };

/* Lays one array of n elements behind *end. */
static uint64_t place(uint64_t *end, int64_t n, size_t elem_bytes)
{
    uint64_t at = (*end + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
    *end = at + (uint64_t)n * elem_bytes;
    return at;
}

static void lay_out(struct step_plan *plan, const struct step_plan_caps *caps)
{
    uint64_t end = sizeof(*plan);
    BUG_ON(caps->max_tokens < 1 || caps->max_seqs < 1 || caps->max_rows < 1 || caps->max_blocks_per_seq < 1);
    BUG_ON(caps->max_bias < 0 || caps->max_history_tokens < 0);
    *plan = (struct step_plan){ .caps = *caps };
    plan->off_input_ids = place(&end, caps->max_tokens, sizeof(token_id));
    plan->off_positions = place(&end, caps->max_tokens, sizeof(int32_t));
    plan->off_slot_mapping = place(&end, caps->max_tokens, sizeof(int64_t));
    plan->off_cu_seqlens_q = place(&end, (int64_t)caps->max_seqs + 1, sizeof(int32_t));
    plan->off_context_lens = place(&end, caps->max_seqs, sizeof(int32_t));
    plan->off_block_tables = place(&end, (int64_t)caps->max_seqs * caps->max_blocks_per_seq, sizeof(block_id));
    plan->off_seq_slots = place(&end, caps->max_seqs, sizeof(int32_t));
    plan->off_rows = place(&end, caps->max_rows, sizeof(struct sampling_row));
    plan->off_bias_ids = place(&end, caps->max_bias, sizeof(token_id));
    plan->off_bias_values = place(&end, caps->max_bias, sizeof(float));
    plan->off_history = place(&end, caps->max_seqs, sizeof(struct history_entry));
    plan->off_history_tokens = place(&end, caps->max_history_tokens, sizeof(token_id));
    plan->total_bytes = (end + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
}

size_t step_plan_bytes(const struct step_plan_caps *caps)
{
    struct step_plan plan;
    lay_out(&plan, caps);
    return plan.total_bytes;
}

void step_plan_init(struct step_plan *plan, const struct step_plan_caps *caps)
{
    BUG_ON((uintptr_t)plan % PLAN_ALIGN != 0);
    lay_out(plan, caps);
    memset((char *)plan + sizeof(*plan), 0, plan->total_bytes - sizeof(*plan));
}

void step_plan_reset(struct step_plan *plan)
{
    plan->num_tokens = plan->num_seqs = plan->num_rows = 0;
    plan->num_bias = plan->num_history = plan->num_history_tokens = 0;
    plan->max_q_len = plan->max_context_len = plan->num_decode_seqs = 0;
    plan_cu_seqlens_q(plan)[0] = 0;
}

static int bad(struct err *err, const char *what, int64_t index, int64_t found)
{
    return err_set(err, ERR_PROTOCOL, "step plan: %s (index %lld, found %lld)", what, (long long)index,
                   (long long)found);
}

static int check_counts(const struct step_plan *plan, struct err *err)
{
    const struct step_plan_caps *caps = &plan->caps;
    if (plan->num_tokens < 1 || plan->num_tokens > caps->max_tokens) return bad(err, "num_tokens", 0, plan->num_tokens);
    if (plan->num_seqs < 1 || plan->num_seqs > caps->max_seqs) return bad(err, "num_seqs", 0, plan->num_seqs);
    if (plan->num_rows < 0 || plan->num_rows > caps->max_rows) return bad(err, "num_rows", 0, plan->num_rows);
    if (plan->num_bias < 0 || plan->num_bias > caps->max_bias) return bad(err, "num_bias", 0, plan->num_bias);
    if (plan->num_history < 0 || plan->num_history > caps->max_seqs) {
        return bad(err, "num_history", 0, plan->num_history);
    }
    if (plan->num_history_tokens < 0 || plan->num_history_tokens > caps->max_history_tokens) {
        return bad(err, "num_history_tokens", 0, plan->num_history_tokens);
    }
    if (plan->block_size < 1) return bad(err, "block_size", 0, plan->block_size);
    if (plan->num_decode_seqs < 0 || plan->num_decode_seqs > plan->num_seqs) {
        return bad(err, "num_decode_seqs", 0, plan->num_decode_seqs);
    }
    if (plan_cu_seqlens_q(plan)[0] != 0) return bad(err, "cu_seqlens_q[0]", 0, plan_cu_seqlens_q(plan)[0]);
    if (plan_cu_seqlens_q(plan)[plan->num_seqs] != plan->num_tokens) {
        return bad(err, "cu_seqlens_q does not end at num_tokens", plan->num_seqs,
                   plan_cu_seqlens_q(plan)[plan->num_seqs]);
    }
    return 0;
}

static int check_seq(const struct step_plan *plan, int32_t b, int32_t num_blocks, struct err *err)
{
    const int32_t *cu = plan_cu_seqlens_q(plan);
    const block_id *table = plan_block_tables(plan) + (int64_t)b * plan->caps.max_blocks_per_seq;
    int32_t q_len = cu[b + 1] - cu[b], context = plan_context_lens(plan)[b], slot = plan_seq_slots(plan)[b];
    if (cu[b + 1] <= cu[b] || cu[b + 1] > plan->num_tokens) return bad(err, "cu_seqlens_q", b + 1, cu[b + 1]);
    if (b < plan->num_decode_seqs && q_len != 1) return bad(err, "a decode sequence of more than one token", b, q_len);
    if (q_len > plan->max_q_len) return bad(err, "q_len above max_q_len", b, q_len);
    if (context < q_len || context > plan->max_context_len) return bad(err, "context_lens", b, context);
    if ((context - 1) / plan->block_size >= plan->caps.max_blocks_per_seq) {
        return bad(err, "context beyond its table", b, context);
    }
    if (slot < 0 || slot >= plan->caps.max_seqs) return bad(err, "seq_slots", b, slot);
    for (int32_t i = 0; i <= (context - 1) / plan->block_size; i++) {
        if (table[i] < 0 || table[i] >= num_blocks) return bad(err, "block_tables", b, table[i]);
    }
    for (int32_t t = cu[b]; t < cu[b + 1]; t++) {
        int32_t position = context - q_len + (t - cu[b]);
        int64_t want = (int64_t)table[position / plan->block_size] * plan->block_size + position % plan->block_size;
        if (plan_positions(plan)[t] != position) return bad(err, "positions", t, plan_positions(plan)[t]);
        if (plan_slot_mapping(plan)[t] != want) return bad(err, "slot_mapping", t, plan_slot_mapping(plan)[t]);
    }
    return 0;
}

static int check_row(const struct step_plan *plan, int32_t r, int32_t vocab_size, struct err *err)
{
    const struct sampling_row *row = &plan_rows(plan)[r];
    const int32_t *cu = plan_cu_seqlens_q(plan);
    if (row->seq < 0 || row->seq >= plan->num_seqs) return bad(err, "row's seq", r, row->seq);
    if (row->token < cu[row->seq] || row->token >= cu[row->seq + 1]) return bad(err, "row's token", r, row->token);
    if (row->target < 0 && row->token != cu[row->seq + 1] - 1) {
        return bad(err, "row draws inside a sequence", r, row->token);
    }
    if (row->target >= vocab_size) return bad(err, "row's target", r, row->target);
    if (row->slot != plan_seq_slots(plan)[row->seq]) return bad(err, "row's slot", r, row->slot);
    if (row->bias_begin > (uint32_t)plan->num_bias || row->bias_count > (uint32_t)plan->num_bias - row->bias_begin) {
        return bad(err, "row's bias", r, row->bias_begin);
    }
    if (row->allow_begin > (uint32_t)plan->num_bias || row->allow_count > (uint32_t)plan->num_bias - row->allow_begin) {
        return bad(err, "row's allowed ids", r, row->allow_begin);
    }
    return 0;
}

static int check_history(const struct step_plan *plan, int32_t i, struct err *err)
{
    const struct history_entry *entry = &plan_history(plan)[i];
    uint32_t n = (uint32_t)plan->num_history_tokens;
    if (entry->slot < 0 || entry->slot >= plan->caps.max_seqs) return bad(err, "history's slot", i, entry->slot);
    if (entry->begin > n || entry->num_prompt > n - entry->begin
        || entry->num_output > n - entry->begin - entry->num_prompt) {
        return bad(err, "history's range", i, entry->begin);
    }
    return 0;
}

/* Feedback is the only token of its sequence: these come first, so that token t is of sequence t. */
static int check_input_ids(const struct step_plan *plan, int32_t vocab_size, struct err *err)
{
    const token_id *ids = plan_input_ids(plan);
    for (int32_t t = 0; t < plan->num_tokens; t++) {
        if (ids[t] == TOKEN_FEEDBACK && t < plan->num_decode_seqs) continue;
        if (ids[t] < 0 || ids[t] >= vocab_size) return bad(err, "input_ids", t, ids[t]);
    }
    return 0;
}

static int check_ids(const token_id *ids, int32_t n, int32_t vocab_size, const char *what, struct err *err)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab_size) return bad(err, what, i, ids[i]);
    }
    return 0;
}

int step_plan_check(const struct step_plan *plan, int32_t num_blocks, int32_t vocab_size, struct err *err)
{
    int rc = check_counts(plan, err);
    if (rc < 0) return rc;
    for (int32_t b = 0; b < plan->num_seqs; b++) {
        if ((rc = check_seq(plan, b, num_blocks, err)) < 0) return rc;
    }
    for (int32_t r = 0; r < plan->num_rows; r++) {
        if ((rc = check_row(plan, r, vocab_size, err)) < 0) return rc;
    }
    for (int32_t i = 0; i < plan->num_history; i++) {
        if ((rc = check_history(plan, i, err)) < 0) return rc;
    }
    if ((rc = check_input_ids(plan, vocab_size, err)) < 0) return rc;
    if ((rc = check_ids(plan_bias_ids(plan), plan->num_bias, vocab_size, "bias_ids", err)) < 0) return rc;
    return check_ids(plan_history_tokens(plan), plan->num_history_tokens, vocab_size, "history_tokens", err);
}
