/* logprobs.c - the logprob objects of both routes. One number is printed by one function, so that clients which
 * compare a token's logprob with the largest of its alternatives find them equal. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/text.h>

#include "answer.h"
#include "base/utf8.h"

void buf_float32(struct buf *out, float value)
{
    char text[40];

    if (!(value > -9999.0f)) { buf_puts(out, "-9999.0"); return; }   /* NaN too */
    if (value > 9999.0f) value = 9999.0f;
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    buf_puts(out, text);
    if (!strpbrk(text, ".e")) buf_puts(out, ".0");
}

/* The token string of 3.6 as the inside of a JSON string. */
static void put_token(const struct api_request *gen, token_id id, struct buf *out)
{
    const char *bytes = "";
    size_t len = 0;

    if (gen->tokens_as_ids) { buf_printf(out, "token_id:%d", id); return; }
    tokenizer_token_bytes(gen->gateway->tokenizer, id, &bytes, &len);
    if (utf8_valid(bytes, len)) { buf_json_escape(out, bytes, len); return; }
    buf_puts(out, "bytes:");
    for (size_t i = 0; i < len; i++) buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
}

static void put_bytes(const struct api_request *gen, token_id id, struct buf *out)
{
    const char *bytes = "";
    size_t len = 0;

    tokenizer_token_bytes(gen->gateway->tokenizer, id, &bytes, &len);
    buf_putc(out, '[');
    for (size_t i = 0; i < len; i++) buf_printf(out, "%s%u", i ? "," : "", (unsigned char)bytes[i]);
    buf_putc(out, ']');
}

/* How many of the asked alternatives are printed. */
static int num_tops(const struct api_request *gen, const struct delta_token *token)
{
    int32_t asked = gen->params->sampling.num_logprobs;
    return token->num_top < asked ? token->num_top : asked;
}

/* ---- completions: four arrays ---- */

/* Two ids may have one string: the larger number stays, which is the first, as tops fall. */
static bool same_string(const struct api_request *gen, token_id a, token_id b)
{
    const char *text_a = "", *text_b = "";
    size_t len_a = 0, len_b = 0;

    if (gen->tokens_as_ids || a == b) return a == b;
    tokenizer_token_bytes(gen->gateway->tokenizer, a, &text_a, &len_a);
    tokenizer_token_bytes(gen->gateway->tokenizer, b, &text_b, &len_b);
    return len_a == len_b && memcmp(text_a, text_b, len_a) == 0;
}

static void put_top(const struct api_request *gen, token_id id, float logprob, bool first, struct buf *out)
{
    buf_puts(out, first ? "\"" : ",\"");
    put_token(gen, id, out);
    buf_puts(out, "\":");
    buf_float32(out, logprob);
}

static void put_top_object(const struct api_request *gen, const struct delta_token *token, struct buf *out)
{
    int n = num_tops(gen, token);
    bool chosen = false, first = true;

    buf_putc(out, '{');
    for (int i = 0; i < n; i++) {
        bool seen = false;
        for (int j = 0; j < i && !seen; j++) seen = same_string(gen, token->top[i].id, token->top[j].id);
        if (same_string(gen, token->top[i].id, token->id)) chosen = true;
        if (seen) continue;
        put_top(gen, token->top[i].id, token->top[i].logprob, first, out);
        first = false;
    }
    if (!chosen) put_top(gen, token->id, token->logprob, first, out);
    buf_putc(out, '}');
}

static void add_completion(const struct api_request *gen, size_t offset, const struct delta_token *token,
                           struct logprob_text *out)
{
    const char *comma = out->n++ ? "," : "";

    buf_printf(&out->tokens, "%s\"", comma);
    put_token(gen, token->id, &out->tokens);
    buf_putc(&out->tokens, '"');
    buf_puts(&out->values, comma);
    buf_puts(&out->tops, comma);
    if (token->num_top < 0) {
        buf_puts(&out->values, "null");
        buf_puts(&out->tops, "null");
    } else {
        buf_float32(&out->values, token->logprob);
        put_top_object(gen, token, &out->tops);
    }
    buf_printf(&out->offsets, "%s%zu", comma, offset);
}

/* ---- chat: a list of objects ---- */

static void put_chat_entry(const struct api_request *gen, token_id id, float logprob, struct buf *out)
{
    buf_puts(out, "{\"token\":\"");
    put_token(gen, id, out);
    buf_puts(out, "\",\"logprob\":");
    buf_float32(out, logprob);
    buf_puts(out, ",\"bytes\":");
    put_bytes(gen, id, out);
}

static void add_chat(const struct api_request *gen, const struct delta_token *token, struct logprob_text *out)
{
    int n = num_tops(gen, token);

    if (out->n++) buf_putc(&out->tokens, ',');
    put_chat_entry(gen, token->id, token->logprob, &out->tokens);
    buf_puts(&out->tokens, ",\"top_logprobs\":[");
    for (int i = 0; i < n; i++) {
        if (i) buf_putc(&out->tokens, ',');
        put_chat_entry(gen, token->top[i].id, token->top[i].logprob, &out->tokens);
        buf_putc(&out->tokens, '}');
    }
    buf_puts(&out->tokens, "]}");
}

/* ---- tokens over text ---- */

static size_t count_points(const char *text, size_t len)
{
    size_t points = 0;

    for (size_t i = 0; i < len; i++) points += ((unsigned char)text[i] & 0xc0) != 0x80;
    return points;
}

/* Bytes of the text that are this token's. Most tokens stand there as they are. One that is not shown (a special, a BOS) has
 * none; one that could not be shown as it is (half a character, a space that was stripped) takes what is most alike. */
static size_t token_span(const struct api_request *gen, const struct cursor *cursor, token_id id)
{
    const char *bytes = "", *here = cursor->text + cursor->at;
    size_t len = 0, left = cursor->len - cursor->at, span = 0;

    tokenizer_token_bytes(gen->gateway->tokenizer, id, &bytes, &len);
    if (len <= left && memcmp(here, bytes, len) == 0) return len;
    if (len > 1 && bytes[0] == ' ' && len - 1 <= left && memcmp(here, bytes + 1, len - 1) == 0) return len - 1;
    if (tokenizer_is_special(gen->gateway->tokenizer, id)) return 0;
    for (size_t points = count_points(bytes, len); points > 0 && span < left; points--) {
        span++;
        while (span < left && ((unsigned char)here[span] & 0xc0) == 0x80) span++;
    }
    return span;
}

void logprobs_token(const struct api_request *gen, struct choice *choice, struct cursor *cursor, const struct delta_token *token,
                    struct logprob_text *out)
{
    size_t span = token_span(gen, cursor, token->id), offset = choice->points;

    choice->points += count_points(cursor->text + cursor->at, span);
    cursor->at += span;
    if (!gen->params->logprobs) return;
    if (gen->route == GENERATE_CHAT) add_chat(gen, token, out);
    else add_completion(gen, offset, token, out);
}

void cursor_finish(struct choice *choice, struct cursor *cursor)
{
    choice->points += count_points(cursor->text + cursor->at, cursor->len - cursor->at);
    cursor->at = cursor->len;
}

/* ---- prompts ---- */

static void put_prompt_entry(const struct api_request *gen, token_id id, float logprob, int32_t rank, bool first, struct buf *out)
{
    buf_printf(out, "%s\"%d\":{\"logprob\":", first ? "" : ",", id);
    buf_float32(out, logprob);
    buf_printf(out, ",\"rank\":%d,\"decoded_token\":\"", rank);
    put_token(gen, id, out);
    buf_puts(out, "\"}");
}

void prompt_logprob_put(const struct api_request *gen, const struct delta_token *token, struct buf *out)
{
    int n = token->num_top < gen->prompt_logprobs ? token->num_top : gen->prompt_logprobs;
    bool chosen = false;

    buf_putc(out, '{');
    for (int i = 0; i < n; i++) {
        chosen |= token->top[i].id == token->id;
        put_prompt_entry(gen, token->top[i].id, token->top[i].logprob, i + 1, i == 0, out);
    }
    if (!chosen) put_prompt_entry(gen, token->id, token->logprob, token->rank, n <= 0, out);
    buf_putc(out, '}');
}

const struct prompt_tokens *choice_prompt(const struct api_request *gen, int32_t choice)
{
    return &gen->prompts[choice / gen->params->n];
}

bool echo_start(const struct api_request *gen, struct choice *choice, int32_t index, struct logprob_text *out)
{
    if (!gen->echo || choice->echo_started) return false;
    const struct prompt_text *text = &gen->echo[index / gen->params->n];
    struct delta_token first = { .id = choice_prompt(gen, index)->ids[0], .num_top = -1 };
    choice->echo_started = true;
    choice->echo = (struct cursor){ .text = text->text, .len = text->len };
    if (gen->params->logprobs) logprobs_token(gen, choice, &choice->echo, &first, out);
    return true;
}

void put_ids(const token_id *ids, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++) buf_printf(out, i ? ",%d" : "%d", ids[i]);
}

/* ---- doors ---- */

void logprobs_put(const struct api_request *gen, const struct logprob_text *logprobs, struct buf *out)
{
    if (!gen->params->logprobs || logprobs->n == 0) { buf_puts(out, "null"); return; }
    buf_puts(out, gen->route == GENERATE_CHAT ? "{\"content\":[" : "{\"tokens\":[");
    buf_append(out, logprobs->tokens.data, logprobs->tokens.len);
    if (gen->route == GENERATE_CHAT) { buf_puts(out, "],\"refusal\":null}"); return; }
    buf_puts(out, "],\"token_logprobs\":[");
    buf_append(out, logprobs->values.data, logprobs->values.len);
    buf_puts(out, "],\"top_logprobs\":[");
    buf_append(out, logprobs->tops.data, logprobs->tops.len);
    buf_puts(out, "],\"text_offset\":[");
    buf_append(out, logprobs->offsets.data, logprobs->offsets.len);
    buf_puts(out, "]}");
}

void logprob_text_reset(struct logprob_text *logprobs)
{
    buf_reset(&logprobs->tokens);
    buf_reset(&logprobs->values);
    buf_reset(&logprobs->tops);
    buf_reset(&logprobs->offsets);
    logprobs->n = 0;
}

void logprob_text_release(struct logprob_text *logprobs)
{
    buf_release(&logprobs->tokens);
    buf_release(&logprobs->values);
    buf_release(&logprobs->tops);
    buf_release(&logprobs->offsets);
}

bool logprob_text_failed(const struct logprob_text *logprobs)
{
    return logprobs->tokens.failed || logprobs->values.failed || logprobs->tops.failed || logprobs->offsets.failed;
}
