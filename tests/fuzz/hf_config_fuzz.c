/* hf_config_fuzz.c - any bytes as config.json, then the same bytes as generation_config.json. */
#include <stdint.h>

#include "base/bug.h"
#include "loader/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    struct err err = { 0 };
    if (hf_config_parse(&config, (const char *)data, size, &err) < 0) {
        BUG_ON(!err.message[0]);
        return 0;
    }
    BUG_ON(config.num_attention_heads < 1 || config.num_attention_heads % config.num_key_value_heads != 0);
    BUG_ON(config.head_dim < 2 || config.vocab_size < 1 || config.num_eos_token_ids > MAX_EOS_IDS);
    (void)hf_generation_config_parse(&config, (const char *)data, size, &err);
    for (int i = 0; i < config.num_eos_token_ids; i++) {
        BUG_ON(config.eos_token_ids[i] < 0 || config.eos_token_ids[i] >= config.vocab_size);
    }
    return 0;
}
