/* tokenizer_load.c - tokenizer.json and the small files beside it. Every component is either understood or refused: a
 * tokenizer that splits almost right gives a model that answers almost right, which nobody would notice. */
#include "tokenizer_impl.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/json.h>
#include <sluice/loader.h>

#include "scan_ascii.h"

enum { FILE_MAX_BYTES = 256 << 20, CONFIG_MAX_BYTES = 16 << 20, SEQUENCE_MAX = 16, MERGES_MAX = 8 << 20 };

struct load {
    struct tokenizer *tok;
    const cJSON *root, *model;
    struct raw_token *raw;        /* by id */
    struct str_map texts;         /* vocabulary spelling -> id */
    bool byte_level, byte_tokens;
    bool has_template, has_byte_level_decoder;
    struct err *err;
};

static int refuse(struct load *l, const char *what, const char *type)
{
    return err_set(l->err, ERR_MODEL_FILE, "tokenizer.json: %s \"%s\" is not supported", what, type);
}

static int broken(struct load *l, const char *what)
{
    return err_set(l->err, ERR_MODEL_FILE, "tokenizer.json: %s", what);
}

static int no_memory(struct load *l) { return err_set(l->err, ERR_NO_MEMORY, "no memory for the tokenizer"); }

/* ---- typed look-ups ---- */
static const char *get_text(const cJSON *object, const char *key)
{
    const cJSON *item = json_get(object, key);

    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static const char *type_of(const cJSON *object)
{
    const char *type = get_text(object, "type");

    return type ? type : "?";
}

static bool get_bool(const cJSON *object, const char *key, bool fallback)
{
    const cJSON *item = json_get(object, key);

    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : fallback;
}

static bool get_i64(const cJSON *object, const char *key, int64_t *value)
{
    const cJSON *item = json_get(object, key);

    return item && json_int64(item, value) == 0;
}

/* A string that must live as long as the tokenizer. */
static int keep_text(struct load *l, const cJSON *item, const char **text, size_t *len)
{
    if (!item || json_string(item, text, len) < 0) return broken(l, "a string is missing");
    *text = tokenizer_keep(l->tok, *text, *len);
    return *text ? 0 : no_memory(l);
}

/* ---- normalizer ---- */
static int add_normalize_step(struct load *l, const struct normalize_step *step)
{
    struct normalizer *normalizer = &l->tok->normalizer;

    if (normalizer->n_steps == NORMALIZE_MAX_STEPS) return broken(l, "too many normalizers");
    normalizer->steps[normalizer->n_steps++] = *step;
    return 0;
}

static int parse_replace(struct load *l, const cJSON *item)
{
    struct normalize_step step = { .kind = NORM_REPLACE };
    const cJSON *pattern = json_get(json_get(item, "pattern"), "String");
    int rc;

    if (!pattern) return refuse(l, "normalizer Replace with pattern", "Regex");
    if ((rc = keep_text(l, pattern, &step.pattern, &step.pattern_len)) < 0) return rc;
    if ((rc = keep_text(l, json_get(item, "content"), &step.content, &step.content_len)) < 0) return rc;
    return add_normalize_step(l, &step);
}

static int parse_normalizer(struct load *l, const cJSON *item, int depth)
{
    static const struct { const char *type; enum normalize_kind kind; } plain[] = {
        { "NFC", NORM_NFC }, { "NFD", NORM_NFD }, { "NFKC", NORM_NFKC }, { "NFKD", NORM_NFKD },
        { "Lowercase", NORM_LOWERCASE }, { "Strip", NORM_STRIP },
    };
    const char *type = type_of(item);
    struct normalize_step step = { 0 };
    int rc = 0;

    if (!item) return 0;
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(item, "normalizers"), *it;
        if (!cJSON_IsArray(list) || depth > 4) return broken(l, "a normalizer sequence without a list");
        cJSON_ArrayForEach(it, list) if (!rc) rc = parse_normalizer(l, it, depth + 1);
        return rc;
    }
    if (!strcmp(type, "Replace")) return parse_replace(l, item);
    if (!strcmp(type, "Prepend")) {
        step.kind = NORM_PREPEND;
        if ((rc = keep_text(l, json_get(item, "prepend"), &step.content, &step.content_len)) < 0) return rc;
        return add_normalize_step(l, &step);
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(type, plain[i].type) != 0) continue;
        step.kind = plain[i].kind;
        step.left = get_bool(item, "strip_left", true);
        step.right = get_bool(item, "strip_right", true);
        return add_normalize_step(l, &step);
    }
    return refuse(l, "normalizer", type);
}

/* ---- pre-tokenizer ---- */
static int parse_behavior(struct load *l, const cJSON *item, const char *fallback, enum split_behavior *behavior)
{
    static const char *const names[] = { "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous" };
    const char *name = get_text(item, "behavior");

    if (!name) name = fallback;
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *behavior = (enum split_behavior)i;
        return 0;
    }
    return refuse(l, "split behavior", name);
}

static int add_pattern(struct load *l, const char *pattern, enum split_behavior behavior, bool invert)
{
    return pretok_add_regex(&l->tok->pre, pattern, strlen(pattern), behavior, invert, l->err);
}

static int parse_split(struct load *l, const cJSON *item)
{
    struct pretok_stage stage = { .kind = PRETOK_SPLIT, .invert = get_bool(item, "invert", false) };
    const cJSON *pattern = json_get(item, "pattern"), *regex = json_get(pattern, "Regex");
    const char *text;
    size_t len;
    int rc = parse_behavior(l, item, "?", &stage.behavior);

    if (rc < 0) return rc;
    if (regex) {
        if (json_string(regex, &text, &len) < 0) return broken(l, "a pattern that is not a string");
        return pretok_add_regex(&l->tok->pre, text, len, stage.behavior, stage.invert, l->err);
    }
    if ((rc = keep_text(l, json_get(pattern, "String"), &stage.literal, &stage.literal_len)) < 0) return rc;
    if (!stage.literal_len) return broken(l, "an empty split pattern");
    return pretok_add(&l->tok->pre, &stage, l->err);
}

static int parse_byte_level(struct load *l, const cJSON *item)
{
    struct pretok_stage prefix = { .kind = PRETOK_PREFIX_SPACE };
    int rc = 0;

    l->byte_level = true;
    if (get_bool(item, "add_prefix_space", true)) rc = pretok_add(&l->tok->pre, &prefix, l->err);
    if (!rc && get_bool(item, "use_regex", true)) rc = add_pattern(l, PATTERN_GPT2, SPLIT_ISOLATED, false);
    return rc;
}

static int parse_metaspace(struct load *l, const cJSON *item)
{
    struct pretok_stage stage = { .kind = PRETOK_METASPACE };
    const char *scheme = get_text(item, "prepend_scheme");
    int rc;

    if (!scheme) scheme = get_bool(item, "add_prefix_space", true) ? "always" : "never";
    if (!strcmp(scheme, "always"))
        stage.prepend = PREPEND_ALWAYS;
    else if (!strcmp(scheme, "first"))
        stage.prepend = PREPEND_FIRST;
    else if (!strcmp(scheme, "never"))
        stage.prepend = PREPEND_NEVER;
    else
        return refuse(l, "prepend_scheme", scheme);
    if ((rc = keep_text(l, json_get(item, "replacement"), &stage.literal, &stage.literal_len)) < 0) return rc;
    if (!stage.literal_len) return broken(l, "an empty Metaspace replacement");
    if ((rc = pretok_add(&l->tok->pre, &stage, l->err)) < 0 || !get_bool(item, "split", true)) return rc;
    stage.kind = PRETOK_SPLIT;
    stage.behavior = SPLIT_MERGED_WITH_NEXT;
    return pretok_add(&l->tok->pre, &stage, l->err);
}

static int parse_pre_tokenizer(struct load *l, const cJSON *item, int depth)
{
    const char *type = type_of(item);
    enum split_behavior behavior = SPLIT_ISOLATED;
    int rc = 0;

    if (!item) return 0;
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(item, "pretokenizers"), *it;
        if (!cJSON_IsArray(list) || depth > 4) return broken(l, "a pre_tokenizer sequence without a list");
        cJSON_ArrayForEach(it, list) if (!rc) rc = parse_pre_tokenizer(l, it, depth + 1);
        return rc;
    }
    if (l->byte_level) return refuse(l, "pre_tokenizer after ByteLevel", type);   /* would see the printable alphabet */
    if (!strcmp(type, "ByteLevel")) return parse_byte_level(l, item);
    if (!strcmp(type, "Split")) return parse_split(l, item);
    if (!strcmp(type, "Metaspace")) return parse_metaspace(l, item);
    if (!strcmp(type, "Digits"))
        return add_pattern(l, "\\p{N}", get_bool(item, "individual_digits", false) ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS,
                           false);
    if (!strcmp(type, "Whitespace")) return add_pattern(l, "\\w+|[^\\w\\s]+", SPLIT_REMOVED, true);
    if (!strcmp(type, "WhitespaceSplit")) return add_pattern(l, "\\s", SPLIT_REMOVED, false);
    if (!strcmp(type, "Punctuation")) {
        if ((rc = parse_behavior(l, item, "Isolated", &behavior)) < 0) return rc;
        return add_pattern(l, "[!-/:-@\\[-`{-~\\p{P}]", behavior, false);
    }
    return refuse(l, "pre_tokenizer", type);
}

/* ---- vocabulary ---- */
static int raw_put(struct load *l, int64_t id, const char *text, size_t len)
{
    struct raw_token *raw = &l->raw[id];

    if (raw->used) return err_set(l->err, ERR_MODEL_FILE, "tokenizer.json: two tokens with id %d", (int)id);
    if (len > TOKEN_TEXT_MAX) return broken(l, "a token of more than 64 KiB");
    raw->used = true;
    raw->text = text;
    raw->len = (uint32_t)len;
    return str_map_put(&l->texts, text, len, (int32_t)id, NULL) < 0 ? no_memory(l) : 0;
}

/* Largest id + 1 over vocabulary and added tokens. Tables are as long as that, so a small file with a huge id is
 * refused. */
static int count_ids(struct load *l, const cJSON *vocab, const cJSON *added, int64_t *size)
{
    int64_t id, n = (int64_t)cJSON_GetArraySize(vocab) + cJSON_GetArraySize(added);
    const cJSON *it;

    *size = 0;
    cJSON_ArrayForEach(it, vocab) {
        if (json_int64(it, &id) < 0 || id < 0 || id >= TOKENIZER_MAX_VOCAB)
            return broken(l, "a vocabulary id out of range");
        if (id >= *size) *size = id + 1;
    }
    cJSON_ArrayForEach(it, added) {
        if (!get_i64(it, "id", &id) || id < 0 || id >= TOKENIZER_MAX_VOCAB)
            return broken(l, "an added token id out of range");
        if (id >= *size) *size = id + 1;
    }
    return *size > 8 * n + 65536 ? broken(l, "token ids far beyond the number of tokens") : 0;
}

static int read_vocab(struct load *l)
{
    const cJSON *vocab = json_get(l->model, "vocab"), *added = json_get(l->root, "added_tokens"), *it;
    int64_t size, id;
    int rc;

    if (!cJSON_IsObject(vocab)) return broken(l, "model.vocab is not an object");
    if (added && !cJSON_IsArray(added)) return broken(l, "added_tokens is not an array");
    if ((rc = count_ids(l, vocab, added, &size)) < 0) return rc;
    if ((rc = tokenizer_new(&l->tok, (int32_t)size, l->err)) < 0) return rc;
    l->raw = calloc((size_t)size, sizeof *l->raw);
    if (!l->raw || str_map_init(&l->texts, (size_t)size) < 0) return no_memory(l);
    cJSON_ArrayForEach(it, vocab) {
        json_int64(it, &id);
        if ((rc = raw_put(l, id, it->string, strlen(it->string))) < 0) return rc;
    }
    return 0;
}

static int read_added_token(struct load *l, const cJSON *item)
{
    struct added_token token = { .id = TOKEN_NONE };
    size_t len;
    int64_t id;
    int rc = keep_text(l, json_get_raw(item, "content"), &token.text, &len);

    if (rc < 0) return rc;
    if (!len) return 0;
    get_i64(item, "id", &id);
    token.len = (uint32_t)len;
    token.id = str_map_get(&l->texts, token.text, len);       /* in the vocabulary: its id there counts */
    if (token.id == TOKEN_NONE) {
        token.id = (token_id)id;
        if ((rc = raw_put(l, id, token.text, len)) < 0) return rc;
    }
    token.special = get_bool(item, "special", false);
    token.lstrip = get_bool(item, "lstrip", false);
    token.rstrip = get_bool(item, "rstrip", false);
    token.single_word = get_bool(item, "single_word", false);
    token.normalized = get_bool(item, "normalized", !token.special);
    l->raw[token.id].added = true;
    l->raw[token.id].special = token.special;
    return tokenizer_add_added(l->tok, &token, l->err);
}

/* Special ones first: of two tokens with one text the first counts. */
static int read_added_tokens(struct load *l)
{
    const cJSON *it;
    int rc = 0;

    for (int special = 1; special >= 0; special--)
        cJSON_ArrayForEach(it, json_get(l->root, "added_tokens"))
            if (!rc && get_bool(it, "special", false) == (bool)special) rc = read_added_token(l, it);
    return rc;
}

/* ---- the BPE model ---- */
static int read_model_options(struct load *l)
{
    const char *type = get_text(l->model, "type"), *unk = get_text(l->model, "unk_token");
    const char *prefix = get_text(l->model, "continuing_subword_prefix"),
               *suffix = get_text(l->model, "end_of_word_suffix");
    struct bpe *bpe = &l->tok->bpe;

    if (type && strcmp(type, "BPE") != 0) return refuse(l, "model", type);
    if (prefix && *prefix) return refuse(l, "continuing_subword_prefix", prefix);
    if (suffix && *suffix) return refuse(l, "end_of_word_suffix", suffix);
    const cJSON *dropout = json_get(l->model, "dropout");
    if (dropout && dropout->valuedouble != 0) return refuse(l, "model with", "dropout");
    bpe->byte_level = l->byte_level;
    bpe->byte_fallback = get_bool(l->model, "byte_fallback", false) && !l->byte_level;
    bpe->fuse_unk = get_bool(l->model, "fuse_unk", false);
    bpe->ignore_merges = get_bool(l->model, "ignore_merges", false);
    if (unk && (bpe->unk = str_map_get(&l->texts, unk, strlen(unk))) == TOKEN_NONE)
        return refuse(l, "unk_token outside the vocabulary:", unk);
    return 0;
}

/* The key merging sees: the token's bytes, or its spelling for the character alphabet. */
static int add_model_token(struct load *l, const char *text, size_t len, token_id id)
{
    char *key = arena_strndup(&l->tok->arena, text, len);
    int n = (int)len;

    if (!key) return no_memory(l);
    if (l->byte_level && (n = byte_level_decode(text, len, key)) < 0) return 0;   /* no bytes lead to it */
    return bpe_add_token(&l->tok->bpe, key, (size_t)n, id) < 0 ? no_memory(l) : 0;
}

static int add_merge(struct load *l, const char *left, size_t left_len, const char *right, size_t right_len,
                     uint32_t rank, struct buf *joined)
{
    buf_reset(joined);
    buf_append(joined, left, left_len);
    buf_append(joined, right, right_len);
    if (joined->failed) return no_memory(l);
    token_id a = str_map_get(&l->texts, left, left_len), b = str_map_get(&l->texts, right, right_len);
    token_id merged = str_map_get(&l->texts, joined->data, joined->len);
    if (a < 0 || b < 0 || merged < 0)
        return err_set(l->err, ERR_MODEL_FILE, "tokenizer.json: merge %u names a token that is not in the vocabulary",
                       rank);
    return bpe_add_merge(&l->tok->bpe, a, b, merged, rank) < 0 ? no_memory(l) : 0;
}

static int read_merge(struct load *l, const cJSON *item, uint32_t rank, struct buf *joined)
{
    const cJSON *a = cJSON_IsArray(item) ? item->child : NULL, *b = a ? a->next : NULL;

    if (cJSON_IsString(item)) {
        const char *text = item->valuestring, *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return err_set(l->err, ERR_MODEL_FILE, "tokenizer.json: merge %u is not a pair", rank);
        return add_merge(l, text, (size_t)(space - text), space + 1, strlen(space + 1), rank, joined);
    }
    if (!cJSON_IsString(a) || !cJSON_IsString(b) || b->next)
        return err_set(l->err, ERR_MODEL_FILE, "tokenizer.json: merge %u is not a pair", rank);
    return add_merge(l, a->valuestring, strlen(a->valuestring), b->valuestring, strlen(b->valuestring), rank, joined);
}

static int read_bpe(struct load *l)
{
    const cJSON *vocab = json_get(l->model, "vocab"), *merges = json_get(l->model, "merges"), *it;
    struct buf joined = BUF_INIT;
    uint32_t rank = 0;
    int64_t id;
    int rc;

    if (!cJSON_IsArray(merges)) return broken(l, "model.merges is not an array");
    size_t n_merges = (size_t)cJSON_GetArraySize(merges);
    if (n_merges > MERGES_MAX) return broken(l, "too many merges");
    if (bpe_init(&l->tok->bpe, (size_t)l->tok->vocab_size, n_merges) < 0) return no_memory(l);
    if ((rc = read_model_options(l)) < 0) return rc;
    cJSON_ArrayForEach(it, vocab) {
        if (rc < 0) break;
        json_int64(it, &id);
        rc = add_model_token(l, it->string, strlen(it->string), (token_id)id);
    }
    cJSON_ArrayForEach(it, merges) {
        if (rc < 0) break;
        rc = read_merge(l, it, rank++, &joined);
    }
    buf_release(&joined);
    return rc;
}

/* ---- post-processor ---- */
static int template_ids(struct load *l, const cJSON *specials, const char *name, token_id *ids, int *n)
{
    const cJSON *list = json_get(json_get(specials, name), "ids"), *it;
    int64_t id;

    if (!cJSON_IsArray(list)) return broken(l, "a template names a token without ids");
    cJSON_ArrayForEach(it, list) {
        if (json_int64(it, &id) < 0 || id < 0 || id >= l->tok->vocab_size)
            return broken(l, "a template id out of range");
        if (*n == TEMPLATE_MAX_IDS) return broken(l, "too many template tokens");
        ids[(*n)++] = (token_id)id;
    }
    return 0;
}

static int parse_template(struct load *l, const cJSON *item)
{
    const cJSON *single = json_get(item, "single"), *specials = json_get(item, "special_tokens"), *it;
    struct tokenizer *tok = l->tok;
    bool after = false;
    int rc = 0;

    if (l->has_template) return refuse(l, "second post_processor", "TemplateProcessing");
    if (!cJSON_IsArray(single)) return broken(l, "a template without \"single\"");
    l->has_template = true;
    cJSON_ArrayForEach(it, single) {
        const char *name = get_text(json_get(it, "SpecialToken"), "id");
        if (!name && (!json_get(it, "Sequence") || after)) return broken(l, "a template piece that is not understood");
        if (!name)
            after = true;
        else if (!rc)
            rc = after ? template_ids(l, specials, name, tok->suffix, &tok->n_suffix)
                       : template_ids(l, specials, name, tok->prefix, &tok->n_prefix);
    }
    if (!rc && !after) rc = broken(l, "a template without the text");
    return rc;
}

static int parse_post_processor(struct load *l, const cJSON *item, int depth)
{
    const char *type = type_of(item);
    int rc = 0;

    if (!item || !strcmp(type, "ByteLevel")) return 0;       /* ByteLevel only moves offsets */
    if (!strcmp(type, "TemplateProcessing")) return parse_template(l, item);
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(item, "processors"), *it;
        if (!cJSON_IsArray(list) || depth > 4) return broken(l, "a post_processor sequence without a list");
        cJSON_ArrayForEach(it, list) if (!rc) rc = parse_post_processor(l, it, depth + 1);
        return rc;
    }
    return refuse(l, "post_processor", type);
}

/* ---- decoder ---- */
static int parse_strip_decoder(struct load *l, const cJSON *item)
{
    const char *content = get_text(item, "content");
    int64_t start = 0, stop = 0;

    get_i64(item, "start", &start);
    get_i64(item, "stop", &stop);
    if (!content || strcmp(content, " ") != 0 || start < 0 || start > 1 || stop != 0)
        return refuse(l, "decoder Strip with content", content ? content : "");
    if (start) l->tok->start_space = START_STRIP_ONE;
    return 0;
}

static int parse_decoder(struct load *l, const cJSON *item, int depth)
{
    const char *type = type_of(item);
    int rc = 0;

    if (!item || !strcmp(type, "Fuse")) return 0;
    if (!strcmp(type, "ByteFallback")) {
        l->byte_tokens = true;
    } else if (!strcmp(type, "ByteLevel")) {
        l->has_byte_level_decoder = true;
    } else if (!strcmp(type, "Strip")) {
        return parse_strip_decoder(l, item);
    } else if (!strcmp(type, "Metaspace")) {
        const char *scheme = get_text(item, "prepend_scheme");
        bool keep = scheme ? !strcmp(scheme, "never") : !get_bool(item, "add_prefix_space", true);
        if (!keep) l->tok->start_space = START_STRIP_MARKS;
    } else if (!strcmp(type, "Replace")) {
        const char *pattern = get_text(json_get(item, "pattern"), "String"), *content = get_text(item, "content");
        if (!pattern || !content || strcmp(pattern, METASPACE_MARK) != 0 || strcmp(content, " ") != 0)
            return refuse(l, "decoder Replace of", pattern ? pattern : "a regex");
    } else if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_get(item, "decoders"), *it;
        if (!cJSON_IsArray(list) || depth > 4) return broken(l, "a decoder sequence without a list");
        cJSON_ArrayForEach(it, list) if (!rc) rc = parse_decoder(l, it, depth + 1);
    } else {
        return refuse(l, "decoder", type);
    }
    return rc;
}

/* ---- configuration files ---- */
/* "bos_token": "<s>" or { "content": "<s>" }. */
static token_id named_token(const struct tokenizer *tok, const cJSON *config, const char *key)
{
    const cJSON *item = json_get(config, key);
    const char *text = cJSON_IsObject(item)   ? get_text(item, "content")
                       : cJSON_IsString(item) ? item->valuestring
                                              : NULL;

    return text ? tokenizer_find(tok, text, strlen(text)) : TOKEN_NONE;
}

static void apply_names(struct tokenizer *tok, const cJSON *config)
{
    if (tok->bos == TOKEN_NONE) tok->bos = named_token(tok, config, "bos_token");
    if (tok->eos == TOKEN_NONE) tok->eos = named_token(tok, config, "eos_token");
}

/* The Llama family rebuilds its post-processor from these two switches, whatever tokenizer.json says. */
static void apply_bos_switches(struct tokenizer *tok, const cJSON *config)
{
    static const char *const classes[] = { "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer",
                                           "CodeLlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast" };
    bool rebuilds = false;

    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) rebuilds |= !strcmp(tok->class, classes[i]);
    if (!rebuilds) return;
    if (cJSON_IsBool(json_get(config, "add_bos_token"))) {
        tok->n_prefix = get_bool(config, "add_bos_token", false) && tok->bos != TOKEN_NONE;
        tok->prefix[0] = tok->bos;
    }
    if (cJSON_IsBool(json_get(config, "add_eos_token"))) {
        tok->n_suffix = get_bool(config, "add_eos_token", false) && tok->eos != TOKEN_NONE;
        tok->suffix[0] = tok->eos;
    }
}

static int apply_tokenizer_config(struct load *l, const cJSON *config)
{
    const char *class = get_text(config, "tokenizer_class");

    if (class && !(l->tok->class = tokenizer_keep(l->tok, class, strlen(class)))) return no_memory(l);
    apply_names(l->tok, config);
    apply_bos_switches(l->tok, config);
    return 0;
}

static void apply_eos_ids(struct tokenizer *tok, const cJSON *config)
{
    const cJSON *item = json_get(config, "eos_token_id"), *it;
    int64_t id;

    if (json_is_int(item) && json_int64(item, &id) == 0) tokenizer_add_eos_id(tok, id);
    if (cJSON_IsArray(item)) cJSON_ArrayForEach(it, item) if (json_int64(it, &id) == 0) tokenizer_add_eos_id(tok, id);
}

/* ---- doors ---- */
static int build(struct load *l)
{
    int rc;

    l->model = json_get(l->root, "model");
    if (!cJSON_IsObject(l->model)) return broken(l, "no model");
    if (get_text(l->model, "type") && strcmp(get_text(l->model, "type"), "BPE") != 0)
        return refuse(l, "model", type_of(l->model));
    if ((rc = read_vocab(l)) < 0) return rc;
    if ((rc = parse_normalizer(l, json_get(l->root, "normalizer"), 0)) < 0) return rc;
    if ((rc = parse_pre_tokenizer(l, json_get(l->root, "pre_tokenizer"), 0)) < 0) return rc;
    if ((rc = parse_decoder(l, json_get(l->root, "decoder"), 0)) < 0) return rc;
    if (l->has_byte_level_decoder != l->byte_level && json_get(l->root, "decoder"))
        return broken(l, "ByteLevel in only one of pre_tokenizer and decoder");
    if ((rc = read_bpe(l)) < 0) return rc;
    if ((rc = read_added_tokens(l)) < 0) return rc;
    if ((rc = tokenizer_set_entries(l->tok, l->raw, l->byte_level, l->byte_tokens, l->err)) < 0) return rc;
    return parse_post_processor(l, json_get(l->root, "post_processor"), 0);
}

struct side_files { const cJSON *config, *special_map, *generation, *model; };

static int finish(struct load *l, const struct side_files *side)
{
    struct tokenizer *tok = l->tok;
    int rc = apply_tokenizer_config(l, side->config);

    if (rc < 0) return rc;
    apply_names(tok, side->special_map);
    apply_eos_ids(tok, side->generation ? side->generation : side->model);
    if (tok->bos == TOKEN_NONE && !side->config && tok->n_prefix && tokenizer_is_special(tok, tok->prefix[0]))
        tok->bos = tok->prefix[0];
    if (tok->eos == TOKEN_NONE && tok->n_eos_ids) tok->eos = tok->eos_ids[0];
    return tokenizer_seal(tok, l->err);
}

static int load_tree(struct tokenizer **out, const cJSON *root, const struct side_files *side, struct err *err)
{
    struct load l = { .root = root, .err = err };
    int rc = build(&l);

    if (!rc) rc = finish(&l, side);
    if (rc < 0) {
        tokenizer_free(l.tok);
        l.tok = NULL;
    }
    *out = l.tok;
    free(l.raw);
    str_map_release(&l.texts);
    return rc;
}

int tokenizer_load_json(struct tokenizer **out, const char *json, size_t len, const char *config_json,
                        size_t config_len, struct err *err)
{
    cJSON *root = NULL, *config = NULL;
    int rc;

    *out = NULL;
    if ((rc = json_parse(json, len, &json_limits_file, &root, err)) < 0) goto out;
    if (config_json && (rc = json_parse(config_json, config_len, &json_limits_file, &config, err)) < 0) goto out;
    struct side_files side = { .config = config };
    rc = load_tree(out, root, &side, err);
out:
    json_free(config);
    json_free(root);
    return rc;
}

/* *root NULL when the file is absent and optional. */
static int read_json(int dir_fd, const char *name, size_t max_bytes, bool optional, cJSON **root, struct err *err)
{
    struct err local = { 0 };
    char *text = NULL;
    size_t len = 0;
    int rc = model_read_file(dir_fd, name, max_bytes, &text, &len, &local);

    if (rc == ERR_NOT_FOUND && optional) return 0;
    if (rc == ERR_NOT_FOUND) return err_set(err, ERR_MODEL_FILE, "%s is missing in the model directory", name);
    if (rc < 0) return err_set(err, rc, "%s", local.message);
    if (json_parse(text, len, &json_limits_file, root, &local) < 0)
        rc = err_set(err, ERR_MODEL_FILE, "%s: %s", name, local.message);
    free(text);
    return rc;
}

int tokenizer_load_dir(struct tokenizer **out, int dir_fd, struct err *err)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "generation_config.json", "config.json" };
    cJSON *files[5] = { 0 };
    int rc = 0;

    *out = NULL;
    for (int i = 0; !rc && i < 5; i++)
        rc = read_json(dir_fd, names[i], i ? CONFIG_MAX_BYTES : FILE_MAX_BYTES, i > 0, &files[i], err);
    if (!rc) {
        struct side_files side = { files[1], files[2], files[3], files[4] };
        rc = load_tree(out, files[0], &side, err);
    }
    for (int i = 0; i < 5; i++) json_free(files[i]);
    return rc;
}
