/* answer.h - what is remembered of each choice while its deltas are written: as frames (sse.c) or for one body
 * (reply.c).
 * Owner and thread: whoever called answer_new. */
#ifndef SLUICE_API_ANSWER_H
#define SLUICE_API_ANSWER_H

#include <sluice/api.h>

#include "base/buf.h"
#include "api_request.h"

/* The insides of the logprob arrays, comma separated. Chat uses `tokens` alone for its objects. */
struct logprob_text { struct buf tokens, values, tops, offsets; size_t n; };

/* Text that tokens are laid over: where the next token begins, and (streams) how much of it is out. */
struct cursor { const char *text; size_t len, at, shown; };

struct choice {
    bool role_sent, echo_started;
    uint8_t finish;                    /* enum finish_reason; FINISH_NONE while it goes on */
    int32_t stop_index;
    token_id stop_token;
    size_t points;                     /* code points of text so far: text_offset */
    struct cursor echo;                /* of the prompt */
    size_t ids_sent;                   /* streams: prompt ids that are out */
    /* one body only: */
    struct buf text;                   /* escaped JSON text */
    struct logprob_text logprobs;
    struct buf token_ids, prompt_logprobs;
    double logprob_sum; uint64_t num_logprobs;     /* best_of */
};

struct answer {
    const struct api_request *gen;
    uint32_t n_choices;
    struct choice *choices;
    struct logprob_text frame;         /* of the frame being written */
    struct buf frame_ids;
    size_t used_bytes;                 /* of all bodies, against max_response_bytes */
};

/* Appends a token and moves cursor and choice->points over its bytes. token->num_top < 0: one without numbers (the first of a
 * prompt). */
void logprobs_token(const struct api_request *gen, struct choice *choice, struct cursor *cursor, const struct delta_token *token,
                    struct logprob_text *out);
/* The rest of the text, of which no token is left. */
void cursor_finish(struct choice *choice, struct cursor *cursor);
/* One entry of prompt_logprobs. */
void prompt_logprob_put(const struct api_request *gen, const struct delta_token *token, struct buf *out);
static inline size_t logprob_text_bytes(const struct logprob_text *l)
{
    return l->tokens.len + l->values.len + l->tops.len + l->offsets.len;
}
const struct prompt_tokens *choice_prompt(const struct api_request *gen, int32_t choice);
/* Before the first word of a choice: lays the cursor over the prompt and puts its first token, which has no numbers. False
 * when there is nothing to echo or it was done. */
bool echo_start(const struct api_request *gen, struct choice *choice, int32_t index, struct logprob_text *out);
void put_ids(const token_id *ids, size_t n, struct buf *out);      /* 1,2,3 */

/* The finished object, or null when no logprobs were asked or none are there. */
void logprobs_put(const struct api_request *gen, const struct logprob_text *logprobs, struct buf *out);
void logprob_text_reset(struct logprob_text *logprobs);
void logprob_text_release(struct logprob_text *logprobs);
bool logprob_text_failed(const struct logprob_text *logprobs);
/* shortest decimal that reads back; with '.' or exponent; floor -9999.0 */
void buf_float32(struct buf *out, float value);

/* "finish_reason":…,"stop_reason":… */
void put_finish(const struct api_request *gen, const struct choice *choice, struct buf *out);
void put_usage(const struct generation_usage *usage, struct buf *out);       /* the object U */

#endif
