/* hf_config_test.c - config.json and generation_config.json: every spelling that is read, every absurdity that is
 * not. */
#include "fixture.h"

#include "model_config.h"

/* A small valid config.json with these members added (extra wins over nothing: keys must not repeat). */
static char *with(char text[2048], const char *architecture, const char *extra)
{
    snprintf(text, 2048,
             "{\"architectures\":[\"%s\"],\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2,"
             "\"num_attention_heads\":4,\"vocab_size\":100,\"max_position_embeddings\":512%s%s}",
             architecture, extra[0] ? "," : "", extra);
    return text;
}

static struct model_config parse_ok(const char *architecture, const char *extra)
{
    char text[2048];
    struct model_config config;
    struct err err = { 0 };
    with(text, architecture, extra);
    if (hf_config_parse(&config, text, strlen(text), &err) != 0) fail_msg("%s: %s", extra, err.message);
    return config;
}

static void refuses_text(const char *text, const char *message)
{
    struct model_config config;
    struct err err = { 0 };
    char expected[400];
    snprintf(expected, sizeof expected, "config.json: %s", message);
    int rc = hf_config_parse(&config, text, strlen(text), &err);
    assert_string_equal(err.message, expected);
    assert_int_equal(rc, ERR_MODEL_FILE);
}

static void refuses(const char *architecture, const char *extra, const char *message)
{
    char text[2048];
    refuses_text(with(text, architecture, extra), message);
}

static void dtype_in_both_spellings(void **state)
{
    (void)state;
    assert_int_equal(parse_ok("LlamaForCausalLM", "").dtype, DTYPE_BF16);
    assert_int_equal(parse_ok("LlamaForCausalLM", "\"torch_dtype\":\"float16\"").dtype, DTYPE_F16);
    assert_int_equal(parse_ok("Qwen3ForCausalLM", "\"dtype\":\"float16\"").dtype, DTYPE_F16);
    assert_int_equal(parse_ok("LlamaForCausalLM", "\"torch_dtype\":\"bfloat16\"").dtype, DTYPE_BF16);
    assert_int_equal(parse_ok("LlamaForCausalLM", "\"torch_dtype\":\"float32\"").dtype, DTYPE_BF16);
}

static void defaults_of_each_architecture(void **state)
{
    (void)state;
    struct model_config c = parse_ok("LlamaForCausalLM", "");
    assert_int_equal(c.arch, ARCH_LLAMA);
    assert_string_equal(c.model_type, "llama");
    assert_int_equal(c.num_key_value_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.sliding_window, 0);
    assert_true(c.rms_norm_eps == 1e-6f);
    assert_true(c.rope_theta == 10000.0f);
    assert_false(c.tie_word_embeddings || c.attention_bias || c.qk_norm || c.rope_interleaved || c.rope_freqs);
    assert_int_equal(c.bos_token_id, TOKEN_NONE);
    assert_int_equal(c.num_eos_token_ids, 0);
    assert_true(c.gen_top_p < 0 && c.gen_top_k < 0);

    c = parse_ok("MistralForCausalLM", "\"num_key_value_heads\":2");
    assert_int_equal(c.arch, ARCH_LLAMA);
    assert_string_equal(c.model_type, "mistral");
    assert_int_equal(c.sliding_window, 4096);
    assert_int_equal(parse_ok("MistralForCausalLM", "\"num_key_value_heads\":2,\"sliding_window\":null").sliding_window,
                     0);
    assert_int_equal(parse_ok("LlamaForCausalLM", "\"sliding_window\":99").sliding_window, 0);

    c = parse_ok("Qwen2ForCausalLM", "\"use_sliding_window\":false,\"sliding_window\":32768,\"max_window_layers\":1");
    assert_int_equal(c.arch, ARCH_QWEN2);
    assert_true(c.attention_bias);
    assert_int_equal(c.sliding_window, 0);
    c = parse_ok("Qwen3ForCausalLM", "\"tie_word_embeddings\":true");
    assert_int_equal(c.head_dim, 128);
    assert_true(c.qk_norm && c.tie_word_embeddings);
    assert_int_equal(parse_ok("Qwen3ForCausalLM", "\"head_dim\":64").head_dim, 64);
}

static void model_type_serves_without_architectures(void **state)
{
    static const char text[] =
        "{\"model_type\":\"qwen2\",\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":2.0,"
        "\"num_attention_heads\":4,\"vocab_size\":1e2,\"max_position_embeddings\":512}";
    struct model_config c;
    (void)state;
    assert_int_equal(hf_config_parse(&c, text, sizeof text - 1, NULL), 0);
    assert_int_equal(c.arch, ARCH_QWEN2);
    assert_int_equal(c.num_hidden_layers, 2);
    assert_int_equal(c.vocab_size, 100);
}

static void rope_scaling_in_all_spellings(void **state)
{
    (void)state;
    struct model_config c = parse_ok(
        "LlamaForCausalLM",
        "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
        "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":256}");
    assert_int_equal(c.rope_scaling.type, ROPE_LLAMA3);
    assert_true(c.rope_theta == 500000.0f && c.rope_scaling.factor == 8.0f && c.rope_scaling.high_freq_factor == 4.0f);
    assert_int_equal(c.rope_scaling.original_max_position_embeddings, 256);

    c = parse_ok("Qwen2ForCausalLM",
                 "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":128}");
    assert_int_equal(c.rope_scaling.type, ROPE_YARN);
    assert_true(c.rope_scaling.beta_fast == 32.0f && c.rope_scaling.beta_slow == 1.0f &&
                c.rope_scaling.attention_factor == 0);
    c = parse_ok("Qwen2ForCausalLM",
                 "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"mscale\":1.0,\"mscale_all_dim\":1.0}");
    assert_true(c.rope_scaling.attention_factor == 1.0f);
    assert_int_equal(c.rope_scaling.original_max_position_embeddings, 512);

    c = parse_ok("LlamaForCausalLM", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}");
    assert_int_equal(c.rope_scaling.type, ROPE_LINEAR);
    assert_true(c.rope_scaling.factor == 2.0f);
    c = parse_ok("LlamaForCausalLM", "\"rope_parameters\":{\"rope_theta\":7000,\"rope_type\":\"default\"}");
    assert_int_equal(c.rope_scaling.type, ROPE_DEFAULT);
    assert_true(c.rope_theta == 7000.0f);
    assert_int_equal(parse_ok("LlamaForCausalLM", "\"rope_scaling\":null").rope_scaling.type, ROPE_DEFAULT);

    refuses("LlamaForCausalLM", "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}",
            "rope_scaling: expected type default, linear, llama3 or yarn, found dynamic");
    refuses("LlamaForCausalLM", "\"rope_scaling\":{\"type\":\"linear\"}",
            "rope_scaling factor: expected a value, found none");
    refuses("LlamaForCausalLM", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}",
            "rope_scaling factor: expected more than 0 and at most 1e+06, found 0");
    refuses("LlamaForCausalLM", "\"rope_scaling\":[1]",
            "rope_scaling: expected an object, found a value of type array");
    refuses("LlamaForCausalLM",
            "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}",
            "rope_scaling high_freq_factor: expected more than 4 and at most 1e+06, found 4");
    refuses("LlamaForCausalLM", "\"rope_theta\":-1", "rope_theta: expected more than 0 and at most 1e+15, found -1");
}

static void token_ids(void **state)
{
    (void)state;
    struct model_config c = parse_ok("LlamaForCausalLM", "\"bos_token_id\":1,\"eos_token_id\":[2,3,2]");
    assert_int_equal(c.bos_token_id, 1);
    assert_int_equal(c.num_eos_token_ids, 2);
    assert_int_equal(c.eos_token_ids[1], 3);
    static const char generation[] = "{\"eos_token_id\":[3,7],\"temperature\":0.6,\"top_p\":0.9,\"top_k\":20,"
                                     "\"repetition_penalty\":1.05,\"min_p\":null,\"do_sample\":true}";
    assert_int_equal(hf_generation_config_parse(&c, generation, sizeof generation - 1, NULL), 0);
    assert_int_equal(c.num_eos_token_ids, 3);
    assert_int_equal(c.eos_token_ids[2], 7);
    assert_true(c.gen_temperature == 0.6f && c.gen_top_p == 0.9f && c.gen_repetition_penalty == 1.05f &&
                c.gen_min_p < 0);
    assert_int_equal(c.gen_top_k, 20);

    struct err err = { 0 };
    assert_int_equal(hf_generation_config_parse(&c, "{\"eos_token_id\":100}", 20, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, "generation_config.json: eos_token_id: expected an id below 100, found 100");
    err_clear(&err);
    assert_int_equal(hf_generation_config_parse(&c, "{\"top_p\":\"x\"}", 13, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, "generation_config.json: top_p: expected a number, found a value of type string");

    refuses("LlamaForCausalLM", "\"bos_token_id\":100", "bos_token_id: expected an id below 100, found 100");
    refuses("LlamaForCausalLM", "\"eos_token_id\":[1,-2]", "eos_token_id: expected an id below 100, found -2");
    refuses("LlamaForCausalLM", "\"eos_token_id\":\"x\"",
            "eos_token_id: expected an integer or a list of integers, found a value of type string");
    refuses("LlamaForCausalLM", "\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]",
            "eos_token_id: expected at most 16 ids, found more");
}

/* A complete config with one integer replaced. */
static void refuses_int(const char *key, const char *value, const char *message)
{
    static const char *const keys[] = { "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                        "vocab_size", "max_position_embeddings", "head_dim", "num_key_value_heads" };
    static const char *const values[] = { "64", "128", "2", "4", "100", "512", "16", "2" };
    char text[1024];
    size_t len = (size_t)snprintf(text, sizeof text, "{\"model_type\":\"llama\"");
    for (size_t i = 0; i < COUNT(keys); i++) {
        len += (size_t)snprintf(text + len, sizeof text - len, ",\"%s\":%s", keys[i],
                                strcmp(key, keys[i]) == 0 ? value : values[i]);
    }
    snprintf(text + len, sizeof text - len, "}");
    refuses_text(text, message);
}

static void absurd_integers_are_refused(void **state)
{
    (void)state;
    refuses_int("hidden_size", "0", "hidden_size: expected 1 to 131072, found 0");
    refuses_int("hidden_size", "-64", "hidden_size: expected 1 to 131072, found -64");
    refuses_int("hidden_size", "2147483648", "hidden_size: expected a 32-bit integer, found 2147483648");
    refuses_int("hidden_size", "99999999999999999999", "hidden_size: the integer is absurdly large");
    refuses_int("hidden_size", "1e300", "hidden_size: the integer is absurdly large");
    refuses_int("hidden_size", "64.5", "hidden_size: expected an integer, found a value of type number");
    refuses_int("hidden_size", "\"64\"", "hidden_size: expected an integer, found a value of type string");
    refuses_int("hidden_size", "true", "hidden_size: expected an integer, found a value of type boolean");
    refuses_int("hidden_size", "null", "hidden_size: expected a value, found none");
    refuses_int("intermediate_size", "2000000000", "intermediate_size: expected 1 to 1048576, found 2000000000");
    refuses_int("num_hidden_layers", "1000000", "num_hidden_layers: expected 1 to 1024, found 1000000");
    refuses_int("num_attention_heads", "0", "num_attention_heads: expected 1 to 1024, found 0");
    refuses_int("num_key_value_heads", "3", "num_key_value_heads: expected a divisor of 4, found 3");
    refuses_int("num_key_value_heads", "8", "num_key_value_heads: expected 1 to 4, found 8");
    refuses_int("head_dim", "15", "head_dim: expected an even number, found 15");
    refuses_int("head_dim", "4096", "head_dim: expected 2 to 1024, found 4096");
    refuses_int("vocab_size", "2147483647", "vocab_size: expected 1 to 4194304, found 2147483647");
    refuses_int("max_position_embeddings", "0", "max_position_embeddings: expected 1 to 268435456, found 0");
    refuses_text("{\"model_type\":\"llama\",\"hidden_size\":65,\"intermediate_size\":8,\"num_hidden_layers\":1,"
                 "\"num_attention_heads\":4,\"vocab_size\":9,\"max_position_embeddings\":9}",
                 "hidden_size: expected a multiple of 4 heads, found 65");
}

static void variants_that_would_answer_wrongly_are_refused(void **state)
{
    (void)state;
    refuses("LlamaForCausalLM", "\"hidden_act\":\"gelu\"", "hidden_act: only silu is supported");
    refuses("LlamaForCausalLM", "\"attention_bias\":true", "attention_bias: only false is supported");
    refuses("LlamaForCausalLM", "\"mlp_bias\":true", "mlp_bias: only false is supported");
    refuses("LlamaForCausalLM", "\"partial_rotary_factor\":0.5", "partial_rotary_factor: only 1.0 is supported");
    refuses("LlamaForCausalLM", "\"quantization_config\":{\"quant_method\":\"awq\"}",
            "quantization_config: only an unquantized model is supported");
    refuses("Qwen2ForCausalLM", "\"use_sliding_window\":true,\"max_window_layers\":1",
            "use_sliding_window: only false, or max_window_layers of all layers is supported");
    refuses("LlamaForCausalLM", "\"rms_norm_eps\":0", "rms_norm_eps: expected more than 0 and at most 1, found 0");
    refuses("LlamaForCausalLM", "\"rms_norm_eps\":\"x\"",
            "rms_norm_eps: expected a number, found a value of type string");
    refuses("GemmaForCausalLM", "", "architectures: expected LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or "
            "Qwen3ForCausalLM, found GemmaForCausalLM");
    refuses_text("{}",
                 "architectures: expected LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM, "
                 "found none");
    refuses_text("[]", "expected an object, found a value of type array");
    refuses_text("{\"a\":}", "unexpected character at byte 5");
    refuses("LlamaForCausalLM", "\"hidden_size\":64", "duplicate key at byte 172");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dtype_in_both_spellings),
        cmocka_unit_test(defaults_of_each_architecture),
        cmocka_unit_test(model_type_serves_without_architectures),
        cmocka_unit_test(rope_scaling_in_all_spellings),
        cmocka_unit_test(token_ids),
        cmocka_unit_test(absurd_integers_are_refused),
        cmocka_unit_test(variants_that_would_answer_wrongly_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
