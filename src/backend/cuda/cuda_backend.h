/* cuda_backend.h - one rank's GPU: streams, the arena, a step's arrays, captured steps, what is in flight (private to backend/cuda).
 * memory.c   device memory, open and close, the arena, weights from host threads
 * rehearsal.c  a few layers on a step of our own making, to be timed
 * step.c     upload of a plan, captured steps, what is done while idle, collecting results
 * ops.c      the ops table: from ops to launches
 * gemm.c     matrix products; gemm_tune.c, gemm_contest.c, gemm_layer.c: which way is fastest
 * Owner: the rank. Thread: the rank's, but weights are stored from load threads. No allocation after `loaded`; steps are captured
 * later on, whose memory the plan counts under `library`. */
#ifndef SLUICE_BACKEND_CUDA_BACKEND_H
#define SLUICE_BACKEND_CUDA_BACKEND_H

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>

#include <sluice/backend.h>
#include <sluice/kernels.h>

#include "buckets.h"
#include "gemm.h"

enum {
    CUDA_ALIGN = 256,              /* of carved places: a whole sector row, and what tensor maps ask */
    CUDA_STEPS = 2,                /* in flight */
    LOAD_THREADS = 16,
    LOAD_CHUNK = 4 << 20,          /* elements that a load job reads at a time */
};

/* One upload buffer: written by the host, copied while the step before runs. */
struct stage { char *host, *device; cudaEvent_t copied; };

/* A step that was launched and not collected. */
struct flight {
    uint64_t step;                 /* the plan's */
    int32_t num_tokens, num_seqs, num_rows, first_slot;
};

/* What one load thread copies with. */
struct load_lane { cudaStream_t stream; char *pinned; cudaEvent_t free[2]; int half; };

struct workspace_sizes {
    int32_t tokens, seqs, rows, blocks_per_seq, bias, history, history_tokens, attn_plan_words;
    size_t image_bytes, attn_workspace, sample_workspace;
};

struct backend {
    struct backend_options options;
    struct launch launch;          /* stream, sm, number of SMs, element type */
    cudaStream_t stream, copy_stream;
    char description[320];
    char *arena, *workspace;
    size_t arena_bytes, arena_used, workspace_bytes;

    struct workspace_sizes sizes;
    struct step_arrays arrays;
    struct stage stages[CUDA_STEPS];
    struct step_plan shadow;       /* the plan that the model sees: counts padded, arrays on the device */
    const struct step_plan *plan;  /* of the step that is being launched */
    struct sample_kernel sampler;  /* pointers that never change; logits and counts per launch */
    struct step_end_kernel end;
    void *attn_workspace;
    char *mapped;                  /* host memory that the device writes: heads, tops, done of each half */
    struct gemm *gemm;
    float *squares;                /* [GEMM_SKINNY_MAX_ROWS, NORM_PIECES] of the norm between two products */
    const void *unscaled;          /* a normed whose rows' scales the product that reads it has to apply, or NULL */
    struct norm_scale scale;       /* these */
    struct rehearsal rehearsal;
    int64_t layer_bytes, layers_rehearsed;     /* bytes of a layer's weights; how many layers a rehearsal runs */
    pthread_t warmer;              /* makes the library's first product while weights load */
    bool warming;

    struct captured { cudaGraphExec_t exec; bool warm; } graphs[NUM_BUCKETS];
    int bucket;                    /* of the step being launched; -1: not to be captured or replayed */
    bool capturing;

    struct flight flights[CUDA_STEPS];
    uint64_t launched, collected;
    int64_t busy_ns;               /* of the step collected last, by the device's clock */
    int error;                     /* of the first launch that failed, with what */
    char failed_op[64];

    struct load_lane lanes[LOAD_THREADS];
    atomic_int num_lanes;
};

/* ---- memory.c ---- */
int  cuda_device_memory(int32_t device, uint64_t *total, uint64_t *available, struct err *err);
uint64_t cuda_library_bytes(const struct backend_options *options);
size_t cuda_workspace_bytes(const struct backend_options *options);
/* element: BF16 or F16, and kv_dtype has to be the same. */
int  cuda_open(struct backend **out, const struct backend_options *options, enum dtype element, struct err *err);
void cuda_close(struct backend *b);
const char *cuda_describe(const struct backend *b);
int  cuda_reserve(struct backend *b, size_t bytes, struct err *err);
void *cuda_carve(struct backend *b, size_t bytes);
size_t cuda_weight_bytes(enum weight_kind kind, int64_t rows, int64_t cols);
void cuda_weight_store(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows, const float *src);
void cuda_store_kept(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, const void *src);
void cuda_store_dummy(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, uint64_t key, int64_t first_row,
                      int64_t first_col);
int32_t cuda_load_chunk(void);
void cuda_write(struct backend *b, void *dst, const void *src, size_t bytes);
int  cuda_loaded(struct backend *b, const struct matmul_shape *shapes, int num_shapes, const struct rehearsal *rehearsal, struct err *err);
void cuda_parallel_for(struct backend *b, int64_t n, int64_t grain, void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);
/* ERR_INTERNAL with what CUDA says. */
int  cuda_error(struct err *err, cudaError_t code, const char *what);
/* Notes the first launch that failed; step_end reports it. rc: of a launch_*(). */
void cuda_check(struct backend *b, int rc, const char *op);

/* ---- rehearsal.c ---- */
/* What gemm_tune times layers by. */
struct gemm_layers cuda_rehearsal(struct backend *b, const struct matmul_shape *shapes, int num_shapes);

/* ---- step.c ---- */
/* Decode attention's plan for these lengths: sizes.attn_plan_words of host memory. */
void cuda_plan_attention(const struct backend *b, const int32_t *context_lens, int32_t num_seqs, void *to);
/* The shadow plan's arrays are those in device memory. */
void cuda_point_shadow(struct backend *b);
const struct step_plan *cuda_upload(struct backend *b, const struct step_plan *plan);
int  cuda_idle(struct backend *b);
bool cuda_step_begin(struct backend *b, const struct step_plan *uploaded);
int  cuda_step_end(struct backend *b, const struct step_plan *uploaded);
bool cuda_done(struct backend *b);
int  cuda_collect(struct backend *b, struct step_result *result);
int64_t cuda_busy_ns(const struct backend *b);
void *cuda_stream(struct backend *b);

#endif
