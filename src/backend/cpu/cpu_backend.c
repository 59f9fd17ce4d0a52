/* cpu_backend.c - see cpu_backend.h. */
#include "cpu_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

void cpu_backend_synchronize(struct backend *b) { (void)b; }

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

void cpu_backend_gather_rows(struct backend *b, const struct gather_rows_args *args)
{
    (void)b;
    const struct sampling_row *rows = plan_rows(args->plan);
    size_t row_bytes = (size_t)args->hidden * sizeof(float);
    for (int32_t r = 0; r < args->plan->num_rows; r++) {
        BUG_ON(rows[r].token < 0 || rows[r].token >= args->plan->num_tokens);
        memcpy((char *)args->out + (size_t)r * row_bytes, (const char *)args->x + (size_t)rows[r].token * row_bytes,
               row_bytes);
    }
}

void cpu_backend_sample(struct backend *b, const struct sample_args *args)
{
    BUG_ON(args->vocab_size > b->options.vocab_size);
    sampler_run(&b->sampler, b->pool, b->kernels, args);
}
