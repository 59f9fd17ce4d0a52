/* reply.c - bodies that are written once: answers of generations without stream, and the error envelope. The only place
 * where messages for clients are made from errors: texts of internal failures stay in the log. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"

/* ---- errors ---- */

/* Failures whose message may hold a path, a library text or a number that helps nobody outside. */
static bool is_internal(int code)
{
    switch (code) {
    case ERR_INTERNAL: case ERR_NO_MEMORY: case ERR_NO_BLOCKS: case ERR_IO: case ERR_LIMIT: case ERR_PROTOCOL:
    case ERR_ENDED: case ERR_MODEL_FILE:
        return true;
    default:
        return false;
    }
}

void reply_error(const struct err *err, struct buf *out)
{
    const char *message = is_internal(err->code) || !err->message[0]
        ? "The server had an error while processing your request."
                                                                     : err->message;

    buf_puts(out, "{\"error\":{\"message\":\"");
    buf_json_escape(out, message, strlen(message));
    buf_printf(out, "\",\"type\":\"%s\",\"param\":", err_type(err->code));
    if (err->param[0]) {
        buf_putc(out, '"');
        buf_json_escape(out, err->param, strlen(err->param));
        buf_puts(out, "\",");
    } else {
        buf_puts(out, "null,");
    }
    buf_printf(out, "\"code\":\"%s\"}}", err_wire_code(err->code));
}

int reply_retry_after_s(const struct gateway *gateway, int err_code)
{
    switch (err_code) {
    case ERR_QUEUE_FULL: case ERR_NO_REPLICA: case ERR_DRAINING: case ERR_REPLICA_LOST: case ERR_QUEUE_TIMEOUT:
        return router_retry_after_s(gateway->router);
    default:
        return 0;
    }
}

bool reply_should_not_retry(int err_code)
{
    return err_code == ERR_TTFT_TIMEOUT || err_code == ERR_TOTAL_TIMEOUT || err_code == ERR_KILLED ||
        err_code == ERR_DEAD_END;
}

/* ---- parts ---- */

void put_usage(const struct generation_usage *usage, struct buf *out)
{
    buf_printf(out, "{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64
               ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRIu64 "},\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
               usage->prompt_tokens, usage->completion_tokens, usage->prompt_tokens + usage->completion_tokens, usage->cached_tokens);
}

void put_finish(const struct api_request *gen, const struct choice *choice, struct buf *out)
{
    const struct generation_params *params = gen->params;

    buf_puts(out, choice->finish == FINISH_LENGTH ? "\"finish_reason\":\"length\",\"stop_reason\":"
                                                  : "\"finish_reason\":\"stop\",\"stop_reason\":");
    if (choice->finish == FINISH_STOP_TOKEN) {
        buf_printf(out, "%d", choice->stop_token);
    } else if (choice->finish == FINISH_STOP_STRING && (size_t)choice->stop_index < params->n_stop) {
        buf_putc(out, '"');
        buf_json_escape(out, params->stop[choice->stop_index], params->stop_lens[choice->stop_index]);
        buf_putc(out, '"');
    } else {
        buf_puts(out, "null");
    }
}

/* ---- the answer of one generation ---- */

int answer_new(struct answer **out, const struct api_request *gen)
{
    struct answer *answer = calloc(1, sizeof *answer);
    uint32_t n = api_request_num_choices(gen);

    if (answer) answer->choices = calloc(n, sizeof *answer->choices);
    if (!answer || !answer->choices) {
        free(answer);
        return ERR_NO_MEMORY;
    }
    answer->gen = gen;
    answer->n_choices = n;
    *out = answer;
    return 0;
}

void answer_free(struct answer *answer)
{
    if (!answer) return;
    for (uint32_t i = 0; i < answer->n_choices; i++) {
        buf_release(&answer->choices[i].text);
        logprob_text_release(&answer->choices[i].logprobs);
    }
    logprob_text_release(&answer->frame);
    free(answer->choices);
    free(answer);
}

static size_t choice_bytes(const struct choice *choice)
{
    const struct logprob_text *logprobs = &choice->logprobs;
    return choice->text.len + logprobs->tokens.len + logprobs->values.len + logprobs->tops.len + logprobs->offsets.len;
}

int answer_add(struct answer *answer, const struct text_delta *delta)
{
    struct choice *choice = &answer->choices[delta->choice];
    size_t before = choice_bytes(choice);

    buf_json_escape(&choice->text, delta->text, delta->len);
    logprobs_add(answer->gen, choice, delta, &choice->logprobs);
    if (delta->finish != FINISH_NONE) {
        choice->finish = delta->finish;
        choice->stop_index = delta->stop_index;
        choice->stop_token = delta->stop_token;
    }
    if (choice->text.failed || logprob_text_failed(&choice->logprobs)) return ERR_NO_MEMORY;
    answer->used_bytes += choice_bytes(choice) - before;
    return answer->used_bytes > (size_t)answer->gen->gateway->config->max_response_bytes ? ERR_RESPONSE_LARGE : 0;
}

static void put_choice(const struct answer *answer, uint32_t index, struct buf *out)
{
    const struct choice *choice = &answer->choices[index];
    bool chat = answer->gen->route == GENERATE_CHAT;

    buf_printf(out, chat ? "%s{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":\""
               : "%s{\"index\":%u,\"text\":\"",
               index ? "," : "", index);
    buf_append(out, choice->text.data, choice->text.len);
    buf_puts(out, chat ? "\",\"refusal\":null},\"logprobs\":" : "\",\"logprobs\":");
    logprobs_put(answer->gen, &choice->logprobs, out);
    buf_putc(out, ',');
    put_finish(answer->gen, choice, out);
    buf_putc(out, '}');
}

int answer_body(struct answer *answer, const struct generation_usage *usage, struct buf *out)
{
    buf_append(out, answer->gen->body_head, answer->gen->body_head_len);
    for (uint32_t i = 0; i < answer->n_choices; i++) put_choice(answer, i, out);
    buf_puts(out, "],\"usage\":");
    put_usage(usage, out);
    buf_putc(out, '}');
    return out->failed ? ERR_NO_MEMORY : 0;
}
