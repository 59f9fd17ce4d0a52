/* layout_test.c - stages by cost or as told, what the first and last hold, and the refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/parallel.h>

static struct model_config smollm2(void)
{
    return (struct model_config){ .arch = ARCH_LLAMA, .hidden_size = 576, .intermediate_size = 1536,
                                  .num_hidden_layers = 30, .num_attention_heads = 9, .num_key_value_heads = 3,
                                  .head_dim = 64, .vocab_size = 49152, .tie_word_embeddings = true };
}

static void rank_numbers_round_trip(void **state)
{
    (void)state;
    for (int tp_size = 1; tp_size <= MAX_TP; tp_size++) {
        for (int rank = 0; rank < tp_size * MAX_PP; rank++) {
            int tp_rank, pp_stage;
            rank_place(rank, tp_size, &tp_rank, &pp_stage);
            assert_true(tp_rank < tp_size && pp_stage < MAX_PP);
            assert_int_equal(rank_of(tp_size, tp_rank, pp_stage), rank);
        }
    }
}

static void stages_cover_all_layers(void **state)
{
    struct model_config config = smollm2();
    (void)state;
    for (int pp_size = 1; pp_size <= MAX_PP; pp_size++) {
        int64_t at = 0;
        for (int stage = 0; stage < pp_size; stage++) {
            struct shard shard;
            assert_int_equal(shard_of(&shard, &config, 1, pp_size, 0, stage, NULL, NULL), 0);
            assert_int_equal(shard.layers.begin, at);
            assert_true(range_len(shard.layers) >= 1);
            assert_int_equal(shard.has_embedding, stage == 0);
            assert_int_equal(shard.has_head, stage == pp_size - 1);
            at = shard.layers.end;
        }
        assert_int_equal(at, 30);
    }
}

/* The embedding is as heavy as 8 layers, so of three stages the middle one takes most layers. */
static void balance_counts_embedding_and_head(void **state)
{
    struct model_config config = smollm2();
    struct shard first, middle, last;
    (void)state;
    assert_int_equal(shard_of(&first, &config, 1, 3, 0, 0, NULL, NULL), 0);
    assert_int_equal(shard_of(&middle, &config, 1, 3, 0, 1, NULL, NULL), 0);
    assert_int_equal(shard_of(&last, &config, 1, 3, 0, 2, NULL, NULL), 0);
    assert_true(range_len(middle.layers) >= range_len(first.layers) + 7);
    assert_true(range_len(middle.layers) >= range_len(last.layers) + 7);
    config.vocab_size = 8;
    assert_int_equal(shard_of(&middle, &config, 1, 3, 0, 1, NULL, NULL), 0);
    assert_int_equal(range_len(middle.layers), 10);
}

static void told_partition_is_taken(void **state)
{
    struct model_config config = smollm2();
    struct shard shard;
    const int told[2] = { 12, 18 };
    (void)state;
    assert_int_equal(shard_of(&shard, &config, 3, 2, 2, 1, told, NULL), 0);
    assert_int_equal(shard.layers.begin, 12);
    assert_int_equal(shard.layers.end, 30);
    assert_int_equal(shard.kv_heads.begin, 2);
    assert_int_equal(shard.heads.begin, 6);
    assert_int_equal(shard.ffn.begin, 1024);
    assert_int_equal(shard.vocab.end, 49152);
}

static void refusal(const struct model_config *config, int tp_size, int pp_size, const int *told, const char *part)
{
    struct shard shard;
    struct err err = { 0 };
    assert_int_equal(shard_of(&shard, config, tp_size, pp_size, 0, 0, told, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, part));
}

static void impossible_layouts_are_refused(void **state)
{
    struct model_config config = smollm2();
    (void)state;
    refusal(&config, 0, 1, NULL, "nearest is 1");
    refusal(&config, 9, 1, NULL, "nearest is 8");
    refusal(&config, 1, 9, NULL, "nearest is 8");
    refusal(&config, 1, 2, (const int[]){ 12, 17 }, "sum to 29");
    refusal(&config, 1, 2, (const int[]){ 0, 30 }, "stage 0 has 0 layers");
    config.num_attention_heads = 6;
    refusal(&config, 7, 1, NULL, "nearest is 6");
    config.num_key_value_heads = 4;
    refusal(&config, 1, 1, NULL, "not a multiple");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rank_numbers_round_trip),           cmocka_unit_test(stages_cover_all_layers),
        cmocka_unit_test(balance_counts_embedding_and_head), cmocka_unit_test(told_partition_is_taken),
        cmocka_unit_test(impossible_layouts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
