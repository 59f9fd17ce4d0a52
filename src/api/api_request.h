/* api_request.h - one request after parsing, as api/ sees it (http/ sees the opaque door in <sluice/api.h>).
 * Owner: whoever called api_request_new; everything inside lives in its arena. Const once made. */
#ifndef SLUICE_API_REQUEST_H
#define SLUICE_API_REQUEST_H

#include <sluice/api.h>

#include "base/arena.h"

struct api_request {
    const struct gateway *gateway;
    enum generation_route route;
    struct arena arena;
    struct generation_params *params;      /* inside completion_request or chat_request */
    struct prompt_tokens *prompts;
    size_t n_prompts;
    uint64_t prompt_tokens;
    uint8_t cache_domain[32];
    uint64_t session;                      /* hash of session_id or prompt_cache_key; 0 = none */
    char id[48];
    int64_t created_s;
    bool tokens_as_ids;                    /* return_tokens_as_token_ids */
    bool return_ids;                       /* return_token_ids */
    int32_t prompt_logprobs;               /* prompt_logprobs asked with so many alternatives; -1 = not */
    struct prompt_text { const char *text; size_t len; } *echo;    /* [n_prompts]; NULL unless echo */
    const char *head; size_t head_len;     /* "id":…,"object":…,…,"system_fingerprint":… of every frame */
    const char *body_head; size_t body_head_len;   /* the same with the object name of a whole body */
};

#endif
