/* loader.h - what is in a model's files: configuration and tensors, read with pread, nothing trusted.
 * Two containers behind one door: a GGUF file, or a Hugging Face directory (config.json, *.safetensors, index).
 * Every size is overflow-checked against the file's length before use; a bad file is refused with file, tensor,
 * expected and found (ERR_MODEL_FILE; the programs exit 78). Files are never mapped (a file cut short under a map is
 * SIGBUS). Thread: open and close on one; model_source_read from any number of threads at once. */
#ifndef SLUICE_LOADER_H
#define SLUICE_LOADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/types.h>

/* ---- model configuration, in Hugging Face's words ---- */
enum model_arch { ARCH_LLAMA, ARCH_QWEN2, ARCH_QWEN3, ARCH_COUNT };   /* Mistral and SmolLM2 are ARCH_LLAMA */
enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };
enum { MAX_EOS_IDS = 16 };

struct rope_scaling {
    enum rope_type type;
    float factor;                              /* linear, llama3, yarn */
    float low_freq_factor, high_freq_factor;   /* llama3 */
    int32_t original_max_position_embeddings;  /* llama3, yarn */
    float attention_factor;                    /* yarn; 0 = 0.1 ln(factor) + 1 */
    float beta_fast, beta_slow;                /* yarn; 32, 1 */
};

struct model_config {
    enum model_arch arch;
    char model_type[32];                 /* as the file says: llama, mistral, qwen2, qwen3 */
    enum dtype dtype;                    /* what the files suggest to compute in: F16 (config.json says so, or GGUF), else BF16 */
    int32_t hidden_size, intermediate_size, num_hidden_layers;
    int32_t num_attention_heads, num_key_value_heads, head_dim;
    int32_t vocab_size;                  /* rows of the embedding, may exceed the tokenizer's */
    int32_t max_position_embeddings;
    int32_t sliding_window;              /* 0 = none (Mistral v0.1) */
    float rms_norm_eps, rope_theta;
    struct rope_scaling rope_scaling;
    bool tie_word_embeddings;
    bool attention_bias;                 /* q, k, v biases (Qwen2) */
    bool qk_norm;                        /* Qwen3 */
    bool rope_interleaved;               /* q, k rows as stored pair (0,1),(2,3)... (GGUF llama) */
    bool rope_freqs;                     /* tensor "rope_freqs.weight", f32 [head_dim/2], divides frequency i by element
                                            i: GGUF's llama3 scaling (rope_scaling.type is then ROPE_DEFAULT) */
    token_id bos_token_id;               /* TOKEN_NONE = none */
    token_id eos_token_ids[MAX_EOS_IDS];
    int num_eos_token_ids;
    /* sampling defaults of generation_config.json; negative = the file says nothing */
    float gen_temperature, gen_top_p, gen_min_p, gen_repetition_penalty;
    int32_t gen_top_k;
};

/* ---- a model's files ---- */
enum load_format { LOAD_AUTO, LOAD_GGUF, LOAD_SAFETENSORS, LOAD_DUMMY };
enum load_format load_format_from_name(const char *name);    /* "gguf" ...; LOAD_AUTO for any other */

struct tensor_info {
    const char *name;                    /* as in the file; lives as long as the source */
    enum dtype dtype;                    /* DTYPE_COUNT: a type that is listed but not served (F64, I64, F8...); to read
                                            it is refused by name */
    int ndim;                            /* 0 (a scalar) to 4; 1 or 2 for the models served */
    int64_t shape[4];                    /* row-major, outermost first (GGUF's reversed) */
    int32_t file;                        /* index of the shard */
    uint64_t offset, bytes;              /* absolute in that file */
};

struct model_source;                     /* opaque */
struct gguf_file;                        /* opaque; the metadata door below */

/* path: a .gguf file, a directory with config.json, or a directory that holds exactly one .gguf. Symlinks inside a
 * directory must stay below it (or below the models--* root of a Hugging Face cache snapshot). LOAD_DUMMY needs
 * config.json only (or a .gguf, for its metadata): the source then has no tensors. Messages name files without their
 * directory. */
int  model_source_open(struct model_source **out, const char *path, enum load_format format, struct err *err);
void model_source_close(struct model_source *src);

const struct model_config *model_source_config(const struct model_source *src);
enum load_format model_source_format(const struct model_source *src);          /* resolved, never LOAD_AUTO */
const struct gguf_file *model_source_gguf(const struct model_source *src);     /* NULL for a directory */
int model_source_dir_fd(const struct model_source *src);                       /* -1 for a GGUF file */
const struct tensor_info *model_source_find(const struct model_source *src, const char *name);   /* NULL if absent */
size_t model_source_num_tensors(const struct model_source *src);
uint64_t model_source_bytes(const struct model_source *src);                   /* of all tensors, for progress */
/* Reads len bytes at offset inside the tensor's data. */
int  model_source_read(const struct model_source *src, const struct tensor_info *info, uint64_t offset, void *dst,
                       uint64_t len, struct err *err);
/* A digest of names, shapes and sizes of all files (not of the weights): system_fingerprint, prefix-cache root. */
void model_source_digest(const struct model_source *src, uint8_t digest[32]);

/* n elements (multiple of the dtype's block) from src to fp32. Exact for every format; both pointers 4-byte aligned or
 * better. */
void dequantize_row(enum dtype dtype, const void *src, float *dst, int64_t n);

/* ---- GGUF metadata, for the tokenizer and template ---- */
enum gguf_type { GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
                 GGUF_U64, GGUF_I64, GGUF_F64 };
/* 0, ERR_NOT_FOUND (no such key, or index beyond the array), or ERR_TYPE. Texts are bytes of the file: any bytes, no
 * NUL added. */
bool   gguf_has(const struct gguf_file *gguf, const char *key);
int    gguf_get_str(const struct gguf_file *gguf, const char *key, const char **text, size_t *len);
int    gguf_get_i64(const struct gguf_file *gguf, const char *key, int64_t *value);   /* any integer or bool type */
int    gguf_get_f64(const struct gguf_file *gguf, const char *key, double *value);
size_t gguf_array_len(const struct gguf_file *gguf, const char *key);                  /* 0 if absent */
int    gguf_array_str(const struct gguf_file *gguf, const char *key, size_t i, const char **text, size_t *len);
int    gguf_array_i64(const struct gguf_file *gguf, const char *key, size_t i, int64_t *value);
int    gguf_array_f64(const struct gguf_file *gguf, const char *key, size_t i, double *value);

/* Small files of a model directory (config.json, tokenizer.json ...): at most max_bytes, NUL added, *data malloc'ed.
 * ERR_NOT_FOUND when the file does not exist. */
int model_read_file(int dir_fd, const char *name, size_t max_bytes, char **data, size_t *len, struct err *err);
/* The chat template: chat_template.jinja, tokenizer_config.json's chat_template, or GGUF's; *text malloc'ed; NULL if
 * none. */
int model_source_chat_template(const struct model_source *src, char **text, size_t *len, struct err *err);

#endif
