/* added_tokens.h - finds added tokens (special ones and others) in text, longest first, through a trie.
 * Thread: immutable after load, any thread.      Owns: the trie.      Borrows: the tokens' texts.
 * The firewall: a special token is only accepted where every byte of it may be parsed; `origin` tells which may. */
#ifndef SLUICE_TEXT_ADDED_TOKENS_H
#define SLUICE_TEXT_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/types.h>

#include "base/hash.h"

struct added_token {
    const char *text;
    uint32_t len;
    token_id id;
    bool special, lstrip, rstrip, single_word;
    bool normalized;              /* looked for after normalization, in its own normalized form */
};

struct added_node { int32_t child, sibling, token; unsigned char byte; };   /* token: index, -1 none */
struct added_set {
    struct added_token *tokens;   /* by order of the file */
    size_t n_tokens, token_cap;
    struct added_node *nodes;
    size_t n_nodes, node_cap;
    int32_t root[256];            /* node by first byte, -1 none */
    bool any;
};

void added_set_init(struct added_set *set);
/* 0 or ERR_NO_MEMORY. key is what is looked for (the token's text, or its normalized form). Of equal keys the
 * first counts. */
int  added_set_add(struct added_set *set, const struct added_token *token, const char *key, size_t key_len);
void added_set_release(struct added_set *set);

/* Which bytes of the text may be read as special tokens: sorted, gapless runs over the whole input. */
struct origin_run { size_t end; bool parse_special; };
struct origin_map { const struct origin_run *runs; size_t n_runs; };
bool origin_is_template(const struct origin_map *origin, size_t start, size_t end);    /* every byte may be read so */

struct added_match { const struct added_token *token; size_t start, end; };

/* The next accepted token in text[from..len), its spaces as lstrip/rstrip say; base is text's offset in the input that
 * origin describes. floor: no match starts before it. False: none. *resume is where the next search starts. */
bool added_find(const struct added_set *set, const char *text, size_t len, size_t from, size_t floor,
                const struct origin_map *origin, size_t base, struct added_match *match, size_t *resume);

#endif
