/* rank_plan_test.c - from the configuration to what ranks run: which element type, which backend, and what is refused. */
#include "unit/base/cmocka_all.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/config.h>
#include <sluice/rank.h>

#include "memory_plan.h"

static const struct backend_ops gpu_f16 = { .name = "gpu", .act_dtype = DTYPE_F16 };
static const struct backend_ops gpu = { .name = "gpu", .act_dtype = DTYPE_BF16, .f16 = &gpu_f16 };

static struct config config_of(const char *device, const char *dtype)
{
    return (struct config){ .device = (char *)(uintptr_t)device, .dtype = (char *)(uintptr_t)dtype, .cpu_kernels = (char *)(uintptr_t)"fast",
                            .load_format = (char *)(uintptr_t)"auto", .kv_cache_dtype = (char *)(uintptr_t)"auto",
                            .async_scheduling = (char *)(uintptr_t)"auto", .tuning = (char *)(uintptr_t)"idle", .tensor_parallel_size = 1, .pipeline_parallel_size = 1,
                            .data_parallel_size = 1, .block_size = 64, .max_num_seqs = 1, .max_num_batched_tokens = 16 };
}

static int options_of(struct ranks_options *options, const struct config *config, enum dtype suggested, struct err *err)
{
    struct model_config model = { .dtype = suggested, .hidden_size = 64, .intermediate_size = 128, .num_hidden_layers = 2, .num_attention_heads = 4,
                                  .num_key_value_heads = 2, .head_dim = 16, .vocab_size = 100, .max_position_embeddings = 512 };
    int layers[MAX_PP] = { 0 };
    return ranks_options_of(options, layers, config, &model, &gpu, err);
}

static void gpu_takes(const char *dtype, const char *load_format, enum dtype suggested, const struct backend_ops *ops)
{
    struct config config = config_of("cuda", dtype);
    struct ranks_options options;
    struct err err = { 0 };
    config.load_format = (char *)(uintptr_t)load_format;
    if (options_of(&options, &config, suggested, &err) < 0) fail_msg("%s: %s", dtype, err.message);
    assert_ptr_equal(options.ops, ops);
    assert_int_equal(options.kv_dtype, ops->act_dtype);
}

static void the_model_or_the_option_decides(void **state)
{
    (void)state;
    gpu_takes("auto", "auto", DTYPE_F16, &gpu_f16);
    gpu_takes("auto", "auto", DTYPE_BF16, &gpu);
    gpu_takes("auto", "dummy", DTYPE_F16, &gpu);
    gpu_takes("float16", "dummy", DTYPE_BF16, &gpu_f16);
    gpu_takes("bfloat16", "auto", DTYPE_F16, &gpu);
}

static void refuses(const char *device, const char *dtype, const char *kernels, const char *message)
{
    struct config config = config_of(device, dtype);
    struct ranks_options options;
    struct err err = { 0 };
    config.cpu_kernels = (char *)(uintptr_t)kernels;
    assert_int_equal(options_of(&options, &config, DTYPE_BF16, &err), ERR_CONFIG);
    assert_string_equal(err.message, message);
}

static void cpu_takes(const char *dtype, const char *kernels, const struct backend_ops *ops)
{
    struct config config = config_of("cpu", dtype);
    struct ranks_options options;
    struct err err = { 0 };
    config.cpu_kernels = (char *)(uintptr_t)kernels;
    if (options_of(&options, &config, DTYPE_F16, &err) < 0) fail_msg("%s %s: %s", kernels, dtype, err.message);
    assert_ptr_equal(options.ops, ops);
}

static void what_a_device_cannot_do_is_refused(void **state)
{
    (void)state;
    refuses("cuda", "float32", "fast", "dtype float32: a GPU computes in bfloat16 or float16");
    refuses("cpu", "float16", "fast", "dtype float16: on a CPU, cpu_kernels fast knows auto and bfloat16");
    refuses("cpu", "float32", "fast", "dtype float32: on a CPU, cpu_kernels fast knows auto and bfloat16");
    refuses("cpu", "bfloat16", "ref", "dtype bfloat16: on a CPU, cpu_kernels ref knows auto and float32");
    cpu_takes("auto", "fast", &backend_cpu_fast);
    cpu_takes("bfloat16", "fast", &backend_cpu_fast);
    cpu_takes("auto", "ref", &backend_cpu_ref);
    cpu_takes("float32", "ref", &backend_cpu_ref);
}

/* A replica among several sees its own GPUs only; too few of these are refused. */
static void a_replica_counts_its_own_gpus(void **state)
{
    struct config config = config_of("cuda", "auto");
    struct ranks_options options;
    struct err err = { 0 };
    (void)state;
    config.data_parallel_size = 2;
    setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    if (options_of(&options, &config, DTYPE_BF16, &err) < 0) fail_msg("%s", err.message);
    config.tensor_parallel_size = 2;
    assert_int_equal(options_of(&options, &config, DTYPE_BF16, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "needs 2 GPUs, 1 are visible"));
    unsetenv("CUDA_VISIBLE_DEVICES");
}

/* Several ranks wait for each other in every step: none of them is left with work for idle times. */
static void one_rank_alone_measures_while_idle(void **state)
{
    static const struct { const char *name; enum tuning alone, together; } cases[] = {
        { "idle", TUNE_IDLE, TUNE_START }, { "start", TUNE_START, TUNE_START }, { "off", TUNE_OFF, TUNE_OFF } };
    struct model_config model = { .head_dim = 16 };
    struct shard shard = { 0 };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct config config = config_of("cuda", "auto");
        struct ranks_options options;
        config.tuning = (char *)(uintptr_t)cases[i].name;
        assert_int_equal(options_of(&options, &config, DTYPE_BF16, NULL), 0);
        assert_int_equal(plan_backend_options(&options, &model, &shard, 0).tuning, cases[i].alone);
        options.pp_size = 2;
        assert_int_equal(plan_backend_options(&options, &model, &shard, 0).tuning, cases[i].together);
        options.pp_size = 1;
        options.tp_size = 2;
        assert_int_equal(plan_backend_options(&options, &model, &shard, 0).tuning, cases[i].together);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(the_model_or_the_option_decides), cmocka_unit_test(what_a_device_cannot_do_is_refused),
                                         cmocka_unit_test(a_replica_counts_its_own_gpus),
                                         cmocka_unit_test(one_rank_alone_measures_while_idle) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
