/* qwen2.c - Qwen2 and Qwen2.5: Llama's block with biases on q, k and v. */
#include "model_private.h"
#include "slots.h"

const struct model_arch_desc arch_qwen2 = {
    .name = "qwen2",
    .weights = { .once = { SLOT_GROUP(embedding_slots) },
                 .layer = { SLOT_GROUP(decoder_slots), SLOT_GROUP(qkv_bias_slots) } },
    .layers = llama_layers,
    .forward = llama_forward,
};
