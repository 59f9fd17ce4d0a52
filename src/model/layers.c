/* layers.c - embedding, attention block, MLP block and head over backend ops; collectives where a block's input or
 * output is split over tp ranks. */
#include "layers.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "model_private.h"

/* ---- memory ---- */

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Logits shards are padded to the widest, so that all ranks gather the same count. */
static int64_t widest_vocab_shard(const struct model_config *config, const struct shard *shard)
{
    return range_len(vocab_range(config->vocab_size, shard->tp_size, 0));
}

static void *place(uint64_t *total, int64_t elems, enum dtype dtype, const struct backend_ops *ops,
                   struct backend *carve)
{
    uint64_t bytes = ((uint64_t)elems * (uint64_t)dtype_block_bytes(dtype) + 63) / 64 * 64;
    *total += bytes;
    return carve ? ops->carve(carve, bytes) : NULL;
}

uint64_t activations_layout(struct activations *act, const struct model_config *config, const struct shard *shard,
                            const struct backend_ops *ops, const struct model_limits *limits, struct backend *carve)
{
    struct activations a = { 0 };
    uint64_t total = 0;
    enum dtype dtype = ops->act_dtype;         /* the residual stream is f32 whatever it is */
    int64_t tokens = limits->max_tokens, rows = limits->max_rows, hidden = config->hidden_size;
    int64_t q = range_len(shard->heads) * config->head_dim, kv = range_len(shard->kv_heads) * config->head_dim;
    int64_t ffn = range_len(shard->ffn), widest = widest_vocab_shard(config, shard);

    a.residual = place(&total, tokens * hidden, DTYPE_F32, ops, carve);
    a.x = place(&total, tokens * hidden, dtype, ops, carve);
    a.normed = place(&total, tokens * hidden, dtype, ops, carve);
    a.wide = place(&total, tokens * max64(q + 2 * kv, 2 * ffn), dtype, ops, carve);
    a.inner = place(&total, tokens * max64(q, ffn), dtype, ops, carve);
    if (shard->has_head) {
        a.rows = place(&total, rows * hidden, dtype, ops, carve);
        a.logits = place(&total, rows * config->vocab_size, DTYPE_F32, ops, carve);
    }
    if (shard->has_head && shard->tp_size > 1) {
        a.shard_logits = place(&total, rows * widest, DTYPE_F32, ops, carve);
        a.gathered = place(&total, rows * widest * shard->tp_size, DTYPE_F32, ops, carve);
    }
    if (carve) *act = a;
    return total;
}

/* ---- steps of a block ---- */

static void norm(struct model *model, const struct step_plan *plan, const struct weight *weight, bool with_x)
{
    const struct model_env *env = &model->env;
    env->ops->rmsnorm(env->backend, &(struct rmsnorm_args){
        .x = with_x ? model->act.x : NULL, .residual = model->act.residual, .weight = weight, .out = model->act.normed,
        .num_tokens = plan->num_tokens, .hidden = model->config.hidden_size, .eps = model->config.rms_norm_eps });
}

static const struct weight *optional(const struct weight *weight)
{
    return weight->data ? weight : NULL;
}

static void matmul(struct model *model, const struct step_plan *plan, const void *x, const struct weight *w, void *out)
{
    model->env.ops->matmul(model->env.backend, &(struct matmul_args){
        .x = x, .w = w, .out = out, .num_tokens = plan->num_tokens });
}

/* data [T, C], a partial sum on each tp rank -> the sum on all. */
static int sum_over_ranks(struct model *model, const struct step_plan *plan, void *data, enum dtype dtype)
{
    if (model->shard.tp_size == 1) return 0;
    return model->env.comm_ops->all_reduce(model->env.tp_comm, data,
                                           (int64_t)plan->num_tokens * model->config.hidden_size, dtype);
}

int layer_embed(struct model *model, const struct step_plan *plan)
{
    const struct model_env *env = &model->env;
    env->ops->embed(env->backend, &(struct embed_args){
        .ids = plan_input_ids(plan), .num_tokens = plan->num_tokens, .table = weights_get(&model->weights, W_EMBED, 0),
        .first_row = (token_id)model->shard.vocab.begin, .out = model->act.residual,
        .seq_slots = plan_seq_slots(plan) });
    return sum_over_ranks(model, plan, model->act.residual, DTYPE_F32);
}

/* residual += inner * w^T, summed over the ranks; normed = norm(residual), for the product with `next`. */
static int matmul_norm(struct model *model, const struct step_plan *plan, const struct weight *w, const struct weight *weight,
                       const struct weight *next, bool next_gate_up)
{
    const struct model_env *env = &model->env;
    const struct activations *act = &model->act;
    int rc;

    if (model->shard.tp_size == 1) {
        env->ops->matmul_norm(env->backend, &(struct matmul_norm_args){
            .x = act->inner, .w = w, .out = act->x, .residual = act->residual, .norm = weight, .normed = act->normed, .next = next,
            .next_gate_up = next_gate_up, .num_tokens = plan->num_tokens, .eps = model->config.rms_norm_eps });
        return 0;
    }
    matmul(model, plan, act->inner, w, act->x);
    if ((rc = sum_over_ranks(model, plan, act->x, env->ops->act_dtype)) < 0) return rc;
    norm(model, plan, weight, true);
    return 0;
}

void layer_first_norm(struct model *model, const struct step_plan *plan, bool with_x)
{
    norm(model, plan, weights_get(&model->weights, W_ATTN_NORM, 0), with_x);
}

int layer_attention(struct model *model, const struct step_plan *plan, int64_t layer)
{
    const struct model_env *env = &model->env;
    const struct model_config *config = &model->config;
    const struct weights *w = &model->weights;
    struct activations *act = &model->act;
    int32_t num_heads = (int32_t)range_len(model->shard.heads);
    int32_t num_kv_heads = (int32_t)range_len(model->shard.kv_heads);

    if (env->layers_begun) __atomic_fetch_add(env->layers_begun, 1, __ATOMIC_RELAXED);
    env->ops->matmul_rope(env->backend, &(struct matmul_rope_args){ .x = act->normed, .w = weights_get(w, W_QKV, layer), .rope = {
        .qkv = act->wide, .bias = optional(weights_get(w, W_QKV_BIAS, layer)), .q_norm = optional(weights_get(w, W_Q_NORM, layer)),
        .k_norm = optional(weights_get(w, W_K_NORM, layer)), .cos_sin = model->cos_sin,
        .positions = plan_positions(plan), .slot_mapping = plan_slot_mapping(plan), .kv = model->kv[layer],
        .num_tokens = plan->num_tokens, .num_heads = num_heads,
        .num_kv_heads = num_kv_heads, .head_dim = config->head_dim,
        .block_size = plan->block_size, .eps = config->rms_norm_eps } });
    env->ops->attention(env->backend, &(struct attention_args){
        .qkv = act->wide, .out = act->inner, .kv = model->kv[layer], .cu_seqlens_q = plan_cu_seqlens_q(plan),
        .context_lens = plan_context_lens(plan), .block_tables = plan_block_tables(plan),
        .num_tokens = plan->num_tokens,
        .num_seqs = plan->num_seqs, .num_decode_seqs = plan->num_decode_seqs,
        .max_blocks_per_seq = plan->caps.max_blocks_per_seq, .max_q_len = plan->max_q_len,
        .max_context_len = plan->max_context_len, .num_heads = num_heads, .num_kv_heads = num_kv_heads,
        .head_dim = config->head_dim, .block_size = plan->block_size, .sliding_window = config->sliding_window,
        .scale = (float)(1.0 / sqrt(config->head_dim)) });
    return matmul_norm(model, plan, weights_get(w, W_O, layer), weights_get(w, W_MLP_NORM, layer), weights_get(w, W_GATE_UP, layer), true);
}

int layer_mlp(struct model *model, const struct step_plan *plan, int64_t layer)
{
    const struct model_env *env = &model->env;
    const struct weights *w = &model->weights;
    struct activations *act = &model->act;

    env->ops->gate_up(env->backend, &(struct gate_up_args){
        .x = act->normed, .w = weights_get(w, W_GATE_UP, layer), .wide = act->wide, .out = act->inner,
        .num_tokens = plan->num_tokens, .ffn = (int32_t)range_len(model->shard.ffn) });
    if (layer + 1 < range_len(model->shard.layers)) {
        return matmul_norm(model, plan, weights_get(w, W_DOWN, layer), weights_get(w, W_ATTN_NORM, layer + 1), weights_get(w, W_QKV, layer + 1),
                           false);
    }
    matmul(model, plan, act->inner, weights_get(w, W_DOWN, layer), act->x);
    return sum_over_ranks(model, plan, act->x, env->ops->act_dtype);
}

/* ---- head ---- */

int layer_head(struct model *model, const struct step_plan *plan, float **logits)
{
    const struct model_env *env = &model->env;
    const struct weight *head = weights_get(&model->weights, model->config.tie_word_embeddings ? W_EMBED : W_HEAD, 0);
    int64_t num_rows = plan->num_rows, widest = widest_vocab_shard(&model->config, &model->shard);
    bool sharded = model->shard.tp_size > 1;
    int rc;

    *logits = NULL;
    if (num_rows == 0) return 0;
    env->ops->norm_rows(env->backend, &(struct norm_rows_args){
        .x = model->act.x, .residual = model->act.residual, .weight = weights_get(&model->weights, W_FINAL_NORM, 0),
        .plan = plan, .out = model->act.rows, .hidden = model->config.hidden_size, .eps = model->config.rms_norm_eps });
    env->ops->matmul(env->backend, &(struct matmul_args){
        .x = model->act.rows, .w = head, .out = sharded ? model->act.shard_logits : model->act.logits,
        .num_tokens = plan->num_rows, .out_f32 = true });
    *logits = model->act.logits;
    if (!sharded) return 0;
    /* Rows of a shard lie [R, its own width]; the tail up to R * widest is whatever was there and is not read. */
    rc = env->comm_ops->all_gather(env->tp_comm, model->act.shard_logits, model->act.gathered, num_rows * widest,
                                   DTYPE_F32);
    if (rc < 0) return rc;
    env->ops->join_shards(env->backend, &(struct join_shards_args){
        .gathered = model->act.gathered, .logits = model->act.logits, .num_rows = plan->num_rows,
        .vocab_size = model->config.vocab_size, .tp_size = model->shard.tp_size, .widest = widest });
    return 0;
}
