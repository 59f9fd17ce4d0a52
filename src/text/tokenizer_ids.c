/* tokenizer_ids.c - stands in for a tokenizer that does not exist: benchmarks serve dummy weights with prompts of ids. */
#include "tokenizer_impl.h"

#include <stdio.h>

static int fill_entries(struct tokenizer *tok)
{
    char text[16];

    for (int32_t id = 0; id < tok->vocab_size; id++) {
        int len = snprintf(text, sizeof text, " t%d", id);
        const char *kept = tokenizer_keep(tok, text, (size_t)len);
        if (!kept) return ERR_NO_MEMORY;
        tok->entries[id] = (struct token_entry){ .bytes = kept, .len = (uint32_t)len };
        if (str_map_put(&tok->texts, kept, (size_t)len, id, NULL) < 0) return ERR_NO_MEMORY;
    }
    return 0;
}

int tokenizer_new_ids(struct tokenizer **out, int32_t vocab_size, token_id bos, const token_id *eos_ids, int n_eos_ids,
                      struct err *err)
{
    struct tokenizer *tok = NULL;
    int rc = tokenizer_new(&tok, vocab_size, err);

    if (rc < 0) return rc;
    tok->ids_only = true;
    if (fill_entries(tok) < 0) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory for %d tokens", vocab_size);
        goto out;
    }
    if (bos >= 0 && bos < vocab_size) tok->bos = bos;
    for (int i = 0; i < n_eos_ids; i++) tokenizer_add_eos_id(tok, eos_ids[i]);
    if (tok->n_eos_ids) tok->eos = tok->eos_ids[0];
    if (tok->bos != TOKEN_NONE) tok->bos_text = tok->entries[tok->bos].bytes;
    if (tok->eos != TOKEN_NONE) tok->eos_text = tok->entries[tok->eos].bytes;
    *out = tok;
    tok = NULL;
out:
    tokenizer_free(tok);
    return rc;
}
