/* layout_test.c - stages by cost or as told, what the first and last hold, and the refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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
    if (!strstr(err.message, part)) fail_msg("'%s' not in: %s", part, err.message);
}

static void impossible_layouts_are_refused(void **state)
{
    struct model_config config = smollm2();
    (void)state;
    refusal(&config, 0, 1, NULL, "nearest layout is 1 x 1");
    refusal(&config, 9, 1, NULL, "nearest layout is 8 x 1");
    refusal(&config, 2, 9, NULL, "nearest layout is 2 x 8");
    refusal(&config, 9, 31, NULL, "9 heads in 3 KV groups, 30 layers");
    refusal(&config, 9, 31, NULL, "nearest layout is 8 x 8");
    refusal(&config, 1, 2, (const int[]){ 12, 17 }, "12,17: the counts sum to 29, the model has 30 layers");
    refusal(&config, 1, 2, (const int[]){ 12, 17 }, "nearest layout is 12,18");
    refusal(&config, 1, 2, (const int[]){ 0, 30 }, "nearest layout is 15,15");
    refusal(&config, 1, 2, (const int[]){ 40, 1 }, "nearest layout is 15,15");
    config.num_attention_heads = 6;
    refusal(&config, 7, 1, NULL, "nearest layout is 6 x 1");
    config.num_hidden_layers = 3;
    refusal(&config, 1, 4, NULL, "nearest layout is 1 x 3");
    config.num_key_value_heads = 4;
    refusal(&config, 1, 1, NULL, "not a multiple");
}

/* Every refusal names a layout; that one is accepted. */
static void the_nearest_layout_is_possible(void **state)
{
    struct model_config config = smollm2();
    (void)state;
    for (int i = 0; i < 12 * 12 * 12; i++) {
        struct layout layout = { .tp_size = i % 12 + 1, .pp_size = i / 12 % 12 + 1, .dp_size = i / 144 + 1,
                                 .num_devices = i % 7 };
        struct err err = { 0 };
        for (int round = 0; layout_check(&layout, &config, &err) < 0; round++) {
            const char *nearest = strstr(err.message, "nearest layout is ");
            assert_non_null(nearest);
            assert_true(round < 2);                          /* first what the model allows, then what the devices do */
            assert_true(sscanf(nearest, "nearest layout is %d x %d x %d", &layout.tp_size, &layout.pp_size,
                               &layout.dp_size) >= 2);
            err_clear(&err);
        }
        assert_true(layout.num_devices == 0 || layout.tp_size * layout.pp_size * layout.dp_size <= layout.num_devices);
    }
}

static void more_ranks_than_devices_are_refused(void **state)
{
    struct model_config config = smollm2();
    struct layout layout = { .tp_size = 2, .pp_size = 2, .dp_size = 3, .num_devices = 8 };
    struct err err = { 0 };
    (void)state;
    assert_int_equal(layout_check(&layout, &config, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "needs 12 GPUs, 8 are visible; the nearest layout is 2 x 2 x 2"));
    layout.dp_size = 2;
    assert_int_equal(layout_check(&layout, &config, NULL), 0);
    layout.num_devices = 3;
    err_clear(&err);
    assert_int_equal(layout_check(&layout, &config, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "nearest layout is 2 x 1 x 1"));
    layout.num_devices = 0;                                  /* CPU: threads, as many as one likes */
    assert_int_equal(layout_check(&layout, &config, NULL), 0);
}

static void visible_gpus_are_counted(void **state)
{
    (void)state;
    setenv("CUDA_VISIBLE_DEVICES", "0,3,GPU-1b2c", 1);
    assert_int_equal(gpus_visible(), 3);
    setenv("CUDA_VISIBLE_DEVICES", "1,-1,2", 1);
    assert_int_equal(gpus_visible(), 1);
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    assert_int_equal(gpus_visible(), 0);
    unsetenv("CUDA_VISIBLE_DEVICES");
}

static void each_replica_gets_gpus_of_its_own(void **state)
{
    (void)state;
    char list[64];
    setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-1b2c,7", 1);
    assert_int_equal(replica_gpus(list, sizeof list, 0, 2), 0);
    assert_string_equal(list, "4,5");
    assert_int_equal(replica_gpus(list, sizeof list, 1, 2), 0);
    assert_string_equal(list, "GPU-1b2c,7");
    assert_int_equal(replica_gpus(list, sizeof list, 2, 2), ERR_NOT_FOUND);
    assert_string_equal(list, "");
    assert_int_equal(replica_gpus(list, 5, 1, 2), ERR_LIMIT);
    unsetenv("CUDA_VISIBLE_DEVICES");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rank_numbers_round_trip),           cmocka_unit_test(stages_cover_all_layers),
        cmocka_unit_test(balance_counts_embedding_and_head), cmocka_unit_test(told_partition_is_taken),
        cmocka_unit_test(impossible_layouts_are_refused),
        cmocka_unit_test(the_nearest_layout_is_possible),    cmocka_unit_test(more_ranks_than_devices_are_refused),
        cmocka_unit_test(visible_gpus_are_counted), cmocka_unit_test(each_replica_gets_gpus_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
