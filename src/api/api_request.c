#include "api_request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>
#include <sluice/metrics.h>
#include <sluice/text.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/sha256.h"
#include "infill.h"
#include "parse.h"
#include "validate.h"

enum {
    TOKENS_SLACK = 1 << 16,       /* a prompt this far beyond the context is not tokenized to its end */
    PROMPT_TOKEN_BYTES = 48, PROMPT_TOP_BYTES = 24,    /* of a scored prompt token in an answer, about */
    TRUNCATED_MAX = 32 << 20,     /* the same for one that is to be truncated */
};

static double seconds_since(int64_t start_ns) { return (double)(clock_now_ns() - start_ns) / 1e9; }

/* ---- text -> tokens ---- */

static int fail_context(const struct api_request *gen, bool counted, size_t n, struct err *err)
{
    const char *where = gen->route == GENERATE_CHAT ? "messages" : "prompt";
    int64_t answer = gen->params->max_tokens > 0 ? gen->params->max_tokens : 0;
    const char *more = counted ? "" : "more than ";
    int64_t total = 0;

    if (__builtin_add_overflow((int64_t)n, answer, &total)) total = INT64_MAX;
    return err_param(err, ERR_CONTEXT_LENGTH, where,
                     "This model's maximum context length is %d tokens. However, you requested %s%" PRId64 " tokens (%zu in the "
                     "%s, %" PRId64 " in the completion). Please reduce the length of the %s or completion.",
                     gen->gateway->max_model_len, more, total, n, where, answer, where);
}

/* Exactly full is legal when nothing is to be generated. */
static int check_context(struct api_request *gen, size_t n, struct err *err)
{
    size_t room = (size_t)gen->gateway->max_model_len;

    if (n < room || (n == room && gen->params->max_tokens == 0)) return 0;
    return fail_context(gen, true, n, err);
}

/* Cuts a prompt to what the request keeps of it. */
static void truncate_prompt(const struct api_request *gen, const struct truncation *truncation, struct prompt_tokens *prompt)
{
    int64_t room = gen->gateway->max_model_len, answer = gen->params->max_tokens, keep = truncation->keep;

    /* without a limit of its own the answer needs one token at least */
    if (keep < 0) keep = answer < 0 ? room - 1 : answer < room ? room - answer : 1;
    if (!truncation->on || (int64_t)prompt->n <= keep) return;
    if (!truncation->keep_first) prompt->ids += prompt->n - (size_t)keep;
    prompt->n = (size_t)keep;
}

static int encode(struct api_request *gen, const struct text_segment *segments, size_t n_segments,
                  const struct truncation *truncation, struct prompt_tokens *prompt, struct err *err)
{
    /* all of a prompt that is cut to its end has to be read */
    size_t limit = truncation->on ? TRUNCATED_MAX : (size_t)gen->gateway->max_model_len * 4 + TOKENS_SLACK;
    struct token_buf tokens = { .limit = limit };
    token_id bos = tokenizer_bos(gen->gateway->tokenizer);
    const char *where = gen->route == GENERATE_CHAT ? "messages" : "prompt";
    int64_t start_ns = clock_now_ns();
    int rc = tokenizer_encode(gen->gateway->tokenizer, segments, n_segments, gen->params->add_special_tokens, &tokens,
                              err);

    metric_observe(M_TOKENIZE, 0, seconds_since(start_ns));
    if (rc == ERR_LIMIT) {
        err_clear(err);
        rc = fail_context(gen, false, tokens.limit, err);
    }
    if (rc < 0) goto out;
    if (tokens.len == 0 && bos == TOKEN_NONE) {
        rc = err_param(err, ERR_EMPTY_STRING, where,
                       "Invalid '%s': empty string, and the model has no token to begin with.", where);
        goto out;
    }
    prompt->n = tokens.len ? tokens.len : 1;
    prompt->ids = arena_array(&gen->arena, prompt->n, sizeof *prompt->ids);
    if (!prompt->ids) { rc = err_set(err, ERR_NO_MEMORY, "out of memory"); goto out; }
    if (tokens.len) memcpy(prompt->ids, tokens.ids, tokens.len * sizeof *prompt->ids);
    else prompt->ids[0] = bos;
    truncate_prompt(gen, truncation, prompt);
out:
    token_buf_release(&tokens);
    return rc;
}

/* What echo puts before the answer: the string as it was sent; what ids or a cut prompt say. */
static int keep_echo(struct api_request *gen, size_t i, const char *sent, size_t sent_len, bool as_sent, struct err *err)
{
    const struct prompt_tokens *prompt = &gen->prompts[i];
    char *text = NULL;
    size_t len = sent_len;
    int rc = 0;

    if (!as_sent) rc = tokenizer_decode(gen->gateway->tokenizer, prompt->ids, prompt->n, gen->params->skip_special_tokens, &text, &len, err);
    if (rc < 0) return rc;
    gen->echo[i].text = arena_strndup(&gen->arena, as_sent ? sent : text, len);
    gen->echo[i].len = len;
    free(text);
    return gen->echo[i].text ? 0 : err_set(err, ERR_NO_MEMORY, "out of memory");
}

/* A prompt of text, with the suffix that the answer stands before. */
static int encode_prompt(struct api_request *gen, const struct completion_request *request, struct text_segment segment,
                         const struct truncation *truncation, struct prompt_tokens *prompt, struct err *err)
{
    struct text_segment behind = { request->suffix, request->suffix_len, false }, around[INFILL_SEGMENTS];

    if (!request->suffix) return encode(gen, &segment, 1, truncation, prompt, err);
    int rc = infill_segments(gen->gateway->tokenizer, &segment, &behind, around, err);
    return rc < 0 ? rc : encode(gen, around, INFILL_SEGMENTS, truncation, prompt, err);
}

static int tokenize_completion(struct api_request *gen, const struct completion_request *request,
                               const struct truncation *truncation, struct err *err)
{
    int rc = 0;

    gen->n_prompts = request->n_prompts;
    gen->prompts = arena_array(&gen->arena, gen->n_prompts, sizeof *gen->prompts);
    if (gen->params->echo) gen->echo = arena_array(&gen->arena, gen->n_prompts, sizeof *gen->echo);
    if (!gen->prompts || (gen->params->echo && !gen->echo)) return err_set(err, ERR_NO_MEMORY, "out of memory");
    for (size_t i = 0; rc == 0 && i < gen->n_prompts; i++) {
        bool is_ids = request->prompts[i].is_ids;
        struct text_segment segment = { request->prompts[i].text, request->prompts[i].len,
            request->parse_special_tokens };
        if (is_ids) {
            gen->prompts[i] = request->prompts[i].ids;
            truncate_prompt(gen, truncation, &gen->prompts[i]);
        } else {
            rc = encode_prompt(gen, request, segment, truncation, &gen->prompts[i], err);
        }
        if (rc == 0 && gen->echo) rc = keep_echo(gen, i, segment.text, segment.len, !is_ids && !truncation->on, err);
    }
    return rc;
}

static int tokenize_chat(struct api_request *gen, const struct chat_request *request, const struct truncation *truncation,
                         struct err *err)
{
    const struct gateway *gateway = gen->gateway;
    struct chat_template_vars vars = {
        .messages = request->messages,
        .kwargs = request->chat_template_kwargs,
        .bos_token = tokenizer_bos_text(gateway->tokenizer),
        .eos_token = tokenizer_eos_text(gateway->tokenizer),
        .add_generation_prompt = request->add_generation_prompt,
        .continue_final_message = request->continue_final_message,
        .now_s = clock_wall_s(),
    };
    struct chat_prompt prompt = { 0 };
    int64_t start_ns = clock_now_ns();
    int rc = chat_template_render(gateway->chat_template, &vars, &prompt, err);

    metric_observe(M_TEMPLATE, 0, seconds_since(start_ns));
    if (rc < 0) {
        if (rc == ERR_TEMPLATE && err && !err->param[0]) snprintf(err->param, sizeof err->param, "messages");
        return rc;
    }
    gen->n_prompts = 1;
    gen->prompts = arena_array(&gen->arena, 1, sizeof *gen->prompts);
    rc = gen->prompts ? encode(gen, prompt.segments, prompt.n_segments, truncation, gen->prompts, err)
        : err_set(err, ERR_NO_MEMORY, "out of memory");
    chat_prompt_release(&prompt);
    return rc;
}

/* ---- identity ---- */

static int make_id(struct api_request *gen, struct err *err)
{
    uint8_t random[16];

    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return err_sys(err, ERR_INTERNAL, "getrandom");
    size_t len = (size_t)snprintf(gen->id, sizeof gen->id, "%s", gen->route == GENERATE_CHAT ? "chatcmpl-" : "cmpl-");
    for (size_t i = 0; i < sizeof random; i++)
        len += (size_t)snprintf(gen->id + len, sizeof gen->id - len, "%02x", random[i]);
    gen->created_s = clock_wall_s();
    return 0;
}

static const char *make_head(struct api_request *gen, const char *object, size_t *len)
{
    struct buf text = BUF_INIT;
    char *copy = NULL;

    buf_printf(&text, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":\"", gen->id, object,
               gen->created_s);
    buf_json_escape(&text, gen->params->model, strlen(gen->params->model));
    buf_printf(&text, "\",\"system_fingerprint\":\"%s\",\"choices\":[", gen->gateway->fingerprint);
    if (!text.failed) copy = arena_strndup(&gen->arena, text.data, text.len);
    *len = text.len;
    buf_release(&text);
    return copy;
}

static int make_identity(struct api_request *gen, struct err *err)
{
    bool chat = gen->route == GENERATE_CHAT;
    int rc = make_id(gen, err);

    if (rc < 0) return rc;
    gen->head = make_head(gen, chat ? "chat.completion.chunk" : "text_completion", &gen->head_len);
    gen->body_head = make_head(gen, chat ? "chat.completion" : "text_completion", &gen->body_head_len);
    return gen->head && gen->body_head ? 0 : err_set(err, ERR_NO_MEMORY, "out of memory");
}

/* The prefix cache is shared within a domain only: the process, the API key's name, the request's salt (api-contract
 * 10.4). */
static void make_cache_domain(struct api_request *gen, const struct caller *caller, const struct cJSON *root)
{
    bool by_key = strcmp(gen->gateway->config->cache_isolation, "key") == 0;
    const char *name = by_key ? caller->key_name : "", *salt = "";
    size_t salt_len = 0;

    json_string(json_get(root, "cache_salt"), &salt, &salt_len);
    struct sha256_piece pieces[] = {
        { caller->cache_secret, 32 },
        { name, strlen(name) + 1 },        /* its NUL keeps name and salt apart */
        { salt, salt_len },
    };
    struct sha256 hash = sha256_of(pieces, 3);
    memcpy(gen->cache_domain, hash.bytes, sizeof gen->cache_domain);
}

/* Either name may steer a conversation to the replica that has its prefix. */
static uint64_t session_of(const struct cJSON *root)
{
    const char *text = "";
    size_t len = 0;

    if (json_string(json_get(root, "session_id"), &text, &len) < 0)
        json_string(json_get(root, "prompt_cache_key"), &text, &len);
    return len ? hash_bytes(text, len, hash_process_seed()) | 1 : 0;
}

/* ---- the door ---- */

/* Logprobs of prompts are the one thing whose size is known before: refused here rather than after the work. */
static int check_response_size(const struct api_request *gen, struct err *err)
{
    const struct generation_params *params = gen->params;
    uint64_t per_token = PROMPT_TOKEN_BYTES + (uint64_t)params->num_prompt_logprobs * PROMPT_TOP_BYTES;
    uint64_t limit = (uint64_t)gen->gateway->config->max_response_bytes;

    if (!params->score_prompt || params->stream || gen->prompt_tokens * (uint64_t)params->n <= limit / per_token) return 0;
    return err_param(err, ERR_RESPONSE_LARGE, gen->prompt_logprobs >= 0 ? "prompt_logprobs" : "logprobs",
                     "The logprobs of %" PRIu64 " prompt tokens would be larger than this server's max_response_bytes of %" PRIu64
                     " bytes.", gen->prompt_tokens * (uint64_t)params->n, limit);
}

static int parse_route(struct api_request *gen, struct parse *parse)
{
    struct completion_request *completion = arena_alloc(&gen->arena, sizeof *completion);
    struct chat_request *chat = arena_alloc(&gen->arena, sizeof *chat);
    struct truncation truncation;
    int rc;

    if (!completion || !chat) return err_set(parse->err, ERR_NO_MEMORY, "out of memory");
    gen->params = gen->route == GENERATE_CHAT ? &chat->gen : &completion->gen;
    if ((rc = parse_params(parse, gen->params)) < 0) return rc;
    int64_t asked = -1;
    if (json_int64(json_get(parse->root, "prompt_logprobs"), &asked) == 0) gen->prompt_logprobs = (int32_t)asked;
    gen->return_ids = read_bool(parse->root, "return_token_ids", false);
    if ((rc = parse_truncation(parse, &truncation)) < 0) return rc;
    if (gen->route == GENERATE_CHAT) {
        if ((rc = parse_chat(parse, chat)) < 0) return rc;
        rc = tokenize_chat(gen, chat, &truncation, parse->err);
    } else {
        if ((rc = parse_completion(parse, completion)) < 0) return rc;
        rc = tokenize_completion(gen, completion, &truncation, parse->err);
    }
    for (size_t i = 0; rc == 0 && i < gen->n_prompts; i++) {
        rc = check_context(gen, gen->prompts[i].n, parse->err);
        gen->prompt_tokens += gen->prompts[i].n;
    }
    return rc < 0 ? rc : check_response_size(gen, parse->err);
}

int api_request_new(struct api_request **out, const struct gateway *gateway, enum generation_route route,
                   const struct caller *caller, const char *body, size_t len, struct err *err)
{
    struct api_request *gen = calloc(1, sizeof *gen);
    struct cJSON *root = NULL;
    int rc = 0;

    if (!gen) return err_set(err, ERR_NO_MEMORY, "out of memory");
    gen->gateway = gateway;
    gen->route = route;
    arena_init(&gen->arena, 0);
    struct parse parse = { .gateway = gateway, .route = route, .arena = &gen->arena, .err = err };
    struct json_limits limits = json_limits_request;
    limits.max_bytes = len;            /* the body limit is checked by http */
    if ((rc = json_parse(body, len, &limits, &root, err)) < 0) goto out;
    if (strcmp(json_kind(root), "object") != 0) {
        rc = err_set(err, ERR_JSON, "Invalid JSON: the body must be an object, at byte 0");
        goto out;
    }
    parse.root = root;
    gen->prompt_logprobs = -1;
    if ((rc = parse_route(gen, &parse)) < 0) goto out;
    gen->tokens_as_ids = cJSON_IsTrue(json_get(root, "return_tokens_as_token_ids"));
    gen->session = session_of(root);
    make_cache_domain(gen, caller, root);
    if ((rc = make_identity(gen, err)) < 0) goto out;
    *out = gen;
    gen = NULL;
out:
    json_free(root);
    api_request_free(gen);
    return rc;
}

void api_request_free(struct api_request *gen)
{
    if (!gen) return;
    arena_release(&gen->arena);
    free(gen);
}

const struct generation_params *api_request_params(const struct api_request *gen) { return gen->params; }
uint32_t api_request_num_choices(const struct api_request *gen)
{
    return (uint32_t)(gen->n_prompts * (size_t)gen->params->n);
}
bool api_request_wants_tokens(const struct api_request *gen, bool of_prompt)
{
    const struct generation_params *params = gen->params;

    if (of_prompt) return gen->prompt_logprobs >= 0 || (gen->echo && params->logprobs);
    return params->logprobs || gen->return_ids || params->n > params->n_shown;
}
uint64_t api_request_prompt_tokens(const struct api_request *gen) { return gen->prompt_tokens; }
const char *api_request_id(const struct api_request *gen) { return gen->id; }

void api_request_fill_spec(const struct api_request *gen, struct generation_spec *spec)
{
    spec->params = gen->params;
    spec->prompts = gen->prompts;
    spec->n_prompts = gen->n_prompts;
    spec->session = gen->session;
    memcpy(spec->cache_domain, gen->cache_domain, sizeof spec->cache_domain);
}
