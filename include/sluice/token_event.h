/* token_event.h - what the engine says about a sequence: one drawn token, or its end. 64 bytes, by value.
 * Made by engine.c after each step, one frame of them per step; eaten by the router (token log, then text/detokenize). */
#ifndef SLUICE_TOKEN_EVENT_H
#define SLUICE_TOKEN_EVENT_H

#include <stdint.h>

#include <sluice/types.h>

enum finish_reason {
    FINISH_NONE = 0,        /* goes on */
    FINISH_EOS,             /* the token is one of the model's end ids; "stop", stop_reason null */
    FINISH_STOP_TOKEN,      /* the token is one of stop_ids; "stop", stop_reason = id */
    FINISH_LENGTH,          /* max_tokens or context reached; "length" */
    FINISH_ABORTED,         /* the gateway asked; no token */
    FINISH_ERROR,           /* err_code says why; no token */
    FINISH_STOP_STRING,     /* never from the engine: made by the router */
};

struct token_event {
    uint64_t id;            /* engine_request.id */
    token_id token;         /* TOKEN_NONE for FINISH_ABORTED and FINISH_ERROR */
    uint32_t index;         /* tokens generated so far, this one included (resumed ones too) */
    float logprob;          /* raw distribution; 0 when not asked */
    int32_t rank;           /* 1 = most likely; 0 when not asked */
    uint16_t num_top;       /* entries of this token in the MSG_LOGPROBS frame that came just before */
    uint8_t finish;         /* enum finish_reason */
    uint8_t reserved8_;
    int32_t err_code;       /* enum err_code when finish is FINISH_ERROR */
    uint32_t num_cached;    /* prompt tokens found in the prefix cache; same in every event of a sequence */
    uint32_t reserved32_;
    int64_t scheduled_ns;   /* when its first step began (CLOCK_MONOTONIC): queue time ends, prefill begins */
    int64_t step_ns;        /* when this token's step ended */
    uint64_t reserved64_;
};
_Static_assert(sizeof(struct token_event) == 64, "token_event is 64 bytes on the wire");

#endif
