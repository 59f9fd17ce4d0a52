/* model.h - what a model is: a weight-slot table and a forward pass over backend ops, in the architecture's own words.
 * A model object is one rank's shard: its weights in device memory and its forward. Thread: the rank's.
 * A new architecture is a row in model/registry.c and a file with its slot table and flags; one whose block differs
 * brings its own forward of about 150 lines over model/layers.h. */
#ifndef SLUICE_MODEL_H
#define SLUICE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include <sluice/backend.h>
#include <sluice/comm.h>
#include <sluice/err.h>
#include <sluice/loader.h>
#include <sluice/parallel.h>
#include <sluice/step_plan.h>

struct model;                          /* opaque */

/* The largest step and context a model is built for. */
struct model_limits {
    int32_t max_tokens, max_rows;      /* of one step: T, R */
    int32_t max_model_len;             /* rows of the rope table */
    int32_t block_size;
};

/* What a forward pass works with; the runner fills it once. */
struct model_env {
    const struct backend_ops *ops;
    struct backend *backend;
    const struct comm_ops *comm_ops;   /* NULL when tp_size == 1 */
    struct comm *tp_comm;
    struct model_limits limits;
    uint64_t *layers_begun;            /* counted up for each, atomically, by all ranks: who watches sees a long step move */
};

/* Device bytes of this shard: terms of the memory plan. Same arithmetic that model_load carves by.
 * src: the files, whose matrices a backend may keep as they are; NULL: unknown, all in the backend's own form. */
struct model_bytes { uint64_t weights, activations, rope_table, kv_per_block; };
int model_bytes(struct model_bytes *bytes, const struct model_config *config, const struct shard *shard,
                const struct backend_ops *ops, enum dtype kv_dtype, const struct model_limits *limits,
                const struct model_source *src, struct err *err);

/* Called with the bytes of weights stored since the last call (as fp32), from any of the backend's threads. */
typedef void model_progress(void *arg, uint64_t bytes);

/* Reads this shard's weights into memory carved from env->backend (reserve done before); carves activations and the
 * rope table too. src is only used during the call. The first error of any loading thread is the one reported. */
int  model_load(struct model **out, const struct model_source *src, const struct shard *shard,
                const struct model_env *env,
                uint64_t seed, model_progress *progress, void *progress_arg, struct err *err);
void model_free(struct model *model);
/* kv: [layers of this shard], kept by pointer; before the first forward. The model is whole then, and the backend may measure. */
int  model_set_kv(struct model *model, const struct kv_layer *kv, struct err *err);
/* fp32 bytes that model_load will report to progress in total. */
uint64_t model_load_bytes(const struct model_config *config, const struct shard *shard);

/* What one stage hands to the next: the running sum (f32) and the last block's output (ops->act_dtype), still to be added to
 * it. [T, C] each. A later stage receives into these before model_forward; an earlier one sends them after it. */
struct model_hidden { void *residual, *x; size_t residual_row_bytes, x_row_bytes; };
struct model_hidden model_hidden(const struct model *model);

/* One step of this shard. The first stage embeds plan's ids, later ones start from model_hidden. On the last stage
 * *logits is [R, V] f32 (full vocabulary, gathered over tp ranks), NULL when the plan has no rows; elsewhere NULL.
 * Returns 0 or the communicator's error. Never allocates. */
int  model_forward(struct model *model, const struct step_plan *plan, float **logits);

const char *model_arch_name(enum model_arch arch);

#endif
