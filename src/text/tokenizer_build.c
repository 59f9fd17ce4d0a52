#include "tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

int tokenizer_new(struct tokenizer **out, int32_t vocab_size, struct err *err)
{
    struct tokenizer *tok = NULL;

    if (vocab_size <= 0 || vocab_size > TOKENIZER_MAX_VOCAB)
        return err_set(err, ERR_MODEL_FILE, "tokenizer: vocabulary of %d tokens, expected 1..%d", vocab_size,
                       TOKENIZER_MAX_VOCAB);
    tok = calloc(1, sizeof *tok);
    if (!tok) return err_set(err, ERR_NO_MEMORY, "no memory for a tokenizer");
    arena_init(&tok->arena, 0);
    added_set_init(&tok->added);
    added_set_init(&tok->added_normalized);
    tok->vocab_size = vocab_size;
    tok->bos = tok->eos = TOKEN_NONE;
    tok->bos_text = tok->eos_text = tok->class = "";
    tok->entries = arena_array(&tok->arena, (size_t)vocab_size, sizeof *tok->entries);
    if (!tok->entries || str_map_init(&tok->texts, (size_t)vocab_size) < 0) {
        tokenizer_free(tok);
        return err_set(err, ERR_NO_MEMORY, "no memory for %d tokens", vocab_size);
    }
    *out = tok;
    return 0;
}

const char *tokenizer_keep(struct tokenizer *tok, const char *text, size_t len)
{
    return arena_strndup(&tok->arena, text, len);
}

/* GPT-2 gives each byte a printable character: itself where it is one, else U+0100 upwards in order. */
static int byte_of_char(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xac) || (cp >= 0xae && cp <= 0xff)) return (int)cp;
    if (cp >= 0x100 && cp <= 0x120) return (int)(cp - 0x100);                   /* 00..20 */
    if (cp >= 0x121 && cp <= 0x142) return (int)(cp - 0x121 + 0x7f);            /* 7f..a0 */
    return cp == 0x143 ? 0xad : -1;
}

int byte_level_decode(const char *text, size_t len, char *out)
{
    int n = 0;

    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int step = utf8_decode(text + i, len - i, &cp);
        int byte = step > 0 ? byte_of_char(cp) : -1;
        if (byte < 0) return -1;
        out[n++] = (char)byte;
        i += (size_t)step;
    }
    return n;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* <0x0A> is one byte. */
static bool byte_token(const char *text, size_t len, char *byte)
{
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return false;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    if (high < 0 || low < 0) return false;
    *byte = (char)(high * 16 + low);
    return true;
}

static size_t marks_to_spaces(const char *text, size_t len, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < len;) {
        bool mark = len - i >= 3 && !memcmp(text + i, METASPACE_MARK, 3);
        out[n++] = mark ? ' ' : text[i];
        i += mark ? 3 : 1;
    }
    return n;
}

static int set_entry(struct tokenizer *tok, int32_t id, const struct raw_token *raw, bool byte_level, bool byte_tokens)
{
    struct token_entry *entry = &tok->entries[id];
    char *bytes = arena_strndup(&tok->arena, raw->text, raw->len);   /* decoding never makes a text longer */
    int len = (int)raw->len;

    if (!bytes) return ERR_NO_MEMORY;
    if (byte_level && !raw->added)
        len = byte_level_decode(raw->text, raw->len, bytes);
    else if (!byte_level && (raw->is_byte || byte_tokens) && byte_token(raw->text, raw->len, bytes))
        len = 1;
    else if (!byte_level)
        len = (int)marks_to_spaces(raw->text, raw->len, bytes);
    if (len < 0) {                                    /* not of the alphabet: decodes to its own text */
        memcpy(bytes, raw->text, raw->len);
        len = (int)raw->len;
    }
    entry->bytes = bytes;
    entry->len = (uint32_t)len;
    entry->flags = (uint8_t)((raw->special ? ENTRY_SPECIAL : 0) | (raw->added ? ENTRY_ADDED : 0));
    return 0;
}

int tokenizer_set_entries(struct tokenizer *tok, const struct raw_token *tokens, bool byte_level, bool byte_tokens,
                          struct err *err)
{
    for (int32_t id = 0; id < tok->vocab_size; id++) {
        if (!tokens[id].used) continue;
        if (tokens[id].len > TOKEN_TEXT_MAX)
            return err_set(err, ERR_MODEL_FILE, "tokenizer: token %d has %u bytes, at most %d", id, tokens[id].len,
                           TOKEN_TEXT_MAX);
        if (set_entry(tok, id, &tokens[id], byte_level, byte_tokens) < 0) goto no_memory;
    }
    for (int added = 1; added >= 0; added--) {
        for (int32_t id = 0; id < tok->vocab_size; id++) {
            const struct token_entry *entry = &tok->entries[id];
            if (!entry->bytes || tokens[id].added != (bool)added) continue;
            if (str_map_put(&tok->texts, entry->bytes, entry->len, id, NULL) < 0) goto no_memory;
        }
    }
    return 0;
no_memory:
    return err_set(err, ERR_NO_MEMORY, "no memory for %d tokens", tok->vocab_size);
}

int tokenizer_add_added(struct tokenizer *tok, const struct added_token *token, struct err *err)
{
    struct normalize_scratch scratch = { 0 };
    const char *key = token->text;
    size_t len = token->len;
    int rc = 0;

    if (token->normalized) rc = normalize_run(&tok->normalizer, &scratch, token->text, token->len, &key, &len, err);
    if (!rc && added_set_add(token->normalized ? &tok->added_normalized : &tok->added, token, key, len) < 0)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for the added tokens");
    normalize_scratch_release(&scratch);
    return rc;
}

void tokenizer_add_eos_id(struct tokenizer *tok, int64_t id)
{
    if (id < 0 || id >= tok->vocab_size || tok->n_eos_ids == TOKENIZER_MAX_EOS) return;
    for (size_t i = 0; i < tok->n_eos_ids; i++)
        if (tok->eos_ids[i] == id) return;
    tok->eos_ids[tok->n_eos_ids++] = (token_id)id;
}

int tokenizer_seal(struct tokenizer *tok, struct err *err)
{
    if (bpe_finish(&tok->bpe, METASPACE_MARK) < 0) return err_set(err, ERR_NO_MEMORY, "no memory for the merge tables");
    if (tok->bos != TOKEN_NONE && tok->entries[tok->bos].bytes) tok->bos_text = tok->entries[tok->bos].bytes;
    if (tok->eos != TOKEN_NONE && tok->entries[tok->eos].bytes) tok->eos_text = tok->entries[tok->eos].bytes;
    tokenizer_add_eos_id(tok, tok->eos);
    return 0;
}
