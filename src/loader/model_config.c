#include "model_config.h"

#include <inttypes.h>
#include <math.h>

void model_config_init(struct model_config *config)
{
    *config = (struct model_config){
        .rope_theta = 10000.0f,
        .rope_scaling = {.type = ROPE_DEFAULT,
                         .factor = 1.0f,
                         .low_freq_factor = 1.0f,
                         .high_freq_factor = 4.0f,
                         .beta_fast = 32.0f,
                         .beta_slow = 1.0f},
        .bos_token_id = TOKEN_NONE,
        .gen_temperature = -1.0f,
        .gen_top_p = -1.0f,
        .gen_min_p = -1.0f,
        .gen_repetition_penalty = -1.0f,
        .gen_top_k = -1,
    };
    for (int i = 0; i < MAX_EOS_IDS; i++) config->eos_token_ids[i] = TOKEN_NONE;
}

static int check_int(const char *label, const char *name, int32_t value, int32_t min, int32_t max, struct err *err)
{
    if (value >= min && value <= max) return 0;
    return err_set(err, ERR_MODEL_FILE, "%s: %s: expected %" PRId32 " to %" PRId32 ", found %" PRId32, label, name, min,
                   max, value);
}

static int check_real(const char *label, const char *name, float value, double above, double max, struct err *err)
{
    if (value > above && value <= max) return 0;   /* false for NaN */
    return err_set(err, ERR_MODEL_FILE, "%s: %s: expected more than %g and at most %g, found %g", label, name, above,
                   max, (double)value);
}

static int check_rope(const struct model_config *c, const char *label, struct err *err)
{
    const struct rope_scaling *rope = &c->rope_scaling;
    int rc;

    if ((rc = check_real(label, "rope_theta", c->rope_theta, 0, 1e15, err)) < 0 || rope->type == ROPE_DEFAULT)
        return rc;
    if ((rc = check_real(label, "rope_scaling factor", rope->factor, 0, 1e6, err)) < 0 || rope->type == ROPE_LINEAR)
        return rc;
    rc = check_int(label, "rope_scaling original_max_position_embeddings", rope->original_max_position_embeddings, 1,
                   MAX_POSITIONS, err);
    if (rc < 0) return rc;
    if (rope->type == ROPE_LLAMA3) {
        if ((rc = check_real(label, "rope_scaling low_freq_factor", rope->low_freq_factor, 0, 1e6, err)) < 0) return rc;
        return check_real(label, "rope_scaling high_freq_factor", rope->high_freq_factor, rope->low_freq_factor, 1e6,
                          err);
    }
    if ((rc = check_real(label, "rope_scaling beta_slow", rope->beta_slow, 0, 1e6, err)) < 0) return rc;
    if ((rc = check_real(label, "rope_scaling beta_fast", rope->beta_fast, rope->beta_slow, 1e6, err)) < 0) return rc;
    return rope->attention_factor == 0 ? 0
         : check_real(label, "rope_scaling attention_factor", rope->attention_factor, 0, 1e3, err);
}

int model_config_check(const struct model_config *c, const char *label, struct err *err)
{
    const struct { const char *name; int32_t value, min, max; } rows[] = {
        { "hidden_size", c->hidden_size, 1, MAX_HIDDEN },
        { "intermediate_size", c->intermediate_size, 1, MAX_INTERMEDIATE },
        { "num_hidden_layers", c->num_hidden_layers, 1, MAX_LAYERS },
        { "num_attention_heads", c->num_attention_heads, 1, MAX_HEADS },
        { "num_key_value_heads", c->num_key_value_heads, 1, c->num_attention_heads },
        { "head_dim", c->head_dim, 2, MAX_HEAD_DIM },
        { "vocab_size", c->vocab_size, 1, MAX_VOCAB },
        { "max_position_embeddings", c->max_position_embeddings, 1, MAX_POSITIONS },
        { "sliding_window", c->sliding_window, 0, MAX_POSITIONS },
    };
    int rc;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if ((rc = check_int(label, rows[i].name, rows[i].value, rows[i].min, rows[i].max, err)) < 0) return rc;
    }
    if (c->num_attention_heads % c->num_key_value_heads != 0) {
        return err_set(err, ERR_MODEL_FILE,
                       "%s: num_key_value_heads: expected a divisor of %" PRId32 ", found %" PRId32, label,
                       c->num_attention_heads, c->num_key_value_heads);
    }
    if (c->head_dim % 2 != 0) {
        return err_set(err, ERR_MODEL_FILE, "%s: head_dim: expected an even number, found %" PRId32, label,
                       c->head_dim);
    }
    if ((rc = check_real(label, "rms_norm_eps", c->rms_norm_eps, 0, 1, err)) < 0) return rc;
    return check_rope(c, label, err);
}

int model_config_token(const struct model_config *config, int64_t id, const char *label, const char *key,
                       struct err *err)
{
    if (id >= TOKEN_NONE && id < config->vocab_size) return 0;
    return err_set(err, ERR_MODEL_FILE, "%s: %s: expected an id below %" PRId32 ", found %" PRId64, label, key,
                   config->vocab_size, id);
}

int model_config_add_eos(struct model_config *config, int64_t id, const char *label, struct err *err)
{
    int rc = model_config_token(config, id, label, "eos_token_id", err);
    if (rc < 0 || id == TOKEN_NONE) return rc;
    for (int i = 0; i < config->num_eos_token_ids; i++) {
        if (config->eos_token_ids[i] == id) return 0;
    }
    if (config->num_eos_token_ids == MAX_EOS_IDS) {
        return err_set(err, ERR_MODEL_FILE, "%s: eos_token_id: expected at most %d ids, found more", label,
                       (int)MAX_EOS_IDS);
    }
    config->eos_token_ids[config->num_eos_token_ids++] = (token_id)id;
    return 0;
}
