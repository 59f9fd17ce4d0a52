/* qwen3.c - Qwen3: Llama's block with an RMS norm of each q and k head before the rotation. */
#include "model_private.h"
#include "slots.h"

static const struct weight_slot qk_norm_slots[] = {
    { W_Q_NORM, "self_attn.q_norm.weight", "attn_q_norm.weight", DIM_HEAD, DIM_ONE, .dummy = DUMMY_ONE },
    { W_K_NORM, "self_attn.k_norm.weight", "attn_k_norm.weight", DIM_HEAD, DIM_ONE, .dummy = DUMMY_ONE },
};

const struct model_arch_desc arch_qwen3 = {
    .name = "qwen3",
    .weights = { .once = { SLOT_GROUP(embedding_slots) },
                 .layer = { SLOT_GROUP(decoder_slots), SLOT_GROUP(qk_norm_slots), SLOT_GROUP(qkv_bias_slots) } },
    .layers = llama_layers,
    .forward = llama_forward,
};
