/* memory_plan_test.c - the terms against sums by hand for SmolLM2, the choice of blocks, and the refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/rank.h>

static const uint64_t GIB = (uint64_t)1 << 30;

static struct model_config smollm2(void)
{
    return (struct model_config){ .arch = ARCH_LLAMA, .hidden_size = 576, .intermediate_size = 1536,
                                  .num_hidden_layers = 30, .num_attention_heads = 9, .num_key_value_heads = 3,
                                  .head_dim = 64, .vocab_size = 49152, .max_position_embeddings = 8192,
                                  .rms_norm_eps = 1e-5f, .rope_theta = 100000, .tie_word_embeddings = true };
}

static struct ranks_options options(void)
{
    return (struct ranks_options){ .ops = &backend_cpu_ref, .tp_size = 1, .pp_size = 1, .threads = 1, .kv_dtype =
                                   DTYPE_F32, .max_num_seqs = 8, .max_num_batched_tokens = 512, .max_model_len = 2048,
                                   .block_size = 64, .headroom = 0.1 };
}

static int make(struct memory_plan *plan, const struct ranks_options *o, int tp_rank, int pp_stage,
                uint64_t device_bytes, struct err *err)
{
    struct model_config config = smollm2();
    struct shard shard;
    int rc = shard_of(&shard, &config, o->tp_size, o->pp_size, tp_rank, pp_stage, NULL, err);
    return rc < 0 ? rc : memory_plan_make(plan, &config, &shard, o, device_bytes, 0, err);
}

/* 134,515,008 parameters in fp32, rows of 64-byte multiples throughout. */
static void terms_are_sums_by_hand(void **state)
{
    struct ranks_options o = options();
    struct memory_plan plan;
    (void)state;
    assert_int_equal(make(&plan, &o, 0, 0, 16 * GIB, NULL), 0);
    uint64_t layer = 576 * 2 + 576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536;
    assert_true(plan.weights >= 4 * (49152 * 576 + 576 + 30 * layer));
    assert_true(plan.weights <= 4 * (49152 * 576 + 576 + 30 * layer) + 64 * (30 * 6 + 2));
    assert_int_equal(plan.activations, 4 * (512 * (3 * 576 + 2 * 1536 + 1536) + 8 * (576 + 49152)));
    assert_int_equal(plan.rope_table, 2048 * 64 * 4);
    assert_int_equal(plan.kv_per_block, 30 * 2 * 3 * 64 * 64 * 4);
    assert_int_equal(plan.headroom_bytes, (uint64_t)((double)(16 * GIB) * 0.1));
    assert_int_equal(plan.kv, plan.kv_per_block * (uint64_t)plan.num_blocks);
    assert_int_equal(plan.total,
                     plan.weights + plan.activations + plan.workspace + plan.rope_table + plan.comm + plan.kv);
}

static void blocks_follow_the_options(void **state)
{
    struct ranks_options o = options();
    struct memory_plan plan;
    (void)state;
    assert_int_equal(make(&plan, &o, 0, 0, 64 * GIB, NULL), 0);
    assert_int_equal(plan.num_blocks, 8 * 32);                 /* all that 8 x 2048 tokens can use: 0.7 GiB */
    o.max_num_seqs = 64;
    assert_int_equal(make(&plan, &o, 0, 0, 64 * GIB, NULL), 0);
    assert_int_equal(plan.num_blocks, GIB / plan.kv_per_block);
    o.max_model_len = 64 * 1000;                               /* one sequence takes more than the cap: it gets it */
    assert_int_equal(make(&plan, &o, 0, 0, 64 * GIB, NULL), 0);
    assert_int_equal(plan.num_blocks, 1000);
    o = options();
    o.num_blocks_override = 5;
    assert_int_equal(make(&plan, &o, 0, 0, 64 * GIB, NULL), 0);
    assert_int_equal(plan.num_blocks, 5);
    o.kv_cache_bytes = 40 * plan.kv_per_block + 1;
    assert_int_equal(make(&plan, &o, 0, 0, 64 * GIB, NULL), 0);
    assert_int_equal(plan.num_blocks, 40);
}

static void memory_bounds_blocks(void **state)
{
    struct ranks_options o = options();
    struct memory_plan roomy, tight;
    (void)state;
    assert_int_equal(make(&roomy, &o, 0, 0, 64 * GIB, NULL), 0);
    o.headroom = 0;
    uint64_t fixed = roomy.total - roomy.kv;
    assert_int_equal(make(&tight, &o, 0, 0, fixed + 50 * roomy.kv_per_block + 7, NULL), 0);
    assert_int_equal(tight.num_blocks, 50);
    assert_true(tight.total <= tight.device_bytes);
}

/* kv_cache_bytes is for all ranks: shards of any shape get the same count of blocks. */
static void ranks_share_kv_bytes(void **state)
{
    struct ranks_options o = options();
    struct memory_plan one, plan;
    (void)state;
    assert_int_equal(make(&one, &o, 0, 0, 64 * GIB, NULL), 0);
    o.kv_cache_bytes = 100 * one.kv_per_block;
    o.tp_size = 2;
    o.pp_size = 3;
    for (int rank = 0; rank < 6; rank++) {
        assert_int_equal(make(&plan, &o, rank % 2, rank / 2, 64 * GIB, NULL), 0);
        assert_int_equal(plan.num_blocks, 100);
    }
}

static void refusal(const struct ranks_options *o, uint64_t device_bytes, const char *term)
{
    struct memory_plan plan;
    struct err err = { 0 };
    assert_int_equal(make(&plan, o, 0, 0, device_bytes, &err), ERR_CONFIG);
    if (!strstr(err.message, term)) fail_msg("%s: %s", term, err.message);
}

static void what_does_not_fit_is_named(void **state)
{
    struct ranks_options o = options();
    (void)state;
    refusal(&o, GIB / 4, "largest term is weights");
    o.max_num_batched_tokens = 1 << 20;
    refusal(&o, 2 * GIB, "largest term is activations");
    o = options();
    o.kv_cache_bytes = 31 * 30 * 2 * 3 * 64 * 64 * 4;          /* one sequence needs 32 blocks */
    refusal(&o, 16 * GIB, "room for 31 blocks");
    o.kv_cache_bytes = 100 * GIB;
    refusal(&o, 16 * GIB, "does not fit");
    o = options();
    o.block_size = 0;
    refusal(&o, 16 * GIB, "block_size");
    o = options();
    o.kv_dtype = DTYPE_I8;
    refusal(&o, 16 * GIB, "expected f32, f16 or bf16");
    o = options();
    o.headroom = 1.5;
    refusal(&o, 16 * GIB, "headroom");
}

static void plan_prints_every_term(void **state)
{
    struct ranks_options o = options();
    struct memory_plan plan;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    (void)state;
    assert_non_null(out);
    assert_int_equal(make(&plan, &o, 0, 0, 64 * GIB, NULL), 0);
    memory_plan_print(&plan, out);
    fclose(out);
    static const char *const terms[] = { "headroom", "weights", "activations", "workspace", "rope table", "comm", "kv",
                                         "256 blocks of 64 tokens", "total" };
    for (size_t i = 0; i < sizeof(terms) / sizeof(terms[0]); i++) assert_non_null(strstr(text, terms[i]));
    free(text);
}

static void host_memory_is_read(void **state)
{
    (void)state;
    assert_true(host_memory_bytes() > (uint64_t)16 << 20);
    assert_true(host_memory_bytes() < (uint64_t)1 << 50);
}

/* One line per rank: what it holds; the last line sums up. */
static void the_table_shows_every_rank(void **state)
{
    struct ranks_options o = options();
    struct model_config config = smollm2();
    struct rank_plan plans[6];
    char line[RANK_LINE_MAX];
    uint64_t weights = 0;
    (void)state;
    o.tp_size = 2;
    o.pp_size = 3;
    assert_int_equal(ranks_plan(plans, &config, &o, 16 * GIB, NULL, NULL), 0);
    for (int i = 0; i < 6; i++) {
        int stage = -1, rank = -1, first_layer = -1, last_layer = -1, first_head = -1, last_head = -1, blocks = -1;
        double weights_mib = 0, kv_mib = 0;
        ranks_plan_line(line, plans, 6, i);
        assert_int_equal(sscanf(line, "%d %d %d-%d %d-%d %*d-%*d %d %lf %lf", &stage, &rank, &first_layer, &last_layer,
                                &first_head, &last_head, &blocks, &weights_mib, &kv_mib), 9);
        assert_int_equal(stage, i / 2);
        assert_int_equal(rank, i);
        assert_int_equal(first_layer, plans[i].shard.layers.begin);
        assert_int_equal(last_layer, plans[i].shard.layers.end - 1);
        assert_int_equal(first_head, i % 2 ? 6 : 0);
        assert_int_equal(last_head, i % 2 ? 8 : 5);
        assert_int_equal(blocks, plans[0].memory.num_blocks);
        assert_float_equal(weights_mib, (double)plans[i].memory.weights / (1 << 20), 0.06);
        assert_float_equal(kv_mib, (double)plans[i].memory.kv / (1 << 20), 0.06);
        weights += plans[i].memory.weights;
    }
    double sum = 0;
    ranks_plan_line(line, plans, 6, 6);
    assert_int_equal(sscanf(line, " all %lf", &sum), 1);
    assert_float_equal(sum, (double)weights / (1 << 20), 0.06);
    ranks_plan_line(line, plans, 6, -1);
    assert_non_null(strstr(line, "KV heads"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_shows_every_rank),
        cmocka_unit_test(terms_are_sums_by_hand),     cmocka_unit_test(blocks_follow_the_options),
        cmocka_unit_test(memory_bounds_blocks),       cmocka_unit_test(ranks_share_kv_bytes),
        cmocka_unit_test(what_does_not_fit_is_named), cmocka_unit_test(plan_prints_every_term),
        cmocka_unit_test(host_memory_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
