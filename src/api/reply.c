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
        struct choice *choice = &answer->choices[i];
        buf_release(&choice->text);
        logprob_text_release(&choice->logprobs);
        buf_release(&choice->token_ids);
        buf_release(&choice->prompt_logprobs);
    }
    logprob_text_release(&answer->frame);
    buf_release(&answer->frame_ids);
    free(answer->choices);
    free(answer);
}

static size_t choice_bytes(const struct choice *choice)
{
    return choice->text.len + logprob_text_bytes(&choice->logprobs) + choice->token_ids.len + choice->prompt_logprobs.len;
}

static bool choice_failed(const struct choice *choice)
{
    return choice->text.failed || logprob_text_failed(&choice->logprobs) || choice->token_ids.failed ||
        choice->prompt_logprobs.failed;
}

static void add_prompt_tokens(const struct api_request *gen, struct choice *choice, const struct text_delta *delta)
{
    for (size_t i = 0; i < delta->num_tokens; i++) {
        if (gen->echo && gen->params->logprobs)
            logprobs_token(gen, choice, &choice->echo, &delta->tokens[i], &choice->logprobs);
        if (gen->prompt_logprobs < 0) continue;
        buf_putc(&choice->prompt_logprobs, ',');
        prompt_logprob_put(gen, &delta->tokens[i], &choice->prompt_logprobs);
    }
}

static void add_tokens(const struct api_request *gen, struct choice *choice, const struct text_delta *delta)
{
    struct cursor cursor = { .text = delta->text, .len = delta->len };

    buf_json_escape(&choice->text, delta->text, delta->len);
    for (size_t i = 0; api_request_wants_tokens(gen, false) && i < delta->num_tokens; i++) {
        const struct delta_token *token = &delta->tokens[i];
        logprobs_token(gen, choice, &cursor, token, &choice->logprobs);
        choice->logprob_sum += (double)token->logprob;
        choice->num_logprobs++;
        if (!gen->return_ids) continue;
        if (choice->token_ids.len) buf_putc(&choice->token_ids, ',');
        put_ids(&token->id, 1, &choice->token_ids);
    }
    cursor_finish(choice, &cursor);
}

int answer_add(struct answer *answer, const struct text_delta *delta)
{
    const struct api_request *gen = answer->gen;
    struct choice *choice = &answer->choices[delta->choice];
    size_t before = choice_bytes(choice);

    if (echo_start(gen, choice, delta->choice, &choice->logprobs))
        buf_json_escape(&choice->text, choice->echo.text, choice->echo.len);
    if (delta->prompt_begin) {
        add_prompt_tokens(gen, choice, delta);
    } else {
        cursor_finish(choice, &choice->echo);
        add_tokens(gen, choice, delta);
    }
    if (delta->finish != FINISH_NONE) {
        choice->finish = delta->finish;
        choice->stop_index = delta->stop_index;
        choice->stop_token = delta->stop_token;
    }
    if (choice_failed(choice)) return ERR_NO_MEMORY;
    answer->used_bytes += choice_bytes(choice) - before;
    return answer->used_bytes > (size_t)gen->gateway->config->max_response_bytes ? ERR_RESPONSE_LARGE : 0;
}

/* ---- one body ---- */

static void put_prompt_logprobs(const struct choice *choice, struct buf *out)
{
    buf_puts(out, ",\"prompt_logprobs\":[null");
    buf_append(out, choice->prompt_logprobs.data, choice->prompt_logprobs.len);
    buf_putc(out, ']');
}

static void put_prompt_ids(const struct api_request *gen, int32_t index, struct buf *out)
{
    const struct prompt_tokens *prompt = choice_prompt(gen, index);

    buf_puts(out, ",\"prompt_token_ids\":[");
    put_ids(prompt->ids, prompt->n, out);
    buf_putc(out, ']');
}

/* made: among the choices that were generated; index: among those that are shown. */
static void put_choice(const struct answer *answer, uint32_t made, uint32_t index, struct buf *out)
{
    const struct api_request *gen = answer->gen;
    const struct choice *choice = &answer->choices[made];
    bool chat = gen->route == GENERATE_CHAT;

    buf_printf(out, chat ? "%s{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":\""
               : "%s{\"index\":%u,\"text\":\"",
               index ? "," : "", index);
    buf_append(out, choice->text.data, choice->text.len);
    buf_puts(out, chat ? "\",\"refusal\":null},\"logprobs\":" : "\",\"logprobs\":");
    logprobs_put(gen, &choice->logprobs, out);
    buf_putc(out, ',');
    put_finish(gen, choice, out);
    if (!chat && gen->prompt_logprobs >= 0) put_prompt_logprobs(choice, out);
    if (!chat && gen->return_ids) put_prompt_ids(gen, (int32_t)made, out);
    if (gen->return_ids) {
        buf_puts(out, ",\"token_ids\":[");
        buf_append(out, choice->token_ids.data, choice->token_ids.len);
        buf_putc(out, ']');
    }
    buf_putc(out, '}');
}

/* By mean logprob of its tokens; one without any comes last. */
static bool is_better(const struct choice *a, const struct choice *b)
{
    if (!a->num_logprobs || !b->num_logprobs) return a->num_logprobs > b->num_logprobs;
    return a->logprob_sum / (double)a->num_logprobs > b->logprob_sum / (double)b->num_logprobs;
}

/* The choices of one prompt in the order in which they are shown: as made, or (best_of) the best first. At most 128. */
static void order_choices(const struct answer *answer, uint32_t first, uint32_t order[MAX_CHOICES])
{
    const struct generation_params *params = answer->gen->params;

    for (uint32_t i = 0; i < (uint32_t)params->n; i++) {
        uint32_t at = i;
        order[i] = first + i;
        if (params->n_shown == params->n) continue;
        for (; at > 0 && is_better(&answer->choices[first + i], &answer->choices[order[at - 1]]); at--) order[at] = order[at - 1];
        order[at] = first + i;
    }
}

int answer_body(struct answer *answer, const struct generation_usage *usage, struct buf *out)
{
    const struct api_request *gen = answer->gen;
    uint32_t order[MAX_CHOICES], n = (uint32_t)gen->params->n, shown = (uint32_t)gen->params->n_shown;
    bool chat = gen->route == GENERATE_CHAT;

    buf_append(out, gen->body_head, gen->body_head_len);
    for (uint32_t prompt = 0; prompt < answer->n_choices / n; prompt++) {
        order_choices(answer, prompt * n, order);
        for (uint32_t i = 0; i < shown; i++) put_choice(answer, order[i], prompt * shown + i, out);
    }
    buf_putc(out, ']');
    if (chat && gen->prompt_logprobs >= 0) put_prompt_logprobs(&answer->choices[0], out);
    if (chat && gen->return_ids) put_prompt_ids(gen, 0, out);
    buf_puts(out, ",\"usage\":");
    put_usage(usage, out);
    buf_putc(out, '}');
    return out->failed ? ERR_NO_MEMORY : 0;
}
