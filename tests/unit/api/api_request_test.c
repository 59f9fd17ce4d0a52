/* api_request_test.c - bodies to validated requests: what each field becomes, and in which order errors are found. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>

#include "unit/api/tiny_gateway.h"

#include <sluice/api.h>
#include <sluice/metrics.h>

static const uint8_t secret[32] = { 1, 2, 3 };

static int make(const struct tiny *tiny, enum generation_route route, const char *key, const char *body,
                struct api_request **out, struct err *err)
{
    struct caller caller = { .key_name = key, .cache_secret = secret };

    err_clear(err);
    *out = NULL;
    return api_request_new(out, &tiny->gateway, route, &caller, body, strlen(body), err);
}

static struct api_request *parsed(const struct tiny *tiny, enum generation_route route, const char *body)
{
    struct api_request *request = NULL;
    struct err err = { 0 };

    if (make(tiny, route, "", body, &request, &err) < 0) print_error("%s: %s\n", body, err.message);
    assert_non_null(request);
    return request;
}

static void refused(const struct tiny *tiny, enum generation_route route, const char *body, int code, const char *param)
{
    struct api_request *request = NULL;
    struct err err = { 0 };
    int rc = make(tiny, route, "", body, &request, &err);

    if (rc != code || strcmp(err.param, param) != 0) print_error("%s: %s %s %s\n", body, err_name(rc), err.param,
                                                                 err.message);
    assert_int_equal(rc, code);
    assert_string_equal(err.param, param);
    assert_null(request);
}

static int setup(void **state)
{
    struct tiny *tiny = calloc(1, sizeof *tiny);

    if (!tiny) return -1;
    tiny_init(tiny, NULL);
    *state = tiny;
    return 0;
}

static int teardown(void **state)
{
    tiny_release(*state);
    free(*state);
    return 0;
}

static void defaults_of_both_routes(void **state)
{
    struct tiny *tiny = *state;
    struct api_request *request = parsed(tiny, GENERATE_COMPLETION, "{\"model\":\"org/tiny\",\"prompt\":\"ab\"}");
    const struct generation_params *params = api_request_params(request);

    assert_string_equal(params->model, "org/tiny");
    assert_int_equal(params->max_tokens, 16);
    assert_int_equal(params->n, 1);
    assert_true(params->sampling.temperature == 1 && params->sampling.top_p == 1 && params->sampling.top_k == 0);
    assert_true(params->add_special_tokens && params->skip_special_tokens && !params->logprobs && !params->has_seed);
    assert_int_equal(params->sampling.num_logprobs, -1);
    assert_int_equal(api_request_prompt_tokens(request), 2);
    assert_memory_equal(api_request_id(request), "cmpl-", 5);
    assert_int_equal(strlen(api_request_id(request)), 37);
    api_request_free(request);

    tiny->model.gen_temperature = 0.6f;
    tiny->model.gen_top_k = 20;
    request = parsed(tiny, GENERATE_CHAT,
                     "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"top_k\":-1}");
    params = api_request_params(request);
    assert_int_equal(params->max_tokens, -1);
    assert_true(params->sampling.temperature == 0.6f);
    assert_int_equal(params->sampling.top_k, 0);
    assert_false(params->add_special_tokens);
    api_request_free(request);
}

static void fields_reach_their_homes(void **state)
{
    const struct tiny *tiny = *state;
    struct api_request *request = parsed(tiny, GENERATE_COMPLETION,
        "{\"model\":\"tiny\",\"prompt\":[[1,2],[3]],\"n\":3,\"max_tokens\":5,\"max_completion_tokens\":7,\"min_tokens\":2,\"temperature\":0.5,"
        "\"top_p\":0.25,\"min_p\":0.125,\"top_k\":40,\"frequency_penalty\":1,\"presence_penalty\":-1,\"repetition_penalty\":1.5,"
        "\"seed\":9223372036854775807,\"stop\":[\"x\",\"yz\"],\"stop_token_ids\":[7],\"ignore_eos\":true,\"logprobs\":3,"
        "\"logit_bias\":{\"5\":-100,\"6\":2.5},\"stream\":true,\"stream_options\":{\"include_usage\":true},\"timeout_ms\":50,"
        "\"skip_special_tokens\":false,\"include_stop_str_in_output\":true}");
    const struct generation_params *params = api_request_params(request);
    struct generation_spec spec = { 0 };

    api_request_fill_spec(request, &spec);
    assert_int_equal(spec.n_prompts, 2);
    assert_int_equal(spec.prompts[0].n, 2);
    assert_int_equal(spec.prompts[1].ids[0], 3);
    assert_int_equal(api_request_num_choices(request), 6);
    assert_int_equal(params->max_tokens, 7);
    assert_int_equal(params->min_tokens, 2);
    assert_true(params->sampling.temperature == 0.5f && params->sampling.top_p == 0.25f &&
                params->sampling.min_p == 0.125f);
    assert_true(params->sampling.frequency_penalty == 1 && params->sampling.presence_penalty == -1 &&
                params->sampling.repetition_penalty == 1.5f);
    assert_int_equal(params->sampling.top_k, 40);
    assert_true(params->has_seed && params->sampling.seed == INT64_MAX);
    assert_int_equal(params->n_stop, 2);
    assert_string_equal(params->stop[1], "yz");
    assert_int_equal(params->stop_token_ids[0], 7);
    assert_true(params->ignore_eos && params->stream && params->include_usage && !params->continuous_usage);
    assert_true(params->include_stop_str_in_output && !params->skip_special_tokens);
    assert_int_equal(params->sampling.num_logprobs, 3);
    assert_int_equal(params->n_bias, 2);
    assert_true(params->bias_values[0] == -100 && params->bias_ids[1] == 6);
    assert_int_equal(params->timeout_total_ms, 50);
    api_request_free(request);
}

static void chat_is_rendered_and_client_text_stays_text(void **state)
{
    const struct tiny *tiny = *state;
    struct api_request *request = parsed(tiny, GENERATE_CHAT,
        "{\"model\":\"tiny\",\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},"
        "{\"role\":\"user\",\"content\":\"<|im_end|>\"}]}");
    struct generation_spec spec = { 0 };
    int specials = 0;
    char text[256];

    api_request_fill_spec(request, &spec);
    assert_true(spec.prompts[0].n < sizeof text);
    for (size_t i = 0; i < spec.prompts[0].n; i++) {
        specials += spec.prompts[0].ids[i] > 255;
        text[i] = spec.prompts[0].ids[i] > 255 ? '#' : (char)spec.prompts[0].ids[i];
    }
    text[spec.prompts[0].n] = '\0';
    assert_int_equal(specials, 5);
    assert_string_equal(text, "#system\na\nb#\n#user\n<|im_end|>#\n#assistant\n");
    api_request_free(request);
}

static void nul_travels_through_prompts(void **state)
{
    const struct tiny *tiny = *state;
    struct api_request *request = parsed(tiny, GENERATE_CHAT,
                                         "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":["
        "{\"type\":\"text\",\"text\":\"a\\u0000b\"},{\"type\":\"text\",\"text\":\"\\u0000\"}]}],\"add_generation_prompt\":false}");
    struct generation_spec spec = { 0 };
    static const token_id expected[] = { 257, 'u', 's', 'e', 'r', '\n', 'a', 0, 'b', '\n', 0, 258, '\n' };

    api_request_fill_spec(request, &spec);
    assert_int_equal(spec.prompts[0].n, sizeof expected / sizeof expected[0]);
    assert_memory_equal(spec.prompts[0].ids, expected, sizeof expected);
    api_request_free(request);
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"user\":\"\\u0000\"}", ERR_VALUE, "user");
}

static void errors_come_in_order(void **state)
{
    const struct tiny *tiny = *state;

    refused(tiny, GENERATE_COMPLETION, "{\"n\":0", ERR_JSON, "");
    refused(tiny, GENERATE_COMPLETION, "{\"n\":\"x\",\"model\":\"nope\",\"prompt\":\"a\"}", ERR_TYPE, "n");
    refused(tiny, GENERATE_COMPLETION, "{\"n\":0,\"model\":\"nope\",\"prompt\":\"a\"}", ERR_MODEL_NOT_FOUND, "model");
    refused(tiny, GENERATE_COMPLETION, "{\"n\":0,\"model\":\"tiny\",\"prompt\":[]}", ERR_INT_LOW, "n");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"min_tokens\":17}", ERR_INT_HIGH,
            "min_tokens");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"\"}", ERR_EMPTY_STRING, "prompt");
    refused(tiny, GENERATE_CHAT,
            "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"continue_final_message\":true}", ERR_VALUE, "continue_final_message");
    refused(tiny, GENERATE_CHAT,
            "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"reasoning_effort\":\"huge\"}", ERR_VALUE, "reasoning_effort");
}

static void context_is_checked_exactly(void **state)
{
    const struct tiny *tiny = *state;
    struct api_request *request = NULL;
    struct err err = { 0 };
    char body[2400];

    for (int n = 2047; n <= 2049; n++) {
        for (int max_tokens = 0; max_tokens < 2; max_tokens++) {
            int len = snprintf(body, sizeof body, "{\"model\":\"tiny\",\"max_tokens\":%d,\"prompt\":\"", max_tokens);
            memset(body + len, 'a', (size_t)n);
            memcpy(body + len + n, "\"}", 3);
            int rc = make(tiny, GENERATE_COMPLETION, "", body, &request, &err);
            assert_int_equal(rc, n < 2048 || (n == 2048 && max_tokens == 0) ? 0 : ERR_CONTEXT_LENGTH);
            api_request_free(request);
        }
    }
    assert_string_equal(err.message,
                        "This model's maximum context length is 2048 tokens. However, you requested 2050 tokens (2049 in the "
                        "prompt, 1 in the completion). Please reduce the length of the prompt or completion.");
}

static void cache_domains_differ_by_key_and_salt(void **state)
{
    const struct tiny *tiny = *state;
    static const char *const bodies[] = { "{\"model\":\"tiny\",\"prompt\":\"a\"}",
        "{\"model\":\"tiny\",\"prompt\":\"a\",\"cache_salt\":\"s\"}" };
    struct generation_spec specs[4] = { 0 };
    struct err err = { 0 };

    for (int i = 0; i < 4; i++) {
        struct api_request *request;
        assert_int_equal(make(tiny, GENERATE_COMPLETION, i / 2 ? "alice" : "bob", bodies[i % 2], &request, &err), 0);
        api_request_fill_spec(request, &specs[i]);
        api_request_free(request);
        for (int j = 0; j < i; j++) assert_memory_not_equal(specs[i].cache_domain, specs[j].cache_domain, 32);
    }
}

static void what_may_be_drawn(void **state)
{
    const struct tiny *tiny = *state;
    struct api_request *request = parsed(tiny, GENERATE_COMPLETION,
        "{\"model\":\"tiny\",\"prompt\":\"a\",\"allowed_token_ids\":[5,7],\"bad_words\":[\"ab\",\" c\",\"  \"]}");
    const struct generation_params *params = api_request_params(request);
    static const int32_t runs[] = { 2, 'a', 'b', 3, ' ', 'a', 'b', 1, 'c', 2, ' ', 'c', 2, ' ', ' ' };

    assert_int_equal(params->n_allowed, 2);
    assert_int_equal(params->allowed_ids[1], 7);
    assert_int_equal(params->n_bad_ints, sizeof runs / sizeof runs[0]);
    assert_memory_equal(params->bad_words, runs, sizeof runs);
    api_request_free(request);
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"allowed_token_ids\":[]}", ERR_EMPTY_ARRAY, "allowed_token_ids");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"allowed_token_ids\":[259]}", ERR_VALUE, "allowed_token_ids");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"bad_words\":[\"\"]}", ERR_EMPTY_STRING, "bad_words");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"bad_words\":[7]}", ERR_TYPE, "bad_words[0]");
}

static void expect_prompt(const struct tiny *tiny, const char *fields, const char *expected)
{
    char body[256];
    struct generation_spec spec = { 0 };

    snprintf(body, sizeof body, "{\"model\":\"tiny\",\"prompt\":\"abcdef\",%s}", fields);
    struct api_request *request = parsed(tiny, GENERATE_COMPLETION, body);
    api_request_fill_spec(request, &spec);
    assert_int_equal(spec.prompts[0].n, strlen(expected));
    for (size_t i = 0; i < spec.prompts[0].n; i++) assert_int_equal(spec.prompts[0].ids[i], expected[i]);
    assert_int_equal(api_request_prompt_tokens(request), strlen(expected));
    api_request_free(request);
}

static void a_suffix_stands_behind_the_middle(void **state)
{
    static const token_id expected[] = { 259, 'a', 'b', 260, 'c', '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>', 261 };
    struct tiny *tiny = *state;
    struct generation_spec spec = { 0 };

    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"suffix\":\"b\"}", ERR_UNSUPPORTED, "suffix");
    api_request_free(parsed(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"suffix\":\"\"}"));
    tiny_learns_infill(tiny);
    struct api_request *request = parsed(tiny, GENERATE_COMPLETION,
        "{\"model\":\"tiny\",\"prompt\":\"ab\",\"suffix\":\"c<|im_end|>\"}");
    api_request_fill_spec(request, &spec);
    assert_int_equal(spec.prompts[0].n, sizeof expected / sizeof expected[0]);
    assert_memory_equal(spec.prompts[0].ids, expected, sizeof expected);
    api_request_free(request);
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":[97],\"suffix\":\"b\"}", ERR_VALUE, "suffix");
}

static void prompts_are_truncated(void **state)
{
    struct tiny *tiny = *state;

    expect_prompt(tiny, "\"truncate_prompt_tokens\":4", "cdef");
    expect_prompt(tiny, "\"truncate_prompt_tokens\":4,\"truncation_side\":\"right\"", "abcd");
    expect_prompt(tiny, "\"truncate_prompt_tokens\":9", "abcdef");
    expect_prompt(tiny, "\"truncate_prompt_tokens\":null,\"truncation_side\":\"right\"", "abcdef");
    tiny->gateway.max_model_len = 8;
    expect_prompt(tiny, "\"truncate_prompt_tokens\":-1,\"max_tokens\":5", "def");
    expect_prompt(tiny, "\"truncate_prompt_tokens\":-1,\"max_tokens\":50", "f");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"truncate_prompt_tokens\":0}", ERR_INT_LOW, "truncate_prompt_tokens");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"truncation_side\":\"up\"}", ERR_VALUE, "truncation_side");
}

static void scores_of_prompts(void **state)
{
    struct tiny *tiny = *state;
    struct api_request *request = parsed(tiny, GENERATE_COMPLETION,
        "{\"model\":\"tiny\",\"prompt\":\"a\",\"echo\":true,\"logprobs\":5,\"prompt_logprobs\":2,\"max_tokens\":0}");
    const struct generation_params *params = api_request_params(request);

    assert_true(params->score_prompt && params->echo);
    assert_int_equal(params->num_prompt_logprobs, 5);
    assert_int_equal(params->max_tokens, 0);
    api_request_free(request);
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"stream\":true,\"prompt_logprobs\":0}", ERR_VALUE, "prompt_logprobs");
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"a\",\"prompt_logprobs\":21}", ERR_INT_HIGH, "prompt_logprobs");
    refused(tiny, GENERATE_CHAT, "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"echo\":true}", ERR_UNSUPPORTED, "echo");
    tiny->config.max_response_bytes = 100;
    refused(tiny, GENERATE_COMPLETION, "{\"model\":\"tiny\",\"prompt\":\"abcdef\",\"echo\":true,\"logprobs\":20}", ERR_RESPONSE_LARGE, "logprobs");
}

static void arguments_of_calls_are_objects(void **state)
{
    struct tiny *tiny = *state;
    static const char source[] = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }};"
        "{{ c.function.arguments.n }}{% endfor %}{% endfor %}";
    static const char call[] = "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
        "\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"%s\"}}]}]}";
    struct generation_spec spec = { 0 };
    struct err err = { 0 };
    char body[512], text[128] = "";

    chat_template_free(tiny->chat_template);
    assert_int_equal(chat_template_compile(&tiny->chat_template, source, strlen(source), &err), 0);
    tiny->gateway.chat_template = tiny->chat_template;
    snprintf(body, sizeof body, call, "{\\\"n\\\":1.0,\\\"m\\\":1e3,\\\"k\\\":2}");
    struct api_request *request = parsed(tiny, GENERATE_CHAT, body);
    api_request_fill_spec(request, &spec);
    for (size_t i = 0; i < spec.prompts[0].n; i++) text[i] = (char)spec.prompts[0].ids[i];
    assert_string_equal(text, "{\"n\": 1.0, \"m\": 1000.0, \"k\": 2};1.0");
    api_request_free(request);
    snprintf(body, sizeof body, call, "nonsense");
    refused(tiny, GENERATE_CHAT, body, ERR_VALUE, "messages[1].tool_calls[0].function.arguments");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(defaults_of_both_routes, setup, teardown),
        cmocka_unit_test_setup_teardown(fields_reach_their_homes, setup, teardown),
        cmocka_unit_test_setup_teardown(chat_is_rendered_and_client_text_stays_text, setup, teardown),
        cmocka_unit_test_setup_teardown(nul_travels_through_prompts, setup, teardown),
        cmocka_unit_test_setup_teardown(errors_come_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(context_is_checked_exactly, setup, teardown),
        cmocka_unit_test_setup_teardown(what_may_be_drawn, setup, teardown),
        cmocka_unit_test_setup_teardown(prompts_are_truncated, setup, teardown),
        cmocka_unit_test_setup_teardown(a_suffix_stands_behind_the_middle, setup, teardown),
        cmocka_unit_test_setup_teardown(scores_of_prompts, setup, teardown),
        cmocka_unit_test_setup_teardown(arguments_of_calls_are_objects, setup, teardown),
        cmocka_unit_test_setup_teardown(cache_domains_differ_by_key_and_salt, setup, teardown),
    };
    struct metrics_info info = { .model_name = "tiny", .num_replicas = 1, .version = "0.1.0", .commit = "",
        .max_model_len = 2048 };

    metrics_init(&info);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
