#include "parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>
#include <sluice/text.h>

#include "validate.h"

enum { COMPLETION_DEFAULT_TOKENS = 16, STOP_BYTES_MAX = 1024, MAX_BEST_OF = 20 };

int parse_no_memory(const struct parse *p) { return err_set(p->err, ERR_NO_MEMORY, "out of memory"); }

static int parse_model(const struct parse *p, struct generation_params *gen)
{
    const struct str_list *names = &p->gateway->config->served_model_name;
    const char *name = NULL;
    size_t len = 0;

    json_string(json_get(p->root, "model"), &name, &len);
    for (size_t i = 0; name && i < names->n; i++) {
        if (strlen(names->items[i]) == len && memcmp(names->items[i], name, len) == 0) {
            gen->model = names->items[i];
            return 0;
        }
    }
    /* cut so that the message stays whole and valid: names are short, this one is not known anyway */
    int shown = len < 100 ? (int)len : 0;
    return err_param(p->err, ERR_MODEL_NOT_FOUND, "model", "The model '%.*s' does not exist", shown, name ? name : "");
}

static void set_defaults(const struct parse *p, struct generation_params *gen)
{
    const struct model_config *model = p->gateway->model;
    struct sampling_params *sampling = &gen->sampling;

    *sampling = (struct sampling_params){ .temperature = 1, .top_p = 1, .repetition_penalty = 1, .num_logprobs = -1 };
    gen->n = gen->n_shown = 1;
    gen->skip_special_tokens = true;
    gen->add_special_tokens = p->route == GENERATE_COMPLETION;
    if (!model || strcmp(p->gateway->config->generation_config, "auto") != 0) return;
    if (model->gen_temperature >= 0) sampling->temperature = model->gen_temperature;
    if (model->gen_top_p >= 0) sampling->top_p = model->gen_top_p;
    if (model->gen_min_p >= 0) sampling->min_p = model->gen_min_p;
    if (model->gen_repetition_penalty > 0) sampling->repetition_penalty = model->gen_repetition_penalty;
    if (model->gen_top_k >= 0) sampling->top_k = model->gen_top_k;
}

/* max_completion_tokens wins over max_tokens; beyond int64 is as good as the largest. */
static int parse_max_tokens(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *item = json_get(p->root, "max_completion_tokens");

    if (!item) item = json_get(p->root, "max_tokens");
    gen->max_tokens = p->route == GENERATE_COMPLETION ? COMPLETION_DEFAULT_TOKENS : -1;
    if (item && json_int64(item, &gen->max_tokens) < 0) gen->max_tokens = INT64_MAX;
    if (gen->max_tokens > INT32_MAX) gen->max_tokens = INT32_MAX;
    if (gen->max_tokens >= 0 && gen->min_tokens > gen->max_tokens) {
        char found[16];
        snprintf(found, sizeof found, "%" PRId32, gen->min_tokens);
        return fail_int_high(p->err, "min_tokens", gen->max_tokens, found);
    }
    return 0;
}

static int parse_seed(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *item = json_get(p->root, "seed");
    int64_t seed = 0;

    if (item && json_int64(item, &seed) < 0)
        return err_param(p->err, ERR_TYPE, "seed", "Invalid type for 'seed': expected an integer of 64 bits.");
    gen->has_seed = item != NULL;
    gen->sampling.seed = (uint64_t)seed;
    if (item) return 0;
    if (getrandom(&gen->sampling.seed, sizeof gen->sampling.seed, 0) != (ssize_t)sizeof gen->sampling.seed)
        return err_sys(p->err, ERR_INTERNAL, "getrandom");
    return 0;
}

/* C: how many alternatives, null = none. H: a switch and a count. */
static int parse_logprobs(const struct parse *p, struct generation_params *gen)
{
    const char *param = p->route == GENERATE_CHAT ? "top_logprobs" : "logprobs";
    const struct cJSON *item = json_get(p->root, param);
    int64_t count = 0;
    int rc = read_int(item, param, 0, p->gateway->config->max_logprobs, &count, p->err);

    if (rc < 0) return rc;
    if (p->route == GENERATE_COMPLETION) gen->logprobs = item != NULL;
    if (count > 0 && !gen->logprobs)
        return err_param(p->err, ERR_VALUE, param, "Invalid 'top_logprobs': it needs 'logprobs' to be true.");
    if (gen->logprobs) gen->sampling.num_logprobs = (int32_t)count;
    return 0;
}

static int parse_stop_string(const struct parse *p, const struct cJSON *item, size_t i, const char **texts,
                             size_t *lens)
{
    const char *text;
    char param[32];

    snprintf(param, sizeof param, cJSON_IsArray(json_get(p->root, "stop")) ? "stop[%zu]" : "stop", i);
    if (json_string(item, &text, &lens[i]) < 0) return fail_type(p->err, param, "a string", item);
    if (lens[i] == 0)
        return err_param(p->err, ERR_EMPTY_STRING, "stop",
                         "Invalid '%s': empty string. Expected a string with minimum length 1.", param);
    if (lens[i] > STOP_BYTES_MAX)
        return err_param(p->err, ERR_VALUE, "stop", "Invalid '%s': string of %zu bytes. Expected at most %d.", param,
                         lens[i], STOP_BYTES_MAX);
    texts[i] = arena_strndup(p->arena, text, lens[i]);
    return texts[i] ? 0 : parse_no_memory(p);
}

static int parse_stop(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *stop = json_get(p->root, "stop");
    int n = cJSON_IsArray(stop) ? cJSON_GetArraySize(stop) : stop ? 1 : 0;
    int rc = 0;

    if (n > MAX_STOP_STRINGS) return fail_array_long(p->err, "stop", MAX_STOP_STRINGS, n);
    const char **texts = arena_array(p->arena, (size_t)n, sizeof *texts);
    size_t *lens = arena_array(p->arena, (size_t)n, sizeof *lens);
    if (!texts || !lens) return parse_no_memory(p);
    const struct cJSON *item = cJSON_IsArray(stop) ? stop->child : stop;
    for (int i = 0; rc == 0 && i < n; i++, item = item->next) rc = parse_stop_string(p, item, (size_t)i, texts, lens);
    gen->stop = texts;
    gen->stop_lens = lens;
    gen->n_stop = (size_t)n;
    return rc;
}

int parse_token_ids(const struct parse *p, const struct cJSON *array, const char *param, token_id **ids, size_t *n)
{
    int32_t vocab = p->gateway->model->vocab_size;
    int64_t id;

    *n = (size_t)cJSON_GetArraySize(array);
    *ids = arena_array(p->arena, *n, sizeof **ids);
    if (!*ids) return parse_no_memory(p);
    token_id *next = *ids;
    for (const struct cJSON *item = array->child; item; item = item->next) {
        if (json_int64(item, &id) < 0 || id < 0 || id >= vocab)
            return err_param(p->err, ERR_VALUE, param, "Invalid '%s': every token id must be an integer in 0..%d.",
                             param, vocab - 1);
        *next++ = (token_id)id;
    }
    return 0;
}

static int parse_stop_token_ids(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *array = json_get(p->root, "stop_token_ids");
    token_id *ids = NULL;
    int rc = 0;

    if (!array) return 0;
    int n = cJSON_GetArraySize(array);
    if (n > MAX_STOP_TOKEN_IDS) return fail_array_long(p->err, "stop_token_ids", MAX_STOP_TOKEN_IDS, n);
    rc = parse_token_ids(p, array, "stop_token_ids", &ids, &gen->n_stop_token_ids);
    gen->stop_token_ids = ids;
    return rc;
}

static int fail_bias(const struct parse *p)
{
    return err_param(p->err, ERR_VALUE, "logit_bias",
                     "Invalid 'logit_bias': expected at most %d entries of a token id in 0..%d and a value in -100..100.",
                     MAX_LOGIT_BIAS, p->gateway->model->vocab_size - 1);
}

static int parse_logit_bias(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *object = json_get(p->root, "logit_bias");
    size_t n = object ? (size_t)cJSON_GetArraySize(object) : 0;

    if (n == 0) return 0;
    if (n > MAX_LOGIT_BIAS) return fail_bias(p);
    token_id *ids = arena_array(p->arena, n, sizeof *ids);
    float *values = arena_array(p->arena, n, sizeof *values);
    if (!ids || !values) return parse_no_memory(p);
    for (const struct cJSON *item = object->child; item; item = item->next) {
        const char *key = item->string;
        size_t digits = strspn(key, "0123456789");
        long id = digits > 0 && digits < 10 && key[digits] == '\0' ? strtol(key, NULL, 10) : -1;
        double value = cJSON_IsNumber(item) ? json_real(item) : 1000;
        if (id < 0 || id >= p->gateway->model->vocab_size || !(value >= -100 && value <= 100)) return fail_bias(p);
        for (size_t i = 0; i < gen->n_bias; i++) {
            if (ids[i] == id) return fail_bias(p);      /* "7" and "07" */
        }
        ids[gen->n_bias] = (token_id)id;
        values[gen->n_bias++] = (float)value;
    }
    gen->bias_ids = ids;
    gen->bias_values = values;
    return 0;
}

static int parse_stream_options(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *options = json_get(p->root, "stream_options");
    const struct cJSON *usage = json_get(options, "include_usage");
    const struct cJSON *running = json_get(options, "continuous_usage_stats");

    if (!options) return 0;
    if (!gen->stream)
        return err_param(p->err, ERR_VALUE, "stream_options",
                         "Invalid 'stream_options': it is allowed only when 'stream' is true.");
    if (usage && !cJSON_IsBool(usage)) return fail_type(p->err, "stream_options.include_usage", "a boolean", usage);
    if (running && !cJSON_IsBool(running))
        return fail_type(p->err, "stream_options.continuous_usage_stats", "a boolean", running);
    gen->include_usage = cJSON_IsTrue(usage);
    gen->continuous_usage = gen->include_usage && cJSON_IsTrue(running);
    return 0;
}

static int parse_rest(const struct parse *p, struct generation_params *gen)
{
    const struct config *config = p->gateway->config;
    const struct cJSON *salt = json_get(p->root, "cache_salt");
    size_t len = salt ? strlen(salt->valuestring) : 1;
    struct sampling_params *sampling = &gen->sampling;

    if (len == 0) return err_param(p->err, ERR_EMPTY_STRING, "cache_salt", "Invalid 'cache_salt': empty string.");
    if (len > 1024) return err_param(p->err, ERR_VALUE, "cache_salt", "Invalid 'cache_salt': at most 1024 bytes.");
    if (gen->priority != 0 && strcmp(config->scheduling_policy, "priority") != 0)
        return err_param(p->err, ERR_UNSUPPORTED, "priority",
                         "Unsupported parameter: 'priority' needs a server with scheduling_policy: priority.");
    if (sampling->top_k < 0 || sampling->top_k > p->gateway->model->vocab_size) sampling->top_k = 0;
    const struct cJSON *total = json_get(p->root, "timeout_total_ms");
    const struct cJSON *alias = json_get(p->root, "timeout_ms");
    if (total && alias && json_real(alias) < json_real(total)) gen->timeout_total_ms = (int64_t)json_real(alias);
    return 0;
}

/* More choices than are shown: the best ones by mean logprob are. The router makes all of them. */
static int parse_best_of(const struct parse *p, struct generation_params *gen)
{
    int64_t best_of = gen->n;

    gen->n_shown = gen->n;
    if (p->route != GENERATE_COMPLETION) return 0;
    int rc = read_int(json_get(p->root, "best_of"), "best_of", gen->n, MAX_BEST_OF, &best_of, p->err);
    if (rc < 0 || best_of == gen->n) return rc;
    if (gen->stream)
        return err_param(p->err, ERR_VALUE, "best_of", "Invalid 'best_of': above 'n' it is not allowed with 'stream'.");
    gen->n = (int32_t)best_of;
    if (gen->sampling.num_logprobs < 0) gen->sampling.num_logprobs = 0;
    return 0;
}

/* ---- what may be drawn ---- */

static int parse_allowed_ids(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *array = json_get(p->root, "allowed_token_ids");
    token_id *ids = NULL;

    if (!array) return 0;
    int n = cJSON_GetArraySize(array);
    if (n == 0) return fail_empty_array(p->err, "allowed_token_ids");
    if (n > p->gateway->model->vocab_size)
        return fail_array_long(p->err, "allowed_token_ids", p->gateway->model->vocab_size, n);
    int rc = parse_token_ids(p, array, "allowed_token_ids", &ids, &gen->n_allowed);
    gen->allowed_ids = ids;
    return rc;
}

/* One way to write a word; the same tokens twice in a row are kept once. */
static int add_bad_run(const struct parse *p, const char *text, size_t len, struct generation_params *gen, int32_t *runs,
                       size_t *last)
{
    struct token_buf tokens = { .limit = MAX_BAD_WORD_BYTES + 1 };
    struct text_segment segment = { .text = text, .len = len };
    int rc = tokenizer_encode(p->gateway->tokenizer, &segment, 1, false, &tokens, p->err);

    if (rc == 0 && tokens.len > 0) {
        size_t bytes = tokens.len * sizeof *tokens.ids, at = gen->n_bad_ints;
        bool again = *last < at && (size_t)runs[*last] == tokens.len && memcmp(&runs[*last + 1], tokens.ids, bytes) == 0;
        if (!again) {
            runs[at] = (int32_t)tokens.len;
            memcpy(&runs[at + 1], tokens.ids, bytes);
            gen->n_bad_ints += 1 + tokens.len;
            *last = at;
        }
    }
    token_buf_release(&tokens);
    return rc;
}

static int add_bad_word(const struct parse *p, const struct cJSON *item, int i, struct generation_params *gen, int32_t *runs)
{
    char param[32], spaced[MAX_BAD_WORD_BYTES + 2];
    const char *text = "";
    size_t len = 0, skip = 0, last = SIZE_MAX;

    snprintf(param, sizeof param, "bad_words[%d]", i);
    if (json_string(item, &text, &len) < 0) return fail_type(p->err, param, "a string", item);
    if (len == 0)
        return err_param(p->err, ERR_EMPTY_STRING, "bad_words",
                         "Invalid '%s': empty string. Expected a string with minimum length 1.", param);
    if (len > MAX_BAD_WORD_BYTES)
        return err_param(p->err, ERR_VALUE, "bad_words", "Invalid '%s': string of %zu bytes. Expected at most %d.", param, len,
                         MAX_BAD_WORD_BYTES);
    while (skip < len && text[skip] == ' ') skip++;
    if (skip == len) return add_bad_run(p, text, len, gen, runs, &last);
    spaced[0] = ' ';
    memcpy(spaced + 1, text + skip, len - skip);
    int rc = add_bad_run(p, spaced + 1, len - skip, gen, runs, &last);
    return rc < 0 ? rc : add_bad_run(p, spaced, len - skip + 1, gen, runs, &last);
}

static int parse_bad_words(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *array = json_get(p->root, "bad_words"), *item;
    int n = array ? cJSON_GetArraySize(array) : 0, i = 0, rc = 0;

    if (n == 0) return 0;
    if (n > MAX_BAD_WORDS) return fail_array_long(p->err, "bad_words", MAX_BAD_WORDS, n);
    int32_t *runs = arena_array(p->arena, (size_t)n * 2 * (MAX_BAD_WORD_BYTES + 2), sizeof *runs);
    if (!runs) return parse_no_memory(p);
    cJSON_ArrayForEach(item, array) {
        if ((rc = add_bad_word(p, item, i++, gen, runs)) < 0) return rc;
    }
    gen->bad_words = runs;
    return 0;
}

/* ---- prompts ---- */

/* Scores that are printed: of the prompt (prompt_logprobs), and of an echoed prompt (logprobs). The engine makes the larger
 * number of alternatives once. */
static int parse_prompt_logprobs(const struct parse *p, struct generation_params *gen)
{
    const struct cJSON *item = json_get(p->root, "prompt_logprobs");
    int64_t count = 0;
    int rc = read_int(item, "prompt_logprobs", 0, p->gateway->config->max_logprobs, &count, p->err);

    if (rc < 0) return rc;
    if (item && gen->stream)
        return err_param(p->err, ERR_VALUE, "prompt_logprobs", "Invalid 'prompt_logprobs': it is not allowed with 'stream'.");
    gen->echo = p->route == GENERATE_COMPLETION && read_bool(p->root, "echo", false);
    bool echoed = gen->echo && gen->logprobs;
    gen->score_prompt = item || echoed;
    gen->num_prompt_logprobs = (int32_t)count;
    if (echoed && gen->sampling.num_logprobs > count) gen->num_prompt_logprobs = gen->sampling.num_logprobs;
    return 0;
}

int parse_truncation(const struct parse *p, struct truncation *truncation)
{
    const struct cJSON *keep = json_get(p->root, "truncate_prompt_tokens"), *side = json_get(p->root, "truncation_side");
    int64_t n = 0;

    *truncation = (struct truncation){ 0 };
    bool right = side && strcmp(side->valuestring, "right") == 0;
    if (side && !right && strcmp(side->valuestring, "left") != 0)
        return err_param(p->err, ERR_VALUE, "truncation_side", "Invalid 'truncation_side': expected left or right.");
    if (!keep) return 0;
    if (json_int64(keep, &n) < 0) n = json_real(keep) < 0 ? INT64_MIN : INT64_MAX;
    if (n < -1 || n == 0)
        return err_param(p->err, ERR_INT_LOW, "truncate_prompt_tokens",
                         "Invalid 'truncate_prompt_tokens': integer below minimum value. Expected -1 or a value >= 1.");
    *truncation = (struct truncation){ .on = true, .keep = n, .keep_first = right };
    return 0;
}

int parse_params(const struct parse *p, struct generation_params *gen)
{
    int rc = validate_types(p->root, p->route, p->err);

    if (rc < 0 || (rc = validate_no_nul(p->root, p->err)) < 0 || (rc = parse_model(p, gen)) < 0) return rc;
    set_defaults(p, gen);
    if ((rc = validate_supported(p->root, p->route, p->err)) < 0) return rc;
    if ((rc = validate_ranges(p->root, p->route, gen, p->err)) < 0) return rc;
    if ((rc = parse_max_tokens(p, gen)) < 0) return rc;
    if ((rc = parse_seed(p, gen)) < 0) return rc;
    if ((rc = parse_logprobs(p, gen)) < 0) return rc;
    if ((rc = parse_stop(p, gen)) < 0) return rc;
    if ((rc = parse_stop_token_ids(p, gen)) < 0) return rc;
    if ((rc = parse_logit_bias(p, gen)) < 0) return rc;
    if ((rc = parse_stream_options(p, gen)) < 0) return rc;
    if ((rc = parse_prompt_logprobs(p, gen)) < 0) return rc;
    if ((rc = parse_best_of(p, gen)) < 0) return rc;
    if ((rc = parse_allowed_ids(p, gen)) < 0) return rc;
    if ((rc = parse_bad_words(p, gen)) < 0) return rc;
    return parse_rest(p, gen);
}
