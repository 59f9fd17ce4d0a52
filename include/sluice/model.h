/* model.h - what a model is: a weight-slot table and a forward pass over backend ops, in the architecture's own words.
 * A model object is one rank's shard: its weights in device memory and its forward. Thread: the rank's.
 * A new architecture is a row in model/registry.c, a slot table and a forward of about 150 lines. */
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

/* What a forward pass works with; the runner fills it once. */
struct model_env {
    const struct backend_ops *ops;
    struct backend *backend;
    const struct comm_ops *comm_ops;   /* NULL when tp_size == 1 */
    struct comm *tp_comm;
    int32_t max_tokens, max_rows;      /* largest step */
    int32_t max_model_len;             /* rows of the rope table */
    int32_t block_size, num_blocks;
    struct kv_layer *kv;               /* [layers of this shard], set before the first forward */
};

/* Device bytes of this shard: terms of the memory plan. Same arithmetic that model_load carves by. */
struct model_bytes { uint64_t weights, activations, rope_table, kv_per_block; };
int model_bytes(struct model_bytes *bytes, const struct model_config *config, const struct shard *shard,
                const struct backend_ops *ops, enum dtype kv_dtype, int32_t max_tokens, int32_t max_rows,
                int32_t max_model_len, int32_t block_size, struct err *err);

/* Reads this shard's weights into memory carved from env->backend (reserve done before). progress may be NULL; it is called
 * with bytes read so far, from any of the backend's threads. */
int  model_load(struct model **out, const struct model_source *src, const struct shard *shard, const struct model_env *env,
                uint64_t seed, void (*progress)(void *arg, uint64_t bytes), void *progress_arg, struct err *err);
void model_free(struct model *model);

/* One step of this shard. First stage: embeds plan's ids; later stages: hidden (f32 [T, C]) comes in `hidden_in`.
 * Not the last stage: hidden_out [T, C] is left for the next stage. Last stage: logits [R, V] f32 (full vocabulary, gathered
 * over tp ranks) in *logits. Returns 0 or the communicator's error. */
int  model_forward(struct model *model, const struct step_plan *plan, const void *hidden_in, void **hidden_out, float **logits);

const char *model_arch_name(enum model_arch arch);

#endif
