/* sse.c - text deltas -> server-sent events, byte for byte as api-contract 3.3 to 3.5. */
#include <stdlib.h>
#include <string.h>

#include "answer.h"

/* No event reaches 60 KiB (clients read lines with a buffer of 64): what one may hold of each part, before the largest single
 * token and the escapes of its text. */
enum { TEXT_PER_FRAME = 2048, LOGPROBS_PER_FRAME = 16 << 10, IDS_PER_FRAME = 4000 };

static const char DONE[] = "data: [DONE]\n\n";

/* Appends the beginning of an event up to "choices":[ */
static void open_frame(const struct answer *answer, struct buf *out)
{
    buf_puts(out, "data: ");
    buf_append(out, answer->gen->head, answer->gen->head_len);
}

/* Behind the choices: usage, and for chat the ids of the prompt. */
static void close_frame(const struct answer *answer, const struct generation_usage *usage, struct buf *out)
{
    const struct generation_params *params = answer->gen->params;

    if (params->include_usage && params->continuous_usage) {
        buf_puts(out, ",\"usage\":");
        put_usage(usage, out);
    } else if (params->include_usage) {
        buf_puts(out, ",\"usage\":null");
    }
    buf_puts(out, "}\n\n");
}

/* The next piece of the prompt's ids, so that no event grows with the prompt. */
static void put_prompt_ids_piece(const struct api_request *gen, struct choice *choice, int32_t index, struct buf *out)
{
    const struct prompt_tokens *prompt = choice_prompt(gen, index);
    size_t n = prompt->n - choice->ids_sent;

    if (n > IDS_PER_FRAME) n = IDS_PER_FRAME;
    buf_puts(out, ",\"prompt_token_ids\":[");
    put_ids(prompt->ids + choice->ids_sent, n, out);
    buf_putc(out, ']');
    choice->ids_sent += n;
}

static bool ids_wanted(const struct answer *answer, int32_t index)
{
    const struct api_request *gen = answer->gen;
    bool here = gen->route == GENERATE_COMPLETION || index == 0;      /* chat: of the whole answer */
    return gen->return_ids && here && answer->choices[index].ids_sent < choice_prompt(gen, index)->n;
}

/* What comes before the first word: the role, and pieces of the prompt's ids as long as some are left. */
static void first_frames(const struct answer *answer, int32_t index, const struct generation_usage *usage, struct buf *out)
{
    struct choice *choice = &answer->choices[index];
    bool chat = answer->gen->route == GENERATE_CHAT;

    while ((chat && !choice->role_sent) || ids_wanted(answer, index)) {
        open_frame(answer, out);
        buf_printf(out, chat ? "{\"index\":%d,\"delta\":{" : "{\"index\":%d,\"text\":\"\",\"logprobs\":null,", index);
        if (chat && !choice->role_sent) buf_puts(out, "\"role\":\"assistant\",\"content\":\"\"");
        buf_puts(out, chat ? "},\"logprobs\":null,\"finish_reason\":null}]" : "\"finish_reason\":null,\"stop_reason\":null");
        if (ids_wanted(answer, index)) put_prompt_ids_piece(answer->gen, choice, index, out);
        if (!chat) buf_puts(out, "}]");
        close_frame(answer, usage, out);
        choice->role_sent = true;
    }
}

static void text_frame(struct answer *answer, int32_t index, const char *text, size_t len, const struct generation_usage *usage,
                       struct buf *out)
{
    bool chat = answer->gen->route == GENERATE_CHAT;

    open_frame(answer, out);
    buf_printf(out, chat ? "{\"index\":%d,\"delta\":{\"content\":\"" : "{\"index\":%d,\"text\":\"", index);
    buf_json_escape(out, text, len);
    buf_puts(out, chat ? "\"},\"logprobs\":" : "\",\"logprobs\":");
    logprobs_put(answer->gen, &answer->frame, out);
    buf_puts(out, chat ? ",\"finish_reason\":null" : ",\"finish_reason\":null,\"stop_reason\":null");
    if (answer->gen->return_ids && answer->frame_ids.len) {
        buf_puts(out, ",\"token_ids\":[");
        buf_append(out, answer->frame_ids.data, answer->frame_ids.len);
        buf_putc(out, ']');
    }
    buf_puts(out, "}]");
    close_frame(answer, usage, out);
    /* half an object must not go out: the stream ends instead */
    if (logprob_text_failed(&answer->frame) || answer->frame_ids.failed) out->failed = true;
    logprob_text_reset(&answer->frame);
    buf_reset(&answer->frame_ids);
}

/* How much of text goes into one event: whole code points. */
static size_t text_piece(const char *text, size_t len)
{
    if (len <= TEXT_PER_FRAME) return len;
    for (len = TEXT_PER_FRAME; len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80; len--) { }
    return len;
}

/* Shows what the cursor has passed, with the numbers gathered in answer->frame, in as many events as it takes. Half a
 * character waits. */
static void flush_frames(struct answer *answer, int32_t index, struct cursor *cursor, const struct generation_usage *usage,
                         struct buf *out)
{
    if (cursor->at < cursor->len && ((unsigned char)cursor->text[cursor->at] & 0xc0) == 0x80) return;
    if (cursor->shown == cursor->at && answer->frame.n == 0 && answer->frame_ids.len == 0) return;
    do {
        size_t piece = text_piece(cursor->text + cursor->shown, cursor->at - cursor->shown);
        text_frame(answer, index, cursor->text + cursor->shown, piece, usage, out);
        cursor->shown += piece;
    } while (cursor->shown < cursor->at);
}

/* Tokens over the text that the cursor has left. */
static void token_frames(struct answer *answer, const struct text_delta *delta, struct cursor *cursor,
                         const struct generation_usage *usage, struct buf *out)
{
    const struct api_request *gen = answer->gen;
    struct choice *choice = &answer->choices[delta->choice];
    size_t n = api_request_wants_tokens(gen, delta->prompt_begin != 0) ? delta->num_tokens : 0;

    for (size_t i = 0; i < n; i++) {
        logprobs_token(gen, choice, cursor, &delta->tokens[i], &answer->frame);
        if (gen->return_ids && !delta->prompt_begin) {
            if (answer->frame_ids.len) buf_putc(&answer->frame_ids, ',');
            put_ids(&delta->tokens[i].id, 1, &answer->frame_ids);
        }
        if (logprob_text_bytes(&answer->frame) + answer->frame_ids.len >= LOGPROBS_PER_FRAME)
            flush_frames(answer, delta->choice, cursor, usage, out);
    }
}

static void last_frame(const struct answer *answer, int32_t index, const struct generation_usage *usage,
                       struct buf *out)
{
    open_frame(answer, out);
    buf_printf(out, answer->gen->route == GENERATE_CHAT ? "{\"index\":%d,\"delta\":{},\"logprobs\":null,"
                                                        : "{\"index\":%d,\"text\":\"\",\"logprobs\":null,", index);
    put_finish(answer->gen, &answer->choices[index], out);
    buf_puts(out, "}]");
    close_frame(answer, usage, out);
}

void answer_frames(struct answer *answer, const struct text_delta *delta, const struct generation_usage *usage,
                   struct buf *out)
{
    const struct api_request *gen = answer->gen;
    struct choice *choice = &answer->choices[delta->choice];
    struct cursor cursor = { .text = delta->text, .len = delta->len };
    bool shows = delta->len > 0 || (api_request_wants_tokens(gen, false) && delta->num_tokens > 0);

    if (!shows && delta->finish == FINISH_NONE) return;
    first_frames(answer, delta->choice, usage, out);
    echo_start(gen, choice, delta->choice, &answer->frame);
    if (delta->prompt_begin) {
        token_frames(answer, delta, &choice->echo, usage, out);
        flush_frames(answer, delta->choice, &choice->echo, usage, out);
        return;
    }
    cursor_finish(choice, &choice->echo);
    flush_frames(answer, delta->choice, &choice->echo, usage, out);
    token_frames(answer, delta, &cursor, usage, out);
    cursor_finish(choice, &cursor);
    flush_frames(answer, delta->choice, &cursor, usage, out);
    if (delta->finish == FINISH_NONE) return;
    choice->finish = delta->finish;
    choice->stop_index = delta->stop_index;
    choice->stop_token = delta->stop_token;
    last_frame(answer, delta->choice, usage, out);
}

void answer_end_frames(struct answer *answer, const struct generation_usage *usage, struct buf *out)
{
    if (answer->gen->params->include_usage) {
        open_frame(answer, out);
        buf_puts(out, "],\"usage\":");
        put_usage(usage, out);
        buf_puts(out, "}\n\n");
    }
    buf_puts(out, DONE);
}

void answer_error_frames(const struct err *err, struct buf *out)
{
    buf_puts(out, "data: ");
    reply_error(err, out);
    buf_puts(out, "\n\n");
    buf_puts(out, DONE);
}
