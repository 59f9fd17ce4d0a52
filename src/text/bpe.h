/* bpe.h - byte-pair merging of one word: a table of pairs and a heap of the merges that are possible.
 * Flow: pretokenize -> bpe_encode_word -> token_buf.     Owns: its hash tables; keys are borrowed from the tokenizer.
 * Thread: the tables are immutable after bpe_finish; any thread may encode with a bpe_work of its own.
 * Two alphabets: byte_level (a symbol is a byte, vocabulary keys are raw bytes) and character (SentencePiece style: a
 * symbol is a UTF-8 character, unknown ones fall back to byte tokens or to unk).
 * Order of merges: lowest rank first, then leftmost. The result of a word depends on the word alone, so that words that
 * merge to exactly one token are found in a table (`whole`) without merging. */
#ifndef SLUICE_TEXT_BPE_H
#define SLUICE_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/text.h>

#include "base/hash.h"

struct bpe_pair { token_id left, right, merged; uint32_t rank; };   /* left TOKEN_NONE: empty slot */
/* A word that is one token; kept compact, so that a look-up costs one cache line and the key's bytes. */
struct bpe_whole { uint32_t hash, len; const char *key; token_id id; };

struct bpe {
    bool byte_level, byte_fallback, fuse_unk, ignore_merges;
    token_id unk;                     /* TOKEN_NONE: a symbol that is not in the vocabulary disappears, as in HF */
    token_id byte_ids[256];           /* base symbol of a byte (byte_level) or its <0xNN> token; TOKEN_NONE if absent */
    struct str_map vocab;             /* model vocabulary without added tokens that merging cannot reach */
    struct bpe_pair *pairs;           /* open addressing, power of two */
    size_t pair_cap, pair_count;
    struct bpe_whole *whole;
    size_t whole_cap;
    uint32_t max_whole_len;
    const char *word_start; /* character alphabet: no key has this string after other text, so that a text may be */
    size_t word_start_len;            /* cut before each run of it without changing the result; NULL: cannot be cut */
};

/* Scratch of one encode call. */
struct bpe_symbol { token_id id; int32_t prev, next; };
struct bpe_candidate { uint64_t order; uint32_t slot; };   /* order = rank << 32 | position; slot of the pair */
struct bpe_cached { uint32_t hash; uint8_t len, n_ids; char word[26]; token_id ids[8]; };   /* one cache line */
struct bpe_work {
    struct bpe_cached *cache;         /* merged words of this call by hash, or NULL (short texts) */
    struct bpe_symbol *symbols;
    size_t symbol_cap;
    struct bpe_candidate *heap;
    size_t heap_len, heap_cap;
};

int  bpe_init(struct bpe *bpe, size_t n_tokens, size_t n_merges);       /* 0 or ERR_NO_MEMORY */
int  bpe_add_token(struct bpe *bpe, const char *key, size_t len, token_id id);
/* A later rank for the same pair wins, as in the reference's map. */
int  bpe_add_merge(struct bpe *bpe, token_id left, token_id right, token_id merged, uint32_t rank);
/* SentencePiece scores: every split of a mergeable token into two known ones becomes a merge; a higher score goes
 * first,
 * equal scores share a rank (leftmost first). keys/lens/scores by id, mergeable[id] false for control and byte
 * tokens. */
int  bpe_merges_from_scores(struct bpe *bpe, const char *const *keys, const uint32_t *lens, const float *scores,
                            const bool *mergeable, int32_t n_tokens);
/* Fills byte_ids, the cut rule and the table of whole words. cut_before: the word-start mark (U+2581) or NULL. */
int  bpe_finish(struct bpe *bpe, const char *cut_before);
void bpe_release(struct bpe *bpe);

/* Appends the ids of one pre-token (any length, valid UTF-8). ERR_NO_MEMORY, ERR_LIMIT. */
int  bpe_encode_word(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t len,
                     struct token_buf *tokens, struct err *err);
/* Worth its 256 KiB when a call encodes many words; without memory for it, encoding is only slower. */
void bpe_work_use_cache(struct bpe_work *work);
void bpe_work_release(struct bpe_work *work);

int  token_buf_push(struct token_buf *tokens, token_id id, struct err *err);

#endif
