/* step_plan_test.c - arrays do not overlap, a good plan passes, each broken invariant is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/step_plan.h>

enum { BLOCK_SIZE = 16, NUM_BLOCKS = 8, VOCAB = 100 };

static const struct step_plan_caps caps = { .max_tokens = 33, .max_seqs = 3, .max_rows = 5, .max_blocks_per_seq = 4,
                                            .max_bias = 7, .max_history_tokens = 11 };

/* A decode at position 20 (blocks 5, 2) and a chunk of 3 tokens at 0..2 (block 7). */
static struct step_plan *good_plan(void)
{
    size_t bytes = step_plan_bytes(&caps);
    struct step_plan *plan = aligned_alloc(64, bytes);
    assert_non_null(plan);
    step_plan_init(plan, &caps);
    plan->num_tokens = 4;
    plan->num_seqs = 2;
    plan->num_rows = 2;
    plan->num_decode_seqs = 1;
    plan->block_size = BLOCK_SIZE;
    plan->max_q_len = 3;
    plan->max_context_len = 21;
    memcpy(plan_cu_seqlens_q(plan), (int32_t[]){ 0, 1, 4 }, 12);
    memcpy(plan_context_lens(plan), (int32_t[]){ 21, 3 }, 8);
    memcpy(plan_positions(plan), (int32_t[]){ 20, 0, 1, 2 }, 16);
    memcpy(plan_slot_mapping(plan), (int64_t[]){ 2 * 16 + 4, 7 * 16, 7 * 16 + 1, 7 * 16 + 2 }, 32);
    memcpy(plan_input_ids(plan), (token_id[]){ 1, 2, 3, 99 }, 16);
    memcpy(plan_block_tables(plan), (block_id[]){ 5, 2, -1, -1, 7, -1, -1, -1 }, 32);
    memcpy(plan_seq_slots(plan), (int32_t[]){ 2, 0 }, 8);
    plan_rows(plan)[0] = (struct sampling_row){ .token = 0, .seq = 0, .slot = 2, .target = TOKEN_NONE };
    plan_rows(plan)[1] = (struct sampling_row){ .token = 2, .seq = 1, .slot = 0, .target = 50 };
    return plan;
}

static void arrays_do_not_overlap(void **state)
{
    size_t bytes = step_plan_bytes(&caps);
    struct step_plan *plan = good_plan();
    (void)state;
    const uint64_t ends[] = {
        plan->off_input_ids + 33 * sizeof(token_id), plan->off_positions + 33 * sizeof(int32_t),
        plan->off_slot_mapping + 33 * sizeof(int64_t), plan->off_cu_seqlens_q + 4 * sizeof(int32_t),
        plan->off_context_lens + 3 * sizeof(int32_t), plan->off_block_tables + 12 * sizeof(block_id),
        plan->off_seq_slots + 3 * sizeof(int32_t), plan->off_rows + 5 * sizeof(struct sampling_row),
        plan->off_bias_ids + 7 * sizeof(token_id), plan->off_bias_values + 7 * sizeof(float),
        plan->off_history + 3 * sizeof(struct history_entry), plan->off_history_tokens + 11 * sizeof(token_id) };
    const uint64_t begins[] = { plan->off_input_ids, plan->off_positions, plan->off_slot_mapping,
                                plan->off_cu_seqlens_q,
                                plan->off_context_lens, plan->off_block_tables, plan->off_seq_slots, plan->off_rows,
                                plan->off_bias_ids, plan->off_bias_values, plan->off_history, plan->off_history_tokens,
                                    bytes };
    assert_true(begins[0] >= sizeof(*plan));
    for (int i = 0; i < 12; i++) {
        assert_int_equal(begins[i] % 64, 0);
        assert_true(ends[i] <= begins[i + 1]);
    }
    assert_int_equal(plan->total_bytes, bytes);
    free(plan);
}

static void good_plan_passes_and_reset_empties(void **state)
{
    struct step_plan *plan = good_plan();
    struct err err = { 0 };
    (void)state;
    assert_int_equal(step_plan_check(plan, NUM_BLOCKS, VOCAB, &err), 0);
    plan_input_ids(plan)[0] = TOKEN_FEEDBACK;
    assert_int_equal(step_plan_check(plan, NUM_BLOCKS, VOCAB, &err), 0);
    step_plan_reset(plan);
    assert_int_equal(plan->num_tokens, 0);
    assert_int_equal(plan->caps.max_tokens, 33);
    assert_int_equal(step_plan_check(plan, NUM_BLOCKS, VOCAB, &err), ERR_PROTOCOL);
    free(plan);
}

#define BREAKS(change, part) do {                                                          \
        struct step_plan *plan = good_plan();                                              \
        struct err err = { 0 };                                                            \
        change;                                                                            \
        assert_int_equal(step_plan_check(plan, NUM_BLOCKS, VOCAB, &err), ERR_PROTOCOL);    \
        if (!strstr(err.message, part)) fail_msg("%s: %s", part, err.message);             \
        free(plan);                                                                        \
    } while (0)

static void broken_invariants_are_named(void **state)
{
    (void)state;
    BREAKS(plan->num_tokens = 34, "num_tokens");
    BREAKS(plan->num_seqs = 4, "num_seqs");
    BREAKS(plan->num_rows = 6, "num_rows");
    BREAKS(plan->block_size = 0, "block_size");
    BREAKS(plan_cu_seqlens_q(plan)[0] = 1, "cu_seqlens_q[0]");
    BREAKS(plan_cu_seqlens_q(plan)[2] = 3, "does not end");
    BREAKS(plan_cu_seqlens_q(plan)[1] = 0, "cu_seqlens_q");
    BREAKS(plan->num_decode_seqs = 2, "decode sequence");
    BREAKS(plan->max_q_len = 2, "max_q_len");
    BREAKS(plan->max_context_len = 20, "context_lens");
    BREAKS(plan_context_lens(plan)[1] = 2, "context_lens");
    BREAKS(plan_context_lens(plan)[0] = 65; plan->max_context_len = 65, "beyond its table");
    BREAKS(plan_seq_slots(plan)[1] = 3, "seq_slots");
    BREAKS(plan_block_tables(plan)[0] = NUM_BLOCKS, "block_tables");
    BREAKS(plan_block_tables(plan)[1] = BLOCK_NONE, "block_tables");
    BREAKS(plan_positions(plan)[2] = 2, "positions");
    BREAKS(plan_slot_mapping(plan)[0] = 5 * 16 + 4, "slot_mapping");
    BREAKS(plan_rows(plan)[0].seq = 2, "row's seq");
    BREAKS(plan_rows(plan)[0].token = 1, "row's token");
    BREAKS(plan_rows(plan)[1].target = TOKEN_NONE, "draws inside");
    BREAKS(plan_rows(plan)[1].target = VOCAB, "row's target");
    BREAKS(plan_rows(plan)[1].slot = 1, "row's slot");
    BREAKS(plan_rows(plan)[1].bias_count = 1, "row's bias");
    BREAKS(plan_input_ids(plan)[3] = VOCAB, "input_ids");
    BREAKS(plan_input_ids(plan)[0] = TOKEN_NONE, "input_ids");
    BREAKS(plan_input_ids(plan)[1] = TOKEN_FEEDBACK, "input_ids");     /* not a decode */
    BREAKS(plan->num_bias = 1; plan_bias_ids(plan)[0] = -1, "bias_ids");
    BREAKS(plan->num_history = 1; plan_history(plan)[0].num_output = 1, "history's range");
    BREAKS(plan->num_history_tokens = 1; plan_history_tokens(plan)[0] = VOCAB, "history_tokens");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_do_not_overlap),
        cmocka_unit_test(good_plan_passes_and_reset_empties),
        cmocka_unit_test(broken_invariants_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
