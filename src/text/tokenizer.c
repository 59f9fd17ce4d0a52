#include "tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

/* ---- what a tokenizer knows ---- */
void tokenizer_free(struct tokenizer *tok)
{
    if (!tok) return;
    bpe_release(&tok->bpe);
    str_map_release(&tok->texts);
    pretokenizer_release(&tok->pre);
    added_set_release(&tok->added);
    added_set_release(&tok->added_normalized);
    arena_release(&tok->arena);
    free(tok);
}

int32_t tokenizer_vocab_size(const struct tokenizer *tok) { return tok->vocab_size; }
token_id tokenizer_bos(const struct tokenizer *tok) { return tok->bos; }
token_id tokenizer_eos(const struct tokenizer *tok) { return tok->eos; }
const char *tokenizer_bos_text(const struct tokenizer *tok) { return tok->bos_text; }
const char *tokenizer_eos_text(const struct tokenizer *tok) { return tok->eos_text; }
const char *tokenizer_class(const struct tokenizer *tok) { return tok->class; }

size_t tokenizer_eos_ids(const struct tokenizer *tok, const token_id **ids)
{
    *ids = tok->eos_ids;
    return tok->n_eos_ids;
}

bool tokenizer_adds_bos(const struct tokenizer *tok)
{
    return tok->n_prefix > 0 && tok->bos != TOKEN_NONE && tok->prefix[0] == tok->bos;
}

bool tokenizer_is_special(const struct tokenizer *tok, token_id id)
{
    return id >= 0 && id < tok->vocab_size && (tok->entries[id].flags & ENTRY_SPECIAL);
}

void tokenizer_token_bytes(const struct tokenizer *tok, token_id id, const char **bytes, size_t *len)
{
    bool known = id >= 0 && id < tok->vocab_size && tok->entries[id].bytes;

    *bytes = known ? tok->entries[id].bytes : "";
    *len = known ? tok->entries[id].len : 0;
}

token_id tokenizer_find(const struct tokenizer *tok, const char *text, size_t len)
{
    return str_map_get(&tok->texts, text, len);
}

/* ---- the input: all segments as one valid text, and who wrote which byte ---- */
struct input {
    const char *text;
    size_t len;
    struct origin_run *runs;
    size_t n_runs;
    struct origin_run one_run;
    struct buf joined;
};

/* Invalid bytes would be out of bounds reads in a matcher that trusts its text: each becomes U+FFFD. */
static void append_lossy(struct buf *out, const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int step = utf8_decode(text + i, len - i, &cp);
        if (step > 0) {
            buf_append(out, text + i, (size_t)step);
            i += (size_t)step;
        } else {
            buf_puts(out, "\xef\xbf\xbd");
            i++;
        }
    }
}

static bool valid_text(const char *text, size_t len)
{
    size_t i = 0;
    uint64_t word;

    for (; i + 8 <= len; i += 8) {
        memcpy(&word, text + i, 8);
        if (word & 0x8080808080808080u) break;
    }
    return utf8_valid(text + i, len - i);
}

static int input_open(struct input *in, const struct text_segment *segments, size_t n, struct err *err)
{
    *in = (struct input){ .text = "" };
    if (n == 1 && valid_text(segments[0].text, segments[0].len)) {
        in->text = segments[0].text;
        in->len = segments[0].len;
        in->one_run = (struct origin_run){ in->len, segments[0].parse_special };
        in->runs = &in->one_run;
        in->n_runs = 1;
        return 0;
    }
    in->runs = calloc(n ? n : 1, sizeof *in->runs);
    if (!in->runs) return err_set(err, ERR_NO_MEMORY, "no memory for %zu text segments", n);
    for (size_t i = 0; i < n; i++) {
        if (valid_text(segments[i].text, segments[i].len))
            buf_append(&in->joined, segments[i].text, segments[i].len);
        else
            append_lossy(&in->joined, segments[i].text, segments[i].len);
        in->runs[in->n_runs++] = (struct origin_run){ in->joined.len, segments[i].parse_special };
    }
    if (in->joined.failed) return err_set(err, ERR_NO_MEMORY, "no memory to join %zu text segments", n);
    if (in->joined.data) in->text = in->joined.data;
    in->len = in->joined.len;
    return 0;
}

static void input_close(struct input *in)
{
    if (in->runs != &in->one_run) free(in->runs);
    buf_release(&in->joined);
}

/* ---- encoding ---- */
enum { CACHE_FROM_BYTES = 8 << 10 };   /* a text from here on repeats enough words to pay for a cache */

struct encoder {
    const struct tokenizer *tok;
    struct origin_map origin;
    struct token_buf *tokens;
    struct err *err;
    struct bpe_work work;
    struct pretok_scratch *pretok;
    struct normalize_scratch normalize;
};

static int on_word(void *arg, const char *word, size_t len)
{
    struct encoder *enc = arg;

    return bpe_encode_word(&enc->tok->bpe, &enc->work, word, len, enc->tokens, enc->err);
}

static int encode_words(struct encoder *enc, const char *text, size_t len, bool at_origin)
{
    if (!len) return 0;
    return pretokenize_run(&enc->tok->pre, enc->pretok, text, len, at_origin, on_word, enc, enc->err);
}

typedef int (*between_fn)(struct encoder *enc, const char *text, size_t len, size_t base);

/* Added tokens of the set become ids, the text between them goes to `between` with its offset. */
static int split_added(struct encoder *enc, const struct added_set *set, const struct origin_map *origin,
                       const char *text, size_t len, size_t base, between_fn between)
{
    struct added_match match;
    size_t from = 0, floor = 0;
    int rc = 0;

    while (!rc && set->any && added_find(set, text, len, from, floor, origin, base, &match, &from)) {
        if (match.start > floor) rc = between(enc, text + floor, match.start - floor, base + floor);
        if (!rc) rc = token_buf_push(enc->tokens, match.token->id, enc->err);
        floor = match.end;
    }
    if (!rc && floor < len) rc = between(enc, text + floor, len - floor, base + floor);
    return rc;
}

static int encode_normalized(struct encoder *enc, const char *text, size_t len, size_t base)
{
    return encode_words(enc, text, len, base == 0);
}

/* Byte origins do not survive a normalizer that changed the text: then a special token is only read in a piece that is
 * the template's from end to end. */
static int encode_piece(struct encoder *enc, const char *text, size_t len, size_t base)
{
    const struct tokenizer *tok = enc->tok;
    const char *out;
    size_t out_len;
    int rc = normalize_run(&tok->normalizer, &enc->normalize, text, len, &out, &out_len, enc->err);

    if (rc < 0) return rc;
    if (!tok->added_normalized.any) return encode_words(enc, out, out_len, base == 0);
    if (out == text && out_len == len)
        return split_added(enc, &tok->added_normalized, &enc->origin, out, out_len, base, encode_normalized);
    struct origin_run whole = { SIZE_MAX, origin_is_template(&enc->origin, base, base + len) };
    struct origin_map origin = { &whole, 1 };
    return split_added(enc, &tok->added_normalized, &origin, out, out_len, base, encode_normalized);
}

static int push_ids(struct encoder *enc, const token_id *ids, int n)
{
    int rc = 0;

    for (int i = 0; !rc && i < n; i++) rc = token_buf_push(enc->tokens, ids[i], enc->err);
    return rc;
}

int tokenizer_encode(const struct tokenizer *tok, const struct text_segment *segments, size_t n_segments,
                     bool add_special, struct token_buf *tokens, struct err *err)
{
    struct encoder enc = { .tok = tok, .tokens = tokens, .err = err };
    size_t before = tokens->len;
    struct input in;
    int rc = input_open(&in, segments, n_segments, err);

    if (rc < 0) goto out;
    if (tok->ids_only && in.len) {
        rc = err_set(err, ERR_UNSUPPORTED, "this model has no tokenizer: prompts must be token ids");
        goto out;
    }
    if (in.len > INT32_MAX) {
        rc = err_set(err, ERR_LIMIT, "a text of %zu bytes, at most %d", in.len, INT32_MAX);
        goto out;
    }
    enc.origin = (struct origin_map){ in.runs, in.n_runs };
    if (in.len > CACHE_FROM_BYTES) bpe_work_use_cache(&enc.work);
    if ((rc = pretok_scratch_new(&enc.pretok, &tok->pre, err)) < 0) goto out;
    if (add_special && (rc = push_ids(&enc, tok->prefix, tok->n_prefix)) < 0) goto out;
    if ((rc = split_added(&enc, &tok->added, &enc.origin, in.text, in.len, 0, encode_piece)) < 0) goto out;
    if (add_special) rc = push_ids(&enc, tok->suffix, tok->n_suffix);
out:
    if (rc < 0) tokens->len = before;
    bpe_work_release(&enc.work);
    pretok_scratch_free(enc.pretok);
    normalize_scratch_release(&enc.normalize);
    input_close(&in);
    return rc;
}

/* ---- decoding ---- */
int tokenizer_decode(const struct tokenizer *tok, const token_id *ids, size_t n, bool skip_special, char **text,
                     size_t *len, struct err *err)
{
    struct buf out = BUF_INIT;
    struct detok detok;

    detok_init(&detok, tok, skip_special, true);
    buf_append(&out, "", 0);
    for (size_t i = 0; i < n; i++) detok_push(&detok, ids[i], &out);
    detok_finish(&detok, &out);
    if (!buf_reserve(&out, 1) || out.failed) {
        buf_release(&out);
        return err_set(err, ERR_NO_MEMORY, "no memory to decode %zu tokens", n);
    }
    *len = out.len;
    out.data[out.len] = '\0';
    *text = buf_detach(&out);
    return 0;
}
