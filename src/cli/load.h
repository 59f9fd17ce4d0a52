/* load.h - many streamed completions at once against one server, timed frame by frame.
 * One thread is an epoll loop over its connections; requests are written out before the clock starts, and of an answer
 * only the frame's edges are looked for, so that the client is not what is measured: some 100,000 frames a second of
 * 256 streams take less than half a core. Connections are kept alive and used again.
 * Token counts come from the server's usage; without one, a frame with text counts as one token. */
#ifndef SLUICE_CLI_LOAD_H
#define SLUICE_CLI_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>

#include "url.h"

struct load_spec {
    struct target target;              /* path: of the completions route */
    const char *model, *api_key;       /* api_key NULL: none */
    bool ignore_eos;
    int64_t vocab_size;                /* prompts are random ids below this */
    uint64_t seed;
    int64_t concurrency;               /* requests at once; 0 = no limit */
    int64_t threads;
    int64_t timeout_ms;                /* nothing came for so long: what runs has failed */
};
struct load_request { int64_t input_len, output_len, at_ns; /* after the start; in rising order */ };

struct load_result {
    int64_t start_ns, first_ns, last_ns;   /* sent; first and last frame with a token */
    int64_t frames, prompt_tokens, completion_tokens;
    bool ok;
};
struct load_gaps { double *ms; size_t n, cap; };       /* between frames of one stream */
enum { LOAD_ERROR_SIZE = 320 };
struct load_outcome {
    struct load_result *results;           /* [num] in the order of the requests */
    struct load_gaps gaps;
    int64_t began_ns, ended_ns, max_in_flight;
    size_t num_ok, num_failed, num_uneven;     /* uneven: usage says another number of tokens than there were frames */
    char first_error[LOAD_ERROR_SIZE];
};
/* Until every request has ended, well or not. Negative only when nothing could be measured at all. */
int  load_run(const struct load_spec *spec, const struct load_request *requests, size_t num, struct load_outcome *outcome,
              struct err *err);
void load_outcome_release(struct load_outcome *outcome);

#endif
