/* parse_request_fuzz.c - request bodies through the JSON guard, the field tables, the template and the tokenizer.
 * First byte: the
 * route. What comes out must be within the limits that the router and the engine rely on. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/api/tiny_gateway.h"

#include <sluice/api.h>
#include <sluice/metrics.h>

static struct tiny tiny;
static const uint8_t secret[32];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const struct metrics_info info = { .model_name = "tiny", .num_replicas = 1, .version = "0", .commit = "",
        .max_model_len = 2048 };

    (void)argc; (void)argv;
    metrics_init(&info);
    tiny_init(&tiny, NULL);
    return 0;
}

static void check_limits(const struct api_request *request)
{
    const struct generation_params *params = api_request_params(request);
    struct generation_spec spec = { 0 };

    api_request_fill_spec(request, &spec);
    BUG_ON(api_request_num_choices(request) < 1 || api_request_num_choices(request) > MAX_PROMPTS);
    BUG_ON(params->n < 1 || params->n > MAX_CHOICES || params->max_tokens < -1 || params->min_tokens < 0);
    BUG_ON(!(params->sampling.temperature >= 0 && params->sampling.temperature <= 2));
    BUG_ON(!(params->sampling.top_p >= 0 && params->sampling.top_p <= 1) || !(params->sampling.repetition_penalty > 0));
    BUG_ON(params->sampling.num_logprobs < -1 || params->sampling.num_logprobs > MAX_TOP_LOGPROBS);
    BUG_ON(params->n_stop > MAX_STOP_STRINGS || params->n_stop_token_ids > MAX_STOP_TOKEN_IDS ||
           params->n_bias > MAX_LOGIT_BIAS);
    for (size_t i = 0; i < spec.n_prompts; i++) {
        BUG_ON(spec.prompts[i].n < 1 || spec.prompts[i].n > 2048);
        for (size_t j = 0; j < spec.prompts[i].n; j++) BUG_ON(spec.prompts[i].ids[j] < 0 ||
                                                              spec.prompts[i].ids[j] >= 259);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct caller caller = { .key_name = "", .cache_secret = secret };
    struct api_request *request = NULL;
    struct buf out = BUF_INIT;
    struct err err = { 0 };
    int rc = 0;

    if (size == 0) return 0;
    const char *body = (const char *)data + 1;
    if (data[0] % 4 == 2) rc = tokenize_reply(&tiny.gateway, body, size - 1, &out, &err);
    else if (data[0] % 4 == 3) rc = detokenize_reply(&tiny.gateway, body, size - 1, &out, &err);
    else rc = api_request_new(&request, &tiny.gateway, data[0] % 4 ? GENERATE_CHAT : GENERATE_COMPLETION, &caller,
                              body, size - 1, &err);
    BUG_ON(rc != err.code || (rc < 0 && request));
    if (request) check_limits(request);
    buf_reset(&out);
    if (rc < 0) reply_error(&err, &out);
    BUG_ON(rc < 0 && !utf8_valid(out.data, out.len));
    api_request_free(request);
    buf_release(&out);
    return 0;
}
