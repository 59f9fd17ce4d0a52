/* cpu_backend.h - what the two CPU backends share: threads, the arena, the workspace, the sampler.
 * ref and fast differ in the layout of weights and KV and in the bodies of the ops; a backend never changes its kind.
 * Owner: the rank. Thread: the rank's; op bodies run on the pool's threads. No allocation after cpu_backend_new/reserve. */
#ifndef SLUICE_BACKEND_CPU_BACKEND_H
#define SLUICE_BACKEND_CPU_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include <sluice/backend.h>

#include "kernels.h"
#include "pool.h"
#include "sampler.h"

enum {
    CPU_ALIGN = 64,
    MAX_HEAD_DIM = 512,
    PACK_BYTES = 2 << 20,                  /* packed activations of one row chunk of a matmul (fast) */
};

struct backend {
    struct backend_options options;
    const struct cpu_kernels *kernels;
    struct pool *pool;
    char description[96];
    char *arena;                           /* mmap: pages appear when touched */
    size_t arena_bytes, arena_used;
    char *workspace;                       /* mmap of workspace_bytes() */
    size_t workspace_bytes;
    /* carved from the workspace */
    void *packed;                          /* PACK_BYTES */
    int32_t *task_begin;                   /* [max_seqs + 1] first attention task of each sequence */
    char *attend_scratch;                  /* [threads][attend_scratch_bytes()] */
    struct sampler sampler;
};

int  cpu_backend_new(struct backend **out, const struct backend_options *options, const struct cpu_kernels *kernels,
                     const char *what, struct err *err);
void cpu_backend_free(struct backend *b);
const char *cpu_backend_describe(const struct backend *b);
int  cpu_backend_reserve(struct backend *b, size_t bytes, struct err *err);
void *cpu_backend_carve(struct backend *b, size_t bytes);
size_t cpu_backend_workspace_bytes(const struct backend_options *options);
const struct step_plan *cpu_backend_upload(struct backend *b, const struct step_plan *plan);
void cpu_backend_write(struct backend *b, void *dst, const void *src, size_t bytes);
int  cpu_backend_loaded(struct backend *b, const struct matmul_shape *shapes, int num_shapes, const struct rehearsal *rehearsal, struct err *err);
bool cpu_backend_step_begin(struct backend *b, const struct step_plan *uploaded);
int  cpu_backend_step_end(struct backend *b, const struct step_plan *uploaded);
bool cpu_backend_done(struct backend *b);
int  cpu_backend_collect(struct backend *b, struct step_result *result);
void *cpu_backend_stream(struct backend *b);
void cpu_backend_parallel_for(struct backend *b, int64_t n, int64_t grain,
                              void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);
void cpu_backend_norm_rows(struct backend *b, const struct norm_rows_args *args,
                           void (*rmsnorm)(struct backend *b, const struct rmsnorm_args *args));
/* The two ops one behind the other. */
void cpu_backend_matmul_rope(struct backend *b, const struct matmul_rope_args *args, void (*matmul)(struct backend *b, const struct matmul_args *args),
                             void (*rope_store)(struct backend *b, const struct rope_store_args *args));
void cpu_backend_matmul_norm(struct backend *b, const struct matmul_norm_args *args, void (*matmul)(struct backend *b, const struct matmul_args *args),
                             void (*rmsnorm)(struct backend *b, const struct rmsnorm_args *args));
void cpu_backend_join_shards(struct backend *b, const struct join_shards_args *args);
void cpu_backend_sample(struct backend *b, const struct sample_args *args);

struct embed_job { const struct embed_args *args; const token_id *last_tokens; };
/* Row of the table for token t; outside of it: zeros. */
static inline int64_t embed_row(const struct embed_job *job, int64_t t)
{
    token_id id = job->args->ids[t];

    if (id == TOKEN_FEEDBACK) id = job->last_tokens[job->args->seq_slots[t]];
    return id < 0 ? -1 : (int64_t)id - job->args->first_row;
}

/* Rows for one claim of the pool: enough work to pay for the claim, enough claims to balance. */
int64_t cpu_grain(const struct backend *b, int64_t n, int64_t work_per_item);

#endif
