/* gemm_layer.h - the second contest for a bucket of rows. The first (gemm_contest.h) times one product behind a small kernel; which way is
 * fastest in a step depends on the neighbours too: what they leave of the device, whether they take in a norm, how early they end. So the
 * ways that did best alone are tried one after the other in a few layers of the model as a step runs them (captured, where it is), with
 * attention and norms, and what makes the layers faster stays.
 * Flow: finalists of the first contest -> trials -> the table.        Thread: the rank's, stream empty.
 * Owns: the captured layers between trials (host memory, and what the driver takes for them). Allocates nothing else. */
#ifndef SLUICE_BACKEND_CUDA_GEMM_LAYER_H
#define SLUICE_BACKEND_CUDA_GEMM_LAYER_H

#include "gemm_ways.h"

enum { LAYER_TRIALS = 96 };

/* One thing to try. */
struct layer_trial {
    struct gemm_entry way;         /* silu_mul: the product with silu_mul in it */
    enum layer_change {
        LAYER_WAY,                 /* this way instead of what the table has */
        LAYER_APART,               /* the same, and silu_mul behind it on its own */
        LAYER_FLIP,                /* what the table has, with one of its flips the other way round */
    } change;
    uint8_t flip;                  /* LAYER_FLIP: which */
    bool out;                      /* lost clearly: not tried in the second round */
};

struct layer_contest {
    int32_t bucket, rows;
    int num_trials, next;
    bool improved, again;          /* in this round; the second round, which stops */
    cudaGraphExec_t now;           /* the layers as the table has them; NULL: to be captured */
    struct layer_trial trials[LAYER_TRIALS];
};

/* Forgets what was entered before. rows: to time with. */
void layer_contest_begin(struct layer_contest *c, int32_t bucket, int32_t rows);
/* Beyond LAYER_TRIALS: left out. */
void layer_contest_enter(struct layer_contest *c, const struct layer_trial *trial);
bool layer_contest_is_over(const struct layer_contest *c);
/* One trial, some 3 to 100 ms. begin, end: events to time with. *changed: the table has something else now. The last one marks the
 * bucket's entries as timed in their layer. Without device memory to capture with the contest is over, unmarked. ERR_INTERNAL: the device failed. */
int  layer_contest_next(struct layer_contest *c, struct gemm *g, const struct gemm_layers *layers, cudaStream_t stream, cudaEvent_t begin, cudaEvent_t end,
                        bool *changed, struct err *err);
void layer_contest_end(struct layer_contest *c);

#endif
