/* layers.h - the blocks that decoder models share, over backend ops (private to model).
 * Residual form: a block adds its predecessor's output x to the running sum while it normalises, and leaves its own
 * output in act.x. Everything is at most [max_tokens, ...] and carved once. */
#ifndef SLUICE_MODEL_LAYERS_H
#define SLUICE_MODEL_LAYERS_H

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
/* x = attention(norm(residual += x)); with_x false: nothing to add yet (right behind the embedding). */
int  layer_attention(struct model *model, const struct step_plan *plan, int64_t layer, bool with_x);
/* x = mlp(norm(residual += x)) */
int  layer_mlp(struct model *model, const struct step_plan *plan, int64_t layer);
/* logits of the plan's rows, all tp ranks' vocabulary. *logits NULL when there are none. */
int  layer_head(struct model *model, const struct step_plan *plan, float **logits);

#endif
