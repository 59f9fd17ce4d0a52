/* gemm.h - matrix products of one rank: out [T, N] = x [T, K] * w [N, K]^T, each through what is fastest for its shape.
 * Each goes to launch_gemv, launch_gemm_skinny, launch_gemm or the library (cublasLt), with the cut or algorithm that was fastest when it
 * was timed for this weight shape and bucket of rows: by itself (gemm_contest.h), then in layers of the model (gemm_layer.h). Where none
 * was timed: a few rows to launch_gemv, above to the library's own first guess. Devices other than sm_90 have only these two, and time
 * the library alone.
 * Thread: the rank's, unless said.        Owns: the library handle, the table.        Borrows: the workspace (device memory).
 * gemm_run is safe inside a stream capture and never allocates device memory. The bits of a result depend on the way: they may differ
 * between buckets of rows, and before and after a bucket was timed. */
#ifndef SLUICE_BACKEND_CUDA_GEMM_H
#define SLUICE_BACKEND_CUDA_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/kernels.h>

enum { GEMM_WORKSPACE_BYTES = 32 << 20 };

struct gemm;

struct gemm_options {
    int32_t device;                /* current on the calling thread */
    void *workspace; size_t workspace_bytes;     /* device memory, GEMM_WORKSPACE_BYTES or more, 256-byte aligned */
    bool f16;                      /* what launches given to it have */
    const char *cache_path;        /* NULL: algorithms are neither read nor kept */
};
int  gemm_open(struct gemm **out, const struct gemm_options *options, struct err *err);
void gemm_close(struct gemm *g);

struct gemm_args {
    const void *x, *w;             /* elements */
    void *out;                     /* elements, or f32 when out_f32 */
    int32_t num_tokens, n, k;
    bool out_f32;
    bool silu_mul;                 /* w [2F, K], n = 2F, out [T, F]: only where gemm_fuses_silu() */
    struct norm_add add; struct norm_scale scale;          /* only where gemm_fuses_norm() */
    struct rope_store_kernel rope;                         /* qkv NULL: none; only where gemm_fuses_rope() */
};
/* 0, ERR_UNSUPPORTED (K % 8 != 0, or silu_mul or a norm where it is not fused) or ERR_INTERNAL with the library's status in err. */
int  gemm_run(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err);
bool gemm_fuses_silu(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k);
/* Whether a product [n, k] can take norm_add and the one behind it, [next_n, n], norm_scale. */
bool gemm_fuses_norm(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k, int32_t next_n, bool next_silu);
/* Whether the product of q, k and v can do what launch_rope_store does. norms_heads: with q_norm and k_norm. */
bool gemm_fuses_rope(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k, int32_t head_dim, bool norms_heads);
/* Whether the small kernel behind this product had better do the other of starting early and waiting its turn than it does by itself. */
bool gemm_flips_behind(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k);
/* The same through the library whatever T is (measurements). */
int  gemm_run_library(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err);

enum { GEMM_MAX_COPIES = 32, GEMM_MAX_SHAPES = 32 };
struct gemm_shape {
    int32_t n, k; bool out_f32, silu_mul;        /* silu_mul: what is multiplied is gate and up, and wanted is silu(gate) * up */
    int32_t rope_head;             /* the product of q, k and v, which gemm_fuses_rope() may give the rotation: head_dim; else 0 */
    bool norms_heads;
    bool beside_norm;              /* one of two products with a norm between them, which gemm_fuses_norm() may give them */
    bool behind_large;             /* its predecessor fills the device: it cannot begin to load beside it */
    int32_t max_rows;              /* of this product; 0: the largest step */
    /* Where to time it, when there is no scratch memory: weights of this shape, of different layers, are read; x [max_rows, K],
     * out [max_rows, N] and what is spare are overwritten, and zero afterwards. */
    const void *w[GEMM_MAX_COPIES]; int num_w;
    void *x, *out, *spare; size_t spare_bytes;
};
/* A few of a model's layers as a step of some rows runs them, products and all between them, through gemm_run. begin() makes ready for
 * so many rows, run() launches; 0 or negative. */
struct gemm_layers {
    int  (*begin)(void *arg, int32_t rows);
    int  (*run)(void *arg);
    void *arg;
    int32_t max_rows;              /* of a step that is worth it; 0: there are no layers to run */
    int32_t max_captured;          /* steps of so many rows are captured, others are launched kernel by kernel: so are their layers */
};
struct gemm_tune_args {
    const struct gemm_shape *shapes; int num_shapes;       /* GEMM_MAX_SHAPES at most */
    int32_t max_rows;              /* the largest step */
    void *scratch; size_t scratch_bytes;         /* device memory, overwritten; NULL: each shape has its own */
    bool library_only;             /* measurements */
    int64_t budget_ms;             /* what is not timed by then runs by the rule and is timed later, or at the next start */
    void (*progress)(void *arg, int done, int total); void *arg;    /* may be NULL */
    bool later;                    /* what the budget leaves is for gemm_tune_more; the shapes' memory stays theirs */
    struct gemm_layers layers;     /* arg as long as the rest */
};
/* Times candidates for every shape and bucket that the cache file did not bring, few rows first, and writes the file once nothing is
 * left. Synchronises. */
int  gemm_tune(struct gemm *g, const struct gemm_tune_args *a, const struct launch *l, struct err *err);
/* Times one shape and bucket of those left, or one change to a layer, some 5 to 100 ms. 1: more are left; 0: none, and the file was
 * written; negative: the device failed. *changed: the bucket of rows in which a product now runs another way, so that what was captured
 * for it is out of date; 0: none. The stream has to be empty, and the step that comes next may not count on x, out and spare. Allocates
 * no device memory of its own; the library and the driver load what was never run, and hold captured layers until their contest is over. */
int  gemm_tune_more(struct gemm *g, const struct launch *l, int32_t *changed, struct err *err);
/* Shapes, and layers, of each bucket that are left for gemm_tune_more. */
int  gemm_tune_left(const struct gemm *g);
/* One small product through the library, whose first takes 0.1 s: for a thread of its own while the rank's loads weights. Takes a little
 * device memory meanwhile. What fails here fails again where it is told. */
void gemm_warm_up(struct gemm *g);
/* How many own products were found to disagree with the library's while timing, and are not used. */
int  gemm_refused(const struct gemm *g);

#endif
