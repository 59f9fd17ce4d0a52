/* llama.c - Llama 2 and 3.x, Mistral, SmolLM2: pre-norm decoder, grouped-query attention with rotary positions, SwiGLU.
 * Qwen2 and Qwen3 differ from it by optional weights only (biases, q/k norms), so they share this forward. */
#include <stdbool.h>

#include "model_private.h"
#include "slots.h"

int llama_layers(struct model *model, const struct step_plan *plan, int64_t num_layers)
{
    const struct shard *shard = &model->shard;
    int rc = 0;

    if (shard->has_embedding && (rc = layer_embed(model, plan)) < 0) return rc;
    if (num_layers > 0) layer_first_norm(model, plan, !shard->has_embedding);
    for (int64_t layer = 0; layer < num_layers; layer++) {
        if ((rc = layer_attention(model, plan, layer)) < 0) return rc;
        if ((rc = layer_mlp(model, plan, layer)) < 0) return rc;
    }
    return 0;
}

int llama_forward(struct model *model, const struct step_plan *plan, float **logits)
{
    int rc = llama_layers(model, plan, range_len(model->shard.layers));

    *logits = NULL;
    return rc == 0 && model->shard.has_head ? layer_head(model, plan, logits) : rc;
}

const struct model_arch_desc arch_llama = {
    .name = "llama",
    .weights = { .once = { SLOT_GROUP(embedding_slots) },
                 .layer = { SLOT_GROUP(decoder_slots), SLOT_GROUP(qkv_bias_slots) } },
    .layers = llama_layers,
    .forward = llama_forward,
};
