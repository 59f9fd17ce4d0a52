/* slots.c - the tensors of a Llama-shaped decoder, in the words of both containers. No .part: replicated. */
#include "slots.h"

/*   into        safetensors                      gguf                  rows        cols       .part */
const struct weight_slot embedding_slots[3] = {
    { W_EMBED, "model.embed_tokens.weight", "token_embd.weight", DIM_VOCAB, DIM_HIDDEN, .part = PART_VOCAB },
    { W_FINAL_NORM, "model.norm.weight", "output_norm.weight", DIM_HIDDEN, DIM_ONE, .dummy = DUMMY_ONE },
    { W_HEAD, "lm_head.weight", "output.weight", DIM_VOCAB, DIM_HIDDEN, .part = PART_VOCAB, .when = WHEN_UNTIED },
};

const struct weight_slot decoder_slots[9] = {
    { W_ATTN_NORM, "input_layernorm.weight", "attn_norm.weight", DIM_HIDDEN, DIM_ONE, .dummy = DUMMY_ONE },
    { W_QKV, "self_attn.q_proj.weight", "attn_q.weight", DIM_Q, DIM_HIDDEN, .part = PART_QKV, .rope_rows = true },
    { W_QKV, "self_attn.k_proj.weight", "attn_k.weight", DIM_KV, DIM_HIDDEN, .part = PART_QKV, .rope_rows = true },
    { W_QKV, "self_attn.v_proj.weight", "attn_v.weight", DIM_KV, DIM_HIDDEN, .part = PART_QKV },
    { W_O, "self_attn.o_proj.weight", "attn_output.weight", DIM_HIDDEN, DIM_Q, .part = PART_ROW },
    { W_MLP_NORM, "post_attention_layernorm.weight", "ffn_norm.weight", DIM_HIDDEN, DIM_ONE, .dummy = DUMMY_ONE },
    { W_GATE_UP, "mlp.gate_proj.weight", "ffn_gate.weight", DIM_FFN, DIM_HIDDEN, .part = PART_COLUMN },
    { W_GATE_UP, "mlp.up_proj.weight", "ffn_up.weight", DIM_FFN, DIM_HIDDEN, .part = PART_COLUMN },
    { W_DOWN, "mlp.down_proj.weight", "ffn_down.weight", DIM_HIDDEN, DIM_FFN, .part = PART_ROW },
};

/* The loader sets attention_bias for files that have these. */
const struct weight_slot qkv_bias_slots[3] = {
    { W_QKV_BIAS, "self_attn.q_proj.bias", "attn_q.bias", DIM_Q, DIM_ONE, .part = PART_QKV, .rope_rows = true,
      .when = WHEN_ATTENTION_BIAS },
    { W_QKV_BIAS, "self_attn.k_proj.bias", "attn_k.bias", DIM_KV, DIM_ONE, .part = PART_QKV, .rope_rows = true,
      .when = WHEN_ATTENTION_BIAS },
    { W_QKV_BIAS, "self_attn.v_proj.bias", "attn_v.bias", DIM_KV, DIM_ONE, .part = PART_QKV,
      .when = WHEN_ATTENTION_BIAS },
};
