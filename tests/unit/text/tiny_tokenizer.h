/* tiny_tokenizer.h - tokenizers small enough to know by heart, for the tests of this folder.
 * Byte-level: ids 0..255 are the bytes, then the merges in order, then the added tokens. */
#ifndef SLUICE_TESTS_TINY_TOKENIZER_H
#define SLUICE_TESTS_TINY_TOKENIZER_H

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <sluice/text.h>

#include "base/buf.h"
#include "base/utf8.h"

/* GPT-2's printable character of a byte. */
static inline void tiny_spell(struct buf *out, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned byte = (unsigned char)bytes[i], extra = 0;
        for (unsigned b = 0; b < byte; b++)
            extra += !((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae);
        bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        char text[4];
        size_t n = (size_t)utf8_encode(printable ? byte : 0x100 + extra, text);
        buf_json_escape(out, text, n);
    }
}

/* merges: { "t", "h", "th", "e", NULL } pairs. added: JSON objects of added_tokens after the first id. */
struct tiny {
    const char *const *merges;
    const char *added, *normalizer, *pre_tokenizer, *post_processor;
};

static inline void tiny_json(struct buf *out, const struct tiny *tiny)
{
    int id = 256;

    buf_printf(out, "{\"added_tokens\":[%s],\"normalizer\":%s,", tiny->added ? tiny->added : "",
               tiny->normalizer ? tiny->normalizer : "null");
    buf_printf(out, "\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":{\"type\":\"ByteLevel\"},",
               tiny->pre_tokenizer ? tiny->pre_tokenizer
                                   : "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}",
               tiny->post_processor ? tiny->post_processor : "null");
    buf_puts(out, "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int i = 0; i < 256; i++) {
        char byte = (char)i;
        buf_puts(out, i ? ",\"" : "\"");
        tiny_spell(out, &byte, 1);
        buf_printf(out, "\":%d", i);
    }
    for (const char *const *m = tiny->merges; m && *m; m += 2) {
        buf_puts(out, ",\"");
        tiny_spell(out, m[0], strlen(m[0]));
        tiny_spell(out, m[1], strlen(m[1]));
        buf_printf(out, "\":%d", id++);
    }
    buf_puts(out, "},\"merges\":[");
    for (const char *const *m = tiny->merges; m && *m; m += 2) {
        buf_puts(out, m == tiny->merges ? "[\"" : ",[\"");
        tiny_spell(out, m[0], strlen(m[0]));
        buf_puts(out, "\",\"");
        tiny_spell(out, m[1], strlen(m[1]));
        buf_puts(out, "\"]");
    }
    buf_puts(out, "]}}");
}

static inline int tiny_load(struct tokenizer **tok, const struct tiny *tiny, struct err *err)
{
    struct buf json = BUF_INIT;

    tiny_json(&json, tiny);
    int rc = tokenizer_load_json(tok, json.data, json.len, NULL, 0, err);
    buf_release(&json);
    return rc;
}

/* SentencePiece style: bytes 3..258 after <unk> <s> </s>, then the pieces. */
static inline void tiny_sentencepiece_json(struct buf *out, const char *const *merges, const char *normalizer)
{
    int id = 259;

    buf_puts(out, "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
                  "{\"id\":1,\"content\":\"<s>\",\"special\":true},{\"id\":2,\"content\":\"</s>\",\"special\":true}],");
    buf_printf(out, "\"normalizer\":%s,\"pre_tokenizer\":null,", normalizer);
    buf_puts(out, "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
                  "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[1]}}},");
    buf_puts(
        out,
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\u2581\"},"
        "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},");
    buf_puts(out,
             "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"fuse_unk\":true,\"unk_token\":\"<unk>\",\"vocab\":{"
             "\"<unk>\":0,\"<s>\":1,\"</s>\":2");
    for (int i = 0; i < 256; i++) buf_printf(out, ",\"<0x%02X>\":%d", i, i + 3);
    for (const char *c = "abcdefghijklmnopqrstuvwxyz"; *c; c++) buf_printf(out, ",\"%c\":%d", *c, id++);
    buf_printf(out, ",\"\u2581\":%d", id++);
    for (const char *const *m = merges; *m; m += 2) buf_printf(out, ",\"%s%s\":%d", m[0], m[1], id++);
    buf_puts(out, "},\"merges\":[");
    for (const char *const *m = merges; *m; m += 2) buf_printf(out, "%s\"%s %s\"", m == merges ? "" : ",", m[0], m[1]);
    buf_puts(out, "]}}");
}

#endif
