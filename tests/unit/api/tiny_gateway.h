/* tiny_gateway.h - a gateway without files for tests of api/ and http/: one token per byte (byte-level BPE without
 * merges), three
 * special tokens, a ChatML template. Ids: byte b is token b; <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258. */
#ifndef TINY_GATEWAY_H
#define TINY_GATEWAY_H

#include <stdio.h>
#include <string.h>

#include <sluice/gateway.h>

#include "base/buf.h"
#include "base/bug.h"
#include "base/utf8.h"

struct tiny {
    struct config config;
    struct model_config model;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template;
    struct gateway gateway;
};

static const char tiny_template[] =
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/* GPT-2's printable stand-in of each byte. */
static void tiny_put_byte(struct buf *out, int byte)
{
    int next = 256, cp = 0;
    char utf8[4];

    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        cp = printable ? b : next++;
    }
    buf_json_escape(out, utf8, (size_t)utf8_encode((uint32_t)cp, utf8));
}

/* n_special: 3, or 6 with tokens for filling in the middle. */
static void tiny_tokenizer(struct tiny *tiny, int n_special)
{
    static const char *const special[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>" };
    struct buf json = BUF_INIT;
    struct err err = { 0 };
    const char *settings = "{\"eos_token\":\"<|im_end|>\",\"bos_token\":null}";

    buf_puts(&json, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (int i = 0; i < n_special; i++)
        buf_printf(&json, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                   "\"normalized\":false,\"special\":true}", i ? "," : "", 256 + i, special[i]);
    buf_puts(&json,
             "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
             "\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
             "\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
             "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{");
    for (int b = 0; b < 256; b++) {
        buf_puts(&json, b ? ",\"" : "\"");
        tiny_put_byte(&json, b);
        buf_printf(&json, "\":%d", b);
    }
    for (int i = 0; i < n_special; i++) buf_printf(&json, ",\"%s\":%d", special[i], 256 + i);
    buf_puts(&json, "},\"merges\":[]}}");
    int rc = tokenizer_load_json(&tiny->tokenizer, json.data, json.len, settings, strlen(settings), &err);
    if (rc < 0) fprintf(stderr, "tokenizer: %s\n", err.message);
    BUG_ON(rc < 0);
    buf_release(&json);
}

/* More flags of sluiced may follow: argv ends with NULL. */
static void tiny_init(struct tiny *tiny, char *const *more)
{
    char *argv[32] = { "--model", "tiny.gguf", "--served-model-name", "tiny", "--served-model-name", "org/tiny",
        "--port", "0" };
    struct err err = { 0 };
    bool help = false;
    int argc = 8;

    for (; more && *more; more++) argv[argc++] = *more;
    *tiny = (struct tiny){ 0 };
    int rc = config_load(&tiny->config, argc, argv, &help, &err);
    if (rc < 0) fprintf(stderr, "config: %s\n", err.message);
    BUG_ON(rc < 0);
    tiny_tokenizer(tiny, 3);
    rc = chat_template_compile(&tiny->chat_template, tiny_template, strlen(tiny_template), &err);
    if (rc < 0) fprintf(stderr, "template: %s\n", err.message);
    BUG_ON(rc < 0);
    tiny->model = (struct model_config){ .vocab_size = 259, .max_position_embeddings = 2048, .bos_token_id = TOKEN_NONE,
        .eos_token_ids = { 258 }, .num_eos_token_ids = 1, .gen_temperature = -1, .gen_top_p = -1, .gen_min_p = -1,
        .gen_repetition_penalty = -1, .gen_top_k = -1 };
    tiny->gateway = (struct gateway){ .config = &tiny->config, .model = &tiny->model, .tokenizer = tiny->tokenizer,
        .chat_template = tiny->chat_template, .chat_template_text = tiny_template, .max_model_len = 2048, .created_s = 1700000000,
        .fingerprint = "fp_0123456789ab", .version = "0.1.0" };
}

static inline void tiny_learns_infill(struct tiny *tiny)
{
    tokenizer_free(tiny->tokenizer);
    tiny_tokenizer(tiny, 6);
    tiny->gateway.tokenizer = tiny->tokenizer;
    tiny->model.vocab_size = 262;
}

static inline void tiny_release(struct tiny *tiny)
{
    chat_template_free(tiny->chat_template);
    tokenizer_free(tiny->tokenizer);
    config_release(&tiny->config);
}

#endif
