/* hf_config.c - config.json and generation_config.json of Hugging Face transformers, old and new spellings. */
#include "model_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

static const char config_name[] = "config.json";
static const char generation_name[] = "generation_config.json";

/* One file being read; the first failure sticks, so that fields are read in plain lines and rc is looked at once. */
struct fields {
    const char *label;
    const struct cJSON *object;
    struct err *err;
    int rc;
};

static const struct { const char *architecture, *model_type; enum model_arch arch; } served[] = {
    { "LlamaForCausalLM", "llama", ARCH_LLAMA },
    { "MistralForCausalLM", "mistral", ARCH_LLAMA },
    { "Qwen2ForCausalLM", "qwen2", ARCH_QWEN2 },
    { "Qwen3ForCausalLM", "qwen3", ARCH_QWEN3 },
};
enum { NUM_SERVED = sizeof served / sizeof served[0] };

static void bad_type(struct fields *f, const char *key, const char *expected, const struct cJSON *found)
{
    if (f->rc == 0) {
        f->rc = err_set(f->err, ERR_MODEL_FILE, "%s: %s: expected %s, found a value of type %s", f->label, key,
                        expected, json_kind(found));
    }
}

static void missing(struct fields *f, const char *key)
{
    if (f->rc == 0) f->rc = err_set(f->err, ERR_MODEL_FILE, "%s: %s: expected a value, found none", f->label, key);
}

static void unsupported(struct fields *f, const char *key, const char *supported)
{
    if (f->rc == 0) f->rc = err_set(f->err, ERR_MODEL_FILE, "%s: %s: only %s is supported", f->label, key, supported);
}

/* ---- typed fields; null counts as absent ---- */
static void get_int(struct fields *f, const char *key, int32_t *value)
{
    const struct cJSON *item = json_get(f->object, key);
    int64_t wide;
    if (!item || f->rc < 0) return;
    if (json_int64(item, &wide) < 0) {
        if (json_is_int(item))
            f->rc = err_set(f->err, ERR_MODEL_FILE, "%s: %s: the integer is absurdly large", f->label, key);
        else bad_type(f, key, "an integer", item);
    } else if (wide < INT32_MIN || wide > INT32_MAX) {
        f->rc =
            err_set(f->err, ERR_MODEL_FILE, "%s: %s: expected a 32-bit integer, found %" PRId64, f->label, key, wide);
    } else {
        *value = (int32_t)wide;
    }
}

static void need_int(struct fields *f, const char *key, int32_t *value)
{
    if (json_get(f->object, key)) get_int(f, key, value);
    else missing(f, key);
}

static void get_real(struct fields *f, const char *key, float *value)
{
    const struct cJSON *item = json_get(f->object, key);
    if (!item || f->rc < 0) return;
    if (!cJSON_IsNumber(item)) bad_type(f, key, "a number", item);
    else *value = (float)item->valuedouble;
}

static bool get_bool(struct fields *f, const char *key, bool fallback)
{
    const struct cJSON *item = json_get(f->object, key);
    if (!item) return fallback;
    if (!cJSON_IsBool(item)) bad_type(f, key, "true or false", item);
    return cJSON_IsTrue(item);
}

/* NULL when absent or not a string (then rc is set). */
static const char *get_text(struct fields *f, const char *key)
{
    const struct cJSON *item = json_get(f->object, key);
    if (!item) return NULL;
    if (!cJSON_IsString(item)) bad_type(f, key, "a string", item);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

/* ---- parts ---- */
static int read_architecture(struct fields *f, struct model_config *config)
{
    const struct cJSON *list = json_get(f->object, "architectures");
    const char *architecture = cJSON_IsArray(list) && cJSON_IsString(list->child) ? list->child->valuestring : NULL;
    const char *model_type = get_text(f, "model_type");

    for (int i = 0; i < NUM_SERVED; i++) {
        bool found = architecture ? strcmp(architecture, served[i].architecture) == 0
                                  : model_type && strcmp(model_type, served[i].model_type) == 0;
        if (!found) continue;
        config->arch = served[i].arch;
        snprintf(config->model_type, sizeof config->model_type, "%s", served[i].model_type);
        return f->rc;
    }
    return err_set(f->err, ERR_MODEL_FILE, "%s: architectures: expected LlamaForCausalLM, MistralForCausalLM, "
                   "Qwen2ForCausalLM or Qwen3ForCausalLM, found %.100s", f->label,
                   architecture ? architecture : model_type ? model_type : "none");
}

static void read_sizes(struct fields *f, struct model_config *config)
{
    bool qwen3 = config->arch == ARCH_QWEN3;

    need_int(f, "hidden_size", &config->hidden_size);
    need_int(f, "intermediate_size", &config->intermediate_size);
    need_int(f, "num_hidden_layers", &config->num_hidden_layers);
    need_int(f, "num_attention_heads", &config->num_attention_heads);
    need_int(f, "vocab_size", &config->vocab_size);
    need_int(f, "max_position_embeddings", &config->max_position_embeddings);
    config->num_key_value_heads = config->num_attention_heads;
    if (strcmp(config->model_type, "mistral") == 0) config->num_key_value_heads = 8;   /* transformers' default */
    get_int(f, "num_key_value_heads", &config->num_key_value_heads);
    if (qwen3) config->head_dim = 128;                                                  /* transformers' default */
    else if (config->num_attention_heads > 0) config->head_dim = config->hidden_size / config->num_attention_heads;
    if (!qwen3 && !json_get(f->object, "head_dim") && config->num_attention_heads > 0 &&
        config->hidden_size % config->num_attention_heads != 0 && f->rc == 0) {
        f->rc =
            err_set(f->err, ERR_MODEL_FILE, "%s: hidden_size: expected a multiple of %" PRId32 " heads, found %" PRId32,
                    f->label, config->num_attention_heads, config->hidden_size);
    }
    get_int(f, "head_dim", &config->head_dim);
    config->rms_norm_eps = 1e-6f;
    get_real(f, "rms_norm_eps", &config->rms_norm_eps);
    config->tie_word_embeddings = get_bool(f, "tie_word_embeddings", false);
}

/* What transformers would compute and sluice does not. */
static void refuse_variants(struct fields *f, const struct model_config *config)
{
    const char *act = get_text(f, "hidden_act");
    float partial = 1.0f;

    if (act && strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0) unsupported(f, "hidden_act", "silu");
    if (json_get(f->object, "quantization_config")) unsupported(f, "quantization_config", "an unquantized model");
    if (config->arch != ARCH_QWEN2 && get_bool(f, "attention_bias", false)) unsupported(f, "attention_bias", "false");
    if (get_bool(f, "mlp_bias", false)) unsupported(f, "mlp_bias", "false");
    get_real(f, "partial_rotary_factor", &partial);
    if (partial != 1.0f) unsupported(f, "partial_rotary_factor", "1.0");
}

static void read_sliding_window(struct fields *f, struct model_config *config)
{
    if (strcmp(config->model_type, "mistral") == 0) {
        if (!json_get_raw(f->object, "sliding_window"))
            config->sliding_window = 4096; /* transformers' default; null = none */
        get_int(f, "sliding_window", &config->sliding_window);
        return;
    }
    if (config->arch == ARCH_LLAMA || !get_bool(f, "use_sliding_window", false)) return;
    int32_t full_layers = config->num_hidden_layers;   /* layers below max_window_layers attend to everything */
    get_int(f, "max_window_layers", &full_layers);
    if (full_layers < config->num_hidden_layers)
        unsupported(f, "use_sliding_window", "false, or max_window_layers of all layers");
}

/* yarn's attention factor from mscale, as transformers computes it; 0 keeps the default. */
static void read_yarn(struct fields *f, struct rope_scaling *rope)
{
    float mscale = 0, mscale_all = 0;

    get_real(f, "beta_fast", &rope->beta_fast);
    get_real(f, "beta_slow", &rope->beta_slow);
    get_real(f, "attention_factor", &rope->attention_factor);
    get_real(f, "mscale", &mscale);
    get_real(f, "mscale_all_dim", &mscale_all);
    if (!get_bool(f, "truncate", true)) unsupported(f, "rope_scaling truncate", "true");
    if (rope->attention_factor == 0 && mscale > 0 && mscale_all > 0 && rope->factor > 1) {
        float ln = logf(rope->factor);
        rope->attention_factor = (0.1f * mscale * ln + 1.0f) / (0.1f * mscale_all * ln + 1.0f);
    }
}

static void read_rope_type(struct fields *f, struct model_config *config)
{
    static const struct { const char *name; enum rope_type type; } types[] = {
        { "default", ROPE_DEFAULT }, { "linear", ROPE_LINEAR }, { "llama3", ROPE_LLAMA3 }, { "yarn", ROPE_YARN },
    };
    struct rope_scaling *rope = &config->rope_scaling;
    const char *name = get_text(f, "rope_type");

    if (!name) name = get_text(f, "type");
    if (!name) name = "default";
    size_t i = 0, n = sizeof types / sizeof types[0];
    while (i < n && strcmp(name, types[i].name) != 0) i++;
    if (i == n) {
        if (f->rc == 0) {
            f->rc = err_set(f->err, ERR_MODEL_FILE,
                            "%s: rope_scaling: expected type default, linear, llama3 or yarn, found "
                            "%.60s",
                            f->label, name);
        }
        return;
    }
    rope->type = types[i].type;
    if (rope->type == ROPE_DEFAULT) return;
    if (!json_get(f->object, "factor")) missing(f, "rope_scaling factor");
    get_real(f, "factor", &rope->factor);
    rope->original_max_position_embeddings = config->max_position_embeddings;
    get_int(f, "original_max_position_embeddings", &rope->original_max_position_embeddings);
    if (rope->type == ROPE_LLAMA3) {
        get_real(f, "low_freq_factor", &rope->low_freq_factor);
        get_real(f, "high_freq_factor", &rope->high_freq_factor);
    }
    if (rope->type == ROPE_YARN) read_yarn(f, rope);
}

/* rope_theta and rope_scaling, or both in transformers 5's rope_parameters. */
static void read_rope(struct fields *f, struct model_config *config)
{
    const struct cJSON *scaling = json_get(f->object, "rope_parameters");

    get_real(f, "rope_theta", &config->rope_theta);
    if (!scaling) scaling = json_get(f->object, "rope_scaling");
    if (!scaling) return;
    if (!cJSON_IsObject(scaling)) {
        bad_type(f, "rope_scaling", "an object", scaling);
        return;
    }
    struct fields inner = { f->label, scaling, f->err, f->rc };
    get_real(&inner, "rope_theta", &config->rope_theta);
    read_rope_type(&inner, config);
    f->rc = inner.rc;
}

static void read_eos(struct fields *f, struct model_config *config)
{
    const struct cJSON *item = json_get(f->object, "eos_token_id");
    const struct cJSON *each = cJSON_IsArray(item) ? item->child : item;
    int64_t id;

    for (; each && f->rc == 0; each = cJSON_IsArray(item) ? each->next : NULL) {
        if (json_int64(each, &id) < 0) bad_type(f, "eos_token_id", "an integer or a list of integers", each);
        else f->rc = model_config_add_eos(config, id, f->label, f->err);
    }
}

static void read_tokens(struct fields *f, struct model_config *config)
{
    int32_t bos = TOKEN_NONE;
    get_int(f, "bos_token_id", &bos);
    if (f->rc == 0) f->rc = model_config_token(config, bos, f->label, "bos_token_id", f->err);
    config->bos_token_id = bos;
    read_eos(f, config);
}

/* ---- files ---- */
static int parse_object(const char *label, const char *json, size_t len, struct cJSON **root, struct err *err)
{
    struct json_limits limits = json_limits_file;
    struct err why = { 0 };

    limits.max_nodes = 1 << 20;
    int rc = json_parse(json, len, &limits, root, &why);
    if (rc < 0) return err_set(err, rc == ERR_NO_MEMORY ? rc : ERR_MODEL_FILE, "%s: %s", label, why.message);
    if (cJSON_IsObject(*root)) return 0;
    rc = err_set(err, ERR_MODEL_FILE, "%s: expected an object, found a value of type %s", label, json_kind(*root));
    json_free(*root);
    *root = NULL;
    return rc;
}

/* "torch_dtype" in older files. What is neither of the two is served in bf16, which has the range of float32. */
static void read_dtype(struct fields *f, struct model_config *config)
{
    const char *name = get_text(f, "dtype");
    if (!name) name = get_text(f, "torch_dtype");
    config->dtype = name && !strcmp(name, "float16") ? DTYPE_F16 : DTYPE_BF16;
}

int hf_config_parse(struct model_config *config, const char *json, size_t len, struct err *err)
{
    struct cJSON *root;
    model_config_init(config);
    int rc = parse_object(config_name, json, len, &root, err);
    if (rc < 0) return rc;
    struct fields f = { config_name, root, err, 0 };
    f.rc = read_architecture(&f, config);
    if (f.rc == 0) {
        read_sizes(&f, config);
        refuse_variants(&f, config);
        read_sliding_window(&f, config);
        read_rope(&f, config);
        read_dtype(&f, config);
        config->attention_bias = config->arch == ARCH_QWEN2;
        config->qk_norm = config->arch == ARCH_QWEN3;
    }
    if (f.rc == 0) f.rc = model_config_check(config, config_name, err);
    if (f.rc == 0) read_tokens(&f, config);
    json_free(root);
    return f.rc;
}

int hf_generation_config_parse(struct model_config *config, const char *json, size_t len, struct err *err)
{
    struct cJSON *root;
    int rc = parse_object(generation_name, json, len, &root, err);
    if (rc < 0) return rc;
    struct fields f = { generation_name, root, err, 0 };
    read_eos(&f, config);
    get_real(&f, "temperature", &config->gen_temperature);
    get_real(&f, "top_p", &config->gen_top_p);
    get_real(&f, "min_p", &config->gen_min_p);
    get_real(&f, "repetition_penalty", &config->gen_repetition_penalty);
    get_int(&f, "top_k", &config->gen_top_k);
    json_free(root);
    return f.rc;
}
