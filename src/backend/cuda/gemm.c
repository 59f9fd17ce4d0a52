/* gemm.c - matrix products; gemm.h is the manual. The only file that uses cublasLt.
 * The library thinks in columns: out^T [N, T] = w^T' [N, K] * x^T [K, T], so w is its A (transposed) and x its B, as they lie. */
#include "gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "base/clock.h"
#include "base/log.h"
#include "cublaslt.h"
#include "gemm_cache.h"

enum { CANDIDATES = 16, TIMED_RUNS = 5, MAX_COPIES = 16 };
static const size_t COLD_BYTES = (size_t)192 << 20;        /* weight copies to rotate over: three times the L2 of an H200 */

struct gemm {
    cublasLtHandle_t lt;
    void *workspace;
    size_t workspace_bytes;
    char *cache_path;
    struct gemm_table table;
};

/* One product as the library sees it: on the stack, no allocation. */
struct product {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t w, x, out;
};

static int lt_error(struct err *err, cublasStatus_t status, const char *what)
{
    return err_set(err, ERR_INTERNAL, "%s: %s", what, cublasLtGetStatusString(status));
}

static cublasStatus_t product_init(struct product *p, int32_t rows, int32_t n, int32_t k, bool out_f32)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t s = cublasLtMatmulDescInit(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutInit(&p->w, CUDA_R_16BF, (uint64_t)k, (uint64_t)n, k);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutInit(&p->x, CUDA_R_16BF, (uint64_t)k, (uint64_t)rows, k);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutInit(&p->out, out_f32 ? CUDA_R_32F : CUDA_R_16BF, (uint64_t)n, (uint64_t)rows, n);
    return s;
}

/* The library's guesses, best first; -> how many. Alignment of out: rows of n elements, so n decides. */
static int guess(struct gemm *g, struct product *p, int32_t n, bool out_f32, int want, cublasLtMatmulHeuristicResult_t *results)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    uint32_t out_align = 16;
    int found = 0;

    while (out_align > 2 && (size_t)n * (out_f32 ? 4 : 2) % out_align != 0) out_align /= 2;
    if (cublasLtMatmulPreferenceInit(&preference) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &g->workspace_bytes, sizeof g->workspace_bytes) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out_align, sizeof out_align) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out_align, sizeof out_align) != CUBLAS_STATUS_SUCCESS)
        return 0;
    if (cublasLtMatmulAlgoGetHeuristic(g->lt, &p->op, &p->w, &p->x, &p->out, &p->out, &preference, want, results, &found) != CUBLAS_STATUS_SUCCESS)
        return 0;
    return found;
}

static cublasStatus_t multiply(struct gemm *g, struct product *p, const void *x, const void *w, void *out, const cublasLtMatmulAlgo_t *algo, cudaStream_t stream)
{
    const float one = 1.0f, zero = 0.0f;

    return cublasLtMatmul(g->lt, &p->op, &one, w, &p->w, x, &p->x, &zero, out, &p->out, out, &p->out, algo, g->workspace, g->workspace_bytes, stream);
}

static void entry_set(struct gemm_entry *e, const cublasLtMatmulHeuristicResult_t *result)
{
    _Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof e->algo, "an algorithm is 64 bytes");
    memcpy(e->algo, &result->algo, sizeof e->algo);
    e->workspace_bytes = result->workspaceSize;
}

int gemm_open(struct gemm **out, const struct gemm_options *options, struct err *err)
{
    struct cudaDeviceProp prop;
    int rc = 0, driver = 0;
    cublasStatus_t status;
    struct gemm *g = calloc(1, sizeof *g);

    *out = NULL;
    if (!g) return err_set(err, ERR_NO_MEMORY, "gemm: out of memory");
    g->workspace = options->workspace;
    g->workspace_bytes = options->workspace_bytes;
    if (cudaGetDeviceProperties(&prop, options->device) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess) {
        rc = err_set(err, ERR_INTERNAL, "gemm: no device %d", options->device);
        goto out;
    }
    if ((rc = cublaslt_open(err)) < 0) goto out;
    if ((status = cublasLtCreate(&g->lt)) != CUBLAS_STATUS_SUCCESS) { rc = lt_error(err, status, "cublasLtCreate"); goto out; }
    snprintf(g->table.key, sizeof g->table.key, "%.64s, %d SMs, driver %d, cublasLt %zu, workspace %zu", prop.name, prop.multiProcessorCount,
             driver, cublasLtGetVersion(), g->workspace_bytes);
    if (options->cache_path) {
        g->cache_path = strdup(options->cache_path);
        if (!g->cache_path) { rc = err_set(err, ERR_NO_MEMORY, "gemm: out of memory"); goto out; }
        gemm_cache_read(&g->table, g->cache_path);
    }
    *out = g;
    g = NULL;
out:
    gemm_close(g);
    return rc;
}

void gemm_close(struct gemm *g)
{
    if (!g) return;
    if (g->lt) cublasLtDestroy(g->lt);
    free(g->cache_path);
    free(g);
}

int gemm_run_library(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err)
{
    struct product p;
    struct gemm_entry *e, fresh = { .n = a->n, .k = a->k, .rows = gemm_bucket(a->num_tokens), .out_f32 = a->out_f32 };
    cublasLtMatmulHeuristicResult_t result;
    cublasLtMatmulAlgo_t algo;
    cublasStatus_t status;

    if (a->silu_mul || a->k % 8 != 0 || a->num_tokens < 1) return err_set(err, ERR_UNSUPPORTED, "matrix product %d x %d", a->n, a->k);
    if ((status = product_init(&p, a->num_tokens, a->n, a->k, a->out_f32)) != CUBLAS_STATUS_SUCCESS) return lt_error(err, status, "matrix product");
    e = gemm_table_find(&g->table, a->n, a->k, fresh.rows, a->out_f32);
    if (!e) {
        if (guess(g, &p, a->n, a->out_f32, 1, &result) < 1)
            return err_set(err, ERR_INTERNAL, "matrix product %d x %d x %d: the library has no algorithm", a->num_tokens, a->n, a->k);
        entry_set(&fresh, &result);
        gemm_table_put(&g->table, &fresh);
        e = &fresh;
    }
    memcpy(&algo, e->algo, sizeof algo);
    status = multiply(g, &p, a->x, a->w, a->out, &algo, (cudaStream_t)l->stream);
    /* An algorithm chosen at the end of the bucket may refuse another T: then its own guess, this time only. */
    if ((status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) && guess(g, &p, a->n, a->out_f32, 1, &result) == 1)
        status = multiply(g, &p, a->x, a->w, a->out, &result.algo, (cudaStream_t)l->stream);
    return status == CUBLAS_STATUS_SUCCESS ? 0 : lt_error(err, status, "matrix product");
}

bool gemm_fuses_silu(const struct gemm *g, int32_t num_tokens, int32_t n, int32_t k)
{
    (void)g;
    return num_tokens <= GEMV_MAX_ROWS && n % 2 == 0 && k % 8 == 0;
}

int gemm_run(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err)
{
    int rc;

    if (a->num_tokens > GEMV_MAX_ROWS) return gemm_run_library(g, a, l, err);
    rc = launch_gemv(&(struct gemv_kernel){ .x = a->x, .w = a->w, .out = a->out, .num_tokens = a->num_tokens, .n = a->n, .k = a->k,
                                            .out_f32 = a->out_f32, .silu_mul = a->silu_mul }, l);
    if (rc < 0) return err_set(err, rc, "matrix product %d x %d x %d: %s", a->num_tokens, a->n, a->k,
                               rc == ERR_INTERNAL ? cudaGetErrorString(cudaGetLastError()) : "not supported");
    return 0;
}

/* ---- timing of candidates ---- */

struct bench {
    void *x, *out, *w[MAX_COPIES];
    int copies;
    cudaStream_t stream;
    cudaEvent_t begin, end;
};

/* Random bf16 all over the scratch memory: zeros would make every algorithm look faster than it is. */
static cudaError_t fill_random(void *scratch, size_t bytes, cudaStream_t stream)
{
    enum { HOST_BYTES = 1 << 20 };
    uint64_t state = 0x5DEECE66Du;
    uint16_t *host = malloc(HOST_BYTES);
    cudaError_t e = cudaSuccess;

    if (!host) return cudaErrorMemoryAllocation;
    for (size_t i = 0; i < HOST_BYTES / sizeof *host; i++) {           /* sign, exponents of 0.008 .. 0.06, random mantissa */
        state = state * 6364136223846793005u + 1442695040888963407u;
        host[i] = (uint16_t)((state >> 33 & 0x807F) | (uint64_t)(120 + (state >> 60 & 3)) << 7);
    }
    for (size_t done = 0, have = 0; e == cudaSuccess && done < bytes; done += have) {
        if (done == 0) {
            have = bytes < HOST_BYTES ? bytes : HOST_BYTES;
            e = cudaMemcpyAsync(scratch, host, have, cudaMemcpyHostToDevice, stream);
        } else {
            have = done < bytes - done ? done : bytes - done;          /* doubles each time */
            e = cudaMemcpyAsync((char *)scratch + done, scratch, have, cudaMemcpyDeviceToDevice, stream);
        }
    }
    if (e == cudaSuccess) e = cudaStreamSynchronize(stream);
    free(host);
    return e;
}

static size_t align_up(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

/* Cuts the scratch memory into x, out and as many copies of w as it takes to be cold in the L2; false: it does not fit. */
static bool bench_carve(struct bench *b, const struct gemm_shape *shape, int32_t rows, void *scratch, size_t bytes)
{
    size_t x = align_up((size_t)rows * shape->k * 2), out = align_up((size_t)rows * shape->n * (shape->out_f32 ? 4 : 2));
    size_t w = align_up((size_t)shape->n * shape->k * 2);
    char *at = scratch;

    if (x + out + w > bytes) return false;
    b->x = at;
    b->out = at + x;
    b->copies = (int)((COLD_BYTES + w - 1) / w) + 1;
    if (b->copies > MAX_COPIES) b->copies = MAX_COPIES;
    while (b->copies > 1 && x + out + w * (size_t)b->copies > bytes) b->copies--;
    for (int i = 0; i < b->copies; i++) b->w[i] = at + x + out + w * (size_t)i;
    return true;
}

/* Microseconds of one product with this algorithm, < 0 where it does not run. */
static float time_algorithm(struct gemm *g, struct bench *b, struct product *p, const cublasLtMatmulAlgo_t *algo, int runs)
{
    float ms = 0;

    for (int i = 0; i < runs + 1; i++) {                   /* the first is the warm-up */
        if (i == 1 && cudaEventRecord(b->begin, b->stream) != cudaSuccess) return -1;
        if (multiply(g, p, b->x, b->w[i % b->copies], b->out, algo, b->stream) != CUBLAS_STATUS_SUCCESS) return -1;
    }
    if (cudaEventRecord(b->end, b->stream) != cudaSuccess || cudaEventSynchronize(b->end) != cudaSuccess ||
        cudaEventElapsedTime(&ms, b->begin, b->end) != cudaSuccess) return -1;
    return ms * 1000 / (float)runs;
}

/* Times the candidates of one shape and bucket into the table. */
static void tune_one(struct gemm *g, struct bench *b, const struct gemm_shape *shape, int32_t rows)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    struct gemm_entry best = { .n = shape->n, .k = shape->k, .rows = rows, .out_f32 = shape->out_f32 };
    bool large = (double)rows * shape->n * shape->k > 1e11;            /* above about 0.3 ms: fewer runs, fewer candidates */
    struct product p;
    int found;

    if (product_init(&p, rows, shape->n, shape->k, shape->out_f32) != CUBLAS_STATUS_SUCCESS) return;
    found = guess(g, &p, shape->n, shape->out_f32, large ? CANDIDATES / 2 : CANDIDATES, results);
    for (int i = 0; i < found; i++) {
        float us;
        if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
        us = time_algorithm(g, b, &p, &results[i].algo, large ? 2 : TIMED_RUNS);
        if (us <= 0 || (best.tuned && us >= best.us)) continue;
        entry_set(&best, &results[i]);
        best.us = us;
        best.tuned = true;
    }
    if (best.tuned) gemm_table_put(&g->table, &best);
}

int gemm_tune(struct gemm *g, const struct gemm_tune_args *a, const struct launch *l, struct err *err)
{
    struct bench b = { .stream = (cudaStream_t)l->stream };
    int64_t until_ns = clock_now_ns() + a->budget_ms * 1000000;
    int rc = 0, done = 0, timed = 0, total = 0;

    for (int32_t rows = GEMV_MAX_ROWS + 1; rows <= gemm_bucket(a->max_rows); rows = gemm_bucket(rows) + 1) total += a->num_shapes;
    for (int i = 0; i < a->num_shapes; i++)
        for (int32_t rows = GEMV_MAX_ROWS + 1; rows <= gemm_bucket(a->max_rows); rows = gemm_bucket(rows) + 1)
            done += gemm_table_find(&g->table, a->shapes[i].n, a->shapes[i].k, gemm_bucket(rows), a->shapes[i].out_f32) != NULL;
    if (done == total) return 0;                           /* the warm start */

    if (cudaEventCreate(&b.begin) != cudaSuccess || cudaEventCreate(&b.end) != cudaSuccess ||
        fill_random(a->scratch, a->scratch_bytes < (size_t)4 << 30 ? a->scratch_bytes : (size_t)4 << 30, b.stream) != cudaSuccess) {
        rc = err_set(err, ERR_INTERNAL, "gemm: scratch memory: %s", cudaGetErrorString(cudaGetLastError()));
        goto out;
    }
    /* Few rows first: these are the decode steps. */
    for (int32_t rows = GEMV_MAX_ROWS + 1; rows <= gemm_bucket(a->max_rows); rows = gemm_bucket(rows) + 1)
        for (int i = 0; i < a->num_shapes; i++) {
            const struct gemm_shape *shape = &a->shapes[i];
            struct gemm_entry *e = gemm_table_find(&g->table, shape->n, shape->k, gemm_bucket(rows), shape->out_f32);
            if (e && e->tuned) continue;
            if (clock_now_ns() >= until_ns) goto tuned;
            if (bench_carve(&b, shape, gemm_bucket(rows), a->scratch, a->scratch_bytes)) {
                tune_one(g, &b, shape, gemm_bucket(rows));
                timed++;
            }
            if (a->progress) a->progress(a->arg, ++done, total);
        }
tuned:
    if (cudaGetLastError() != cudaSuccess || cudaStreamSynchronize(b.stream) != cudaSuccess) { rc = err_set(err, ERR_INTERNAL, "gemm: timing failed on the device"); goto out; }
    log_info("gemm_tuned", "%d of %d matrix product shapes timed", timed, total);
    if (g->cache_path && timed > 0) {
        struct err write_err = { 0 };
        if (gemm_cache_write(&g->table, g->cache_path, &write_err) < 0) log_warn("gemm_cache_write", "%s", write_err.message);
    }
out:
    if (b.begin) cudaEventDestroy(b.begin);
    if (b.end) cudaEventDestroy(b.end);
    return rc;
}
