#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/ipc.h>

#include "base/buf.h"

static const struct ipc_limits limits = { .vocab_size = 100, .max_model_len = 64 };

static token_id tokens[] = { 1, 2, 3, 4, 99 };
static token_id stop_ids[] = { 7, 8 };
static token_id bias_ids[] = { 9 };
static float bias_values[] = { -INFINITY };

static struct engine_request example(void)
{
    struct engine_request req = {
        .id = 42, .group = 43, .arrival_ms = 44, .priority = -3, .max_tokens = 10, .min_tokens = 2, .ignore_eos = true,
        .sampling = { .temperature = 0.5f, .top_p = 0.9f, .min_p = 0.1f, .frequency_penalty = 2, .presence_penalty = -2,
                      .repetition_penalty = 1.1f, .top_k = 40, .num_logprobs = 20, .seed = UINT64_MAX, .choice = 127 },
        .num_prompt = 3, .num_output = 2, .num_stop_ids = 2, .num_bias = 1,
        .tokens = tokens, .stop_ids = stop_ids, .bias_ids = bias_ids, .bias_values = bias_values,
    };
    memset(req.cache_domain, 0xab, sizeof req.cache_domain);
    return req;
}

/* Encodes, then decodes from memory that is exactly as long as the payload. */
static int round_trip(const struct engine_request *req, struct engine_request *out, void **memory)
{
    struct buf frame = BUF_INIT;
    struct frame_head head;
    struct err err = { 0 };

    ipc_put_submit(&frame, req);
    assert_false(frame.failed);
    assert_int_equal(frame.len % 8, 0);
    memcpy(&head, frame.data, sizeof head);
    assert_int_equal(head.type, MSG_SUBMIT);
    *memory = malloc(head.len);
    assert_non_null(*memory);
    memcpy(*memory, frame.data + sizeof head, head.len);
    buf_release(&frame);
    return ipc_get_submit(*memory, head.len, &limits, out, &err);
}

static void a_submit_arrives_as_it_was(void **state)
{
    struct engine_request req = example(), got;
    void *memory;

    (void)state;
    assert_int_equal(round_trip(&req, &got, &memory), 0);
    assert_int_equal(got.id, 42);
    assert_int_equal(got.group, 43);
    assert_int_equal(got.arrival_ms, 44);
    assert_int_equal(got.priority, -3);
    assert_int_equal(got.max_tokens, 10);
    assert_int_equal(got.min_tokens, 2);
    assert_true(got.ignore_eos);
    assert_memory_equal(&got.sampling, &req.sampling, sizeof req.sampling);
    assert_memory_equal(got.cache_domain, req.cache_domain, 32);
    assert_int_equal(got.num_prompt, 3);
    assert_int_equal(got.num_output, 2);
    assert_memory_equal(got.tokens, tokens, sizeof tokens);
    assert_memory_equal(got.stop_ids, stop_ids, sizeof stop_ids);
    assert_memory_equal(got.bias_ids, bias_ids, sizeof bias_ids);
    assert_true(got.bias_values[0] == -INFINITY);
    free(memory);
}

static void refused(struct engine_request req)
{
    struct engine_request got;
    void *memory;

    assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
    free(memory);
}

#define REFUSED(assignment) do { struct engine_request req = example(); req.assignment; refused(req); } while (0)

static void fields_out_of_range_are_refused(void **state)
{
    static token_id high[] = { 1, 2, 3, 4, 100 }, low[] = { 1, -1, 3, 4, 5 };
    static float nan_bias[] = { NAN };

    (void)state;
    REFUSED(num_prompt = 0);
    REFUSED(tokens = high);
    REFUSED(tokens = low);
    REFUSED(stop_ids = high + 3);
    REFUSED(bias_ids = low + 1);
    REFUSED(bias_values = nan_bias);
    REFUSED(max_tokens = 0);
    REFUSED(max_tokens = 2);                   /* both were generated already */
    REFUSED(min_tokens = -1);
    REFUSED(min_tokens = 11);
    REFUSED(sampling.temperature = NAN);
    REFUSED(sampling.temperature = -1);
    REFUSED(sampling.top_p = 1.5f);
    REFUSED(sampling.min_p = -0.1f);
    REFUSED(sampling.frequency_penalty = 3);
    REFUSED(sampling.presence_penalty = INFINITY);
    REFUSED(sampling.repetition_penalty = 0);
    REFUSED(sampling.repetition_penalty = INFINITY);
    REFUSED(sampling.top_k = -1);
    REFUSED(sampling.num_logprobs = 21);
    REFUSED(sampling.num_logprobs = -2);
    REFUSED(sampling.choice = 128);
}

static void counts_must_match_the_length(void **state)
{
    struct engine_request req = example(), got;
    struct buf frame = BUF_INIT;
    struct frame_head head;
    struct err err = { 0 };

    (void)state;
    ipc_put_submit(&frame, &req);
    memcpy(&head, frame.data, sizeof head);
    for (size_t len = 0; len < head.len; len++) {
        char *exact = malloc(len + 1);
        assert_non_null(exact);
        memcpy(exact, frame.data + sizeof head, len);
        assert_int_equal(ipc_get_submit(exact, len, &limits, &got, &err), ERR_PROTOCOL);
        free(exact);
    }
    buf_release(&frame);
}

static void too_many_tokens_for_the_context(void **state)
{
    static token_id many[65];
    struct engine_request req = example(), got;
    void *memory;

    (void)state;
    req.tokens = many;
    req.num_output = 0;
    req.num_prompt = 64;
    assert_int_equal(round_trip(&req, &got, &memory), 0);
    free(memory);
    req.num_prompt = 65;
    assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
    free(memory);
}

static void what_may_be_drawn_arrives(void **state)
{
    static const token_id allowed[] = { 5, 6, 99 };
    static const int32_t words[] = { 1, 7, 3, 1, 2, 3 };
    struct engine_request req = example(), got;
    void *memory;

    (void)state;
    req.allowed_ids = allowed;
    req.num_allowed = 3;
    req.bad_words = words;
    req.num_bad_ints = 6;
    req.score_prompt = true;
    req.num_prompt_logprobs = 20;
    assert_int_equal(round_trip(&req, &got, &memory), 0);
    assert_int_equal(got.num_allowed, 3);
    assert_memory_equal(got.allowed_ids, allowed, sizeof allowed);
    assert_memory_equal(got.bad_words, words, sizeof words);
    assert_true(got.score_prompt);
    assert_int_equal(got.num_prompt_logprobs, 20);
    free(memory);
}

static void broken_masks_are_refused(void **state)
{
    static const token_id allowed[] = { 100 };
    static const int32_t words[][3] = { { 0, 1, 1 }, { -1, 1, 1 }, { 3, 1, 1 }, { 2, 1, 100 }, { INT32_MAX, 1, 1 }, { 1, 1, 1 } };
    struct engine_request req = example(), got;
    void *memory;

    (void)state;
    req.allowed_ids = allowed;
    req.num_allowed = 1;
    assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
    free(memory);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        req = example();
        req.bad_words = words[i];
        req.num_bad_ints = 3;
        assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
        free(memory);
    }
    req = example();
    req.num_prompt_logprobs = 21;
    assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
    free(memory);
}

/* max_tokens 0 is for prompts that are scored, and then only. */
static void a_prompt_may_be_scored_alone(void **state)
{
    struct engine_request req = example(), got;
    void *memory;

    (void)state;
    req.max_tokens = req.min_tokens = 0;
    req.num_output = 0;
    assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
    free(memory);
    req.score_prompt = true;
    assert_int_equal(round_trip(&req, &got, &memory), 0);
    free(memory);
    req.num_prompt = 1;
    assert_int_equal(round_trip(&req, &got, &memory), ERR_PROTOCOL);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_submit_arrives_as_it_was),
        cmocka_unit_test(fields_out_of_range_are_refused),
        cmocka_unit_test(counts_must_match_the_length),
        cmocka_unit_test(what_may_be_drawn_arrives),
        cmocka_unit_test(broken_masks_are_refused),
        cmocka_unit_test(a_prompt_may_be_scored_alone),
        cmocka_unit_test(too_many_tokens_for_the_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
