/* helpers.h - submissions for the engine's unit tests: a prompt of counting tokens, everything else off. */
#ifndef SLUICE_TESTS_ENGINE_HELPERS_H
#define SLUICE_TESTS_ENGINE_HELPERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sequence.h"

enum { TEST_BLOCK_SIZE = 4, TEST_MAX_LEN = 64, TEST_VOCAB = 1000 };

static const struct submission_limits test_limits = { .max_model_len = TEST_MAX_LEN, .block_size = TEST_BLOCK_SIZE,
                                                      .cache_root = { { 1, 2, 3 } }, .hash_prompt = true };

static inline struct engine_request test_request(uint64_t id, token_id first, uint32_t num_prompt, int32_t max_tokens)
{
    static token_id prompt[4 * TEST_MAX_LEN];
    struct engine_request req = {
        .id = id, .arrival_ms = (int64_t)id, .max_tokens = max_tokens, .num_prompt = num_prompt, .tokens = prompt,
        .sampling = { .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 },
    };

    for (uint32_t i = 0; i < num_prompt; i++) prompt[i] = (first + (token_id)i) % TEST_VOCAB;
    return req;
}

static inline struct submission *test_submission(uint64_t id, token_id first, uint32_t num_prompt, int32_t max_tokens)
{
    struct engine_request req = test_request(id, first, num_prompt, max_tokens);
    struct submission *sub = submission_new(&req, &test_limits);

    assert_non_null(sub);
    return sub;
}

#endif
