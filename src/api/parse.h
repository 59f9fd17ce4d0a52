/* parse.h - cJSON -> request nouns. parse_common: what both routes share; parse_completion, parse_chat: the rest.
 * Flow: body -> json_parse -> validate_types -> model -> validate_* -> parse_* -> tokens (api_request.c).     Thread:
 * worker.
 * Everything made lands in parse->arena; pointers into root are fine while parsing, never afterwards. */
#ifndef SLUICE_API_PARSE_H
#define SLUICE_API_PARSE_H

#include <sluice/api.h>

#include "base/arena.h"

struct parse {
    const struct gateway *gateway;
    enum generation_route route;
    struct cJSON *root;
    struct arena *arena;
    struct err *err;
};

/* Types, model, refusals, ranges, and every field of generation_params. */
int parse_params(const struct parse *p, struct generation_params *gen);
/* truncate_prompt_tokens: keep so many tokens (-1: what the context holds beside max_tokens), the last ones or the first. */
struct truncation { bool on; int64_t keep; bool keep_first; };
int parse_truncation(const struct parse *p, struct truncation *truncation);
int parse_completion(const struct parse *p, struct completion_request *request);
/* Normalises messages inside root: content parts become one string, `developer` becomes `system` where the template
 * does not know it. request->messages and ->chat_template_kwargs point into root. */
int parse_chat(const struct parse *p, struct chat_request *request);

int parse_no_memory(const struct parse *p);      /* ERR_NO_MEMORY with its text */
/* An array of token ids, each 0 <= id < vocab; param is the field. */
int parse_token_ids(const struct parse *p, const struct cJSON *array, const char *param, token_id **ids, size_t *n);

#endif
