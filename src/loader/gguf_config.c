/* gguf_config.c - GGUF metadata -> model_config. Keys are "<architecture>.<name>"; what metadata does not say (tied
 * embeddings, biases, rows of the embedding) is read off the tensors. */
#include "gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model_config.h"

struct meta {
    const struct gguf_file *gguf;
    const char *label;
    char arch[16];
    char key[80];
    struct err *err;
    int rc;              /* the first failure sticks */
};

static const struct { const char *name; enum model_arch arch; bool interleaved; } served[] = {
    { "llama", ARCH_LLAMA, true },     /* the converter stores q and k rows for adjacent-pair rotation */
    { "qwen2", ARCH_QWEN2, false },
    { "qwen3", ARCH_QWEN3, false },
};
enum { NUM_SERVED = sizeof served / sizeof served[0] };

static const char *arch_key(struct meta *m, const char *name)
{
    snprintf(m->key, sizeof m->key, "%s.%s", m->arch, name);
    return m->key;
}

static void bad_value(struct meta *m, const char *expected)
{
    if (m->rc == 0) m->rc = err_set(m->err, ERR_MODEL_FILE, "%s: key \"%s\": expected %s", m->label, m->key, expected);
}

/* An integer, or an array of equal ones (some converters write one per layer). False when absent. */
static bool get_int(struct meta *m, const char *name, int32_t *value)
{
    const char *key = arch_key(m, name);
    int64_t wide = 0, each = 0;
    size_t n = gguf_array_len(m->gguf, key);

    if (!gguf_has(m->gguf, key)) return false;
    int rc = n ? gguf_array_i64(m->gguf, key, 0, &wide) : gguf_get_i64(m->gguf, key, &wide);
    for (size_t i = 1; i < n && rc == 0; i++) {
        rc = gguf_array_i64(m->gguf, key, i, &each);
        if (rc == 0 && each != wide) rc = ERR_VALUE;
    }
    if (rc < 0 || wide < 0 || wide > INT32_MAX) bad_value(m, "one 31-bit integer for all layers");
    else *value = (int32_t)wide;
    return true;
}

static void need_int(struct meta *m, const char *name, int32_t *value)
{
    if (!get_int(m, name, value)) bad_value(m, "a value, found none");
}

static bool get_real(struct meta *m, const char *name, float *value)
{
    const char *key = arch_key(m, name);
    double wide;
    if (!gguf_has(m->gguf, key)) return false;
    if (gguf_get_f64(m->gguf, key, &wide) < 0 || !isfinite(wide)) bad_value(m, "a number");
    else *value = (float)wide;
    return true;
}

static int read_architecture(struct meta *m, struct model_config *config)
{
    const char *name = "none";
    size_t len = 4;

    if (gguf_get_str(m->gguf, "general.architecture", &name, &len) == 0) {
        for (int i = 0; i < NUM_SERVED; i++) {
            if (len != strlen(served[i].name) || memcmp(name, served[i].name, len) != 0) continue;
            config->arch = served[i].arch;
            config->rope_interleaved = served[i].interleaved;
            snprintf(m->arch, sizeof m->arch, "%s", served[i].name);
            snprintf(config->model_type, sizeof config->model_type, "%s", served[i].name);
            return 0;
        }
    }
    if (len > 60 || !name_is_printable(name, len)) {
        name = "another name";
        len = strlen(name);
    }
    return err_set(m->err, ERR_MODEL_FILE, "%s: general.architecture: expected llama, qwen2 or qwen3, found %.*s",
                   m->label, (int)len, name);
}

static void read_sizes(struct meta *m, struct model_config *config)
{
    int32_t value_length, rotary, experts = 0;

    need_int(m, "embedding_length", &config->hidden_size);
    need_int(m, "feed_forward_length", &config->intermediate_size);
    need_int(m, "block_count", &config->num_hidden_layers);
    need_int(m, "context_length", &config->max_position_embeddings);
    need_int(m, "attention.head_count", &config->num_attention_heads);
    config->num_key_value_heads = config->num_attention_heads;
    get_int(m, "attention.head_count_kv", &config->num_key_value_heads);
    if (!get_real(m, "attention.layer_norm_rms_epsilon", &config->rms_norm_eps)) bad_value(m, "a value, found none");
    if (config->num_attention_heads > 0) config->head_dim = config->hidden_size / config->num_attention_heads;
    get_int(m, "attention.key_length", &config->head_dim);
    value_length = rotary = config->head_dim;
    get_int(m, "attention.value_length", &value_length);
    if (value_length != config->head_dim) bad_value(m, "the same as attention.key_length");
    get_int(m, "rope.dimension_count", &rotary);
    if (rotary != config->head_dim) bad_value(m, "the head's whole length (partial rotation is not supported)");
    get_int(m, "expert_count", &experts);
    if (experts != 0) bad_value(m, "0 (mixtures of experts are not supported)");
    get_int(m, "attention.sliding_window", &config->sliding_window);
}

static void read_rope(struct meta *m, struct model_config *config)
{
    struct rope_scaling *rope = &config->rope_scaling;
    const char *type = "none";
    size_t len = 4;
    float multiplier = 0;

    get_real(m, "rope.freq_base", &config->rope_theta);
    const char *key = arch_key(m, "rope.scaling.type");
    if (gguf_has(m->gguf, key) && gguf_get_str(m->gguf, key, &type, &len) < 0) bad_value(m, "a string");
    if (len == 6 && memcmp(type, "linear", 6) == 0) rope->type = ROPE_LINEAR;
    else if (len == 4 && memcmp(type, "yarn", 4) == 0) rope->type = ROPE_YARN;
    else if (len != 4 || memcmp(type, "none", 4) != 0) bad_value(m, "none, linear or yarn");
    if (get_real(m, "rope.scale_linear", &rope->factor) && rope->factor != 1.0f)
        rope->type = ROPE_LINEAR; /* older spelling */
    get_real(m, "rope.scaling.factor", &rope->factor);
    if (rope->type == ROPE_DEFAULT) return;
    rope->original_max_position_embeddings = config->max_position_embeddings;
    get_int(m, "rope.scaling.original_context_length", &rope->original_max_position_embeddings);
    get_real(m, "rope.scaling.yarn_beta_fast", &rope->beta_fast);
    get_real(m, "rope.scaling.yarn_beta_slow", &rope->beta_slow);
    /* GGUF's factor multiplies the default, Hugging Face's replaces it. */
    if (get_real(m, "rope.scaling.attn_factor", &multiplier) && rope->type == ROPE_YARN) {
        rope->attention_factor = multiplier * (0.1f * logf(rope->factor) + 1.0f);
    }
}

/* Every format but bf16 itself was made of f16 scales, or fits f16 better than bf16. */
static enum dtype suggested(const struct tensor_index *index)
{
    for (size_t i = 0; i < index->count; i++) if (index->infos[i].dtype == DTYPE_BF16) return DTYPE_BF16;
    return DTYPE_F16;
}

static int read_tensors(struct meta *m, const struct tensor_index *index, struct model_config *config)
{
    const struct tensor_info *embedding = tensor_index_find(index, "token_embd.weight");
    const struct tensor_info *factors = tensor_index_find(index, "rope_freqs.weight");

    if (!embedding || embedding->ndim != 2 || embedding->shape[1] != config->hidden_size) {
        return err_set(m->err, ERR_MODEL_FILE,
                       "%s: tensor \"token_embd.weight\": expected [vocab, %" PRId32 "], found %s", m->label,
                       config->hidden_size, embedding ? "another shape" : "none");
    }
    if (embedding->shape[0] > MAX_VOCAB) {
        return err_set(m->err, ERR_MODEL_FILE,
                       "%s: tensor \"token_embd.weight\": expected at most %d rows, found %" PRId64, m->label,
                       (int)MAX_VOCAB, embedding->shape[0]);
    }
    config->vocab_size = (int32_t)embedding->shape[0];
    config->tie_word_embeddings = !tensor_index_find(index, "output.weight");
    config->attention_bias = tensor_index_find(index, "blk.0.attn_q.bias") != NULL;
    config->qk_norm = config->arch == ARCH_QWEN3;
    config->dtype = suggested(index);
    config->rope_freqs = factors != NULL;
    if (factors && (factors->ndim != 1 || factors->shape[0] * 2 != config->head_dim || factors->dtype != DTYPE_F32)) {
        return err_set(m->err, ERR_MODEL_FILE,
                       "%s: tensor \"rope_freqs.weight\": expected f32 [%" PRId32 "], found %s [%" PRId64 "]", m->label,
                       config->head_dim / 2, dtype_name(factors->dtype), factors->shape[0]);
    }
    return 0;
}

static int read_tokens(struct meta *m, struct model_config *config)
{
    static const char *const ends[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.eom_token_id" };
    int64_t id;
    int rc = 0;

    if (gguf_get_i64(m->gguf, "tokenizer.ggml.bos_token_id", &id) == 0) {
        if ((rc = model_config_token(config, id, m->label, "tokenizer.ggml.bos_token_id", m->err)) < 0) return rc;
        config->bos_token_id = (token_id)id;
    }
    for (size_t i = 0; i < sizeof ends / sizeof ends[0] && rc == 0; i++) {
        if (gguf_get_i64(m->gguf, ends[i], &id) == 0) rc = model_config_add_eos(config, id, m->label, m->err);
    }
    return rc;
}

int gguf_model_config(const struct gguf_file *gguf, const struct tensor_index *index, const char *label,
                      struct model_config *config, struct err *err)
{
    struct meta m = { .gguf = gguf, .label = label, .err = err };
    int64_t parts = 1;
    int rc;

    model_config_init(config);
    if (gguf_get_i64(gguf, "split.count", &parts) == 0 && parts > 1) {
        return err_set(err, ERR_MODEL_FILE,
                       "%s: split.count: expected one file, found a part of %" PRId64 " (merge them first)", label,
                       parts);
    }
    if ((rc = read_architecture(&m, config)) < 0) return rc;
    read_sizes(&m, config);
    read_rope(&m, config);
    if (m.rc < 0) return m.rc;
    if ((rc = read_tensors(&m, index, config)) < 0) return rc;
    if ((rc = model_config_check(config, label, err)) < 0) return rc;
    return read_tokens(&m, config);
}
