/* model_config.h - config.json, generation_config.json or GGUF metadata -> struct model_config, every number in range.
 * Both readers fill what their file says, then model_config_check refuses what no served model can mean. */
#ifndef SLUICE_LOADER_MODEL_CONFIG_H
#define SLUICE_LOADER_MODEL_CONFIG_H

#include <sluice/loader.h>

enum {
    MAX_HIDDEN = 1 << 17, MAX_INTERMEDIATE = 1 << 20, MAX_LAYERS = 1024, MAX_HEADS = 1024, MAX_HEAD_DIM = 1024,
    MAX_VOCAB = 4 << 20, MAX_POSITIONS = 1 << 28,
};

/* Everything "not said": no ids, no sampling defaults, plain rope. */
void model_config_init(struct model_config *config);
/* Ranges and relations. label: the file's name, for messages. */
int  model_config_check(const struct model_config *config, const char *label, struct err *err);
/* Adds an end-of-sequence id unless it is there; ids beyond MAX_EOS_IDS are refused. */
int  model_config_add_eos(struct model_config *config, int64_t id, const char *label, struct err *err);
/* bos or eos id: TOKEN_NONE or 0 <= id < vocab_size. */
int model_config_token(const struct model_config *config, int64_t id, const char *label, const char *key,
                       struct err *err);

/* config.json; text need not outlive the call. */
int hf_config_parse(struct model_config *config, const char *json, size_t len, struct err *err);
/* generation_config.json on top: eos ids are added, sampling defaults set. */
int hf_generation_config_parse(struct model_config *config, const char *json, size_t len, struct err *err);

#endif
