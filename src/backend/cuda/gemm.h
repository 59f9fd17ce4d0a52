/* gemm.h - matrix products of one rank: out [T, N] = x [T, K] * w [N, K]^T, each through what is fastest for its shape.
 * Up to eight rows go to launch_gemv; above, to launch_gemm_skinny, launch_gemm or the library (cublasLt), with the cut or algorithm
 * that was fastest at start for this weight shape and bucket of rows. Where none was timed: up to 64 rows to launch_gemm_skinny, above
 * to the library's own first guess.
 * Thread: the rank's.        Owns: the library handle, the table.        Borrows: the workspace (device memory).
 * gemm_run is safe inside a stream capture and never allocates device memory. */
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
};
/* 0, ERR_UNSUPPORTED (K % 8 != 0, or silu_mul where it is not fused) or ERR_INTERNAL with the library's status in err. */
int  gemm_run(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err);
bool gemm_fuses_silu(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k);
/* The same through the library whatever T is (measurements). */
int  gemm_run_library(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err);

struct gemm_shape { int32_t n, k; bool out_f32, silu_mul; };       /* silu_mul: what is multiplied is gate and up, and wanted is silu(gate) * up */
struct gemm_tune_args {
    const struct gemm_shape *shapes; int num_shapes;
    int32_t max_rows;              /* the largest step */
    void *scratch; size_t scratch_bytes;         /* device memory, overwritten: the KV cache before its first use */
    bool library_only;             /* measurements */
    int64_t budget_ms;             /* what is not timed by then keeps the library's guess and is timed at the next start */
    void (*progress)(void *arg, int done, int total); void *arg;    /* may be NULL */
};
/* Times candidates for every shape and bucket that the cache file did not bring, and writes the file. Synchronises. */
int  gemm_tune(struct gemm *g, const struct gemm_tune_args *a, const struct launch *l, struct err *err);
/* How many own products were found to disagree with the library's while timing, and are not used. */
int  gemm_refused(const struct gemm *g);

#endif
