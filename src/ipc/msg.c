#include <sluice/ipc.h>

#include <math.h>
#include <string.h>

#include "base/buf.h"

/* The fixed part of MSG_SUBMIT. Behind it: tokens, stop_ids, bias_ids, bias_values, allowed_ids, bad_words, each of 4-byte
 * elements. */
struct submit_head {
    uint64_t id, group;
    int64_t arrival_ms, start_by_ms;
    int32_t priority, max_tokens, min_tokens;
    uint32_t ignore_eos;
    struct sampling_params sampling;
    uint32_t num_prompt, num_output, num_stop_ids, num_bias, num_allowed, num_bad_ints;
    int32_t num_prompt_logprobs;
    uint32_t score_prompt;
    uint8_t cache_domain[32];
};
_Static_assert(sizeof(struct submit_head) % 8 == 0, "the arrays behind the head stay aligned");

void ipc_put_submit(struct buf *out, const struct engine_request *req)
{
    static const char zeros[8];
    struct submit_head submit = {
        .id = req->id, .group = req->group, .arrival_ms = req->arrival_ms,
        .start_by_ms = req->start_by_ms, .priority = req->priority,
        .max_tokens = req->max_tokens, .min_tokens = req->min_tokens, .ignore_eos = req->ignore_eos,
        .sampling = req->sampling, .num_prompt = req->num_prompt, .num_output = req->num_output,
        .num_stop_ids = req->num_stop_ids, .num_bias = req->num_bias, .num_allowed = req->num_allowed,
        .num_bad_ints = req->num_bad_ints, .num_prompt_logprobs = req->num_prompt_logprobs, .score_prompt = req->score_prompt,
    };
    uint64_t words = (uint64_t)req->num_prompt + req->num_output + req->num_stop_ids + 2 * (uint64_t)req->num_bias +
        req->num_allowed + req->num_bad_ints;
    uint64_t len = sizeof submit + 4 * words;
    struct frame_head head = { .len = (uint32_t)len, .type = MSG_SUBMIT };

    if (len > IPC_MAX_PAYLOAD) {           /* the gateway bounds prompts far below this */
        out->failed = true;
        return;
    }
    memcpy(submit.cache_domain, req->cache_domain, sizeof submit.cache_domain);
    buf_append(out, &head, sizeof head);
    buf_append(out, &submit, sizeof submit);
    buf_append(out, req->tokens, 4 * ((size_t)req->num_prompt + req->num_output));
    buf_append(out, req->stop_ids, 4 * (size_t)req->num_stop_ids);
    buf_append(out, req->bias_ids, 4 * (size_t)req->num_bias);
    buf_append(out, req->bias_values, 4 * (size_t)req->num_bias);
    buf_append(out, req->allowed_ids, 4 * (size_t)req->num_allowed);
    buf_append(out, req->bad_words, 4 * (size_t)req->num_bad_ints);
    buf_append(out, zeros, (8 - len % 8) % 8);
}

static bool within(float value, float low, float high) { return value >= low && value <= high; }     /* false for NaN */

static int check_sampling(const struct sampling_params *p, struct err *err)
{
    if (!within(p->temperature, 0, 2))
        return err_set(err, ERR_PROTOCOL, "submit: temperature %g", (double)p->temperature);
    if (!within(p->top_p, 0, 1)) return err_set(err, ERR_PROTOCOL, "submit: top_p %g", (double)p->top_p);
    if (!within(p->min_p, 0, 1)) return err_set(err, ERR_PROTOCOL, "submit: min_p %g", (double)p->min_p);
    if (!within(p->frequency_penalty, -2, 2) || !within(p->presence_penalty, -2, 2))
        return err_set(err, ERR_PROTOCOL, "submit: penalties %g, %g", (double)p->frequency_penalty,
                       (double)p->presence_penalty);
    if (!(p->repetition_penalty > 0) || !isfinite(p->repetition_penalty))
        return err_set(err, ERR_PROTOCOL, "submit: repetition_penalty %g", (double)p->repetition_penalty);
    if (p->top_k < 0) return err_set(err, ERR_PROTOCOL, "submit: top_k %d", p->top_k);
    if (p->num_logprobs < -1 || p->num_logprobs > MAX_TOP_LOGPROBS)
        return err_set(err, ERR_PROTOCOL, "submit: num_logprobs %d", p->num_logprobs);
    if (p->choice >= MAX_CHOICES) return err_set(err, ERR_PROTOCOL, "submit: choice %u", p->choice);
    return 0;
}

static int check_ids(const token_id *ids, size_t n, int32_t vocab_size, const char *what, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return err_set(err, ERR_PROTOCOL, "submit: %s %zu is %d, vocabulary %d", what, i, ids[i], vocab_size);
    }
    return 0;
}

static int check_counts(const struct submit_head *head, size_t len, const struct ipc_limits *limits, struct err *err)
{
    uint64_t num_tokens = (uint64_t)head->num_prompt + head->num_output;

    if (head->num_stop_ids > MAX_STOP_TOKEN_IDS || head->num_bias > MAX_LOGIT_BIAS)
        return err_set(err, ERR_PROTOCOL, "submit: %u stop ids, %u biases", head->num_stop_ids, head->num_bias);
    if (!head->num_prompt || num_tokens > (uint64_t)limits->max_model_len)
        return err_set(err, ERR_PROTOCOL, "submit: %u + %u tokens, context %d", head->num_prompt, head->num_output,
                       limits->max_model_len);
    if (head->num_allowed > (uint32_t)limits->vocab_size || head->num_bad_ints > MAX_BAD_INTS)
        return err_set(err, ERR_PROTOCOL, "submit: %u allowed ids, %u bad words", head->num_allowed, head->num_bad_ints);
    if (len != sizeof *head + 4 * (num_tokens + head->num_stop_ids + 2 * (uint64_t)head->num_bias + head->num_allowed +
                                   (uint64_t)head->num_bad_ints))
        return err_set(err, ERR_PROTOCOL, "submit: %zu bytes do not match the counts", len);
    bool only_scores = head->max_tokens == 0 && head->score_prompt && head->num_output == 0 && head->num_prompt > 1;
    if (!only_scores && (head->max_tokens < 1 || head->num_output >= (uint32_t)head->max_tokens))
        return err_set(err, ERR_PROTOCOL, "submit: max_tokens %d after %u", head->max_tokens, head->num_output);
    if (head->min_tokens < 0 || head->min_tokens > head->max_tokens)
        return err_set(err, ERR_PROTOCOL, "submit: min_tokens %d of %d", head->min_tokens, head->max_tokens);
    if (head->score_prompt > 1 || head->num_prompt_logprobs < 0 || head->num_prompt_logprobs > MAX_TOP_LOGPROBS)
        return err_set(err, ERR_PROTOCOL, "submit: score_prompt %u with %d", head->score_prompt, head->num_prompt_logprobs);
    if (head->ignore_eos > 1) return err_set(err, ERR_PROTOCOL, "submit: ignore_eos %u", head->ignore_eos);
    return 0;
}

/* Runs of at least one token that fill the array exactly. */
static int check_bad_words(const int32_t *words, uint32_t n, int32_t vocab_size, struct err *err)
{
    uint32_t runs = 0;

    for (uint32_t at = 0; at < n; runs++) {
        int32_t len = words[at++];
        if (len < 1 || (uint32_t)len > n - at || runs == MAX_BAD_RUNS)
            return err_set(err, ERR_PROTOCOL, "submit: bad word %u has %d tokens", runs, len);
        int rc = check_ids(words + at, (size_t)len, vocab_size, "bad word token", err);
        if (rc < 0) return rc;
        at += (uint32_t)len;
    }
    return 0;
}

int ipc_get_submit(const void *payload, size_t len, const struct ipc_limits *limits, struct engine_request *req,
                   struct err *err)
{
    struct submit_head head;
    int rc;

    if (len < sizeof head) return err_set(err, ERR_PROTOCOL, "submit: %zu bytes", len);
    memcpy(&head, payload, sizeof head);
    if ((rc = check_counts(&head, len, limits, err)) < 0) return rc;
    if ((rc = check_sampling(&head.sampling, err)) < 0) return rc;

    size_t num_tokens = (size_t)head.num_prompt + head.num_output;
    const token_id *tokens = (const token_id *)((const char *)payload + sizeof head);
    const token_id *stop_ids = tokens + num_tokens;
    const token_id *bias_ids = stop_ids + head.num_stop_ids;
    const float *bias_values = (const float *)(bias_ids + head.num_bias);
    const token_id *allowed_ids = (const token_id *)(bias_values + head.num_bias);
    const int32_t *bad_words = allowed_ids + head.num_allowed;
    if ((rc = check_ids(tokens, num_tokens, limits->vocab_size, "token", err)) < 0) return rc;
    if ((rc = check_ids(stop_ids, head.num_stop_ids, limits->vocab_size, "stop id", err)) < 0) return rc;
    if ((rc = check_ids(bias_ids, head.num_bias, limits->vocab_size, "bias id", err)) < 0) return rc;
    if ((rc = check_ids(allowed_ids, head.num_allowed, limits->vocab_size, "allowed id", err)) < 0) return rc;
    if ((rc = check_bad_words(bad_words, head.num_bad_ints, limits->vocab_size, err)) < 0) return rc;
    for (uint32_t i = 0; i < head.num_bias; i++) {
        if (isnan(bias_values[i])) return err_set(err, ERR_PROTOCOL, "submit: bias %u is not a number", i);
    }

    *req = (struct engine_request){
        .id = head.id, .group = head.group, .arrival_ms = head.arrival_ms,
        .start_by_ms = head.start_by_ms, .priority = head.priority,
        .max_tokens = head.max_tokens, .min_tokens = head.min_tokens, .ignore_eos = head.ignore_eos,
        .sampling = head.sampling, .num_prompt = head.num_prompt, .num_output = head.num_output,
        .num_stop_ids = head.num_stop_ids, .num_bias = head.num_bias, .num_allowed = head.num_allowed,
        .num_bad_ints = head.num_bad_ints, .num_prompt_logprobs = head.num_prompt_logprobs, .score_prompt = head.score_prompt,
        .allowed_ids = allowed_ids, .bad_words = bad_words,
        .tokens = tokens, .stop_ids = stop_ids, .bias_ids = bias_ids, .bias_values = bias_values,
    };
    memcpy(req->cache_domain, head.cache_domain, sizeof req->cache_domain);
    return 0;
}
