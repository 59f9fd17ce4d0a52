#include "helpers.h"

#include <math.h>

#include "plan_fill.h"

static const struct step_plan_caps caps = {
    .max_tokens = 16, .max_seqs = 2, .max_rows = 2, .max_blocks_per_seq = 4, .max_bias = 8, .max_history_tokens = 20};

static struct step_plan *new_plan(void)
{
    struct step_plan *plan = aligned_alloc(64, (step_plan_bytes(&caps) + 63) / 64 * 64);

    assert_non_null(plan);
    step_plan_init(plan, &caps);
    plan->block_size = TEST_BLOCK_SIZE;
    return plan;
}

/* 10 tokens of prompt in blocks 5, 2, 7. */
static struct sequence sequence_of(struct submission *sub, block_id blocks[4])
{
    blocks[0] = 5;
    blocks[1] = 2;
    blocks[2] = 7;
    return (struct sequence){.sub = sub,
                             .tokens = sub->tokens,
                             .num_prompt = 10,
                             .num_tokens = 10,
                             .slot = 1,
                             .blocks = blocks,
                             .num_blocks = 3};
}

static void a_chunk_fills_the_arrays(void **state)
{
    struct submission *sub = test_submission(1, 100, 10, 5);
    struct step_plan *plan = new_plan();
    const struct eos_ids eos = { { 9 }, 1 };
    block_id blocks[4];
    struct sequence seq = sequence_of(sub, blocks);
    struct err err = { 0 };

    (void)state;
    seq.num_computed = 3;
    seq.num_scheduled = seq.num_drafted = 6;   /* positions 3..8 of 10: no row */
    assert_int_equal(plan_fill_add(plan, &seq, &eos), -1);
    assert_int_equal(plan->num_tokens, 6);
    assert_int_equal(plan_cu_seqlens_q(plan)[1], 6);
    assert_int_equal(plan_context_lens(plan)[0], 9);
    assert_int_equal(plan_seq_slots(plan)[0], 1);
    for (int32_t t = 0; t < 6; t++) {
        assert_int_equal(plan_input_ids(plan)[t], 103 + t);
        assert_int_equal(plan_positions(plan)[t], 3 + t);
    }
    assert_int_equal(plan_slot_mapping(plan)[0], 5 * 4 + 3);
    assert_int_equal(plan_slot_mapping(plan)[1], 2 * 4);
    assert_int_equal(plan_slot_mapping(plan)[5], 7 * 4);
    assert_int_equal(plan_block_tables(plan)[2], 7);
    assert_int_equal(plan_block_tables(plan)[3], BLOCK_NONE);
    assert_int_equal(step_plan_check(plan, 8, TEST_VOCAB, &err), 0);
    free(plan);
    submission_free(sub);
}

static void the_last_token_gets_a_row(void **state)
{
    struct submission *sub = test_submission(1, 100, 10, 5);
    struct step_plan *plan = new_plan();
    const struct eos_ids eos = { { 9 }, 1 };
    block_id blocks[4];
    struct sequence seq = sequence_of(sub, blocks);

    (void)state;
    sub->req.min_tokens = 1;
    seq.has_penalties = true;
    seq.num_computed = 8;
    seq.num_scheduled = seq.num_drafted = 2;
    struct row_need need = row_need_of(&seq, &eos);
    assert_int_equal(need.bias, 1);
    assert_int_equal(need.history_tokens, 10);
    assert_int_equal(plan_fill_add(plan, &seq, &eos), 0);
    assert_int_equal(plan_rows(plan)[0].token, 1);
    assert_int_equal(plan_rows(plan)[0].slot, 1);
    assert_int_equal(plan_rows(plan)[0].target, TOKEN_NONE);
    assert_int_equal(plan->num_bias, need.bias);
    assert_int_equal(plan->num_history_tokens, need.history_tokens);
    assert_true(seq.history_sent);
    assert_int_equal(row_need_of(&seq, &eos).history_tokens, 0);
    free(plan);
    submission_free(sub);
}

static void a_full_plan_takes_no_further_row(void **state)
{
    struct row_need used = { 1, 7, 15 };

    (void)state;
    assert_true(row_need_fits(&used, &(struct row_need){ 1, 1, 5 }, &caps));
    assert_false(row_need_fits(&used, &(struct row_need){ 2, 1, 5 }, &caps));
    assert_false(row_need_fits(&used, &(struct row_need){ 1, 2, 5 }, &caps));
    assert_false(row_need_fits(&used, &(struct row_need){ 1, 1, 6 }, &caps));
}

/* Tokens 100..109 are the prompt, 110 111 were generated. */
static void words_and_allowed_ids_become_masks(void **state)
{
    static const int32_t words[] = { 1, 7, 2, 111, 50, 3, 110, 111, 51, 3, 109, 110, 52, 2, 110, 53 };
    static const token_id allowed[] = { 5, 6 };
    struct engine_request req = test_request(1, 100, 10, 5);
    struct step_plan *plan = new_plan();
    const struct eos_ids eos = { { 9 }, 1 };
    block_id blocks[4];

    (void)state;
    req.bad_words = words;
    req.num_bad_ints = sizeof words / sizeof words[0];
    req.allowed_ids = allowed;
    req.num_allowed = 2;
    struct submission *sub = submission_new(&req, &test_limits);
    assert_non_null(sub);
    assert_int_equal(sub->num_bad_runs, 5);
    struct sequence seq = sequence_of(sub, blocks);
    seq.tokens[10] = 110;
    seq.tokens[11] = 111;
    seq.num_tokens = 12;
    seq.num_computed = 11;
    seq.num_scheduled = seq.num_drafted = 1;
    struct row_need need = row_need_of(&seq, &eos);
    assert_true(need.bias >= 5);
    assert_int_equal(plan_fill_add(plan, &seq, &eos), 0);
    const struct sampling_row *row = &plan_rows(plan)[0];
    assert_int_equal(row->bias_count, 3);                /* 7; 50 after 111; 51 after 110 111; prompts do not count */
    assert_int_equal(plan_bias_ids(plan)[row->bias_begin], 7);
    assert_int_equal(plan_bias_ids(plan)[row->bias_begin + 1], 50);
    assert_int_equal(plan_bias_ids(plan)[row->bias_begin + 2], 51);
    assert_true(isinf(plan_bias_values(plan)[row->bias_begin]));
    assert_int_equal(row->allow_count, 2);
    assert_int_equal(plan_bias_ids(plan)[row->allow_begin + 1], 6);
    free(plan);
    submission_free(sub);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chunk_fills_the_arrays),
        cmocka_unit_test(the_last_token_gets_a_row),
        cmocka_unit_test(words_and_allowed_ids_become_masks),
        cmocka_unit_test(a_full_plan_takes_no_further_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
