/* memory.c - what the GPU holds: one workspace and one arena, each a single allocation; weights on their way there.
 * Weights come from up to LOAD_THREADS host threads. Each has a lane: a pinned buffer in two halves, so that one is filled while the
 * other is copied, and a stream of its own. */
#include "cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attn_decode_plan.h"
#include "base/bf16.h"
#include "base/bug.h"
#include "base/half.h"
#include "base/log.h"

enum { LANE_HALF = 4 << 20, LIBRARY_MIB = 192, GRAPH_KIB = 1536 };

int cuda_error(struct err *err, cudaError_t code, const char *what)
{
    return err_set(err, ERR_INTERNAL, "cuda: %s: %s (%s)", what, cudaGetErrorName(code), cudaGetErrorString(code));
}

#define CUDA_TRY(call, label)                                                                     \
    do {                                                                                          \
        cudaError_t code_ = (call);                                                               \
        if (code_ != cudaSuccess) { rc = cuda_error(err, code_, #call); goto label; }             \
    } while (0)

void cuda_check(struct backend *b, int rc, const char *op)
{
    if (rc == 0 || b->error) return;
    cudaError_t code = cudaGetLastError();
    b->error = rc;
    snprintf(b->failed_op, sizeof(b->failed_op), "%s: %s", op,
             rc == ERR_UNSUPPORTED ? "shape not supported" : cudaGetErrorString(code));
}

/* ---- arithmetic ---- */

static size_t round_up(size_t bytes) { return (bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN; }

/* Bias entries that one step of the scheduler can bring: every id of one row that allows only some, or a share for each row. */
static int32_t max_bias(const struct backend_options *o)
{
    int32_t one_row = MAX_LOGIT_BIAS + MAX_STOP_TOKEN_IDS + 16 + MAX_BAD_RUNS + o->vocab_size, shares = 256 * o->max_seqs;
    return one_row > shares ? one_row : shares;
}

static struct workspace_sizes sizes_of(const struct backend_options *o, int num_sms)
{
    struct workspace_sizes s = {
        .tokens = o->max_tokens, .seqs = o->max_seqs, .rows = o->max_rows > o->max_seqs ? o->max_rows : o->max_seqs,
        .blocks_per_seq = (o->max_model_len + o->block_size - 1) / o->block_size,
        .bias = max_bias(o), .history = o->max_seqs, .history_tokens = o->max_model_len + o->max_tokens,
        .attn_plan_words = (int32_t)(attn_decode_plan_bytes(num_sms) / sizeof(int32_t)),
        .attn_workspace = attn_decode_workspace_bytes(o->head_dim, num_sms),
        .sample_workspace = sample_workspace_bytes(o->max_rows, o->vocab_size),
    };
    size_t tokens = (size_t)s.tokens, seqs = (size_t)s.seqs, rows = (size_t)s.rows;
    s.image_bytes = sizeof(struct step_image) + tokens * 16 + seqs * 20 + seqs * (size_t)s.blocks_per_seq * 4 +
                    rows * sizeof(struct sampling_row) + (size_t)s.bias * 8 + (size_t)s.history * sizeof(struct history_entry) +
                    (size_t)s.history_tokens * 4 + (size_t)s.attn_plan_words * 4 + 16 * 20;
    s.image_bytes = round_up(s.image_bytes);
    return s;
}

static void *part(char *base, size_t *used, size_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += round_up(bytes);
    return at;
}

/* One arithmetic for the size and for the carving: base NULL only counts. */
static size_t workspace_layout(struct backend *b, char *base, const struct backend_options *o, int num_sms)
{
    struct backend scratch;
    struct workspace_sizes s = sizes_of(o, num_sms);
    size_t used = 0, tokens = (size_t)s.tokens, seqs = (size_t)s.seqs, rows = (size_t)s.rows, vocab = (size_t)o->vocab_size;
    if (!b) b = &scratch;
    struct step_arrays *a = &b->arrays;

    b->sizes = s;
    for (int i = 0; i < CUDA_STEPS; i++) b->stages[i].device = part(base, &used, s.image_bytes);
    a->input_ids = part(base, &used, tokens * 4);
    a->positions = part(base, &used, tokens * 4);
    a->slot_mapping = part(base, &used, tokens * 8);
    a->cu_seqlens_q = part(base, &used, (seqs + 1) * 4);
    a->context_lens = part(base, &used, seqs * 4);
    a->seq_slots = part(base, &used, seqs * 4);
    a->block_tables = part(base, &used, seqs * (size_t)s.blocks_per_seq * 4);
    a->rows = part(base, &used, rows * sizeof(struct sampling_row));
    a->bias_ids = part(base, &used, (size_t)s.bias * 4);
    a->bias_values = part(base, &used, (size_t)s.bias * 4);
    a->history = part(base, &used, (size_t)s.history * sizeof(struct history_entry));
    a->history_tokens = part(base, &used, (size_t)s.history_tokens * 4);
    a->attn_plan = part(base, &used, (size_t)s.attn_plan_words * 4);
    a->step = part(base, &used, 3 * sizeof(uint64_t));
    a->max_blocks_per_seq = s.blocks_per_seq;
    b->attn_workspace = part(base, &used, s.attn_workspace);
    b->squares = part(base, &used, (size_t)GEMM_SKINNY_MAX_ROWS * NORM_PIECES * sizeof(float));

    struct sample_kernel *k = &b->sampler;
    k->last_tokens = part(base, &used, seqs * 4);
    if (o->is_last) {
        k->counts = part(base, &used, seqs * vocab * 2);
        k->seen = part(base, &used, seqs * ((vocab + 31) / 32) * 4);
        k->heads = part(base, &used, rows * sizeof(struct sample_head));
        k->tops = part(base, &used, rows * MAX_TOP_LOGPROBS * sizeof(struct token_logprob));
        k->workspace = part(base, &used, s.sample_workspace);
    }
    a->last_tokens = k->last_tokens;
    return used;
}

/* The plan is made before a device is opened: the widest part there is. */
enum { PLAN_SMS = 160 };

size_t cuda_workspace_bytes(const struct backend_options *options)
{
    return workspace_layout(NULL, NULL, options, PLAN_SMS) + GEMM_WORKSPACE_BYTES;
}

uint64_t cuda_library_bytes(const struct backend_options *options)
{
    int buckets = bucket_of(options->max_seqs < MAX_BUCKET ? options->max_seqs : MAX_BUCKET) + 1;
    return ((uint64_t)LIBRARY_MIB << 20) + (uint64_t)buckets * (GRAPH_KIB << 10);
}

int cuda_device_memory(int32_t device, uint64_t *total, uint64_t *available, struct err *err)
{
    size_t free_bytes = 0, total_bytes = 0;
    int rc = 0, count = 0;
    CUDA_TRY(cudaGetDeviceCount(&count), out);
    if (device >= count) return err_set(err, ERR_CONFIG, "device cuda: GPU %d is asked for, %d are visible", (int)device, count);
    CUDA_TRY(cudaSetDevice(device), out);
    CUDA_TRY(cudaFree(NULL), out);
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes), out);
    *total = total_bytes;
    *available = free_bytes;
out:
    return rc;
}

/* ---- open and close ---- */

/* Host memory that the device writes: for each step in flight heads, tops, and the number of the step that is done. */
static int map_results(struct backend *b, struct err *err)
{
    size_t heads = round_up((size_t)b->sizes.rows * sizeof(struct sample_head));
    size_t tops = round_up((size_t)b->sizes.rows * MAX_TOP_LOGPROBS * sizeof(struct token_logprob));
    size_t half = heads + tops + CUDA_ALIGN;
    int rc = 0;
    CUDA_TRY(cudaHostAlloc((void **)&b->mapped, CUDA_STEPS * half, cudaHostAllocMapped), out);
    memset(b->mapped, 0, CUDA_STEPS * half);
    for (int i = 0; i < CUDA_STEPS; i++) {
        char *at = b->mapped + (size_t)i * half;
        b->end.host_heads[i] = (struct sample_head *)at;
        b->end.host_tops[i] = (struct token_logprob *)(at + heads);
        b->end.host_done[i] = (volatile uint64_t *)(at + heads + tops);
    }
    b->end.rows = b->arrays.rows;
    b->end.heads = b->sampler.heads;
    b->end.tops = b->sampler.tops;
    b->end.step = b->arrays.step;
out:
    return rc;
}

static int make_stages(struct backend *b, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < CUDA_STEPS; i++) {
        CUDA_TRY(cudaHostAlloc((void **)&b->stages[i].host, b->sizes.image_bytes, cudaHostAllocDefault), out);
        CUDA_TRY(cudaEventCreateWithFlags(&b->stages[i].copied, cudaEventDisableTiming), out);
    }
out:
    return rc;
}

static int choose_device(struct backend *b, struct err *err)
{
    struct cudaDeviceProp p;
    int rc = 0;
    CUDA_TRY(cudaSetDevice(b->options.device), out);
    CUDA_TRY(cudaGetDeviceProperties(&p, b->options.device), out);
    if (p.major < 8) {
        return err_set(err, ERR_CONFIG, "device cuda: %s has compute capability %d.%d, sluice needs 8.0 or newer", p.name,
                       p.major, p.minor);
    }
    CUDA_TRY(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), out);
    CUDA_TRY(cudaStreamCreateWithFlags(&b->copy_stream, cudaStreamNonBlocking), out);
    b->launch = (struct launch){ .stream = b->stream, .sm = p.major * 10 + p.minor, .num_sms = p.multiProcessorCount,
                                 .pdl = p.major >= 9, .f16 = b->options.kv_dtype == DTYPE_F16 };
    snprintf(b->description, sizeof(b->description), "%s, %d SMs, %s", p.name, p.multiProcessorCount, dtype_name(b->options.kv_dtype));
out:
    return rc;
}

/* Algorithms timed on this kind of GPU, kept for the next start. */
static const char *cache_path(char path[512], bool f16)
{
    const char *cache = getenv("CACHE_DIRECTORY"), *home = getenv("HOME");    /* systemd's name first */
    const char *kind = f16 ? "-f16" : "";
    int n = cache ? snprintf(path, 512, "%s/gemm%s.txt", cache, kind)
                  : home ? snprintf(path, 512, "%s/.cache/sluice-gemm%s.txt", home, kind) : -1;
    return n > 0 && n < 512 ? path : NULL;
}

static void *warm_main(void *arg)
{
    struct backend *b = arg;
    if (cudaSetDevice(b->options.device) == cudaSuccess) gemm_warm_up(b->gemm);
    return NULL;
}

static void await_warmer(struct backend *b)
{
    if (b->warming) pthread_join(b->warmer, NULL);
    b->warming = false;
}

int cuda_open(struct backend **out, const struct backend_options *options, enum dtype element, struct err *err)
{
    struct backend *b = NULL;
    char path[512];
    int rc = 0;

    *out = NULL;
    if (options->kv_dtype != element) {
        return err_set(err, ERR_CONFIG, "device cuda: KV cache in %s, must be %s as dtype is", dtype_name(options->kv_dtype),
                       dtype_name(element));
    }
    b = calloc(1, sizeof(*b));
    if (!b) return err_set(err, ERR_NO_MEMORY, "cuda backend");
    b->options = *options;
    b->bucket = -1;
    if ((rc = choose_device(b, err)) < 0) goto out;
    size_t layout = workspace_layout(b, NULL, options, b->launch.num_sms);
    b->workspace_bytes = layout + GEMM_WORKSPACE_BYTES;
    CUDA_TRY(cudaMalloc((void **)&b->workspace, b->workspace_bytes), out);
    CUDA_TRY(cudaMemsetAsync(b->workspace, 0, b->workspace_bytes, b->stream), out);
    workspace_layout(b, b->workspace, options, b->launch.num_sms);
    if ((rc = map_results(b, err)) < 0 || (rc = make_stages(b, err)) < 0) goto out;
    b->sampler.rows = b->arrays.rows;
    b->sampler.bias_ids = b->arrays.bias_ids;
    b->sampler.bias_values = b->arrays.bias_values;
    b->sampler.history = b->arrays.history;
    b->sampler.history_tokens = b->arrays.history_tokens;
    rc = gemm_open(&b->gemm, &(struct gemm_options){ .device = options->device, .workspace = b->workspace + layout,
                                                     .workspace_bytes = GEMM_WORKSPACE_BYTES, .f16 = b->launch.f16,
                                                     .cache_path = cache_path(path, b->launch.f16) }, err);
    if (rc < 0) goto out;
    CUDA_TRY(cudaStreamSynchronize(b->stream), out);
    b->warming = pthread_create(&b->warmer, NULL, warm_main, b) == 0;
    *out = b;
    b = NULL;
out:
    cuda_close(b);
    return rc;
}

static void release_lanes(struct backend *b)
{
    for (int i = 0; i < LOAD_THREADS; i++) {
        struct load_lane *lane = &b->lanes[i];
        if (lane->pinned) cudaFreeHost(lane->pinned);
        for (int half = 0; half < 2; half++) if (lane->free[half]) cudaEventDestroy(lane->free[half]);
        if (lane->stream) cudaStreamDestroy(lane->stream);
        *lane = (struct load_lane){ 0 };
    }
}

void cuda_close(struct backend *b)
{
    if (!b) return;
    await_warmer(b);
    release_lanes(b);
    for (int i = 0; i < NUM_BUCKETS; i++) if (b->graphs[i].exec) cudaGraphExecDestroy(b->graphs[i].exec);
    gemm_close(b->gemm);
    for (int i = 0; i < CUDA_STEPS; i++) {
        if (b->stages[i].host) cudaFreeHost(b->stages[i].host);
        if (b->stages[i].copied) cudaEventDestroy(b->stages[i].copied);
    }
    if (b->mapped) cudaFreeHost(b->mapped);
    if (b->arena) cudaFree(b->arena);
    if (b->workspace) cudaFree(b->workspace);
    if (b->copy_stream) cudaStreamDestroy(b->copy_stream);
    if (b->stream) cudaStreamDestroy(b->stream);
    free(b);
}

const char *cuda_describe(const struct backend *b) { return b->description; }

/* ---- the arena ---- */

int cuda_reserve(struct backend *b, size_t bytes, struct err *err)
{
    int rc = 0;
    BUG_ON(b->arena);
    b->arena_bytes = round_up(bytes > 0 ? bytes : 1);
    CUDA_TRY(cudaMalloc((void **)&b->arena, b->arena_bytes), out);
    /* finite numbers in KV that was never written: attention multiplies what it masks by 0 */
    CUDA_TRY(cudaMemsetAsync(b->arena, 0, b->arena_bytes, b->stream), out);
    CUDA_TRY(cudaStreamSynchronize(b->stream), out);
out:
    return rc;
}

void *cuda_carve(struct backend *b, size_t bytes)
{
    enum { UNIT = 64 };                                    /* what the memory plan counts in */
    size_t need = (bytes + UNIT - 1) / UNIT * UNIT;
    BUG_ON(need < bytes || need > b->arena_bytes - b->arena_used);
    void *at = b->arena + b->arena_used;
    b->arena_used += need;
    return at;
}

/* ---- weights ---- */

static _Thread_local struct load_lane *my_lane;

/* The lane of the calling load thread. Memory or stream not to be had: the process cannot load anything. */
static struct load_lane *lane_of(struct backend *b)
{
    struct load_lane *lane = my_lane;
    if (lane && lane->pinned) return lane;
    if (!lane) {
        int i = atomic_fetch_add(&b->num_lanes, 1);
        BUG_ON(i >= LOAD_THREADS);
        lane = my_lane = &b->lanes[i];
    }
    cudaError_t code = cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking);
    for (int half = 0; half < 2 && code == cudaSuccess; half++)
        code = cudaEventCreateWithFlags(&lane->free[half], cudaEventDisableTiming);
    if (code == cudaSuccess) code = cudaHostAlloc((void **)&lane->pinned, 2 * (size_t)LANE_HALF, cudaHostAllocDefault);
    if (code != cudaSuccess) {
        log_error("cuda_load", "pinned memory: %s", cudaGetErrorString(code));
        BUG_ON(code != cudaSuccess);
    }
    return lane;
}

/* The half to fill next, when its last copy is done. */
static char *next_half(struct load_lane *lane)
{
    lane->half ^= 1;
    cudaEventSynchronize(lane->free[lane->half]);
    return lane->pinned + (size_t)lane->half * LANE_HALF;
}

static void send_half(struct load_lane *lane, void *dst, const char *src, size_t bytes)
{
    cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, lane->stream);
    cudaEventRecord(lane->free[lane->half], lane->stream);
}

size_t cuda_weight_bytes(enum weight_kind kind, int64_t rows, int64_t cols)
{
    return (size_t)rows * (size_t)cols * (kind == WEIGHT_VECTOR ? sizeof(float) : 2);
}

void cuda_weight_store(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows, const float *src)
{
    struct load_lane *lane = lane_of(b);
    int64_t elems = n_rows * w->cols, most = LANE_HALF / (kind == WEIGHT_VECTOR ? 4 : 2);
    char *dst = (char *)w->data + cuda_weight_bytes(kind, row, w->cols);
    for (int64_t at = 0; at < elems; at += most) {
        int64_t n = elems - at < most ? elems - at : most;
        char *half = next_half(lane);
        if (kind == WEIGHT_VECTOR) memcpy(half, src + at, (size_t)n * sizeof(float));
        else if (b->launch.f16) for (int64_t i = 0; i < n; i++) ((uint16_t *)half)[i] = half_from_f32(src[at + i]);
        else for (int64_t i = 0; i < n; i++) ((uint16_t *)half)[i] = bf16_from_f32(src[at + i]);
        send_half(lane, dst + cuda_weight_bytes(kind, 1, at), half, cuda_weight_bytes(kind, 1, n));
    }
}

void cuda_store_kept(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, const void *src)
{
    struct load_lane *lane = lane_of(b);
    size_t bytes = cuda_weight_bytes(WEIGHT_MATRIX, n_rows, w->cols);
    char *dst = (char *)w->data + cuda_weight_bytes(WEIGHT_MATRIX, row, w->cols);
    for (size_t at = 0; at < bytes; at += LANE_HALF) {
        size_t n = bytes - at < LANE_HALF ? bytes - at : LANE_HALF;
        char *half = next_half(lane);
        memcpy(half, (const char *)src + at, n);
        send_half(lane, dst + at, half, n);
    }
}

void cuda_store_dummy(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, uint64_t key, int64_t first_row,
                      int64_t first_col)
{
    struct dummy_kernel args = { .out = (char *)w->data + cuda_weight_bytes(WEIGHT_MATRIX, row, w->cols), .num_rows = n_rows,
                                 .num_cols = w->cols, .key = key, .first_row = first_row, .first_col = first_col };
    BUG_ON(launch_dummy(&args, &b->launch) < 0);
}

int32_t cuda_load_chunk(void) { return LOAD_CHUNK; }

void cuda_write(struct backend *b, void *dst, const void *src, size_t bytes)
{
    cudaError_t code = cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, b->stream);
    if (code == cudaSuccess) code = cudaStreamSynchronize(b->stream);
    cuda_check(b, code == cudaSuccess ? 0 : ERR_INTERNAL, "write");
}

/* ---- host threads for loading ---- */

struct load_loop {
    struct backend *b;
    int64_t n, grain;
    _Atomic int64_t next;
    void (*fn)(void *arg, int64_t begin, int64_t end);
    void *arg;
};

static void *load_main(void *arg)
{
    struct load_loop *loop = arg;
    my_lane = NULL;
    cudaSetDevice(loop->b->options.device);
    for (int64_t begin; (begin = atomic_fetch_add(&loop->next, loop->grain)) < loop->n;) {
        loop->fn(loop->arg, begin, begin + loop->grain < loop->n ? begin + loop->grain : loop->n);
    }
    if (my_lane) cudaStreamSynchronize(my_lane->stream);
    return NULL;
}

void cuda_parallel_for(struct backend *b, int64_t n, int64_t grain, void (*fn)(void *arg, int64_t begin, int64_t end), void *arg)
{
    struct load_loop loop = { .b = b, .n = n, .grain = grain, .fn = fn, .arg = arg };
    pthread_t threads[LOAD_THREADS];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int wanted = cores < LOAD_THREADS ? (int)cores : LOAD_THREADS, started = 0;
    int64_t claims = (n + grain - 1) / grain;

    if (claims < wanted) wanted = (int)claims;
    atomic_store(&b->num_lanes, 0);
    while (started < wanted && pthread_create(&threads[started], NULL, load_main, &loop) == 0) started++;
    if (started == 0) load_main(&loop);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
}

/* ---- all is there ---- */

/* With the weights themselves, in activations that no step uses yet. */
static int tune(struct backend *b, const struct matmul_shape *shapes, int num_shapes, struct err *err)
{
    enum { SOME_MS = 700, ALL_MS = 120000, MAX_SHAPES = 8 };
    struct gemm_shape tuned[MAX_SHAPES] = { 0 };
    bool later = b->options.tuning == TUNE_IDLE;

    BUG_ON(num_shapes > MAX_SHAPES);
    for (int i = 0; i < num_shapes; i++) {
        const struct matmul_shape *s = &shapes[i];
        tuned[i] = (struct gemm_shape){ .n = (int32_t)s->rows, .k = (int32_t)s->cols, .out_f32 = s->out_f32, .silu_mul = s->silu_mul,
                                        .beside_norm = s->beside_norm, .rope_head = s->rope_head, .norms_heads = s->norms_heads,
                                        .behind_large = s->behind_large, .max_rows = s->max_tokens, .x = s->x, .out = s->out, .spare = s->spare, .spare_bytes = s->spare_bytes };
        for (; tuned[i].num_w < s->num_w && tuned[i].num_w < GEMM_MAX_COPIES; tuned[i].num_w++) tuned[i].w[tuned[i].num_w] = s->w[tuned[i].num_w]->data;
    }
    return gemm_tune(b->gemm, &(struct gemm_tune_args){ .shapes = tuned, .num_shapes = num_shapes, .max_rows = b->options.max_tokens,
                                                        .layers = cuda_rehearsal(b, shapes, num_shapes), .budget_ms = later ? SOME_MS : ALL_MS, .later = later }, &b->launch, err);
}

int cuda_loaded(struct backend *b, const struct matmul_shape *shapes, int num_shapes, const struct rehearsal *rehearsal, struct err *err)
{
    int rc = 0;
    b->rehearsal = *rehearsal;
    await_warmer(b);
    CUDA_TRY(cudaStreamSynchronize(b->stream), out);
    CUDA_TRY(cudaGetLastError(), out);
    release_lanes(b);
    if (b->options.tuning != TUNE_OFF && (rc = tune(b, shapes, num_shapes, err)) < 0) goto out;
    CUDA_TRY(cudaStreamSynchronize(b->stream), out);
out:
    return rc;
}
