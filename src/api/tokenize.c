/* tokenize.c - POST /tokenize and /detokenize: text or messages -> ids -> text. They run in the gateway and answer
 * while every replica is down. */
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>
#include <sluice/text.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "parse.h"
#include "validate.h"

enum { MAX_TOKENS = 8 << 20 };       /* of one call */

static int open_body(const char *body, size_t len, struct cJSON **root, struct err *err)
{
    struct json_limits limits = json_limits_request;
    int rc;

    limits.max_bytes = len;
    if ((rc = json_parse(body, len, &limits, root, err)) < 0) return rc;
    return cJSON_IsObject(*root) ? 0 : err_set(err, ERR_JSON, "Invalid JSON: the body must be an object, at byte 0");
}

static int encode_prompt(const struct parse *p, struct token_buf *tokens)
{
    const struct cJSON *prompt = json_get(p->root, "prompt");
    struct text_segment segment = { .parse_special = read_bool(p->root, "parse_special_tokens", true) };

    if (json_string(prompt, &segment.text, &segment.len) < 0) return fail_type(p->err, "prompt", "a string", prompt);
    return tokenizer_encode(p->gateway->tokenizer, &segment, 1, read_bool(p->root, "add_special_tokens", true), tokens,
                            p->err);
}

static int encode_messages(const struct parse *p, struct token_buf *tokens)
{
    const struct gateway *gateway = p->gateway;
    struct chat_request request = { 0 };
    struct chat_prompt prompt = { 0 };
    const struct cJSON *tools = json_get(p->root, "tools");
    int rc;

    if (tools)
        return err_param(p->err, ERR_UNSUPPORTED, "tools",
                         "Unsupported parameter: 'tools' is not supported by this server.");
    if ((rc = parse_chat(p, &request)) < 0) return rc;
    struct chat_template_vars vars = {
        .messages = request.messages, .kwargs = request.chat_template_kwargs,
        .bos_token = tokenizer_bos_text(gateway->tokenizer), .eos_token = tokenizer_eos_text(gateway->tokenizer),
        .add_generation_prompt = request.add_generation_prompt, .continue_final_message = request.continue_final_message,
        .now_s = clock_wall_s(),
    };
    if ((rc = chat_template_render(gateway->chat_template, &vars, &prompt, p->err)) < 0) return rc;
    rc = tokenizer_encode(gateway->tokenizer, prompt.segments, prompt.n_segments,
                          read_bool(p->root, "add_special_tokens", false),
                          tokens, p->err);
    chat_prompt_release(&prompt);
    return rc;
}

/* A token's bytes as a JSON string; what is not UTF-8 becomes U+FFFD. */
static void put_token_text(const struct tokenizer *tok, token_id id, struct buf *out)
{
    const char *bytes = "";
    size_t len = 0;

    tokenizer_token_bytes(tok, id, &bytes, &len);
    if (utf8_valid(bytes, len)) buf_json_escape(out, bytes, len);
    else buf_puts(out, "\xEF\xBF\xBD");
}

static void put_tokens(const struct parse *p, const struct token_buf *tokens, struct buf *out)
{
    buf_printf(out, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":[", tokens->len, p->gateway->max_model_len);
    for (size_t i = 0; i < tokens->len; i++) buf_printf(out, "%s%d", i ? "," : "", tokens->ids[i]);
    buf_puts(out, "],\"token_strs\":");
    if (!read_bool(p->root, "return_token_strs", false)) { buf_puts(out, "null}"); return; }
    buf_putc(out, '[');
    for (size_t i = 0; i < tokens->len; i++) {
        buf_puts(out, i ? ",\"" : "\"");
        put_token_text(p->gateway->tokenizer, tokens->ids[i], out);
        buf_putc(out, '"');
    }
    buf_puts(out, "]}");
}

static const char *const tokenize_flags[] = { "add_special_tokens", "parse_special_tokens", "return_token_strs",
                                              "add_generation_prompt", "continue_final_message" };

static int check_flags(const struct parse *p)
{
    for (size_t i = 0; i < sizeof tokenize_flags / sizeof tokenize_flags[0]; i++) {
        const struct cJSON *flag = json_get(p->root, tokenize_flags[i]);
        if (flag && !cJSON_IsBool(flag)) return fail_type(p->err, tokenize_flags[i], "a boolean", flag);
    }
    const struct cJSON *kwargs = json_get(p->root, "chat_template_kwargs"), *messages = json_get(p->root, "messages");
    if (messages && !cJSON_IsArray(messages)) return fail_type(p->err, "messages", "an array", messages);
    return kwargs && !cJSON_IsObject(kwargs) ? fail_type(p->err, "chat_template_kwargs", "an object", kwargs) : 0;
}

int tokenize_reply(const struct gateway *gateway, const char *body, size_t len, struct buf *out, struct err *err)
{
    struct token_buf tokens = { .limit = MAX_TOKENS };
    struct arena arena;
    struct parse p = { .gateway = gateway, .route = GENERATE_CHAT, .arena = &arena, .err = err };
    int rc;

    arena_init(&arena, 0);
    if ((rc = open_body(body, len, &p.root, err)) < 0 || (rc = check_flags(&p)) < 0) goto out;
    if (json_get(p.root, "prompt")) rc = encode_prompt(&p, &tokens);
    else if (json_get(p.root, "messages")) rc = encode_messages(&p, &tokens);
    else rc = fail_missing(err, "prompt");
    if (rc == ERR_LIMIT) {
        err_clear(err);
        rc = err_param(err, ERR_VALUE, "prompt", "Invalid 'prompt': more than %d tokens.", MAX_TOKENS);
    }
    if (rc == 0) put_tokens(&p, &tokens, out);
out:
    token_buf_release(&tokens);
    arena_release(&arena);
    json_free(p.root);
    return rc;
}

int detokenize_reply(const struct gateway *gateway, const char *body, size_t len, struct buf *out, struct err *err)
{
    struct arena arena;
    struct parse p = { .gateway = gateway, .route = GENERATE_COMPLETION, .arena = &arena, .err = err };
    token_id *ids = NULL;
    size_t n = 0, text_len = 0;
    char *text = NULL;
    int rc;

    arena_init(&arena, 0);
    if ((rc = open_body(body, len, &p.root, err)) < 0) goto out;
    const struct cJSON *tokens = json_get(p.root, "tokens");
    if (!tokens) { rc = fail_missing(err, "tokens"); goto out; }
    if (!cJSON_IsArray(tokens)) { rc = fail_type(err, "tokens", "an array", tokens); goto out; }
    if ((rc = parse_token_ids(&p, tokens, "tokens", &ids, &n)) < 0) goto out;
    if ((rc = tokenizer_decode(gateway->tokenizer, ids, n, false, &text, &text_len, err)) < 0) goto out;
    buf_puts(out, "{\"prompt\":\"");
    buf_json_escape(out, text, text_len);
    buf_puts(out, "\"}");
out:
    free(text);
    arena_release(&arena);
    json_free(p.root);
    return rc;
}
