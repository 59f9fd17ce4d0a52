/* cpu_backend.c - see cpu_backend.h. */
#include "cpu_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <sluice/parallel.h>

#include "base/bug.h"

static size_t align_up(size_t bytes) { return (bytes + CPU_ALIGN - 1) & ~(size_t)(CPU_ALIGN - 1); }

/* One arithmetic for the size and for the carving: base NULL only counts. */
static size_t workspace_layout(struct backend *b, char *base, const struct backend_options *options)
{
    size_t used = 0, threads = (size_t)options->threads;

    if (b) b->packed = base + used;
    used += PACK_BYTES;
    if (b) b->task_begin = (int32_t *)(base + used);
    used += align_up(((size_t)options->max_seqs + 1) * sizeof(int32_t));
    if (b) b->attend_scratch = base + used;
    used += threads * attend_scratch_bytes(MAX_HEAD_DIM);
    used += sampler_layout(b ? &b->sampler : NULL, base ? base + used : NULL, options);
    return used;
}

size_t cpu_backend_workspace_bytes(const struct backend_options *options)
{
    return workspace_layout(NULL, NULL, options);
}

/* Zeroed, untouched pages; huge ones where the system gives them: a weight is streamed, fewer page walks pay. */
static char *map_pages(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

int cpu_backend_new(struct backend **out, const struct backend_options *options, const struct cpu_kernels *kernels,
                    const char *what, struct err *err)
{
    int rc = 0;
    struct backend *b = NULL;

    *out = NULL;
    if (options->threads < 1 || options->max_seqs < 1 || options->vocab_size < 1)
        return err_set(err, ERR_CONFIG, "cpu backend: threads %d, max_seqs %d, vocab_size %d", options->threads,
                       options->max_seqs, options->vocab_size);
    b = calloc(1, sizeof *b);
    if (!b) return err_set(err, ERR_NO_MEMORY, "cpu backend");
    b->options = *options;
    b->kernels = kernels;
    b->workspace_bytes = cpu_backend_workspace_bytes(options);
    b->workspace = map_pages(b->workspace_bytes);
    if (!b->workspace) {
        rc = err_sys(err, ERR_NO_MEMORY, "cpu backend: workspace of %zu bytes", b->workspace_bytes);
        goto out;
    }
    workspace_layout(b, b->workspace, options);
    if ((rc = pool_new(&b->pool, options->threads, err)) < 0) goto out;
    snprintf(b->description, sizeof b->description, "%s, %d thread%s", what, options->threads,
             options->threads == 1 ? "" : "s");
    *out = b;
    b = NULL;
out:
    cpu_backend_free(b);
    return rc;
}

void cpu_backend_free(struct backend *b)
{
    if (!b) return;
    pool_free(b->pool);
    if (b->workspace) munmap(b->workspace, b->workspace_bytes);
    if (b->arena) munmap(b->arena, b->arena_bytes);
    free(b);
}

const char *cpu_backend_describe(const struct backend *b) { return b->description; }

int cpu_backend_reserve(struct backend *b, size_t bytes, struct err *err)
{
    BUG_ON(b->arena);
    b->arena_bytes = align_up(bytes > 0 ? bytes : 1);
    b->arena = map_pages(b->arena_bytes);
    if (!b->arena) return err_sys(err, ERR_NO_MEMORY, "cpu backend: %zu bytes", b->arena_bytes);
    madvise(b->arena, b->arena_bytes, MADV_HUGEPAGE);      /* a wish: refused where the kernel has none */
    return 0;
}

void *cpu_backend_carve(struct backend *b, size_t bytes)
{
    size_t need = align_up(bytes);
    BUG_ON(need < bytes || need > b->arena_bytes - b->arena_used);
    void *at = b->arena + b->arena_used;
    b->arena_used += need;
    return at;
}

const struct step_plan *cpu_backend_upload(struct backend *b, const struct step_plan *plan)
{
    (void)b;
    return plan;
}

struct plain_loop {
    void (*fn)(void *arg, int64_t begin, int64_t end);
    void *arg;
};

static void plain_body(void *arg, int thread, int64_t begin, int64_t end)
{
    const struct plain_loop *loop = arg;
    (void)thread;
    loop->fn(loop->arg, begin, end);
}

void cpu_backend_parallel_for(struct backend *b, int64_t n, int64_t grain,
                              void (*fn)(void *arg, int64_t begin, int64_t end), void *arg)
{
    struct plain_loop loop = { fn, arg };
    pool_run(b->pool, n, grain, plain_body, &loop);
}

int64_t cpu_grain(const struct backend *b, int64_t n, int64_t work_per_item)
{
    enum { WORTH = 16384 };                /* floats touched that outweigh a wake-up of some microseconds */
    int64_t least = work_per_item > 0 ? (WORTH + work_per_item - 1) / work_per_item : n;
    int64_t even = n / ((int64_t)pool_threads(b->pool) * 4);
    int64_t grain = least > even ? least : even;
    return grain > 1 ? grain : 1;
}

void cpu_backend_matmul_rope(struct backend *b, const struct matmul_rope_args *args, void (*matmul)(struct backend *b, const struct matmul_args *args),
                             void (*rope_store)(struct backend *b, const struct rope_store_args *args))
{
    matmul(b, &(struct matmul_args){ .x = args->x, .w = args->w, .out = args->rope.qkv, .num_tokens = args->rope.num_tokens });
    rope_store(b, &args->rope);
}

void cpu_backend_matmul_norm(struct backend *b, const struct matmul_norm_args *args, void (*matmul)(struct backend *b, const struct matmul_args *args),
                             void (*rmsnorm)(struct backend *b, const struct rmsnorm_args *args))
{
    matmul(b, &(struct matmul_args){ .x = args->x, .w = args->w, .out = args->out, .num_tokens = args->num_tokens });
    rmsnorm(b, &(struct rmsnorm_args){ .x = args->out, .residual = args->residual, .weight = args->norm, .out = args->normed,
                                       .num_tokens = args->num_tokens, .hidden = (int32_t)args->w->rows, .eps = args->eps });
}

void cpu_backend_norm_rows(struct backend *b, const struct norm_rows_args *args,
                           void (*rmsnorm)(struct backend *b, const struct rmsnorm_args *args))
{
    const struct sampling_row *rows = plan_rows(args->plan);
    for (int32_t r = 0; r < args->plan->num_rows; r++) {
        BUG_ON(rows[r].token < 0 || rows[r].token >= args->plan->num_tokens);
        int64_t from = (int64_t)rows[r].token * args->hidden;
        const float *residual = (const float *)args->residual + from, *x = (const float *)args->x + from;
        float *out = (float *)args->out + (int64_t)r * args->hidden;
        for (int32_t c = 0; c < args->hidden; c++) out[c] = residual[c] + x[c];
    }
    rmsnorm(b, &(struct rmsnorm_args){ .residual = args->out, .weight = args->weight, .out = args->out,
                                       .num_tokens = args->plan->num_rows, .hidden = args->hidden, .eps = args->eps });
}

void cpu_backend_join_shards(struct backend *b, const struct join_shards_args *args)
{
    (void)b;
    for (int t = 0; t < args->tp_size; t++) {
        struct range range = vocab_range(args->vocab_size, args->tp_size, t);
        int64_t len = range_len(range);
        const float *shard = args->gathered + t * args->num_rows * args->widest;
        for (int64_t r = 0; r < args->num_rows; r++)
            memcpy(args->logits + r * args->vocab_size + range.begin, shard + r * len, (size_t)len * sizeof(float));
    }
}

void cpu_backend_write(struct backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    memcpy(dst, src, bytes);
}

int cpu_backend_loaded(struct backend *b, const struct matmul_shape *shapes, int num_shapes, const struct rehearsal *rehearsal, struct err *err)
{
    (void)rehearsal;
    (void)b;
    (void)shapes;
    (void)num_shapes;
    (void)err;
    return 0;
}

/* Ops have finished when they return: nothing is ever in flight. */
bool cpu_backend_step_begin(struct backend *b, const struct step_plan *uploaded)
{
    (void)b;
    (void)uploaded;
    return true;
}
int cpu_backend_step_end(struct backend *b, const struct step_plan *uploaded)
{
    (void)b;
    (void)uploaded;
    return 0;
}
bool cpu_backend_done(struct backend *b)
{
    (void)b;
    return true;
}
int cpu_backend_collect(struct backend *b, struct step_result *result)
{
    (void)b;
    (void)result;
    return 0;
}
void *cpu_backend_stream(struct backend *b)
{
    (void)b;
    return NULL;
}

void cpu_backend_sample(struct backend *b, const struct sample_args *args)
{
    BUG_ON(args->vocab_size > b->options.vocab_size);
    sampler_run(&b->sampler, b->pool, b->kernels, args);
}
