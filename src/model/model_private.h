/* model_private.h - the model object and an architecture's row (private to model). */
#ifndef SLUICE_MODEL_PRIVATE_H
#define SLUICE_MODEL_PRIVATE_H

#include <sluice/model.h>

#include "layers.h"
#include "weights.h"

struct model_arch_desc {
    const char *name;
    struct weight_groups weights;
    int (*layers)(struct model *model, const struct step_plan *plan, int64_t num_layers);     /* the embedding and the first layers */
    int (*forward)(struct model *model, const struct step_plan *plan, float **logits);        /* all of them, and the head */
};

extern const struct model_arch_desc arch_llama, arch_qwen2, arch_qwen3;

/* Those of every Llama-shaped decoder. */
int llama_layers(struct model *model, const struct step_plan *plan, int64_t num_layers);
int llama_forward(struct model *model, const struct step_plan *plan, float **logits);

struct model {
    const struct model_arch_desc *arch;
    struct model_config config;
    struct shard shard;
    struct model_env env;
    struct weights weights;
    struct activations act;
    const float *cos_sin;              /* [max_model_len, D] */
    const struct kv_layer *kv;         /* [layers of this shard] */
};

const struct model_arch_desc *model_arch_desc(enum model_arch arch);

#endif
