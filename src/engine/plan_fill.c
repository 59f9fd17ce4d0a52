#include "plan_fill.h"

#include <math.h>
#include <string.h>

#include "base/bug.h"

enum { PREFETCH = 6 };                 /* sequences ahead */

static bool masks_ends(const struct sequence *seq) { return seq_num_drawn(seq) < seq->sub->req.min_tokens; }

struct row_need row_need_of(const struct sequence *seq, const struct eos_ids *eos)
{
    const struct engine_request *req = &seq->sub->req;
    struct row_need need = { .rows = !seq->only_scores };

    if (seq->is_plain) return need;
    need.bias = (int32_t)req->num_bias + (int32_t)req->num_allowed + seq->sub->num_bad_runs;
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

/* The run's last token is masked when the tokens before it were just generated. */
static bool run_is_near(const struct sequence *seq, const int32_t *run, int32_t len)
{
    size_t before = (size_t)len - 1;

    return seq_num_generated(seq) >= len - 1 &&
           memcmp(seq->tokens + seq->num_tokens - before, run, before * sizeof *run) == 0;
}

static void add_bad_words(struct step_plan *plan, const struct sequence *seq)
{
    const struct engine_request *req = &seq->sub->req;

    for (uint32_t at = 0; at < req->num_bad_ints; at += 1 + (uint32_t)req->bad_words[at]) {
        const int32_t *run = &req->bad_words[at + 1];
        int32_t len = req->bad_words[at];
        if (run_is_near(seq, run, len)) add_bias(plan, run[len - 1], -INFINITY);
    }
}

static void add_biases(struct step_plan *plan, const struct sequence *seq, const struct eos_ids *eos)
{
    const struct engine_request *req = &seq->sub->req;

    for (uint32_t i = 0; i < req->num_bias; i++) add_bias(plan, req->bias_ids[i], req->bias_values[i]);
    add_bad_words(plan, seq);
    if (!masks_ends(seq)) return;
    for (uint32_t i = 0; i < req->num_stop_ids; i++) add_bias(plan, req->stop_ids[i], -INFINITY);
    for (int i = 0; !req->ignore_eos && i < eos->num; i++) add_bias(plan, eos->ids[i], -INFINITY);
}

static void add_history(struct step_plan *plan, const struct sequence *seq)
{
    BUG_ON(seq->num_pending);          /* the first row of a slot: all before it is known */
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
        .num_generated = (uint32_t)seq_num_drawn(seq), .bias_begin = (uint32_t)plan->num_bias,
        .use_penalties = seq->has_penalties, .params = seq->sub->req.sampling,
    };
    if (!seq->is_plain) add_biases(plan, seq, eos);
    row->bias_count = (uint32_t)plan->num_bias - row->bias_begin;
    row->allow_begin = (uint32_t)plan->num_bias;
    row->allow_count = seq->is_plain ? 0 : seq->sub->req.num_allowed;
    for (uint32_t i = 0; i < row->allow_count; i++) add_bias(plan, seq->sub->req.allowed_ids[i], 0);
    if (seq->has_penalties && !seq->history_sent) {
        add_history(plan, seq);
        seq->history_sent = true;
    }
    return plan->num_rows++;
}

/* A row for each prompt token that the scheduled ones predict and that was not scored before. */
static void add_scores(struct step_plan *plan, const struct sequence *seq, int32_t b)
{
    int32_t begin = seq_next_position(seq) - seq->num_drafted;
    int32_t n = seq_num_scores(seq, begin, seq->num_drafted);
    int32_t first = begin < seq->num_scored ? seq->num_scored : begin;
    int32_t token = plan_cu_seqlens_q(plan)[b] + first - begin;

    BUG_ON(plan->num_rows + n > plan->caps.max_rows);
    for (int32_t i = 0; i < n; i++) {
        plan_rows(plan)[plan->num_rows++] = (struct sampling_row){
            .token = token + i, .seq = b, .slot = seq->slot, .target = seq->tokens[first + i + 1],
            .bias_begin = (uint32_t)plan->num_bias, .allow_begin = (uint32_t)plan->num_bias, .params = seq->sub->req.sampling,
        };
        plan_rows(plan)[plan->num_rows - 1].params.num_logprobs = seq->sub->req.num_prompt_logprobs;
    }
}

static void copy_table(block_id *to, const block_id *from, int32_t n, int32_t max_blocks)
{
    memcpy(to, from, (size_t)n * sizeof *to);
    /* behind what an earlier plan put here it is BLOCK_NONE already */
    for (int32_t i = n; i < max_blocks && to[i] != BLOCK_NONE; i++) to[i] = BLOCK_NONE;
}

/* The row draws a token that the next plan may build on, unless that one is the last. */
static void expect_token(struct sequence *seq)
{
    if (seq->feeds_back && seq->num_tokens + seq->num_pending + 1 < seq->max_total) seq->num_pending++;
}

/* Ids, positions and KV slots of seq's tokens begin .. end-1, a block at a time. */
static void add_tokens(struct step_plan *plan, const struct sequence *seq, int32_t begin, int32_t end)
{
    int32_t known = end < seq->num_tokens ? end : seq->num_tokens, block_size = plan->block_size;
    token_id *ids = plan_input_ids(plan) + plan->num_tokens;
    int32_t *positions = plan_positions(plan) + plan->num_tokens;
    int64_t *slots = plan_slot_mapping(plan) + plan->num_tokens;

    if (known > begin) memcpy(ids, seq->tokens + begin, (size_t)(known - begin) * sizeof *ids);
    if (known < end) ids[end - 1 - begin] = TOKEN_FEEDBACK;
    for (int32_t pos = begin, i = begin / block_size; pos < end; i++) {
        int32_t next = (i + 1) * block_size < end ? (i + 1) * block_size : end;
        int64_t offset = ((int64_t)seq->blocks[i] - i) * block_size;
        for (; pos < next; pos++) {
            positions[pos - begin] = pos;
            slots[pos - begin] = offset + pos;
        }
    }
    plan->num_tokens += end - begin;
}

int32_t plan_fill_add(struct step_plan *plan, struct sequence *seq, const struct eos_ids *eos)
{
    int32_t b = plan->num_seqs++, q_len = seq->num_drafted, context = seq_next_position(seq);
    int32_t max_blocks = plan->caps.max_blocks_per_seq;
    block_id *table = plan_block_tables(plan) + (int64_t)b * max_blocks;
    int32_t num_table = (context - 1) / plan->block_size + 1;

    BUG_ON(q_len < 1 || plan->num_tokens + q_len > plan->caps.max_tokens || b >= plan->caps.max_seqs);
    BUG_ON(num_table > seq->num_blocks || context > seq->num_tokens + seq->num_pending);
    BUG_ON(context > seq->num_tokens && q_len != 1);
    add_tokens(plan, seq, context - q_len, context);
    plan_cu_seqlens_q(plan)[b + 1] = plan->num_tokens;
    plan_context_lens(plan)[b] = context;
    plan_seq_slots(plan)[b] = seq->slot;
    copy_table(table, seq->blocks, num_table, max_blocks);
    if (q_len > plan->max_q_len) plan->max_q_len = q_len;
    if (context > plan->max_context_len) plan->max_context_len = context;
    if (seq->num_to_score) add_scores(plan, seq, b);
    seq->num_drafted = 0;
    if (context < seq->num_tokens + seq->num_pending || seq->only_scores) return -1;
    int32_t row = add_row(plan, seq, b, eos);
    expect_token(seq);
    return row;
}

/* Where the next sequence of one plain token goes: the arrays' addresses, worked out once. */
struct decode_fill {
    token_id *input_ids;
    int32_t *positions, *cu_seqlens_q, *context_lens, *seq_slots;
    int64_t *slot_mapping;
    block_id *tables;
    struct sampling_row *rows;
    struct plan_owners *owners;
    int32_t max_blocks, block_size;
};

static struct decode_fill decode_fill_of(const struct step_plan *plan, struct plan_owners *owners)
{
    return (struct decode_fill){
        .input_ids = plan_input_ids(plan), .positions = plan_positions(plan), .cu_seqlens_q = plan_cu_seqlens_q(plan),
        .context_lens = plan_context_lens(plan), .seq_slots = plan_seq_slots(plan),
        .slot_mapping = plan_slot_mapping(plan),
        .tables = plan_block_tables(plan), .rows = plan_rows(plan), .owners = owners,
        .max_blocks = plan->caps.max_blocks_per_seq, .block_size = plan->block_size,
    };
}

/* Its table in row b: what it has got since it was here last, or all. */
static void fill_table(const struct decode_fill *f, const struct sequence *seq, int32_t b, int32_t last)
{
    block_id *table = f->tables + (int64_t)b * f->max_blocks;

    if (f->owners->tables[b] != seq->admission) {
        copy_table(table, seq->blocks, last + 1, f->max_blocks);
        f->owners->tables[b] = seq->admission;
    }
    for (int32_t i = last; i >= 0 && table[i] == BLOCK_NONE; i--) table[i] = seq->blocks[i];
}

/* plan_fill_add for what most of a step is: the counts of plan are b, tokens and rows. */
static void fill_decode(const struct decode_fill *f, struct sequence *seq, int32_t b, int32_t t, int32_t r)
{
    int32_t pos = seq_next_position(seq) - 1, last = seq->num_blocks - 1;
    struct sampling_row *row = &f->rows[r];

    if (pos < last * f->block_size) last = pos / f->block_size;        /* rarely: blocks for more than is scheduled */
    f->input_ids[t] = pos < seq->num_tokens ? seq->tokens[pos] : TOKEN_FEEDBACK;
    f->positions[t] = pos;
    f->slot_mapping[t] = (int64_t)seq->blocks[last] * f->block_size + (pos - last * f->block_size);
    f->cu_seqlens_q[b + 1] = t + 1;
    f->context_lens[b] = pos + 1;
    f->seq_slots[b] = seq->slot;
    fill_table(f, seq, b, last);
    if (f->owners->rows[r] != seq->admission) {
        *row = (struct sampling_row){ .slot = seq->slot, .target = TOKEN_NONE, .params = seq->sampling };
        f->owners->rows[r] = seq->admission;
    }
    row->token = t;
    row->seq = b;
    row->num_generated = (uint32_t)seq_num_drawn(seq);
    seq->num_drafted = 0;
    expect_token(seq);
}

static void prefetch(const struct sequence *seq)
{
    __builtin_prefetch(&seq->tokens[seq->num_computed]);
    __builtin_prefetch(seq->blocks);
    __builtin_prefetch(&seq->sampling);
}

static int32_t fill_other(struct step_plan *plan, struct plan_owners *owners, struct sequence *seq, const struct eos_ids *eos)
{
    int32_t first_row = plan->num_rows;

    owners->tables[plan->num_seqs] = 0;
    int32_t row = plan_fill_add(plan, seq, eos);
    for (int32_t r = first_row; r < plan->num_rows; r++) owners->rows[r] = 0;
    return row;
}

void plan_fill(struct step_plan *plan, struct plan_owners *owners, struct sequence *const *seqs, int32_t n,
               const struct eos_ids *eos, int32_t *rows)
{
    struct decode_fill f = decode_fill_of(plan, owners);

    for (int32_t i = 0; i < n; i++) {
        struct sequence *seq = seqs[i];
        int32_t context = seq_next_position(seq);
        if (i + PREFETCH < n) prefetch(seqs[i + PREFETCH]);
        if (!seq->is_plain || seq->num_drafted != 1 || context != seq->num_tokens + seq->num_pending) {
            rows[i] = fill_other(plan, owners, seq, eos);
            continue;
        }
        BUG_ON(plan->num_tokens >= plan->caps.max_tokens || plan->num_seqs >= plan->caps.max_seqs ||
               plan->num_rows >= plan->caps.max_rows || context > seq->num_blocks * plan->block_size);
        rows[i] = plan->num_rows;
        fill_decode(&f, seq, plan->num_seqs++, plan->num_tokens++, plan->num_rows++);
        if (context > plan->max_context_len) plan->max_context_len = context;
    }
    if (n && !plan->max_q_len) plan->max_q_len = 1;
}
