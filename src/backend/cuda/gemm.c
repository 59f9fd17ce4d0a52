/* gemm.c - matrix products; gemm.h is the manual, gemm_ways.h says what they are made of. Timed in gemm_tune.c. */
#include "gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "cublaslt.h"
#include "gemm_cache.h"
#include "gemm_skinny_plan.h"
#include "gemm_sm90_plan.h"
#include "gemm_ways.h"

enum { KERNELS_REVISION = 9 };                             /* raised when an own kernel changes: old timings are forgotten */

static int lt_error(struct err *err, cublasStatus_t status, const char *what)
{
    return err_set(err, ERR_INTERNAL, "%s: %s", what, cublasLtGetStatusString(status));
}

cublasStatus_t gemm_product_init(const struct gemm *g, struct product *p, int32_t rows, int32_t n, int32_t k, bool out_f32)
{
    cudaDataType_t elem = g->f16 ? CUDA_R_16F : CUDA_R_16BF;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t s = cublasLtMatmulDescInit(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatmulDescSetAttribute(&p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutInit(&p->w, elem, (uint64_t)k, (uint64_t)n, k);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutInit(&p->x, elem, (uint64_t)k, (uint64_t)rows, k);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasLtMatrixLayoutInit(&p->out, out_f32 ? CUDA_R_32F : elem, (uint64_t)n, (uint64_t)rows, n);
    return s;
}

/* Alignment of out: rows of n elements, so n decides. */
int gemm_guess(struct gemm *g, struct product *p, int32_t n, bool out_f32, int want, cublasLtMatmulHeuristicResult_t *results)
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

cublasStatus_t gemm_multiply(struct gemm *g, struct product *p, const void *x, const void *w, void *out, const cublasLtMatmulAlgo_t *algo, cudaStream_t stream)
{
    const float one = 1.0f, zero = 0.0f;

    return cublasLtMatmul(g->lt, &p->op, &one, w, &p->w, x, &p->x, &zero, out, &p->out, out, &p->out, algo, g->workspace, g->workspace_bytes, stream);
}

void gemm_entry_set(struct gemm_entry *e, const cublasLtMatmulHeuristicResult_t *result)
{
    _Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof e->algo, "an algorithm is 64 bytes");
    memcpy(e->algo, &result->algo, sizeof e->algo);
    e->workspace_bytes = result->workspaceSize;
    e->how = GEMM_LIBRARY;
}

/* A cut of launch_gemm as a word of an entry and back. */
void gemm_entry_set_plan(struct gemm_entry *e, const struct gemm_sm90_plan *plan)
{
    memset(e->algo, 0, sizeof e->algo);
    e->algo[0] = (uint64_t)plan->rows << 40 | (uint64_t)plan->cols << 24 | (uint64_t)plan->cluster_m << 16 | (uint64_t)plan->cluster_n << 8 | (uint64_t)plan->split;
    e->workspace_bytes = 0;
    e->how = GEMM_SM90;
}
struct gemm_sm90_plan gemm_entry_plan(const struct gemm_entry *e)
{
    uint64_t word = e->algo[0];
    return (struct gemm_sm90_plan){ .rows = (int32_t)(word >> 40 & 0xFFFF), .cols = (int32_t)(word >> 24 & 0xFFFF), .cluster_m = (int32_t)(word >> 16 & 0xFF),
                                    .cluster_n = (int32_t)(word >> 8 & 0xFF), .split = (int32_t)(word & 0xFF) };
}

struct gemm_kernel gemm_own_product(const struct gemm_args *a)
{
    return (struct gemm_kernel){ .x = a->x, .w = a->w, .out = a->out, .num_tokens = a->num_tokens, .n = a->n, .k = a->k, .out_f32 = a->out_f32,
                                 .silu_mul = a->silu_mul };
}

struct gemv_kernel gemm_few_rows(const struct gemm *g, const struct gemm_args *a, uint64_t cut)
{
    return (struct gemv_kernel){ .x = a->x, .w = a->w, .out = a->out, .num_tokens = a->num_tokens, .n = a->n, .k = a->k, .out_f32 = a->out_f32,
                                 .silu_mul = a->silu_mul, .add = a->add, .scale = a->scale, .rope = a->rope, .counters = g->counters,
                                 .workspace = g->workspace_bytes >= GEMM_SKINNY_WORKSPACE_BYTES ? g->workspace : NULL, .cut = (int32_t)cut };
}

int gemm_open(struct gemm **out, const struct gemm_options *options, struct err *err)
{
    struct cudaDeviceProp prop;
    int rc = 0, driver = 0;
    cublasStatus_t status;
    struct gemm *g = calloc(1, sizeof *g);

    *out = NULL;
    if (!g) return err_set(err, ERR_NO_MEMORY, "gemm: out of memory");
    g->counters = options->workspace;
    g->workspace = (char *)g->counters + MATMUL_COUNTER_BYTES;
    g->workspace_bytes = options->workspace_bytes - MATMUL_COUNTER_BYTES;
    if (cudaMemset(g->counters, 0, MATMUL_COUNTER_BYTES) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
        rc = err_set(err, ERR_INTERNAL, "gemm: workspace: %s", cudaGetErrorString(cudaGetLastError()));
        goto out;
    }
    if (cudaGetDeviceProperties(&prop, options->device) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess) {
        rc = err_set(err, ERR_INTERNAL, "gemm: no device %d", options->device);
        goto out;
    }
    g->sm = prop.major * 10 + prop.minor;
    g->f16 = options->f16;
    if ((rc = cublaslt_open(err)) < 0) goto out;
    if ((status = cublasLtCreate(&g->lt)) != CUBLAS_STATUS_SUCCESS) { rc = lt_error(err, status, "cublasLtCreate"); goto out; }
    snprintf(g->table.key, sizeof g->table.key, "%.64s, %d SMs, driver %d, cublasLt %zu, workspace %zu, kernels %d%s", prop.name,
             prop.multiProcessorCount, driver, cublasLtGetVersion(), g->workspace_bytes, KERNELS_REVISION, g->f16 ? ", f16" : "");
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

int gemm_refused(const struct gemm *g) { return g->refused; }

void gemm_close(struct gemm *g)
{
    if (!g) return;
    gemm_tune_end(g);
    if (g->lt) cublasLtDestroy(g->lt);
    free(g->cache_path);
    free(g);
}

void gemm_warm_up(struct gemm *g)
{
    enum { ROWS = 128, N = 1024, K = 1024 };
    const size_t w = (size_t)2 * N * K, x = (size_t)2 * ROWS * K, out = (size_t)2 * ROWS * N;
    cublasLtMatmulHeuristicResult_t result;
    cudaStream_t stream = NULL;
    char *memory = NULL;
    struct product p;

    if (cudaMalloc((void **)&memory, w + x + out + g->workspace_bytes) != cudaSuccess ||
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) goto out;
    if (cudaMemsetAsync(memory, 0, w + x, stream) != cudaSuccess || gemm_product_init(g, &p, ROWS, N, K, false) != CUBLAS_STATUS_SUCCESS) goto out;
    if (gemm_guess(g, &p, N, false, 1, &result) == 1) {
        const float one = 1.0f, zero = 0.0f;
        cublasLtMatmul(g->lt, &p.op, &one, memory, &p.w, memory + w, &p.x, &zero, memory + w + x, &p.out, memory + w + x, &p.out, &result.algo,
                       memory + w + x + out, g->workspace_bytes, stream);
    }
    cudaStreamSynchronize(stream);
out:
    if (stream) cudaStreamDestroy(stream);
    if (memory) cudaFree(memory);
}

/* What only gemv and launch_gemm_skinny do. */
static bool does_more(const struct gemm_args *a) { return a->add.residual || a->scale.squares || a->rope.qkv; }

int gemm_run_library(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err)
{
    struct product p;
    struct gemm_entry *e, fresh = { .n = a->n, .k = a->k, .rows = gemm_bucket(a->num_tokens), .out_f32 = a->out_f32 };
    cublasLtMatmulHeuristicResult_t result;
    cublasLtMatmulAlgo_t algo;
    cublasStatus_t status;

    if (a->silu_mul || does_more(a) || a->k % 8 != 0 || a->num_tokens < 1) return err_set(err, ERR_UNSUPPORTED, "matrix product %d x %d", a->n, a->k);
    if ((status = gemm_product_init(g, &p, a->num_tokens, a->n, a->k, a->out_f32)) != CUBLAS_STATUS_SUCCESS) return lt_error(err, status, "matrix product");
    e = gemm_table_find(&g->table, a->n, a->k, fresh.rows, a->out_f32, false);
    if (!e || e->how != GEMM_LIBRARY) {
        if (gemm_guess(g, &p, a->n, a->out_f32, 1, &result) < 1)
            return err_set(err, ERR_INTERNAL, "matrix product %d x %d x %d: the library has no algorithm", a->num_tokens, a->n, a->k);
        gemm_entry_set(&fresh, &result);
        if (!e) gemm_table_put(&g->table, &fresh);
        e = &fresh;
    }
    memcpy(&algo, e->algo, sizeof algo);
    status = gemm_multiply(g, &p, a->x, a->w, a->out, &algo, (cudaStream_t)l->stream);
    /* An algorithm chosen at the end of the bucket may refuse another T: then its own guess, this time only. */
    if ((status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) && gemm_guess(g, &p, a->n, a->out_f32, 1, &result) == 1)
        status = gemm_multiply(g, &p, a->x, a->w, a->out, &result.algo, (cudaStream_t)l->stream);
    return status == CUBLAS_STATUS_SUCCESS ? 0 : lt_error(err, status, "matrix product");
}

struct gemm_entry gemm_rule(const struct gemm *g, int32_t num_tokens, bool silu_mul)
{
    if (num_tokens <= (g->sm == 90 ? (int32_t)GEMV_RULE_ROWS : (int32_t)GEMV_MAX_ROWS)) return (struct gemm_entry){ .how = GEMM_GEMV };
    return (struct gemm_entry){ .how = silu_mul ? GEMM_APART : GEMM_LIBRARY };
}

/* How a product runs: what was timed, or the rule. */
static struct gemm_entry way_of(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k, bool out_f32, bool silu_mul)
{
    const struct gemm_entry *e = gemm_table_find(&g->table, n, k, gemm_bucket(num_tokens), out_f32, silu_mul);

    return e && e->tuned ? *e : gemm_rule(g, num_tokens, silu_mul);
}

bool gemm_fuses_silu(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k)
{
    return n % 2 == 0 && k % 8 == 0 && way_of(g, num_tokens, n, k, false, true).how != GEMM_APART;
}

/* Both have to run in gemv or launch_gemm_skinny, one in each is fine. */
bool gemm_fuses_norm(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k, int32_t next_n, bool next_silu)
{
    enum { UNIT = 16 };
    struct gemm_entry e;
    enum gemm_how how, next;
    bool pays = norm_pays(num_tokens);

    if (g->f16 || n > NORM_PIECES * UNIT || n % 8 != 0 || k % 8 != 0 || num_tokens > GEMM_SKINNY_MAX_ROWS) return false;
    e = way_of(g, num_tokens, n, k, false, false);
    how = e.how;
    next = way_of(g, num_tokens, next_n, n, false, next_silu).how;
    if (next == GEMM_APART) next = way_of(g, num_tokens, next_n, n, false, false).how;
    if ((how != GEMM_GEMV && how != GEMM_SKINNY) || (next != GEMM_GEMV && next != GEMM_SKINNY)) return false;
    if (how == GEMM_GEMV && next == GEMM_GEMV) pays = pays && gemv_gains_by_norm(num_tokens, n);
    return pays != ((e.flips & FLIP_INSIDE) != 0);
}

bool gemm_entry_rotates(const struct gemm_entry *e, int32_t head_dim, bool norms_heads)
{
    return e->how == GEMM_SKINNY && gemm_skinny_rotates((int)e->algo[0], head_dim, norms_heads);
}

bool gemm_fuses_rope(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k, int32_t head_dim, bool norms_heads)
{
    struct gemm_entry e;

    e = way_of(g, num_tokens, n, k, false, false);
    return gemm_entry_rotates(&e, head_dim, norms_heads) && rope_pays(num_tokens, norms_heads) != ((e.flips & FLIP_INSIDE) != 0);
}

bool gemm_flips_behind(struct gemm *g, int32_t num_tokens, int32_t n, int32_t k)
{
    return (way_of(g, num_tokens, n, k, false, false).flips & FLIP_BEHIND) != 0;
}

static int own_error(struct err *err, int rc, const struct gemm_args *a)
{
    return err_set(err, rc, "matrix product %d x %d x %d: %s", a->num_tokens, a->n, a->k,
                   rc == ERR_INTERNAL ? cudaGetErrorString(cudaGetLastError()) : "not supported");
}

int gemm_run(struct gemm *g, const struct gemm_args *a, const struct launch *l, struct err *err)
{
    struct gemm_entry e = way_of(g, a->num_tokens, a->n, a->k, a->out_f32, a->silu_mul);
    struct launch launch = *l;
    int rc;

    launch.pdl = l->pdl && !(e.flips & FLIP_EARLY);
    if (e.how == GEMM_GEMV || e.how == GEMM_SKINNY) {
        struct gemv_kernel few = gemm_few_rows(g, a, e.algo[0]);
        rc = e.how == GEMM_GEMV ? launch_gemv(&few, &launch) : launch_gemm_skinny(&few, &launch);
        if (rc == ERR_UNSUPPORTED && !a->silu_mul) return gemm_run_library(g, a, l, err);
        return rc < 0 ? own_error(err, rc, a) : 0;
    }
    if (e.how == GEMM_SM90 && !does_more(a)) {
        struct gemm_sm90_plan plan = gemm_entry_plan(&e);
        struct gemm_kernel own = gemm_own_product(a);
        rc = launch_gemm_planned(&own, &plan, &launch);
        if (rc == ERR_UNSUPPORTED) rc = launch_gemm(&own, &launch);          /* timed at the end of the bucket: may not fit beyond it */
        return rc < 0 ? own_error(err, rc, a) : 0;
    }
    return gemm_run_library(g, a, l, err);
}
