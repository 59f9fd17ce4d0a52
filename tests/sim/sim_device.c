#include "sim.h"

#include <math.h>
#include <stdlib.h>

void sim_device_init(struct sim_device *d, int32_t num_blocks, int32_t block_size, int32_t max_num_seqs, uint64_t seed)
{
    *d = (struct sim_device){
        .num_blocks = num_blocks, .block_size = block_size, .max_num_seqs = max_num_seqs, .random = {seed}};
    d->kv = calloc((size_t)num_blocks * (size_t)block_size, sizeof *d->kv);
    d->histories = calloc((size_t)max_num_seqs, sizeof *d->histories);
    d->last_tokens = calloc((size_t)max_num_seqs, sizeof *d->last_tokens);
    SIM_CHECK(d->kv && d->histories && d->last_tokens);
}

void sim_device_release(struct sim_device *d)
{
    free(d->kv);
    free(d->histories);
    free(d->last_tokens);
}

static int64_t kv_at(const struct sim_device *d, const struct step_plan *plan, int32_t b, int32_t position)
{
    block_id block = plan_block_tables(plan)[(int64_t)b * plan->caps.max_blocks_per_seq + position / d->block_size];

    SIM_CHECK(block >= 0 && block < d->num_blocks);
    return (int64_t)block * d->block_size + position % d->block_size;
}

static void store(struct sim_device *d, const struct step_plan *plan, int32_t b, uint8_t domain)
{
    for (int32_t t = plan_cu_seqlens_q(plan)[b]; t < plan_cu_seqlens_q(plan)[b + 1]; t++) {
        int32_t position = plan_positions(plan)[t];
        token_id id = plan_input_ids(plan)[t];
        SIM_CHECK(plan_slot_mapping(plan)[t] == kv_at(d, plan, b, position));
        uint64_t before = position ? d->kv[kv_at(d, plan, b, position - 1)] : sim_mix(0, domain);
        if (id == TOKEN_FEEDBACK) id = d->last_tokens[plan_seq_slots(plan)[b]];
        d->kv[plan_slot_mapping(plan)[t]] = sim_mix(before, (uint64_t)id);
    }
}

/* What attention would read: every position of the context must hold what the truth says. */
static void verify(const struct sim_device *d, const struct step_plan *plan, int32_t b, const struct sim_request *r)
{
    int32_t context = plan_context_lens(plan)[b];

    SIM_CHECK(context <= r->num_drawn);
    for (int32_t i = 0; i < context; i++) SIM_CHECK(d->kv[kv_at(d, plan, b, i)] == r->chain[i]);
}

static uint64_t history_hash(const token_id *tokens, int32_t n)
{
    uint64_t hash = 1;

    for (int32_t i = 0; i < n; i++) hash += sim_mix(7, (uint64_t)tokens[i]);      /* counts: order does not matter */
    return hash;
}

static void load_histories(struct sim_device *d, const struct step_plan *plan)
{
    for (int32_t i = 0; i < plan->num_history; i++) {
        const struct history_entry *entry = &plan_history(plan)[i];
        int32_t n = (int32_t)(entry->num_prompt + entry->num_output);
        d->histories[entry->slot] =
            (struct sim_slot_history){history_hash(plan_history_tokens(plan) + entry->begin, n), n};
    }
}

static void check_masks(const struct step_plan *plan, const struct sampling_row *row, const struct sim_request *r)
{
    bool masked[SIM_VOCAB] = { false };
    bool biased = !r->req.num_bias;

    for (uint32_t i = row->bias_begin; i < row->bias_begin + row->bias_count; i++) {
        token_id id = plan_bias_ids(plan)[i];
        if (isinf(plan_bias_values(plan)[i])) masked[id] = true;
        else biased = biased || (id == r->bias_id && plan_bias_values(plan)[i] == r->bias_value);
    }
    SIM_CHECK(biased);
    for (token_id id = 0; id < SIM_VOCAB; id++) SIM_CHECK(masked[id] == sim_is_masked(r, r->num_drawn, id));
}

static void draw(struct sim_device *d, const struct step_plan *plan, const struct sampling_row *row,
                 struct sim_request *r, struct result_row *out)
{
    struct sim_slot_history *history = &d->histories[row->slot];

    *out = (struct result_row){ .token = sim_truth(r, r->num_drawn) };
    SIM_CHECK(row->num_generated == (uint32_t)r->num_drawn - r->req.num_prompt);
    SIM_CHECK(row->params.seed == r->req.sampling.seed && row->params.choice == r->req.sampling.choice);
    check_masks(plan, row, r);
    SIM_CHECK(row->use_penalties == (r->req.sampling.frequency_penalty != 0));
    if (row->use_penalties) {
        SIM_CHECK(history->num_tokens == r->num_drawn && history->hash == history_hash(r->tokens, r->num_drawn));
        history->hash += sim_mix(7, (uint64_t)out->token);
        history->num_tokens++;
    }
    if (!d->bad_percent || !sim_chance(&d->random, d->bad_percent)) {
        int32_t received = r->num_tokens;
        r->num_tokens = r->num_drawn;
        sim_request_append(r, out->token);
        r->num_tokens = received;
        return;
    }
    out->bad = 1;
    out->token = TOKEN_NONE;
    r->may_fail = r->doomed = true;
    for (int32_t t = plan_cu_seqlens_q(plan)[row->seq]; t < plan_cu_seqlens_q(plan)[row->seq + 1]; t++) {
        d->kv[plan_slot_mapping(plan)[t]] = 0xbad;
    }
}

/* One that is dead to its client, or doomed, may hold anything. */
static struct sim_request *alive(const struct sim_seq *seq)
{
    return seq->request && !seq->request->doomed ? seq->request : NULL;
}

void sim_device_execute(struct sim_device *d, const struct step_plan *plan, const struct sim_seq *seqs,
                        struct step_result *result)
{
    struct err err = { 0 };

    if (step_plan_check(plan, d->num_blocks, SIM_VOCAB, &err) < 0) sim_fail(__FILE__, __LINE__, err.message);
    for (int32_t b = 0; b < plan->num_seqs; b++) store(d, plan, b, seqs[b].domain);
    for (int32_t b = 0; b < plan->num_seqs; b++)
        if (alive(&seqs[b])) verify(d, plan, b, seqs[b].request);
    load_histories(d, plan);
    result->step = plan->step;
    result->num_rows = plan->num_rows;
    for (int32_t i = 0; i < plan->num_rows; i++) {
        const struct sampling_row *row = &plan_rows(plan)[i];
        struct sim_request *r = alive(&seqs[row->seq]);
        if (r) SIM_CHECK(plan_context_lens(plan)[row->seq] == r->num_drawn);
        if (r) draw(d, plan, row, r, &result->rows[i]);
        else result->rows[i] = (struct result_row){ .token = (token_id)sim_below(&d->random, SIM_VOCAB + 1) - 1 };
        d->last_tokens[row->slot] = result->rows[i].token;
    }
}
