/* comm_nccl.c - ranks are GPUs of this process, one thread each; collectives are NCCL's, on the rank's own stream.
 * The library is opened at run time (libnccl.so.2): an engine of one GPU needs none. Communicators are non-blocking: a call that
 * answers "in progress" is polled until its time is up, and abort, from any thread, ends them all. NVLink multicast stays off
 * (NCCL_NVLS_ENABLE=0), bootstrap keeps to loopback, the RAS listener is off.
 * join runs one small collective, and a send and a receive with every peer, so that connections exist before a step is captured. */
#include <sluice/comm.h>

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"

#define NCCL_SYMBOLS(X) \
    X(ncclGetUniqueId) X(ncclCommInitRankConfig) X(ncclCommGetAsyncError) X(ncclCommAbort) X(ncclCommDestroy) X(ncclAllReduce) \
    X(ncclAllGather) X(ncclBroadcast) X(ncclSend) X(ncclRecv) X(ncclGroupStart) X(ncclGroupEnd) X(ncclGetErrorString)

struct nccl {
    void *library;
#define FIELD(name) __typeof__(&name) name;
    NCCL_SYMBOLS(FIELD)
#undef FIELD
};

struct comm {
    struct comm_group *group;
    int rank;
    ncclComm_t nccl;
    cudaStream_t stream;
    float *scratch;                                /* [size + 1], of join and barrier */
    atomic_bool waiting;
};

struct comm_group {
    struct nccl lib;
    int size;
    int64_t timeout_ns;
    ncclUniqueId id;
    atomic_bool aborted;
    struct comm *ends;                             /* [size] */
};

/* ---- the library ---- */

static int open_library(struct nccl *lib, struct err *err)
{
    lib->library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!lib->library) lib->library = dlopen("/usr/local/cuda/lib64/libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!lib->library) return err_set(err, ERR_CONFIG, "several GPUs in one replica need NCCL: %s", dlerror());
#define LOAD(name)                                                                                          \
    *(void **)&lib->name = dlsym(lib->library, #name);                                                      \
    if (!lib->name) return err_set(err, ERR_CONFIG, "libnccl.so.2 has no %s: version 2.14 or newer is needed", #name);
    NCCL_SYMBOLS(LOAD)
#undef LOAD
    return 0;
}

/* Only what nobody has set: an operator may know better, but for multicast. */
static void set_environment(void)
{
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    setenv("NCCL_RAS_ENABLE", "0", 0);
    setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);  /* two communicators on one stream keep its order */
}

/* ---- groups ---- */

static void nccl_free_group(struct comm_group *group)
{
    if (!group) return;
    for (int i = 0; group->ends && i < group->size; i++) {
        struct comm *c = &group->ends[i];
        if (c->nccl) {
            if (atomic_load(&group->aborted)) group->lib.ncclCommAbort(c->nccl);
            else group->lib.ncclCommDestroy(c->nccl);
        }
        if (c->scratch) cudaFree(c->scratch);
    }
    free(group->ends);
    free(group);                                   /* the library stays open: its threads may still be at work */
}

static int nccl_new_group(struct comm_group **out, int size, int64_t timeout_ms, struct err *err)
{
    struct comm_group *group = NULL;
    int rc = 0;
    *out = NULL;
    if (size < 1 || size > MAX_COMM_RANKS) return err_set(err, ERR_CONFIG, "comm_nccl: %d ranks, 1 to %d", size, MAX_COMM_RANKS);
    set_environment();
    group = calloc(1, sizeof(*group));
    if (group) group->ends = calloc((size_t)size, sizeof(*group->ends));
    if (!group || !group->ends) { rc = err_set(err, ERR_NO_MEMORY, "comm_nccl"); goto out; }
    group->size = size;
    group->timeout_ns = timeout_ms * 1000000;
    for (int i = 0; i < size; i++) group->ends[i] = (struct comm){ .group = group, .rank = i };
    if ((rc = open_library(&group->lib, err)) < 0) goto out;
    ncclResult_t code = group->lib.ncclGetUniqueId(&group->id);
    if (code != ncclSuccess) { rc = err_set(err, ERR_INTERNAL, "ncclGetUniqueId: %s", group->lib.ncclGetErrorString(code)); goto out; }
    *out = group;
    group = NULL;
out:
    nccl_free_group(group);
    return rc;
}

static struct comm *nccl_end(struct comm_group *group, int rank) { return &group->ends[rank]; }

/* Any thread. ncclCommAbort frees the communicator, so the group is only marked here: every rank's next poll or check sees it, and
 * kernels that wait for a peer are ended with the process. */
static void nccl_abort(struct comm *c) { atomic_store(&c->group->aborted, true); }

static bool nccl_waiting(const struct comm *c) { return atomic_load(&c->waiting); }

/* Until the call behind `code` is accepted. */
static int settle(struct comm *c, ncclResult_t code)
{
    struct comm_group *group = c->group;
    int64_t until_ns = clock_now_ns() + group->timeout_ns;
    atomic_store(&c->waiting, true);
    while (code == ncclInProgress && !atomic_load(&group->aborted)) {
        if (group->lib.ncclCommGetAsyncError(c->nccl, &code) != ncclSuccess) code = ncclInternalError;
        if (code == ncclInProgress && clock_now_ns() > until_ns) code = ncclSystemError;
        if (code == ncclInProgress) sched_yield();
    }
    atomic_store(&c->waiting, false);
    if (code == ncclSuccess && !atomic_load(&group->aborted)) return 0;
    if (!atomic_exchange(&group->aborted, true)) log_error("nccl", "rank %d: %s", c->rank, group->lib.ncclGetErrorString(code));
    return ERR_ENDED;
}

static int nccl_check(struct comm *c)
{
    ncclResult_t code = ncclSuccess;
    if (atomic_load(&c->group->aborted)) return ERR_ENDED;
    if (c->group->lib.ncclCommGetAsyncError(c->nccl, &code) != ncclSuccess) code = ncclInternalError;
    if (code == ncclSuccess || code == ncclInProgress) return 0;
    if (!atomic_exchange(&c->group->aborted, true)) log_error("nccl", "rank %d: %s", c->rank, c->group->lib.ncclGetErrorString(code));
    return ERR_ENDED;
}

/* ---- calls ---- */

static ncclDataType_t nccl_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? ncclBfloat16 : dtype == DTYPE_F16 ? ncclFloat16 : ncclFloat32;
}

static int nccl_all_reduce(struct comm *c, void *data, int64_t n, enum dtype dtype)
{
    return settle(c, c->group->lib.ncclAllReduce(data, data, (size_t)n, nccl_type(dtype), ncclSum, c->nccl, c->stream));
}

static int nccl_all_gather(struct comm *c, const void *src, void *dst, int64_t n, enum dtype dtype)
{
    return settle(c, c->group->lib.ncclAllGather(src, dst, (size_t)n, nccl_type(dtype), c->nccl, c->stream));
}

static int nccl_broadcast(struct comm *c, void *data, int64_t bytes, int root)
{
    return settle(c, c->group->lib.ncclBroadcast(data, data, (size_t)bytes, ncclInt8, root, c->nccl, c->stream));
}

static int nccl_send(struct comm *c, const void *data, int64_t bytes, int peer)
{
    return settle(c, c->group->lib.ncclSend(data, (size_t)bytes, ncclInt8, peer, c->nccl, c->stream));
}

static int nccl_recv(struct comm *c, void *data, int64_t bytes, int peer)
{
    return settle(c, c->group->lib.ncclRecv(data, (size_t)bytes, ncclInt8, peer, c->nccl, c->stream));
}

static int nccl_barrier(struct comm *c) { return nccl_all_reduce(c, c->scratch, 1, DTYPE_F32); }

/* A stage sends to the next and receives from the one before: both directions of every pair are opened, one after the other. */
static int open_connections(struct comm *c)
{
    int rc = nccl_barrier(c);
    if (rc == 0) rc = nccl_all_gather(c, c->scratch, c->scratch + 1, 1, DTYPE_F32);
    for (int peer = 0; peer + 1 < c->group->size && rc == 0; peer++) {
        if (c->rank == peer) rc = nccl_send(c, c->scratch, 4, peer + 1);
        if (c->rank == peer + 1) rc = nccl_recv(c, c->scratch, 4, peer);
    }
    return rc < 0 ? rc : cudaStreamSynchronize(c->stream) == cudaSuccess ? 0 : ERR_ENDED;
}

static int nccl_join(struct comm *c, int32_t device, void *stream, struct err *err)
{
    struct comm_group *group = c->group;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    size_t bytes = ((size_t)group->size + 1) * sizeof(float);
    config.blocking = 0;
    c->stream = stream;
    if (cudaSetDevice(device) != cudaSuccess || cudaMalloc((void **)&c->scratch, bytes) != cudaSuccess ||
        cudaMemset(c->scratch, 0, bytes) != cudaSuccess) {
        return err_set(err, ERR_INTERNAL, "comm_nccl: rank %d: %s", c->rank, cudaGetErrorString(cudaGetLastError()));
    }
    int rc = settle(c, group->lib.ncclCommInitRankConfig(&c->nccl, group->size, group->id, c->rank, &config));
    if (rc == 0) rc = open_connections(c);
    return rc < 0 ? err_set(err, ERR_INTERNAL, "comm_nccl: rank %d of %d could not join on GPU %d", c->rank, group->size, (int)device) : 0;
}

const struct comm_ops comm_nccl_ops = {
    .name = "nccl",
    .new_group = nccl_new_group,
    .end = nccl_end,
    .free_group = nccl_free_group,
    .join = nccl_join,
    .check = nccl_check,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .broadcast = nccl_broadcast,
    .send = nccl_send,
    .recv = nccl_recv,
    .barrier = nccl_barrier,
    .abort = nccl_abort,
    .waiting = nccl_waiting,
};
