/* registry.c - architecture -> description, and the life of a model object: arithmetic, load, forward, free. */
#include <sluice/model.h>

#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "model_private.h"
#include "rope.h"

static const struct model_arch_desc *const archs[ARCH_COUNT] = {
    [ARCH_LLAMA] = &arch_llama,
    [ARCH_QWEN2] = &arch_qwen2,
    [ARCH_QWEN3] = &arch_qwen3,
};

const struct model_arch_desc *model_arch_desc(enum model_arch arch)
{
    BUG_ON((int)arch < 0 || arch >= ARCH_COUNT);
    return archs[arch];
}

const char *model_arch_name(enum model_arch arch)
{
    return model_arch_desc(arch)->name;
}

static uint64_t rope_table_bytes(const struct model_config *config, const struct model_limits *limits)
{
    return ((uint64_t)limits->max_model_len * (uint64_t)config->head_dim * sizeof(float) + 63) / 64 * 64;
}

static int check_limits(const struct model_config *config, const struct model_limits *limits, struct err *err)
{
    if (config->head_dim < 2 || config->head_dim > ROPE_MAX_HEAD_DIM || config->head_dim % 2 != 0) {
        return err_set(err, ERR_MODEL_FILE, "head_dim: expected an even number up to %d, found %d", ROPE_MAX_HEAD_DIM,
                       (int)config->head_dim);
    }
    if (limits->max_tokens < 1 || limits->max_rows < 1 || limits->max_model_len < 1 || limits->block_size < 1) {
        return err_set(err, ERR_CONFIG, "limits of a step: %d tokens, %d rows, %d positions, blocks of %d",
                       (int)limits->max_tokens, (int)limits->max_rows, (int)limits->max_model_len,
                       (int)limits->block_size);
    }
    return 0;
}

int model_bytes(struct model_bytes *bytes, const struct model_config *config, const struct shard *shard,
                const struct backend_ops *ops, enum dtype kv_dtype, const struct model_limits *limits,
                const struct model_source *src, struct err *err)
{
    int rc = check_limits(config, limits, err);
    if (rc < 0) return rc;
    uint64_t kv_elems =
        (uint64_t)range_len(shard->kv_heads) * (uint64_t)config->head_dim * (uint64_t)limits->block_size;
    *bytes = (struct model_bytes){
        .weights = weights_bytes(&model_arch_desc(config->arch)->weights, config, shard, ops, src),
        .activations = activations_layout(NULL, config, shard, ops, limits, NULL),
        .rope_table = rope_table_bytes(config, limits),
        .kv_per_block = (uint64_t)range_len(shard->layers) * 2 * kv_elems * (uint64_t)dtype_block_bytes(kv_dtype),
    };
    return 0;
}

uint64_t model_load_bytes(const struct model_config *config, const struct shard *shard)
{
    return weights_fp32_bytes(&model_arch_desc(config->arch)->weights, config, shard);
}

/* GGUF files of Llama 3.x carry the scaling as divisors of the frequencies. *factors is malloc'ed, NULL if absent. */
static int read_freq_factors(const struct model_source *src, int half, float **factors, struct err *err)
{
    bool gguf = model_source_format(src) == LOAD_GGUF;
    const struct tensor_info *info = gguf ? model_source_find(src, "rope_freqs.weight") : NULL;
    void *raw = NULL;
    int rc = 0;
    *factors = NULL;
    if (!info) return 0;
    if (info->ndim != 1 || info->shape[0] != half) {
        return err_set(err, ERR_MODEL_FILE, "tensor %s: expected [%d], found %d dimensions, first %lld",
                       info->name, half, info->ndim, (long long)info->shape[0]);
    }
    raw = malloc((size_t)info->bytes + 1);
    *factors = calloc((size_t)half, sizeof(**factors));
    if (!raw || !*factors) { rc = err_set(err, ERR_NO_MEMORY, "rope factors"); goto out; }
    if ((rc = model_source_read(src, info, 0, raw, info->bytes, err)) < 0) goto out;
    dequantize_row(info->dtype, raw, *factors, half);
    for (int i = 0; i < half; i++) {
        if ((*factors)[i] > 0) continue;
        rc = err_set(err, ERR_MODEL_FILE, "tensor %s: expected positive factors, found %g at %d", info->name,
                     (double)(*factors)[i], i);
        goto out;
    }
out:
    free(raw);
    if (rc < 0) {
        free(*factors);
        *factors = NULL;
    }
    return rc;
}

struct rope_fill { float *table; const struct model_config *config; const float *factors; };   /* table: host memory */

static void fill_positions(void *arg, int64_t begin, int64_t end)
{
    const struct rope_fill *fill = arg;
    rope_table_fill(fill->table, fill->config, fill->factors, begin, end);
}

static int make_rope_table(struct model *model, const struct model_source *src, struct err *err)
{
    const struct model_env *env = &model->env;
    struct rope_fill fill = { .config = &model->config };
    float *factors = NULL;
    int rc = read_freq_factors(src, model->config.head_dim / 2, &factors, err);
    if (rc < 0) return rc;
    uint64_t bytes = rope_table_bytes(&model->config, &env->limits);
    float *table = env->ops->carve(env->backend, bytes);
    fill.factors = factors;
    fill.table = malloc(bytes);
    if (!fill.table) rc = err_set(err, ERR_NO_MEMORY, "rope table of %llu bytes", (unsigned long long)bytes);
    if (rc == 0) {
        env->ops->parallel_for(env->backend, env->limits.max_model_len, 256, fill_positions, &fill);
        env->ops->write(env->backend, table, fill.table,
                        (size_t)env->limits.max_model_len * (size_t)model->config.head_dim * sizeof(float));
    }
    model->cos_sin = table;
    free(fill.table);
    free(factors);
    return rc;
}

/* A product as layers.c does it; the residual stream is none's x or out. */
static struct matmul_shape shape_of(const struct model *model, enum weight_id id, void *x, void *out)
{
    int64_t layers = id >= W_FIRST_OF_LAYER ? range_len(model->shard.layers) : 1;
    struct matmul_shape shape = { .max_tokens = model->env.limits.max_tokens, .x = x, .out = out, .spare = model->act.residual };
    shape.spare_bytes = (size_t)model->env.limits.max_tokens * (size_t)model->config.hidden_size * sizeof(float);
    for (int64_t layer = 0; layer < layers && shape.num_w < MATMUL_SAME; layer++)
        shape.w[shape.num_w++] = weights_get(&model->weights, id, layer);
    shape.rows = shape.w[0]->rows;
    shape.cols = shape.w[0]->cols;
    shape.beside_norm = id >= W_FIRST_OF_LAYER && model->shard.tp_size == 1;
    shape.behind_large = id == W_O || id == W_DOWN;
    return shape;
}

static void rehearse(void *arg, const struct step_plan *plan, int64_t num_layers)
{
    struct model *model = arg;
    model->arch->layers(model, plan, num_layers);          /* nothing fails without other ranks */
}

/* The shapes of every product of a step, once each. */
static int tell_loaded(struct model *model, struct err *err)
{
    const struct activations *act = &model->act;
    struct matmul_shape shapes[5];
    int n = 0;
    shapes[n] = shape_of(model, W_QKV, act->normed, act->wide);
    shapes[n].rope_head = model->config.head_dim;
    shapes[n++].norms_heads = weights_get(&model->weights, W_Q_NORM, 0)->data != NULL;
    shapes[n++] = shape_of(model, W_O, act->inner, act->x);
    shapes[n] = shape_of(model, W_GATE_UP, act->normed, act->wide);
    shapes[n++].silu_mul = true;
    shapes[n++] = shape_of(model, W_DOWN, act->inner, act->x);
    if (model->shard.has_head) {
        struct matmul_shape *head = &shapes[n++];
        *head = shape_of(model, model->config.tie_word_embeddings ? W_EMBED : W_HEAD, act->rows,
                         model->shard.tp_size > 1 ? act->shard_logits : act->logits);
        head->max_tokens = model->env.limits.max_rows;
        head->out_f32 = true;
    }
    bool alone = model->shard.tp_size == 1 && model->shard.pp_size == 1;
    struct rehearsal rehearsal = { alone ? rehearse : NULL, model, range_len(model->shard.layers), model->kv[0].num_blocks };
    return model->env.ops->loaded(model->env.backend, shapes, n, &rehearsal, err);
}

int model_load(struct model **out, const struct model_source *src, const struct shard *shard,
               const struct model_env *env,
               uint64_t seed, model_progress *progress, void *progress_arg, struct err *err)
{
    struct model *model = NULL;
    int rc = check_limits(model_source_config(src), &env->limits, err);
    if (rc < 0) return rc;
    model = calloc(1, sizeof(*model));
    if (!model) return err_set(err, ERR_NO_MEMORY, "model");
    model->config = *model_source_config(src);
    model->shard = *shard;
    model->env = *env;
    model->arch = model_arch_desc(model->config.arch);
    struct weights_load_args args = {
        .src = src, .groups = &model->arch->weights, .config = &model->config, .shard = &model->shard, .ops = env->ops,
        .backend = env->backend, .seed = seed, .progress = progress, .progress_arg = progress_arg,
    };
    if ((rc = weights_load(&model->weights, &args, err)) < 0) goto out;
    activations_layout(&model->act, &model->config, shard, env->ops, &env->limits, env->backend);
    if ((rc = make_rope_table(model, src, err)) < 0) goto out;
    *out = model;
    model = NULL;
out:
    model_free(model);
    return rc;
}

void model_free(struct model *model)
{
    if (!model) return;
    weights_release(&model->weights);
    free(model);
}

int model_set_kv(struct model *model, const struct kv_layer *kv, struct err *err)
{
    model->kv = kv;
    return tell_loaded(model, err);
}

struct model_hidden model_hidden(const struct model *model)
{
    return (struct model_hidden){
        .residual = model->act.residual, .x = model->act.x,
        .residual_row_bytes = (size_t)model->config.hidden_size * sizeof(float),
        .x_row_bytes = (size_t)model->config.hidden_size * (size_t)dtype_block_bytes(model->env.ops->act_dtype) };
}

int model_forward(struct model *model, const struct step_plan *plan, float **logits)
{
    BUG_ON(!model->kv);
    BUG_ON(plan->num_tokens > model->env.limits.max_tokens || plan->num_rows > model->env.limits.max_rows);
    return model->arch->forward(model, plan, logits);
}
