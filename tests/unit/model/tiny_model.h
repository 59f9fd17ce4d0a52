/* tiny_model.h - dummy models small enough for a unit test: a temporary directory with a config.json. */
#ifndef SLUICE_TESTS_TINY_MODEL_H
#define SLUICE_TESTS_TINY_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sluice/loader.h>

/* 6 query heads over 3 KV heads, a vocabulary that no tp size divides evenly into 64s. */
enum { TINY_VOCAB = 331, TINY_LAYERS = 5, TINY_HEADS = 6, TINY_KV_HEADS = 3, TINY_HEAD_DIM = 16, TINY_HIDDEN = 48,
       TINY_FFN = 200 };

static const char *const tiny_archs[] = { "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM" };
static const char *const tiny_types[] = { "llama", "qwen2", "qwen3" };
enum { TINY_ARCHS = 3 };

struct tiny_shape { int num_layers, hidden, ffn, head_dim, vocab; };

/* extra: more members of config.json, "" or ", \"key\": value". The directory is removed before the return. */
static struct model_source *tiny_open_shape(int arch, bool tied, const struct tiny_shape *shape, const char *extra)
{
    char dir[] = "/tmp/sluice-tiny-XXXXXX", path[64];
    struct model_source *src = NULL;
    struct err err = { 0 };
    if (!mkdtemp(dir)) return NULL;
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *file = fopen(path, "w");
    if (file) {
        fprintf(file,
                "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"hidden_size\": %d, \"intermediate_size\": %d, "
                "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, "
                "\"head_dim\": %d, \"vocab_size\": %d, \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-5, "
                "\"rope_theta\": 10000.0, "
                "\"hidden_act\": \"silu\", \"tie_word_embeddings\": %s%s}\n",
                tiny_archs[arch], tiny_types[arch], shape->hidden, shape->ffn, shape->num_layers, TINY_HEADS,
                TINY_KV_HEADS, shape->head_dim, shape->vocab, tied ? "true" : "false", extra);
        fclose(file);
        if (model_source_open(&src, dir, LOAD_DUMMY, &err) < 0) fprintf(stderr, "tiny model: %s\n", err.message);
    }
    unlink(path);
    rmdir(dir);
    return src;
}

static inline struct model_source *tiny_open(int arch, bool tied, const char *extra)
{
    const struct tiny_shape shape = { TINY_LAYERS, TINY_HIDDEN, TINY_FFN, TINY_HEAD_DIM, TINY_VOCAB };
    return tiny_open_shape(arch, tied, &shape, extra);
}

#endif
