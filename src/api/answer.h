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

struct choice {
    bool role_sent;
    uint8_t finish;                    /* enum finish_reason; FINISH_NONE while it goes on */
    int32_t stop_index;
    token_id stop_token;
    size_t points;                     /* code points of text so far: text_offset */
    struct buf text;                   /* one body only: escaped JSON text */
    struct logprob_text logprobs;      /* one body only */
};

struct answer {
    const struct api_request *gen;
    uint32_t n_choices;
    struct choice *choices;
    struct logprob_text frame;         /* of the frame being written */
    size_t used_bytes;                 /* of all bodies, against max_response_bytes */
};

/* Appends the delta's tokens (api-contract 3.6) and moves choice->points over its text. */
void logprobs_add(const struct api_request *gen, struct choice *choice, const struct text_delta *delta,
                  struct logprob_text *out);
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
