/* Any bytes as a tokenizer.json: it is refused, or what was loaded encodes and decodes without a fault. */
#include <stdlib.h>

#include <sluice/text.h>

#include "base/bug.h"

static void use(const struct tokenizer *tok, const char *text, size_t len)
{
    const struct text_segment segments[] = { { text, len / 2, true }, { text + len / 2, len - len / 2, false } };
    struct token_buf ids = { .limit = 1 << 16 };
    char *decoded = NULL;
    size_t decoded_len = 0;

    if (tokenizer_encode(tok, segments, 2, true, &ids, NULL) == 0) {
        for (size_t i = 0; i < ids.len; i++) BUG_ON(ids.ids[i] < 0 || ids.ids[i] >= tokenizer_vocab_size(tok));
        if (tokenizer_decode(tok, ids.ids, ids.len, false, &decoded, &decoded_len, NULL) == 0) free(decoded);
    }
    token_buf_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char sample[] = " the 12 ab\xc3\xa9\n\n<s>\0'll \xe2\x96\x81x</s>";
    struct tokenizer *tok = NULL;

    if (size > 1 << 16 || tokenizer_load_json(&tok, (const char *)data, size, NULL, 0, NULL) < 0) return 0;
    use(tok, sample, sizeof sample - 1);
    use(tok, (const char *)data, size < 2048 ? size : 2048);
    tokenizer_free(tok);
    return 0;
}
