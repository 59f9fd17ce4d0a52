/* cublaslt.c - the functions of cublasLt that gemm.c calls, each a jump to the library's. A function more: a row and a jump. */
#include "cublaslt.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include <cublasLt.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)
#define INSTALLED "/usr/local/cuda/lib64/" LIBRARY

#define FUNCTIONS(X) \
    X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtGetStatusString) X(cublasLtGetVersion) X(cublasLtMatmul) \
    X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmulDescInit_internal) X(cublasLtMatmulDescSetAttribute) \
    X(cublasLtMatmulPreferenceInit_internal) X(cublasLtMatmulPreferenceSetAttribute) X(cublasLtMatrixLayoutInit_internal)

/* Written once, under the lock, before any of the functions is called. */
static struct {
#define FIELD(name) __typeof__(&name) name;
    FUNCTIONS(FIELD)
#undef FIELD
} lib;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool is_open;

static int open_locked(struct err *err)
{
    char why[160];
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, sizeof why, "%s", dlerror());
        library = dlopen(INSTALLED, RTLD_NOW | RTLD_LOCAL);
    }
    if (!library) return err_set(err, ERR_CONFIG, "a GPU needs cuBLAS %d: %s; nor is it in /usr/local/cuda/lib64", CUBLAS_VER_MAJOR, why);
#define LOAD(name)                                    \
    *(void **)&lib.name = dlsym(library, #name);      \
    if (!lib.name) return err_set(err, ERR_CONFIG, LIBRARY " has no %s: not the version this program was built for", #name);
    FUNCTIONS(LOAD)
#undef LOAD
    is_open = true;                                   /* it stays open: its threads may still be at work */
    return 0;
}

int cublaslt_open(struct err *err)
{
    pthread_mutex_lock(&lock);
    int rc = is_open ? 0 : open_locked(err);
    pthread_mutex_unlock(&lock);
    return rc;
}

/* ---- the jumps ---- */

#define CALL(name, ...) return lib.name ? lib.name(__VA_ARGS__) : CUBLAS_STATUS_NOT_INITIALIZED

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { CALL(cublasLtCreate, handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { CALL(cublasLtDestroy, handle); }
size_t cublasLtGetVersion(void) { return lib.cublasLtGetVersion ? lib.cublasLtGetVersion() : 0; }

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return lib.cublasLtGetStatusString ? lib.cublasLtGetStatusString(status) : "cublasLt is not open";
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_desc, const void *b, cublasLtMatrixLayout_t b_desc, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_desc, void *d, cublasLtMatrixLayout_t d_desc,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    CALL(cublasLtMatmul, handle, desc, alpha, a, a_desc, b, b_desc, beta, c, c_desc, d, d_desc, algo, workspace, workspace_bytes,
         stream);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int want,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    CALL(cublasLtMatmulAlgoGetHeuristic, handle, desc, a, b, c, d, preference, want, results, found);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size, cublasComputeType_t compute, cudaDataType_t scale)
{
    CALL(cublasLtMatmulDescInit_internal, desc, size, compute, scale);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void *value,
                                              size_t size)
{
    CALL(cublasLtMatmulDescSetAttribute, desc, attribute, value, size);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, size_t size)
{
    CALL(cublasLtMatmulPreferenceInit_internal, preference, size);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t size)
{
    CALL(cublasLtMatmulPreferenceSetAttribute, preference, attribute, value, size);
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size, cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld)
{
    CALL(cublasLtMatrixLayoutInit_internal, layout, size, type, rows, cols, ld);
}
