/* sse_test.c - frames and bodies byte by byte, from deltas made by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "unit/api/tiny_gateway.h"

#include <sluice/api.h>
#include <sluice/metrics.h>

#include "answer.h"

struct fixture { struct tiny tiny; struct api_request *request; struct answer *answer; struct buf out; };

static const struct generation_usage usage = { .prompt_tokens = 1, .completion_tokens = 2 };

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f) return -1;
    tiny_init(&f->tiny, NULL);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    answer_free(f->answer);
    api_request_free(f->request);
    buf_release(&f->out);
    tiny_release(&f->tiny);
    free(f);
    return 0;
}

static void begin(struct fixture *f, enum generation_route route, const char *fields)
{
    static const uint8_t secret[32] = { 0 };
    struct caller caller = { .key_name = "", .cache_secret = secret };
    struct err err = { 0 };
    char body[512];

    snprintf(body, sizeof body, "{\"model\":\"tiny\",%s%s}",
             route == GENERATE_CHAT ? "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"
                 : "\"prompt\":\"a\"", fields);
    assert_int_equal(api_request_new(&f->request, &f->tiny.gateway, route, &caller, body, strlen(body), &err), 0);
    assert_int_equal(answer_new(&f->answer, f->request), 0);
}

static struct text_delta delta_of(const char *text, uint8_t finish)
{
    return (struct text_delta){ .text = text, .len = strlen(text), .finish = finish, .stop_index = -1,
        .stop_token = TOKEN_NONE };
}

/* What follows the head (id, object, created, model, fingerprint) in each event, one after another. */
static void expect_frames(struct fixture *f, const char *const *frames)
{
    const char *at = f->out.data ? f->out.data : "";

    for (; *frames; frames++) {
        char expected[1024];
        assert_memory_equal(at, "data: {\"id\":\"", 13);
        at += 6;
        const struct api_request *request = f->request;
        assert_memory_equal(at, request->head, request->head_len);
        at += request->head_len;
        snprintf(expected, sizeof expected, "%s\n\n", *frames);
        if (strncmp(at, expected, strlen(expected)) != 0) print_error("%s\n%s\n", at, expected);
        assert_int_equal(strncmp(at, expected, strlen(expected)), 0);
        at += strlen(expected);
    }
    assert_string_equal(at, "");
}

static void completion_frames(void **state)
{
    struct fixture *f = *state;
    struct text_delta delta = delta_of("say \"hi\"\n\xe2\x82\xac", FINISH_NONE), last = delta_of("",
            FINISH_STOP_STRING), none = delta_of("", FINISH_NONE);

    begin(f, GENERATE_COMPLETION, ",\"stream\":true,\"stop\":[\"x\",\"\\\"\"]");
    last.stop_index = 1;
    answer_frames(f->answer, &none, &usage, &f->out);
    assert_int_equal(f->out.len, 0);
    answer_frames(f->answer, &delta, &usage, &f->out);
    answer_frames(f->answer, &last, &usage, &f->out);
    const char *const frames[] = {
        "{\"index\":0,\"text\":\"say \\\"hi\\\"\\n\xe2\x82\xac\",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}]}",
        "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":\"\\\"\"}]}", NULL };
    expect_frames(f, frames);
    buf_reset(&f->out);
    answer_end_frames(f->answer, &usage, &f->out);
    assert_string_equal(f->out.data, "data: [DONE]\n\n");
}

static void chat_frames_with_running_usage(void **state)
{
    struct fixture *f = *state;
    struct text_delta delta = delta_of("hi", FINISH_NONE), last = delta_of("!", FINISH_STOP_TOKEN);

    begin(f, GENERATE_CHAT,
          ",\"stream\":true,\"n\":2,\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}");
    delta.choice = last.choice = 1;
    last.stop_token = 258;
    answer_frames(f->answer, &delta, &usage, &f->out);
    answer_frames(f->answer, &last, &usage, &f->out);
    answer_end_frames(f->answer, &usage, &f->out);
#define USAGE "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":0}," \
              "\"completion_tokens_details\":{\"reasoning_tokens\":0}}"
    f->out.len -= strlen("data: [DONE]\n\n");
    assert_string_equal(f->out.data + f->out.len, "data: [DONE]\n\n");
    f->out.data[f->out.len] = '\0';
    const char *const frames[] = {
        "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]," USAGE "}",
        "{\"index\":1,\"delta\":{\"content\":\"hi\"},\"logprobs\":null,\"finish_reason\":null}]," USAGE "}",
        "{\"index\":1,\"delta\":{\"content\":\"!\"},\"logprobs\":null,\"finish_reason\":null}]," USAGE "}",
        "{\"index\":1,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":258}]," USAGE "}",
        "]," USAGE "}", NULL };
    expect_frames(f, frames);
}

static void completion_logprobs(void **state)
{
    struct fixture *f = *state;
    /* "é" is two byte tokens: neither is UTF-8 alone, and only the first adds a code point */
    struct token_logprob top[2] = { { 'a', -0.25f }, { 'b', -INFINITY } };
    struct delta_token tokens[3] = { { 'a', -0.25f, 2, top }, { 0xc3, -1.5e-5f, 2, top }, { 0xa9, -3.0f, 2, top } };
    struct text_delta delta = delta_of("a\xc3\xa9", FINISH_LENGTH);

    begin(f, GENERATE_COMPLETION, ",\"logprobs\":2");
    delta.tokens = tokens;
    delta.num_tokens = 3;
    assert_int_equal(answer_add(f->answer, &delta), 0);
    assert_int_equal(answer_body(f->answer, &usage, &f->out), 0);
    assert_non_null(strstr(f->out.data,
                           "{\"index\":0,\"text\":\"a\xc3\xa9\",\"logprobs\":{\"tokens\":[\"a\",\"bytes:\\\\xc3\",\"bytes:\\\\xa9\"],"
        "\"token_logprobs\":[-0.25,-1.5e-05,-3.0],\"top_logprobs\":[{\"a\":-0.25,\"b\":-9999.0},"
        "{\"a\":-0.25,\"b\":-9999.0,\"bytes:\\\\xc3\":-1.5e-05},{\"a\":-0.25,\"b\":-9999.0,\"bytes:\\\\xa9\":-3.0}],"
        "\"text_offset\":[0,1,2]},\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{"));
}

static void chat_logprobs(void **state)
{
    struct fixture *f = *state;
    struct token_logprob top[3] = { { 'a', -0.1f }, { 258, -2.0f }, { 'c', -3.0f } };
    struct delta_token token = { 'a', -0.1f, 3, top };
    struct text_delta delta = delta_of("a", FINISH_EOS);

    begin(f, GENERATE_CHAT, ",\"logprobs\":true,\"top_logprobs\":2");
    delta.tokens = &token;
    delta.num_tokens = 1;
    assert_int_equal(answer_add(f->answer, &delta), 0);
    assert_int_equal(answer_body(f->answer, &usage, &f->out), 0);
    assert_non_null(strstr(f->out.data,
                           "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"a\",\"refusal\":null},\"logprobs\":"
        "{\"content\":[{\"token\":\"a\",\"logprob\":-0.1,\"bytes\":[97],\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-0.1,\"bytes\":[97]},"
        "{\"token\":\"<|im_end|>\",\"logprob\":-2.0,\"bytes\":[60,124,105,109,95,101,110,100,124,62]}]}],\"refusal\":null},"
        "\"finish_reason\":\"stop\",\"stop_reason\":null}]"));
}

static void floats_read_back(void **state)
{
    unsigned seed = 7;
    struct buf out = BUF_INIT;

    (void)state;
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)rand_r(&seed) << 16 ^ (uint32_t)rand_r(&seed);
        float value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value) || fabsf(value) > 9999.0f) continue;
        buf_reset(&out);
        buf_float32(&out, value);
        assert_true(strtof(out.data, NULL) == value);
        assert_non_null(strpbrk(out.data, ".e"));
    }
    buf_reset(&out);
    buf_float32(&out, -INFINITY);
    buf_float32(&out, NAN);
    buf_float32(&out, 0.0f);
    assert_string_equal(out.data, "-9999.0-9999.00.0");
    buf_release(&out);
}

static void errors_hide_what_is_internal(void **state)
{
    struct err internal = { 0 }, value = { 0 };
    struct buf out = BUF_INIT;

    (void)state;
    err_set(&internal, ERR_IO, "open /secret/path: no");
    err_param(&value, ERR_VALUE, "a\"b", "bad\nvalue");
    reply_error(&internal, &out);
    assert_string_equal(out.data,
                        "{\"error\":{\"message\":\"The server had an error while processing your request.\",\"type\":\"server_error\","
                        "\"param\":null,\"code\":\"internal_error\"}}");
    buf_reset(&out);
    reply_error(&value, &out);
    assert_string_equal(out.data,
                        "{\"error\":{\"message\":\"bad\\nvalue\",\"type\":\"invalid_request_error\",\"param\":\"a\\\"b\",\"code\":\"invalid_value\"}}");
    buf_release(&out);
}

static void too_large_bodies_stop(void **state)
{
    struct fixture *f = *state;
    char text[600];
    struct text_delta delta;
    int rc = 0;

    f->tiny.config.max_response_bytes = 4096;
    begin(f, GENERATE_COMPLETION, "");
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    delta = delta_of(text, FINISH_NONE);
    for (int i = 0; i < 6; i++) assert_int_equal(answer_add(f->answer, &delta), 0);
    rc = answer_add(f->answer, &delta);
    assert_int_equal(rc, ERR_RESPONSE_LARGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(completion_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(chat_frames_with_running_usage, setup, teardown),
        cmocka_unit_test_setup_teardown(completion_logprobs, setup, teardown),
        cmocka_unit_test_setup_teardown(chat_logprobs, setup, teardown),
        cmocka_unit_test_setup_teardown(too_large_bodies_stop, setup, teardown),
        cmocka_unit_test(floats_read_back),
        cmocka_unit_test(errors_hide_what_is_internal),
    };
    struct metrics_info info = { .model_name = "tiny", .num_replicas = 1, .version = "0.1.0", .commit = "",
        .max_model_len = 2048 };

    metrics_init(&info);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
