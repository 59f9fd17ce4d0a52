/* sampler.h - from a row of logits to a token, in the order of sluice/sampling: raw log-softmax for what is reported; bias;
 * repetition, frequency, presence penalty; greedy, or temperature, min_p, top_k, top_p and one draw by inverse CDF.
 * A row's outcome is a function of its logits, its parameters and its slot's history alone; rows run in parallel.
 * Order among tokens is always: larger logit first, ties to the lower id.
 * State per slot: the token drawn last; which tokens prompt or output hold, and how often the output holds each
 * (saturating at 65535). */
#ifndef SLUICE_BACKEND_CPU_SAMPLER_H
#define SLUICE_BACKEND_CPU_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include <sluice/backend.h>
#include <sluice/request.h>

#include "kernels.h"
#include "pool.h"

enum { SAMPLE_BINS = 2048, SAMPLE_BLOCK = 64 };

struct sample_bin { double weight; int32_t count; };

struct sample_scratch {                    /* one per thread */
    float *logits;                         /* [V] the row after bias and penalties */
    float *weights;                        /* [V] exp((logit - max) / temperature) */
    int32_t *candidates;                   /* [V] tokens whose weight reaches a threshold */
    int32_t *heap;                         /* [V] candidates of one bin */
    double *block_sums;                    /* [V / SAMPLE_BLOCK + 1] */
    struct sample_bin *bins;               /* [SAMPLE_BINS] */
};

struct sampler {
    int32_t vocab_size, num_slots;
    int64_t seen_words;                    /* uint64 words per slot */
    uint64_t *seen;                        /* [slots][seen_words] bit: prompt or output holds the token */
    uint16_t *counts;                      /* [slots][V] occurrences in the output */
    token_id *last_tokens;                 /* [slots] drawn last, TOKEN_NONE when nothing could be */
    char *scratch;                         /* [threads] */
    size_t scratch_bytes;                  /* of one thread */
};

/* Bytes for these options; with sampler and base set, carves base. */
size_t sampler_layout(struct sampler *sampler, char *base, const struct backend_options *options);
void   sampler_run(struct sampler *sampler, struct pool *pool, const struct cpu_kernels *kernels,
                   const struct sample_args *args);

/* sample_draw.c: one token of n logits (not all -inf, no NaN), max the largest; u in (0, 1]. TOKEN_NONE: nothing to draw. */
token_id sample_draw(const struct sample_scratch *scratch, const struct cpu_kernels *kernels, const float *logits,
                     int32_t n, float max, const struct sampling_params *params, float u);

#endif
