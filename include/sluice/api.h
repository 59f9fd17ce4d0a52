/* api.h - from the bytes of a request body to a validated generation, and from text deltas back to bytes on the wire.
 * Flow in:  http (worker) -> api_request_new: guarded JSON, fields, model, ranges, template, tokens, context -> router.
 * Flow out: text_delta -> answer_* -> SSE frames or one JSON body (api-contract 3), written by template, never by tree.
 * Thread: a generation is made by one worker and const afterwards; an answer belongs to one thread at a time.
 * Every text a client sees is made here; library texts and paths never are. */
#ifndef SLUICE_API_H
#define SLUICE_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/gateway.h>
#include <sluice/request.h>
#include <sluice/router.h>

struct buf;

/* ---- on the way in ---- */
enum generation_route { GENERATE_COMPLETION = 1, GENERATE_CHAT = 2 };   /* bits: rows of the field table carry both */

/* Who asks: decides the prefix-cache domain. */
struct caller {
    const char *key_name;             /* name of the API key, "" when the server is open */
    const uint8_t *cache_secret;      /* 32 random bytes of this process */
};

struct api_request;                    /* opaque: parameters, prompts and ids of one request, in its own arena */
/* Errors are those of api-contract 4.3, err->param set. body may be freed afterwards. */
int  api_request_new(struct api_request **out, const struct gateway *gateway, enum generation_route route,
                    const struct caller *caller, const char *body, size_t len, struct err *err);
void api_request_free(struct api_request *gen);
const struct generation_params *api_request_params(const struct api_request *gen);
/* params, prompts, n_prompts, cache_domain and session of spec; the rest is the caller's. Points into gen. */
void api_request_fill_spec(const struct api_request *gen, struct generation_spec *spec);
uint32_t api_request_num_choices(const struct api_request *gen);        /* prompts x n */
/* Deltas must carry their tokens: of the answer, or of the prompt (scored ones). */
bool api_request_wants_tokens(const struct api_request *gen, bool of_prompt);
uint64_t api_request_prompt_tokens(const struct api_request *gen);      /* each prompt once */
const char *api_request_id(const struct api_request *gen);              /* "cmpl-" or "chatcmpl-" + 32 hex */

/* POST /tokenize and /detokenize: body -> answer in out. Worker. */
int tokenize_reply(const struct gateway *gateway, const char *body, size_t len, struct buf *out, struct err *err);
int detokenize_reply(const struct gateway *gateway, const char *body, size_t len, struct buf *out, struct err *err);

/* ---- on the way out ---- */
struct answer;                        /* opaque: what is remembered of each choice between deltas */
int  answer_new(struct answer **out, const struct api_request *gen);   /* borrows gen; ERR_NO_MEMORY */
void answer_free(struct answer *answer);
/* Streams: appends whole events. Nothing is appended for a delta that shows nothing. */
void answer_frames(struct answer *answer, const struct text_delta *delta, const struct generation_usage *usage,
                   struct buf *out);
/* usage, [DONE] */
void answer_end_frames(struct answer *answer, const struct generation_usage *usage, struct buf *out);
void answer_error_frames(const struct err *err, struct buf *out);     /* error object, [DONE] */
/* One body: collect every delta, then write. ERR_RESPONSE_LARGE, ERR_NO_MEMORY. */
int  answer_add(struct answer *answer, const struct text_delta *delta);
int  answer_body(struct answer *answer, const struct generation_usage *usage, struct buf *out);

/* ---- other bodies ---- */
void reply_error(const struct err *err, struct buf *out);             /* the envelope of 4.1; hides internal messages */
/* Seconds for Retry-After, 0 = no such header. */
int  reply_retry_after_s(const struct gateway *gateway, int err_code);
bool reply_should_not_retry(int err_code);                            /* x-should-retry: false */
void reply_models(const struct gateway *gateway, struct buf *out);
int  reply_model(const struct gateway *gateway, const char *id, size_t len, struct buf *out, struct err *err);
bool reply_health(const struct gateway *gateway, struct buf *out);    /* true = ready (200), else 503 */
void reply_load(const struct gateway *gateway, struct buf *out);
void reply_version(const struct gateway *gateway, struct buf *out);
void reply_openapi(const struct gateway *gateway, struct buf *out);    /* GET /openapi.json */
void reply_tokenizer_info(const struct gateway *gateway, struct buf *out);

#endif
