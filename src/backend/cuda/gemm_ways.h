/* gemm_ways.h - the ways to do one matrix product, for gemm.c (which runs them), gemm_contest.c and gemm_layer.c (which
 * time them) and gemm_tune.c (which has both do so); private to them.
 * The library thinks in columns: out^T [N, T] = w^T' [N, K] * x^T [K, T], so w is its A (transposed) and x its B, as they lie.
 * The only files that use cublasLt are these and cublaslt.c. */
#ifndef SLUICE_BACKEND_CUDA_GEMM_WAYS_H
#define SLUICE_BACKEND_CUDA_GEMM_WAYS_H

#include <cublasLt.h>

#include "gemm.h"
#include "gemm_agenda.h"
#include "gemm_cache.h"
#include "gemm_sm90_plan.h"

struct gemm_tuner;                 /* gemm_tune.c */

enum { GEMV_RULE_ROWS = 8 };       /* so many rows go to gemv where nothing was timed */

struct gemm {
    cublasLtHandle_t lt;
    int sm;
    bool f16;
    void *counters;                /* MATMUL_COUNTER_BYTES, zero between launches, of gemv and the skinny kernel: the head of what was given */
    void *workspace;               /* the rest: the library's, or partial sums of own kernels */
    size_t workspace_bytes;
    char *cache_path;
    int refused;                   /* own products that disagreed with the library's */
    struct gemm_table table;
    struct gemm_tuner *tuner;      /* what is left to time later; NULL: nothing */
};

/* One product as the library sees it: on the stack, no allocation. */
struct product {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t w, x, out;
};

cublasStatus_t gemm_product_init(const struct gemm *g, struct product *p, int32_t rows, int32_t n, int32_t k, bool out_f32);
/* The library's guesses, best first; -> how many. */
int gemm_guess(struct gemm *g, struct product *p, int32_t n, bool out_f32, int want, cublasLtMatmulHeuristicResult_t *results);
cublasStatus_t gemm_multiply(struct gemm *g, struct product *p, const void *x, const void *w, void *out, const cublasLtMatmulAlgo_t *algo, cudaStream_t stream);

/* A way as an entry of the table, and back. */
void gemm_entry_set(struct gemm_entry *e, const cublasLtMatmulHeuristicResult_t *result);
void gemm_entry_set_plan(struct gemm_entry *e, const struct gemm_sm90_plan *plan);
struct gemm_sm90_plan gemm_entry_plan(const struct gemm_entry *e);
/* Whether this way of the product of q, k and v can do what launch_rope_store does. */
bool gemm_entry_rotates(const struct gemm_entry *e, int32_t head_dim, bool norms_heads);

/* The same product as the own kernels take it. cut: of launch_gemm_skinny; 0: the rule's. */
struct gemm_kernel gemm_own_product(const struct gemm_args *a);
struct gemv_kernel gemm_few_rows(const struct gemm *g, const struct gemm_args *a, uint64_t cut);

/* How a product runs that was not timed. */
struct gemm_entry gemm_rule(const struct gemm *g, int32_t num_tokens, bool silu_mul);
/* Whether products of rows this wide gain by the norm between them when gemv does them. Narrow ones of three rows or more lose by it
 * (H200, hidden_size 1024, 4 and 8 sequences: 0.84 and 1.12 ms a step instead of 0.84 and 1.00). Probable, not proven: the product behind
 * begins early on the few multiprocessors that are free, and stays on them. */
static inline bool gemv_gains_by_norm(int32_t num_tokens, int32_t hidden) { return num_tokens <= 2 || hidden >= 2048; }

/* The rules that FLIP_INSIDE turns round where a layer is faster so: whether a step gains where products do the norm between them, and where
 * that of q, k and v does what rope_store does (H200, a step of 128 sequences, 0.6B: 1.99 ms, 2.16 with norms in the products; with norms of
 * heads rope costs a second pass: 16 sequences 0.89 -> 0.79, 64 sequences 1.44 -> 1.63; without them, 8B, 64 sequences: 5.07 -> 4.96). */
static inline bool norm_pays(int32_t num_tokens) { return num_tokens <= 64; }
static inline bool rope_pays(int32_t num_tokens, bool norms_heads) { return num_tokens <= (norms_heads ? 16 : 64); }

/* Of gemm_tune.c: keeps what was timed, frees. */
void gemm_tune_end(struct gemm *g);

#endif
