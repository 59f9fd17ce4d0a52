/* request.h - the nouns on the way in: what a client asked, what the engine is asked.
 * completion_request / chat_request: made by api/parse_*.c on a worker, eaten by text/ and the router.  Request arena.
 * engine_request: one sequence (one choice of one prompt); made by the router, copied over the socket, kept by the router
 * until the choice ends so that another replica can continue it. */
#ifndef SLUICE_REQUEST_H
#define SLUICE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/types.h>

struct cJSON;

enum {
    MAX_PROMPTS = 1024,            /* prompts in one request, and prompts x n */
    MAX_CHOICES = 128,             /* n */
    MAX_STOP_STRINGS = 16,
    MAX_STOP_TOKEN_IDS = 1024,
    MAX_LOGIT_BIAS = 1024,
    MAX_TOP_LOGPROBS = 20,
    MAX_MESSAGES = 8192,
    MAX_BAD_WORDS = 256,           /* bad_words of one request, MAX_BAD_WORD_BYTES each */
    MAX_BAD_WORD_BYTES = 256,
    MAX_BAD_RUNS = 2 * MAX_BAD_WORDS,                          /* each word with and without its leading space */
    MAX_BAD_INTS = MAX_BAD_RUNS * (MAX_BAD_WORD_BYTES + 2),    /* of all runs with their lengths */
};

/* How the next token is drawn (api-contract 2.2, order of 2.5). Value type: travels in engine_request and step_plan rows. */
struct sampling_params {
    float temperature;             /* 0..2; below 1e-5 = greedy */
    float top_p;                   /* 0..1; 1 = off; 0 = top token only */
    float min_p;                   /* 0..1; 0 = off */
    float frequency_penalty;       /* -2..2; over generated tokens */
    float presence_penalty;        /* -2..2; over generated tokens */
    float repetition_penalty;      /* > 0; 1 = off; over prompt and generated tokens */
    int32_t top_k;                 /* 0 = off */
    int32_t num_logprobs;          /* -1 = none; else top-k logprobs 0..20 beside the chosen token's */
    uint64_t seed;                 /* Philox key, with choice; the counter is the number of tokens generated before */
    uint32_t choice;               /* 0..n-1 */
    uint32_t reserved_;
};

/* One prompt, either as text (still to be tokenized by the worker) or as ids. */
struct prompt_tokens {
    token_id *ids;                 /* request arena */
    size_t n;
};

/* What both routes share, after validation. Pointers live in the request's arena. */
struct generation_params {
    const char *model;             /* the name as requested */
    struct sampling_params sampling;
    bool has_seed;                 /* else sampling.seed is random */
    int32_t n;                     /* choices made per prompt, 1..128 */
    int32_t n_shown;               /* of them, the best ones (best_of); the same as n otherwise */
    int64_t max_tokens;            /* -1 = rest of the context */
    int32_t min_tokens;
    bool stream, include_usage, continuous_usage;
    bool ignore_eos;
    bool include_stop_str_in_output;
    bool skip_special_tokens;
    bool add_special_tokens;
    bool echo;                     /* completions */
    bool logprobs;                 /* chat: logprobs object asked; completions: num_logprobs >= 0 */
    const char *const *stop; const size_t *stop_lens; size_t n_stop;
    const token_id *stop_token_ids; size_t n_stop_token_ids;
    const token_id *bias_ids; const float *bias_values; size_t n_bias;
    const token_id *allowed_ids; size_t n_allowed;     /* nothing else is drawn; none = all */
    const int32_t *bad_words; size_t n_bad_ints;       /* runs of tokens that are never completed: length, ids, length ... */
    bool score_prompt;             /* report the logprob of every prompt token but the first */
    int32_t num_prompt_logprobs;   /* and so many alternatives of each, 0..20 */
    int32_t priority;
    int64_t timeout_queue_ms, timeout_ttft_ms, timeout_total_ms;   /* 0 = the configured ones */
};

/* POST /v1/completions. Exactly one of texts and ids is set per prompt. */
struct completion_request {
    struct generation_params gen;
    bool parse_special_tokens;
    const char *suffix; size_t suffix_len; /* text behind the answer; NULL: none */
    size_t n_prompts;                      /* 1..1024 */
    struct { const char *text; size_t len; struct prompt_tokens ids; bool is_ids; } *prompts;
};

/* POST /v1/chat/completions. */
struct chat_request {
    struct generation_params gen;
    const struct cJSON *messages;          /* validated; normalised: content parts joined to one string */
    const struct cJSON *tools;             /* NULL here: refused until tools exist */
    const struct cJSON *chat_template_kwargs;
    bool add_generation_prompt, continue_final_message;
};

/* One sequence for the engine. Arrays belong to whoever holds the struct (router: request; engine: sequence slab). */
struct engine_request {
    uint64_t id;                   /* unique for the life of the gateway; never reused */
    uint64_t group;                /* sequences of one prompt (n > 1) share it: their prompt is prefilled once */
    int64_t arrival_ms;            /* CLOCK_MONOTONIC, same host */
    int64_t start_by_ms;           /* same clock: when its first step has not begun by then, it never does; 0 = none */
    int32_t priority;              /* lower first */
    int32_t max_tokens;            /* generated tokens incl. those of `output`; context already applied; >= 1 (score_prompt: 0) */
    int32_t min_tokens;
    bool ignore_eos;
    struct sampling_params sampling;
    uint32_t num_prompt;           /* prompt tokens */
    uint32_t num_output;           /* tokens already generated elsewhere (resume); 0 for a fresh request */
    uint32_t num_stop_ids;         /* EOS is not in here: the engine knows the model's eos ids */
    uint32_t num_bias;
    uint32_t num_allowed, num_bad_ints;
    int32_t num_prompt_logprobs;   /* with score_prompt: alternatives of each prompt token */
    bool score_prompt;             /* MSG_PROMPT_LOGPROBS for prompt tokens 1.. ; max_tokens may then be 0: nothing is drawn */
    uint8_t cache_domain[32];      /* prefix-cache domain: hash of API key name and cache_salt */
    const token_id *tokens;        /* num_prompt + num_output */
    const token_id *stop_ids;
    const token_id *bias_ids;
    const float *bias_values;
    const token_id *allowed_ids;
    const int32_t *bad_words;      /* length, ids, length, ids ... */
};

#endif
