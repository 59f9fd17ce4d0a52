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
    struct delta_token tokens[3] = { { 'a', -0.25f, 2, top, 1 }, { 0xc3, -1.5e-5f, 2, top, 9 }, { 0xa9, -3.0f, 2, top, 9 } };
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
    struct delta_token token = { 'a', -0.1f, 3, top, 1 };
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

/* ---- prompts that are echoed and scored ---- */

static struct text_delta scored(const struct delta_token *tokens, size_t n, uint32_t begin)
{
    return (struct text_delta){ .text = "", .tokens = tokens, .num_tokens = n, .stop_index = -1, .stop_token = TOKEN_NONE,
        .prompt_begin = begin };
}

/* The prompt is "a\xc3\xa9b": four byte tokens, three code points; its logprobs come in two deltas cut inside the character. */
static void begin_echo(struct fixture *f, const char *fields)
{
    static const uint8_t secret[32] = { 0 };
    struct caller caller = { .key_name = "", .cache_secret = secret };
    struct err err = { 0 };
    char body[512];

    snprintf(body, sizeof body, "{\"model\":\"tiny\",\"prompt\":[97,195,169,98],\"echo\":true%s}", fields);
    assert_int_equal(api_request_new(&f->request, &f->tiny.gateway, GENERATE_COMPLETION, &caller, body, strlen(body), &err), 0);
    assert_int_equal(answer_new(&f->answer, f->request), 0);
}

static const struct token_logprob top_z[1] = { { 'z', -0.5f } };
static const struct delta_token first_part[1] = { { 0xc3, -2.0f, 1, top_z, 5 } };
static const struct delta_token second_part[2] = { { 0xa9, -3.0f, 1, top_z, 6 }, { 'b', -0.5f, 1, top_z, 2 } };
static const struct delta_token end_token[1] = { { 258, -0.125f, 1, top_z, 1 } };

static void echo_with_logprobs_in_one_body(void **state)
{
    struct fixture *f = *state;
    struct text_delta end = delta_of("", FINISH_EOS), one = scored(first_part, 1, 1), two = scored(second_part, 2, 2);

    begin_echo(f, ",\"logprobs\":1,\"max_tokens\":1,\"prompt_logprobs\":1,\"return_token_ids\":true");
    assert_true(api_request_params(f->request)->score_prompt);
    end.tokens = end_token;
    end.num_tokens = 1;
    assert_int_equal(answer_add(f->answer, &one), 0);
    assert_int_equal(answer_add(f->answer, &two), 0);
    assert_int_equal(answer_add(f->answer, &end), 0);
    assert_int_equal(answer_body(f->answer, &usage, &f->out), 0);
    assert_non_null(strstr(f->out.data,
        "{\"index\":0,\"text\":\"a\xc3\xa9""b\",\"logprobs\":{\"tokens\":[\"a\",\"bytes:\\\\xc3\",\"bytes:\\\\xa9\",\"b\",\"<|im_end|>\"],"
        "\"token_logprobs\":[null,-2.0,-3.0,-0.5,-0.125],\"top_logprobs\":[null,{\"z\":-0.5,\"bytes:\\\\xc3\":-2.0},"
        "{\"z\":-0.5,\"bytes:\\\\xa9\":-3.0},{\"z\":-0.5,\"b\":-0.5},{\"z\":-0.5,\"<|im_end|>\":-0.125}],\"text_offset\":[0,1,2,2,3]},"
        "\"finish_reason\":\"stop\",\"stop_reason\":null,\"prompt_logprobs\":[null,"
        "{\"122\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"z\"},\"195\":{\"logprob\":-2.0,\"rank\":5,\"decoded_token\":\"bytes:\\\\xc3\"}},"
        "{\"122\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"z\"},\"169\":{\"logprob\":-3.0,\"rank\":6,\"decoded_token\":\"bytes:\\\\xa9\"}},"
        "{\"122\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"z\"},\"98\":{\"logprob\":-0.5,\"rank\":2,\"decoded_token\":\"b\"}}],"
        "\"prompt_token_ids\":[97,195,169,98],\"token_ids\":[258]}],\"usage\":{"));
}

/* All frames of a stream glued together: text, and how many entries the logprobs have. */
static void glue(const char *frames, char *text, size_t size, int *entries)
{
    *entries = 0;
    text[0] = '\0';
    for (const char *at = frames; (at = strstr(at, "\"text\":\"")); at++) {
        at += 8;
        strncat(text, at, strcspn(at, "\""));
        assert_true(strlen(text) < size - 1);
    }
    for (const char *at = frames; (at = strstr(at, "\"token_logprobs\":[")); at++) {
        for (at += 18; *at != ']'; at++) *entries += *at == ',' ;
        ++*entries;
    }
}

static void echo_streams_the_prompt_first(void **state)
{
    struct fixture *f = *state;
    struct text_delta more = delta_of("c", FINISH_LENGTH), one = scored(first_part, 1, 1), two = scored(second_part, 2, 2);
    struct delta_token made = { 'c', -1.0f, 0, NULL, 3 };
    char text[64];
    int entries;

    begin_echo(f, ",\"logprobs\":0,\"max_tokens\":1,\"stream\":true,\"return_token_ids\":true");
    more.tokens = &made;
    more.num_tokens = 1;
    answer_frames(f->answer, &one, &usage, &f->out);
    answer_frames(f->answer, &two, &usage, &f->out);
    answer_frames(f->answer, &more, &usage, &f->out);
    glue(f->out.data, text, sizeof text, &entries);
    assert_string_equal(text, "a\xc3\xa9""bc");
    assert_int_equal(entries, 5);
    assert_non_null(strstr(f->out.data, "\"token_logprobs\":[null,-2.0,-3.0,-0.5]"));
    assert_non_null(strstr(f->out.data, "\"text_offset\":[3]"));
    const char *ids = strstr(f->out.data, "\"prompt_token_ids\":[97,195,169,98]");
    assert_non_null(ids);
    assert_null(strstr(ids + 20, "prompt_token_ids"));
    assert_non_null(strstr(f->out.data, "\"token_ids\":[99]"));
}

static void echo_alone_is_the_prompt(void **state)
{
    struct fixture *f = *state;
    struct text_delta end = delta_of("xy", FINISH_LENGTH);

    begin_echo(f, "");
    assert_false(api_request_params(f->request)->score_prompt);
    assert_int_equal(answer_add(f->answer, &end), 0);
    assert_int_equal(answer_body(f->answer, &usage, &f->out), 0);
    assert_non_null(strstr(f->out.data, "\"text\":\"a\xc3\xa9""bxy\",\"logprobs\":null,"));
}

static void no_event_reaches_60_kib(void **state)
{
    struct fixture *f = *state;
    static char text[40001];
    static struct delta_token tokens[40000];
    struct token_logprob top[20];
    struct text_delta delta;
    size_t shown = 0, entries = 0;

    begin(f, GENERATE_CHAT, ",\"logprobs\":true,\"top_logprobs\":20,\"stream\":true,\"return_token_ids\":true");
    for (int i = 0; i < 20; i++) top[i] = (struct token_logprob){ 258, -1.0f - (float)i };
    for (size_t i = 0; i < 40000; i++) {
        text[i] = i % 2 ? '\xa9' : '\xc3';
        tokens[i] = (struct delta_token){ (token_id)(unsigned char)text[i], -0.5f, 20, top, 1 };
    }
    delta = delta_of(text, FINISH_LENGTH);
    delta.tokens = tokens;
    delta.num_tokens = 2000;
    answer_frames(f->answer, &delta, &usage, &f->out);
    for (const char *at = f->out.data, *next; *at; at = next) {
        next = strstr(at, "\n\n") + 2;
        assert_true(next - at < 60 << 10);
        const char *content = strstr(at, "\"content\":\"");
        if (content && content < next) shown += strcspn(content + 11, "\"");
        for (const char *entry = at; (entry = strstr(entry, "\"top_logprobs\"")) && entry < next; entry++) entries++;
    }
    assert_int_equal(shown, 40000);
    assert_int_equal(entries, 2000);
    assert_true(utf8_valid(f->out.data, f->out.len));
}

static void best_of_shows_the_best(void **state)
{
    struct fixture *f = *state;
    static const float scores[4] = { -3.0f, -1.0f, -2.0f, -1.5f };
    static const char *const texts[4] = { "w", "x", "y", "z" };

    begin(f, GENERATE_COMPLETION, ",\"best_of\":4,\"n\":2");
    assert_int_equal(api_request_num_choices(f->request), 4);
    for (int i = 0; i < 4; i++) {
        struct delta_token token = { 'a', scores[i], 0, NULL, 1 };
        struct text_delta delta = delta_of(texts[i], FINISH_LENGTH);
        delta.choice = i;
        delta.tokens = &token;
        delta.num_tokens = 1;
        assert_int_equal(answer_add(f->answer, &delta), 0);
    }
    assert_int_equal(answer_body(f->answer, &usage, &f->out), 0);
    assert_non_null(strstr(f->out.data, "\"choices\":[{\"index\":0,\"text\":\"x\",\"logprobs\":null,"));
    assert_non_null(strstr(f->out.data, "{\"index\":1,\"text\":\"z\",\"logprobs\":null,"));
    assert_null(strstr(f->out.data, "\"index\":2"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(completion_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(chat_frames_with_running_usage, setup, teardown),
        cmocka_unit_test_setup_teardown(completion_logprobs, setup, teardown),
        cmocka_unit_test_setup_teardown(chat_logprobs, setup, teardown),
        cmocka_unit_test_setup_teardown(too_large_bodies_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(echo_with_logprobs_in_one_body, setup, teardown),
        cmocka_unit_test_setup_teardown(echo_streams_the_prompt_first, setup, teardown),
        cmocka_unit_test_setup_teardown(echo_alone_is_the_prompt, setup, teardown),
        cmocka_unit_test_setup_teardown(no_event_reaches_60_kib, setup, teardown),
        cmocka_unit_test_setup_teardown(best_of_shows_the_best, setup, teardown),
        cmocka_unit_test(floats_read_back),
        cmocka_unit_test(errors_hide_what_is_internal),
    };
    struct metrics_info info = { .model_name = "tiny", .num_replicas = 1, .version = "0.1.0", .commit = "",
        .max_model_len = 2048 };

    metrics_init(&info);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
