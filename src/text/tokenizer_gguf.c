/* tokenizer_gguf.c - the tokenizer inside a GGUF file. tokenizer.ggml.model says which algorithm (gpt2: byte-level
 * BPE with
 * merges, llama: SentencePiece BPE with scores), tokenizer.ggml.pre which split. A name that is not in the table is
 * refused: splitting by another model's rule would be wrong without a sign. */
#include "tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/loader.h>

#include "scan_ascii.h"

enum token_type { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

#define PATTERN_DEEPSEEK3                                                                                      \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"       \
    " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define ENDING "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#define BEFORE "[^\\r\\n\\p{L}\\p{N}]?"
#define PATTERN_CASED(ending, digits)                                                                           \
    BEFORE UPPER "*" LOWER "+" ending "|" BEFORE UPPER "+" LOWER "*" ending "|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

struct split_rule {
    const char *names;              /* separated by spaces, with one at both ends */
    const char *patterns[5];        /* applied one after the other, isolated */
    bool ignore_merges, nfc, adds_bos;
};

static const struct split_rule split_rules[] = {
    { " gpt-2 mpt olmo jais phi-2 trillion ", { PATTERN_GPT2 }, false, false, false },
    { " llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral lfm2 ", { PATTERN_LLAMA3 }, true, false, true },
    { " qwen2 deepseek-r1-qwen ", { PATTERN_QWEN2 }, false, true, false },
    { " stablelm2 ", { PATTERN_QWEN2 }, false, false, false },
    { " smollm starcoder refact command-r codeshell exaone ", { "\\p{N}", PATTERN_GPT2 }, false, false, false },
    { " deepseek-v3 hunyuan-dense ", { "\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
      PATTERN_DEEPSEEK3 }, false, false, true },
    { " deepseek-coder ", { "[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
      "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}" }, false, false, true },
    { " tekken ", { PATTERN_CASED("", "\\p{N}") }, true, false, true },
    { " gpt-4o llama4 ", { PATTERN_CASED(ENDING, "\\p{N}{1,3}") }, false, false, false },
};

struct gguf_load {
    struct tokenizer *tok;
    const struct gguf_file *gguf;
    struct raw_token *raw;
    int64_t *types;
    bool byte_level;
    struct err *err;
};

static int no_memory(struct gguf_load *l) { return err_set(l->err, ERR_NO_MEMORY, "no memory for the tokenizer"); }

static bool flag(const struct gguf_file *gguf, const char *key, bool fallback)
{
    int64_t value;

    return gguf_get_i64(gguf, key, &value) == 0 ? value != 0 : fallback;
}

static token_id id_of(struct gguf_load *l, const char *key)
{
    int64_t id;

    return gguf_get_i64(l->gguf, key, &id) == 0 && id >= 0 && id < l->tok->vocab_size ? (token_id)id : TOKEN_NONE;
}

static bool text_is(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && !memcmp(text, word, len);
}

/* ---- tokens ---- */
static int read_tokens(struct gguf_load *l)
{
    int32_t n = l->tok->vocab_size;
    bool typed = gguf_array_len(l->gguf, "tokenizer.ggml.token_type") == (size_t)n;
    size_t len;

    l->raw = calloc((size_t)n, sizeof *l->raw);
    l->types = calloc((size_t)n, sizeof *l->types);
    if (!l->raw || !l->types) return no_memory(l);
    for (int32_t id = 0; id < n; id++) {
        struct raw_token *raw = &l->raw[id];
        if (gguf_array_str(l->gguf, "tokenizer.ggml.tokens", (size_t)id, &raw->text, &len) < 0 || len > TOKEN_TEXT_MAX)
            return err_set(l->err, ERR_MODEL_FILE, "tokenizer.ggml.tokens: entry %d is not a token", id);
        l->types[id] = TYPE_NORMAL;
        if (typed && gguf_array_i64(l->gguf, "tokenizer.ggml.token_type", (size_t)id, &l->types[id]) < 0)
            return err_set(l->err, ERR_MODEL_FILE, "tokenizer.ggml.token_type: entry %d is not an integer", id);
        raw->len = (uint32_t)len;
        raw->used = true;
        raw->special = l->types[id] == TYPE_CONTROL;
        raw->is_byte = l->types[id] == TYPE_BYTE;
        raw->added = raw->special || l->types[id] == TYPE_USER_DEFINED;
    }
    return 0;
}

/* SentencePiece finds user-defined pieces in text whose spaces are marks already; everything else is found in raw
 * text. */
static int add_added_tokens(struct gguf_load *l)
{
    for (int32_t id = 0; id < l->tok->vocab_size; id++) {
        const struct raw_token *raw = &l->raw[id];
        if (!raw->added) continue;
        struct added_token token = { .len = raw->len, .id = id, .special = raw->special };
        bool marked = !l->byte_level && !raw->special;
        if (!(token.text = tokenizer_keep(l->tok, raw->text, raw->len))) return no_memory(l);
        token.normalized = marked;
        if (added_set_add(marked ? &l->tok->added_normalized : &l->tok->added, &token, token.text, token.len) < 0)
            return no_memory(l);
    }
    return 0;
}

/* The text between two positions of the vocabulary as merging sees it, kept. NULL: memory; *len -1: not in the
 * alphabet. */
static char *merge_key(struct gguf_load *l, const char *text, size_t text_len, int *len)
{
    char *key = arena_strndup(&l->tok->arena, text, text_len);

    if (key) *len = l->byte_level ? byte_level_decode(text, text_len, key) : (int)text_len;
    return key;
}

static int add_model_tokens(struct gguf_load *l)
{
    for (int32_t id = 0; id < l->tok->vocab_size; id++) {
        int len = 0;
        if (l->raw[id].special) continue;
        char *key = merge_key(l, l->raw[id].text, l->raw[id].len, &len);
        if (!key || (len > 0 && bpe_add_token(&l->tok->bpe, key, (size_t)len, id) < 0)) return no_memory(l);
    }
    return 0;
}

/* ---- byte-level BPE: merges ---- */
static int add_merge(struct gguf_load *l, size_t rank, char *scratch)
{
    const struct str_map *vocab = &l->tok->bpe.vocab;
    const char *text, *space = NULL;
    size_t len = 0;

    if (gguf_array_str(l->gguf, "tokenizer.ggml.merges", rank, &text, &len) == 0 && len > 2 && len <= TOKEN_TEXT_MAX)
        space = memchr(text + 1, ' ', len - 1);
    if (!space) return err_set(l->err, ERR_MODEL_FILE, "tokenizer.ggml.merges: entry %zu is not a pair", rank);
    size_t left_len = (size_t)(space - text);
    int a = byte_level_decode(text, left_len, scratch);
    int b = a < 0 ? -1 : byte_level_decode(space + 1, len - left_len - 1, scratch + a);
    if (b < 0) return 0;                                   /* no bytes lead there */
    token_id left = str_map_get(vocab, scratch, (size_t)a), right = str_map_get(vocab, scratch + a, (size_t)b);
    token_id merged = str_map_get(vocab, scratch, (size_t)(a + b));
    if (left < 0 || right < 0 || merged < 0) return 0;     /* one of them is a control token: never made by merging */
    return bpe_add_merge(&l->tok->bpe, left, right, merged, (uint32_t)rank) < 0 ? no_memory(l) : 0;
}

static const struct split_rule *find_rule(const char *name, size_t len)
{
    for (size_t i = 0; i < sizeof split_rules / sizeof *split_rules; i++) {
        const char *names = split_rules[i].names, *at = names;
        while ((at = memmem(at, strlen(at), name, len)) != NULL) {
            if (at[-1] == ' ' && at[len] == ' ') return &split_rules[i];
            at++;
        }
    }
    return NULL;
}

static int set_split(struct gguf_load *l, bool *adds_bos)
{
    const char *name = "";
    size_t len = 0;
    int rc = 0;

    gguf_get_str(l->gguf, "tokenizer.ggml.pre", &name, &len);
    const struct split_rule *rule = len && len < 64 && !memchr(name, ' ', len) ? find_rule(name, len) : NULL;
    if (!rule)
        return err_set(l->err, ERR_MODEL_FILE, "tokenizer.ggml.pre \"%.*s\" is not supported", len < 64 ? (int)len : 0,
                       name);
    for (int i = 0; !rc && i < 5 && rule->patterns[i]; i++)
        rc =
            pretok_add_regex(&l->tok->pre, rule->patterns[i], strlen(rule->patterns[i]), SPLIT_ISOLATED, false, l->err);
    if (rule->nfc) l->tok->normalizer.steps[l->tok->normalizer.n_steps++].kind = NORM_NFC;
    l->tok->bpe.ignore_merges = rule->ignore_merges;
    *adds_bos = rule->adds_bos;
    return rc;
}

static int build_byte_level(struct gguf_load *l, bool *adds_bos)
{
    size_t n = gguf_array_len(l->gguf, "tokenizer.ggml.merges");
    int rc;

    if (bpe_init(&l->tok->bpe, (size_t)l->tok->vocab_size, n) < 0) return no_memory(l);
    l->tok->bpe.byte_level = true;
    if ((rc = set_split(l, adds_bos)) < 0) return rc;
    if ((rc = add_model_tokens(l)) < 0) return rc;
    char *scratch = malloc(TOKEN_TEXT_MAX);
    if (!scratch) return no_memory(l);
    for (size_t rank = 0; !rc && rank < n; rank++) rc = add_merge(l, rank, scratch);
    free(scratch);
    if (!rc && flag(l->gguf, "tokenizer.ggml.add_space_prefix", false)) {
        /* the prefix stage goes in front of the splits */
        struct pretokenizer *pre = &l->tok->pre;
        memmove(pre->stages + 1, pre->stages, (size_t)pre->n_stages * sizeof *pre->stages);
        pre->stages[0] = (struct pretok_stage){ .kind = PRETOK_PREFIX_SPACE };
        pre->n_stages++;
    }
    return rc;
}

/* ---- SentencePiece: scores ---- */
static int add_scored_merges(struct gguf_load *l)
{
    size_t n = (size_t)l->tok->vocab_size;
    const char **keys = calloc(n, sizeof *keys);
    uint32_t *lens = calloc(n, sizeof *lens);
    float *scores = calloc(n, sizeof *scores);
    bool *mergeable = calloc(n, sizeof *mergeable);
    int rc = keys && lens && scores && mergeable ? 0 : no_memory(l);

    for (size_t id = 0; !rc && id < n; id++) {
        double score = 0;
        if (gguf_array_f64(l->gguf, "tokenizer.ggml.scores", id, &score) < 0 || score != score)
            rc = err_set(l->err, ERR_MODEL_FILE, "tokenizer.ggml.scores: entry %zu is not a number", id);
        keys[id] = l->raw[id].text;
        lens[id] = l->raw[id].len;
        scores[id] = (float)score;
        mergeable[id] = l->types[id] == TYPE_NORMAL;
    }
    if (!rc && bpe_merges_from_scores(&l->tok->bpe, keys, lens, scores, mergeable, (int32_t)n) < 0) rc = no_memory(l);
    free(keys);
    free(lens);
    free(scores);
    free(mergeable);
    return rc;
}

static int build_sentencepiece(struct gguf_load *l, bool *adds_bos)
{
    struct normalizer *normalizer = &l->tok->normalizer;
    bool prefix = flag(l->gguf, "tokenizer.ggml.add_space_prefix", true);
    int rc;

    *adds_bos = true;
    if (bpe_init(&l->tok->bpe, (size_t)l->tok->vocab_size, (size_t)l->tok->vocab_size * 4) < 0) return no_memory(l);
    l->tok->bpe.byte_fallback = true;
    l->tok->bpe.fuse_unk = true;
    l->tok->bpe.unk = id_of(l, "tokenizer.ggml.unknown_token_id");
    if (prefix)
        normalizer->steps[normalizer->n_steps++] =
            (struct normalize_step){ .kind = NORM_PREPEND, .content = METASPACE_MARK, .content_len = 3 };
    normalizer->steps[normalizer->n_steps++] = (struct normalize_step){ .kind = NORM_REPLACE, .pattern = " ",
        .pattern_len = 1, .content = METASPACE_MARK, .content_len = 3 };
    l->tok->start_space = prefix ? START_STRIP_ONE : START_KEEP;
    if ((rc = add_model_tokens(l)) < 0) return rc;
    return add_scored_merges(l);
}

/* ---- ids ---- */
/* GGUF has no generation_config: a turn's end is named by key or, in older files, only recognisable by its text. */
static void find_end_ids(struct gguf_load *l)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    static const char *const texts[] = { "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>" };

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) tokenizer_add_eos_id(l->tok, id_of(l, keys[i]));
    if (gguf_has(l->gguf, "tokenizer.ggml.eot_token_id")) return;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        token_id id = tokenizer_find(l->tok, texts[i], strlen(texts[i]));
        if (id != TOKEN_NONE && l->types[id] == TYPE_CONTROL) tokenizer_add_eos_id(l->tok, id);
    }
}

static void set_ids(struct gguf_load *l, bool adds_bos)
{
    struct tokenizer *tok = l->tok;

    tok->bos = id_of(l, "tokenizer.ggml.bos_token_id");
    tok->eos = id_of(l, "tokenizer.ggml.eos_token_id");
    if (tok->bos != TOKEN_NONE && flag(l->gguf, "tokenizer.ggml.add_bos_token", adds_bos))
        tok->prefix[tok->n_prefix++] = tok->bos;
    if (tok->eos != TOKEN_NONE && flag(l->gguf, "tokenizer.ggml.add_eos_token", false))
        tok->suffix[tok->n_suffix++] = tok->eos;
    find_end_ids(l);
}

static int build(struct gguf_load *l)
{
    const char *model = "";
    size_t len = 0;
    bool adds_bos = false;
    int rc;

    gguf_get_str(l->gguf, "tokenizer.ggml.model", &model, &len);
    l->byte_level = text_is(model, len, "gpt2");
    if (!l->byte_level && !text_is(model, len, "llama"))
        return err_set(l->err, ERR_MODEL_FILE, "tokenizer.ggml.model \"%.*s\" is not supported",
                       len < 64 ? (int)len : 0, model);
    size_t n = gguf_array_len(l->gguf, "tokenizer.ggml.tokens");
    if ((rc = tokenizer_new(&l->tok, n <= TOKENIZER_MAX_VOCAB ? (int32_t)n : -1, l->err)) < 0) return rc;
    l->tok->class = l->byte_level ? "GPT2Tokenizer" : "LlamaTokenizer";
    if ((rc = read_tokens(l)) < 0) return rc;
    if ((rc = l->byte_level ? build_byte_level(l, &adds_bos) : build_sentencepiece(l, &adds_bos)) < 0) return rc;
    if ((rc = add_added_tokens(l)) < 0) return rc;
    if ((rc = tokenizer_set_entries(l->tok, l->raw, l->byte_level, false, l->err)) < 0) return rc;
    set_ids(l, adds_bos);
    return tokenizer_seal(l->tok, l->err);
}

int tokenizer_load_gguf(struct tokenizer **out, const struct gguf_file *gguf, struct err *err)
{
    struct gguf_load l = { .gguf = gguf, .err = err };
    int rc = build(&l);

    free(l.raw);
    free(l.types);
    if (rc < 0) {
        tokenizer_free(l.tok);
        l.tok = NULL;
    }
    *out = l.tok;
    return rc;
}
