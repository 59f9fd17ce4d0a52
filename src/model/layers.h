/* layers.h - the blocks that decoder models share, over backend ops (private to model).
 * Residual form: a block reads act.normed, and ends by adding its output to the running sum and normalising that for the block behind.
 * The last block of a stage leaves its output in act.x instead. Everything is at most [max_tokens, ...] and carved once. */
#ifndef SLUICE_MODEL_LAYERS_H
#define SLUICE_MODEL_LAYERS_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/backend.h>
#include <sluice/model.h>

struct activations {
    void *residual, *x, *normed;       /* [T, C] */
    void *wide;                        /* [T, max((H + 2 Hk) D, 2F)]: qkv, then gate_up */
    void *inner;                       /* [T, max(H D, F)]: attention's output, then silu(gate) * up */
    void *rows;                        /* [R, C] */
    float *logits;                     /* [R, V], on a vocabulary shard also [R, its widest shard] */
    float *shard_logits, *gathered;    /* tp_size > 1: [R, Vs] and [tp_size, R, Vs] */
};
/* Bytes of the activations; with carve set, also carves them. act may be NULL without carve. */
uint64_t activations_layout(struct activations *act, const struct model_config *config, const struct shard *shard,
                            const struct backend_ops *ops, const struct model_limits *limits, struct backend *carve);

/* residual = embedding of the plan's ids. */
int  layer_embed(struct model *model, const struct step_plan *plan);
/* normed = norm(residual += x) for the stage's first layer; with_x false: nothing to add yet (right behind the embedding). */
void layer_first_norm(struct model *model, const struct step_plan *plan, bool with_x);
/* residual += attention(normed); normed = norm(residual) for the layer's MLP. */
int  layer_attention(struct model *model, const struct step_plan *plan, int64_t layer);
/* residual += mlp(normed); normed = norm(residual) for the next layer. The stage's last: x = mlp(normed). */
int  layer_mlp(struct model *model, const struct step_plan *plan, int64_t layer);
/* logits of the plan's rows, all tp ranks' vocabulary. *logits NULL when there are none. */
int  layer_head(struct model *model, const struct step_plan *plan, float **logits);

#endif
