/* text.h - from text to tokens and back: tokenizer, chat template, incremental detokenizer, stop strings.
 * Flow in:  messages -> chat_template_render -> text_segments -> tokenizer_encode -> ids.       Thread: any (workers).
 * Flow out: ids -> detok_push -> UTF-8 text -> stop_push -> what may be shown.                    Thread: router loop.
 * tokenizer and chat_template are immutable after load and shared by all threads. */
#ifndef SLUICE_TEXT_H
#define SLUICE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/types.h>

struct cJSON;
struct gguf_file;

/* ---- text with the origin of every byte (the special-token firewall, api-contract 10.3) ---- */
struct text_segment {
    const char *text;        /* bytes, valid UTF-8 except where a client sent NUL; not NUL-terminated */
    size_t len;
    bool parse_special;      /* true: literal of the template, special-token strings become special ids; false: client text */
};
/* Segments join seamlessly: pre-tokenization runs over the concatenation, except that a special token found in a
 * parse_special segment splits it, as in Hugging Face; a special string is only recognised when every byte of it is
 * parse_special. Added tokens that the model's files do not mark special are words like others and recognised anywhere. */

/* ---- tokenizer ---- */
struct tokenizer;            /* opaque */

enum { TOKENIZER_MAX_VOCAB = 4 << 20 };

/* dir_fd: model directory with tokenizer.json (+ tokenizer_config.json, special_tokens_map.json, generation_config.json where present). */
int  tokenizer_load_dir(struct tokenizer **out, int dir_fd, struct err *err);
int  tokenizer_load_json(struct tokenizer **out, const char *json, size_t len, const char *config_json /* or NULL */,
                         size_t config_len, struct err *err);
int  tokenizer_load_gguf(struct tokenizer **out, const struct gguf_file *gguf, struct err *err);
/* For a model that has no tokenizer files (dummy weights): ids only. Id N reads " tN", no text can be encoded
 * (ERR_UNSUPPORTED), nothing is special. eos_ids[n_eos_ids] and bos (or TOKEN_NONE) as the model's configuration has them. */
int  tokenizer_new_ids(struct tokenizer **out, int32_t vocab_size, token_id bos, const token_id *eos_ids, int n_eos_ids,
                       struct err *err);
void tokenizer_free(struct tokenizer *tok);

int32_t tokenizer_vocab_size(const struct tokenizer *tok);        /* ids 0..size-1, added tokens included */
token_id tokenizer_bos(const struct tokenizer *tok);              /* TOKEN_NONE if the model has none */
token_id tokenizer_eos(const struct tokenizer *tok);
const char *tokenizer_bos_text(const struct tokenizer *tok);      /* "" if none */
const char *tokenizer_eos_text(const struct tokenizer *tok);
const char *tokenizer_class(const struct tokenizer *tok);         /* "GPT2Tokenizer", "LlamaTokenizer", ... or "" */
/* End-of-generation ids: eos, eot, im_end, ... as the files name them (generation_config eos_token_id, GGUF eot/eom ids). */
size_t tokenizer_eos_ids(const struct tokenizer *tok, const token_id **ids);
/* True when add_special_tokens puts a BOS in front (post-processor or GGUF add_bos_token). */
bool tokenizer_adds_bos(const struct tokenizer *tok);
bool tokenizer_is_special(const struct tokenizer *tok, token_id id);
/* The token's bytes (byte-level decoded; special tokens: their text). Borrowed, live as long as the tokenizer. */
void tokenizer_token_bytes(const struct tokenizer *tok, token_id id, const char **bytes, size_t *len);
token_id tokenizer_find(const struct tokenizer *tok, const char *text, size_t len);   /* exact token text, or TOKEN_NONE */

struct token_buf { token_id *ids; size_t len, cap; size_t limit; /* 0 = none; ERR_LIMIT beyond */ };
void token_buf_release(struct token_buf *tokens);

/* Appends the ids of the segments. add_special: BOS/EOS by the post-processor. Linear in the input but for the merge
 * heap, O(n log n) in the worst word; bounded by tokens->limit. Errors: ERR_NO_MEMORY, ERR_LIMIT. */
int tokenizer_encode(const struct tokenizer *tok, const struct text_segment *segments, size_t n_segments,
                     bool add_special, struct token_buf *tokens, struct err *err);

/* Whole decode, as `tokenizers` decode(skip_special_tokens=...). Result is malloc'ed; invalid UTF-8 -> U+FFFD. */
int tokenizer_decode(const struct tokenizer *tok, const token_id *ids, size_t n, bool skip_special, char **text,
                     size_t *len, struct err *err);

/* ---- incremental detokenizer: one per choice; value type, no heap ---- */
struct detok {
    const struct tokenizer *tok;
    bool skip_special;
    bool strip_leading_space;     /* SentencePiece: first token's leading space is dropped */
    bool at_start;
    uint8_t pending[8];           /* unfinished UTF-8 */
    uint8_t pending_len;
};
void   detok_init(struct detok *detok, const struct tokenizer *tok, bool skip_special, bool at_start);
/* Appends the text that id completes to out (struct buf of base/buf.h). Never half a code point; a byte that can never
 * become valid is U+FFFD at once. */
struct buf;
void   detok_push(struct detok *detok, token_id id, struct buf *out);
void   detok_finish(struct detok *detok, struct buf *out);      /* an unfinished code point becomes U+FFFD */

/* ---- stop strings: a shared immutable automaton (Aho-Corasick), one state per choice; O(1) per byte, amortised ---- */
struct stop_set;
struct stop_state { int32_t node; };
enum { STOP_MAX_STRINGS = 16, STOP_MAX_BYTES = 1024 };

/* NULL *out when n is 0. Strings are copied. */
int  stop_set_new(struct stop_set **out, const char *const *strings, const size_t *lens, size_t n, struct err *err);
void stop_set_free(struct stop_set *set);
/* Feeds bytes. Returns the index of the string that ends earliest (then the one that starts earliest) or -1.
 * *safe_len: how many bytes counted from the start of all text fed so far may be shown: before the match on a match;
 * else all but the longest suffix that may begin a stop string. fed_len: bytes fed before this call. */
int  stop_push(const struct stop_set *set, struct stop_state *state, const char *text, size_t len, size_t fed_len,
               size_t *safe_len, size_t *match_end);

/* ---- chat template: a Jinja subset compiled once ---- */
struct chat_template;
struct chat_template_vars {
    const struct cJSON *messages;          /* array of message objects, validated by api/ */
    const struct cJSON *tools;             /* array or NULL */
    const struct cJSON *kwargs;            /* object or NULL: chat_template_kwargs */
    const char *bos_token, *eos_token;
    bool add_generation_prompt;
    bool continue_final_message;           /* output is cut after the final message's content */
    int64_t now_s;                         /* strftime_now */
};
/* Limits of a run (api-contract row 39): 1 M steps, 64 MiB output, depth 64. */
int  chat_template_compile(struct chat_template **out, const char *source, size_t len, struct err *err);
void chat_template_free(struct chat_template *tmpl);
/* Does the template read a variable of this name (tools, enable_thinking ...)? */
bool chat_template_reads(const struct chat_template *tmpl, const char *name);

struct chat_prompt { struct text_segment *segments; size_t n_segments; void *memory; };   /* release frees all */
/* Literals of the template, bos_token and eos_token are parse_special; every byte that came from messages, tools or
 * kwargs is not. Errors: ERR_TEMPLATE (message = the template's own raise text where it raised), ERR_NO_MEMORY. */
int  chat_template_render(const struct chat_template *tmpl, const struct chat_template_vars *vars,
                          struct chat_prompt *prompt, struct err *err);
void chat_prompt_release(struct chat_prompt *prompt);

#endif
