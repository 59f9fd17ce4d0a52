/* tokenizer_impl.h - the inside of struct tokenizer, shared by its loaders (tokenizer_load.c, tokenizer_gguf.c), the
 * encoder (tokenizer.c) and the detokenizer.
 * Loading: tokenizer_new, fill the fields, tokenizer_seal. After the seal nothing changes. */
#ifndef SLUICE_TEXT_TOKENIZER_IMPL_H
#define SLUICE_TEXT_TOKENIZER_IMPL_H

#include <sluice/text.h>

#include "base/arena.h"
#include "base/hash.h"

#include "added_tokens.h"
#include "bpe.h"
#include "normalize.h"
#include "pretokenize.h"

#define METASPACE_MARK "\xe2\x96\x81"      /* U+2581, SentencePiece's space */

enum { ENTRY_SPECIAL = 1, ENTRY_ADDED = 2 };
enum { TEMPLATE_MAX_IDS = 8, TOKENIZER_MAX_EOS = 16, TOKEN_TEXT_MAX = 64 << 10 };

struct token_entry {
    const char *bytes;          /* what the token decodes to; NULL for a hole */
    uint32_t len;
    uint8_t flags;
};

/* What detokenizing does to the space at the very start. */
enum start_space { START_KEEP, START_STRIP_ONE, START_STRIP_MARKS /* every mark of the first token */ };

struct tokenizer {
    struct arena arena;                     /* every string and table below */
    int32_t vocab_size;
    bool ids_only;                          /* tokenizer_ids.c */
    struct token_entry *entries;
    struct str_map texts;                   /* added tokens by text, then model tokens by decoded bytes */
    struct bpe bpe;
    struct normalizer normalizer;
    struct pretokenizer pre;
    struct added_set added, added_normalized;
    token_id prefix[TEMPLATE_MAX_IDS], suffix[TEMPLATE_MAX_IDS];   /* the post-processor */
    int n_prefix, n_suffix;
    enum start_space start_space;
    token_id bos, eos;
    const char *bos_text, *eos_text, *class;
    token_id eos_ids[TOKENIZER_MAX_EOS];
    size_t n_eos_ids;
};

/* One token as a loader read it. text is the vocabulary's spelling, borrowed until tokenizer_seal. */
struct raw_token { const char *text; uint32_t len; bool used, added, special, is_byte; };

int  tokenizer_new(struct tokenizer **out, int32_t vocab_size, struct err *err);
/* Copies into the arena; NULL when memory is out. */
const char *tokenizer_keep(struct tokenizer *tok, const char *text, size_t len);
/* Fills entries and texts. byte_level: text is in GPT-2's printable alphabet; else marks become spaces and, with
 * byte_tokens, <0xNN> one byte. */
int  tokenizer_set_entries(struct tokenizer *tok, const struct raw_token *tokens, bool byte_level, bool byte_tokens,
                           struct err *err);
/* text in GPT-2's printable alphabet to bytes (out holds len); -1 when a character is not of the alphabet. */
int  byte_level_decode(const char *text, size_t len, char *out);
/* Files token under `added` or `added_normalized`, there in its normalized form (the normalizer must be complete). */
int  tokenizer_add_added(struct tokenizer *tok, const struct added_token *token, struct err *err);
void tokenizer_add_eos_id(struct tokenizer *tok, int64_t id);     /* ignores ids outside the vocabulary and repeats */
/* bos/eos texts from the ids. */
int  tokenizer_seal(struct tokenizer *tok, struct err *err);

#endif
