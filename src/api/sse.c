/* sse.c - text deltas -> server-sent events, byte for byte as api-contract 3.3 to 3.5. */
#include <stdlib.h>
#include <string.h>

#include "answer.h"

static const char DONE[] = "data: [DONE]\n\n";

/* Appends the beginning of an event up to "choices":[ */
static void open_frame(const struct answer *answer, struct buf *out)
{
    buf_puts(out, "data: ");
    buf_append(out, answer->gen->head, answer->gen->head_len);
}

static void close_frame(const struct answer *answer, const struct generation_usage *usage, struct buf *out)
{
    const struct generation_params *params = answer->gen->params;

    buf_putc(out, ']');
    if (params->include_usage && params->continuous_usage) {
        buf_puts(out, ",\"usage\":");
        put_usage(usage, out);
    } else if (params->include_usage) {
        buf_puts(out, ",\"usage\":null");
    }
    buf_puts(out, "}\n\n");
}

static void chat_role_frame(const struct answer *answer, int32_t index, const struct generation_usage *usage,
                            struct buf *out)
{
    open_frame(answer, out);
    buf_printf(out,
               "{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}", index);
    close_frame(answer, usage, out);
}

static void text_frame(const struct answer *answer, const struct text_delta *delta,
                       const struct generation_usage *usage,
                       struct buf *out)
{
    bool chat = answer->gen->route == GENERATE_CHAT;

    open_frame(answer, out);
    buf_printf(out, chat ? "{\"index\":%d,\"delta\":{\"content\":\"" : "{\"index\":%d,\"text\":\"", delta->choice);
    buf_json_escape(out, delta->text, delta->len);
    buf_puts(out, chat ? "\"},\"logprobs\":" : "\",\"logprobs\":");
    logprobs_put(answer->gen, &answer->frame, out);
    buf_puts(out, chat ? ",\"finish_reason\":null}" : ",\"finish_reason\":null,\"stop_reason\":null}");
    close_frame(answer, usage, out);
}

static void last_frame(const struct answer *answer, int32_t index, const struct generation_usage *usage,
                       struct buf *out)
{
    open_frame(answer, out);
    buf_printf(out, answer->gen->route == GENERATE_CHAT ? "{\"index\":%d,\"delta\":{},\"logprobs\":null,"
                                                        : "{\"index\":%d,\"text\":\"\",\"logprobs\":null,", index);
    put_finish(answer->gen, &answer->choices[index], out);
    buf_putc(out, '}');
    close_frame(answer, usage, out);
}

void answer_frames(struct answer *answer, const struct text_delta *delta, const struct generation_usage *usage,
                   struct buf *out)
{
    struct choice *choice = &answer->choices[delta->choice];

    logprob_text_reset(&answer->frame);
    logprobs_add(answer->gen, choice, delta, &answer->frame);
    bool shows = delta->len > 0 || answer->frame.n > 0;
    if (!shows && delta->finish == FINISH_NONE) return;
    if (answer->gen->route == GENERATE_CHAT && !choice->role_sent) {
        chat_role_frame(answer, delta->choice, usage, out);
        choice->role_sent = true;
    }
    if (shows) text_frame(answer, delta, usage, out);
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
