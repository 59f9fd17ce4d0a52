/* layouts_test.c - the layouts of a host's GPUs, on a device that the test makes up: 2 bytes a weight, nothing else of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/rank.h>

static const uint64_t GIB = (uint64_t)1 << 30;

static int device_memory(int32_t device, uint64_t *total, uint64_t *available, struct err *err)
{
    (void)device, (void)err;
    *total = *available = 0;
    return 0;
}

static size_t two_bytes(enum weight_kind kind, int64_t rows, int64_t cols) { return (size_t)(rows * cols * (kind == WEIGHT_VECTOR ? 4 : 2)); }
static size_t no_workspace(const struct backend_options *options) { (void)options; return 0; }

static const struct backend_ops gpu = { .name = "gpu", .act_dtype = DTYPE_BF16, .device_memory = device_memory, .weight_bytes = two_bytes,
                                        .workspace_bytes = no_workspace };

/* Llama-3.1-8B: 15 GiB of weights, 128 KiB of KV a token. */
static struct model_config llama(void)
{
    return (struct model_config){ .arch = ARCH_LLAMA, .hidden_size = 4096, .intermediate_size = 14336, .num_hidden_layers = 32,
                                  .num_attention_heads = 32, .num_key_value_heads = 8, .head_dim = 128, .vocab_size = 128256,
                                  .max_position_embeddings = 131072, .rms_norm_eps = 1e-5f, .rope_theta = 500000 };
}

/* With a layout of its own, which is not looked at. */
static struct ranks_options options(void)
{
    static const int partition[] = { 1, 2, 3, 4, 5, 6, 7 };
    return (struct ranks_options){ .ops = &gpu, .tp_size = 5, .pp_size = 7, .layer_partition = partition, .threads = 1, .kv_dtype = DTYPE_BF16, .max_num_seqs = 256,
                                   .max_num_batched_tokens = 2048, .max_model_len = 8192, .block_size = 64, .headroom = 0.1 };
}

static int offered(struct layout_offer *offers, int num_gpus, uint64_t device_bytes)
{
    struct model_config model = llama();
    struct ranks_options o = options();
    return layouts_offered(offers, &model, &o, num_gpus, device_bytes, GIB);
}

static void every_layout_that_uses_all_gpus(void **state)
{
    static const int eight[][2] = { { 1, 1 }, { 2, 1 }, { 1, 2 }, { 4, 1 }, { 2, 2 }, { 1, 4 }, { 8, 1 }, { 4, 2 }, { 2, 4 }, { 1, 8 } };
    struct layout_offer offers[MAX_LAYOUTS];
    (void)state;
    assert_int_equal(offered(offers, 8, 80 * GIB), 10);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(offers[i].tp_size, eight[i][0]);
        assert_int_equal(offers[i].pp_size, eight[i][1]);
        assert_int_equal(offers[i].tp_size * offers[i].pp_size * offers[i].dp_size, 8);
        assert_true(offers[i].fits);
    }
    assert_int_equal(offered(offers, 1, 80 * GIB), 1);
    assert_int_equal(offered(offers, 7, 80 * GIB), 3);
    assert_int_equal(offered(offers, 6, 80 * GIB), 9);
}

static void the_fullest_rank_is_shown(void **state)
{
    struct layout_offer offers[MAX_LAYOUTS];
    (void)state;
    assert_int_equal(offered(offers, 2, 80 * GIB), 3);
    const struct layout_offer *one = &offers[0], *stages = &offers[2];
    uint64_t layer = 2 * (4096ull * (4096 + 2 * 1024) + 4096ull * 4096 + 3ull * 4096 * 14336) + 4 * 2 * 4096, table = 2 * 128256ull * 4096;
    assert_true(one->memory.weights == 32 * layer + 2 * table + 4 * 4096);
    /* the last stage has as many layers and a table, as the first; also the last norm and the logits */
    assert_true(stages->memory.weights == 16 * layer + table + 4 * 4096);
    assert_int_equal(one->memory.context, GIB);
    assert_int_equal(one->memory.device_bytes, 80 * GIB);
    assert_true(one->memory.total - one->memory.kv + one->room_bytes == 80 * GIB - one->memory.headroom_bytes);
    assert_true(one->memory.kv <= one->room_bytes && one->memory.kv + one->memory.kv_per_block > one->room_bytes);
    assert_int_equal(one->memory.comm, 0);
    assert_true(stages->memory.comm > 0);
}

static void what_does_not_fit_says_why(void **state)
{
    struct layout_offer offers[MAX_LAYOUTS];
    (void)state;
    assert_int_equal(offered(offers, 2, 16 * GIB), 3);
    assert_false(offers[0].fits);
    assert_non_null(strstr(offers[0].why.message, "weights"));
    assert_true(offers[1].fits && offers[2].fits);
    assert_int_equal(offered(offers, 2, 4 * GIB), 3);
    assert_int_equal(layouts_best(offers, 3), -1);
}

/* A layout the model cannot be cut into is one that does not fit. */
static void the_model_limits_the_cuts(void **state)
{
    struct model_config model = llama();
    struct ranks_options o = options();
    struct layout_offer offers[MAX_LAYOUTS];
    (void)state;
    model.num_hidden_layers = 2;
    assert_int_equal(layouts_offered(offers, &model, &o, 4, 80 * GIB, GIB), 6);
    for (int i = 0; i < 6; i++) assert_int_equal(offers[i].fits, offers[i].pp_size <= 2);
    assert_non_null(strstr(offers[5].why.message, "2 layers"));
}

static int best_of(int num_gpus, uint64_t device_bytes, struct layout_offer *best)
{
    struct layout_offer offers[MAX_LAYOUTS];
    int i = layouts_best(offers, offered(offers, num_gpus, device_bytes));
    if (i >= 0) *best = offers[i];
    return i;
}

static void most_replicas_that_leave_room_are_best(void **state)
{
    struct layout_offer best;
    (void)state;
    assert_true(best_of(8, 80 * GIB, &best) >= 0);
    assert_true(best.tp_size == 1 && best.pp_size == 1 && best.dp_size == 8);
    /* 24 GiB: 21.6 under the headroom, less 1 and 15.4 are 5.2, a fifth; 23 are not enough */
    assert_true(best_of(2, 24 * GIB, &best) >= 0);
    assert_int_equal(best.tp_size, 1);
    assert_true(best.room_bytes >= best.memory.device_bytes / LAYOUT_ROOM_SHARE);
    assert_true(best_of(2, 22 * GIB, &best) >= 0);
    assert_true(best.tp_size == 2 && best.pp_size == 1 && best.dp_size == 1);
}

static void without_room_the_one_with_most_of_it(void **state)
{
    struct layout_offer offers[3] = { { .fits = true, .room_bytes = 5, .memory.device_bytes = 100 },
                                      { .fits = false, .room_bytes = 90, .memory.device_bytes = 100 },
                                      { .fits = true, .room_bytes = 19, .memory.device_bytes = 100 } };
    (void)state;
    assert_int_equal(layouts_best(offers, 3), 2);
    offers[0].room_bytes = 20;
    offers[2].room_bytes = 90;
    assert_int_equal(layouts_best(offers, 3), 0);
    offers[0].fits = offers[2].fits = false;
    assert_int_equal(layouts_best(offers, 3), -1);
    assert_int_equal(layouts_best(offers, 0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_that_uses_all_gpus), cmocka_unit_test(the_fullest_rank_is_shown),
        cmocka_unit_test(what_does_not_fit_says_why), cmocka_unit_test(the_model_limits_the_cuts),
        cmocka_unit_test(most_replicas_that_leave_room_are_best), cmocka_unit_test(without_room_the_one_with_most_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
