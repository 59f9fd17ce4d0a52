#include "bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum {
    SMALL_WORD = 48,       /* up to here the pairs are scanned in place; a heap only pays beyond */
    WHOLE_LEN_MAX = 256,   /* longer keys are rare and cost load time */
    CACHE_WORDS = 4096,
};

/* ---- tables ---- */
static uint64_t pair_hash(token_id left, token_id right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

    key *= 0x9e3779b97f4a7c15u;
    return key ^ key >> 29;
}

static size_t pair_slot(const struct bpe *bpe, token_id left, token_id right)
{
    size_t i = pair_hash(left, right) & (bpe->pair_cap - 1);

    while (bpe->pairs[i].left != TOKEN_NONE && (bpe->pairs[i].left != left || bpe->pairs[i].right != right))
        i = (i + 1) & (bpe->pair_cap - 1);
    return i;
}

static int pairs_alloc(struct bpe *bpe, size_t cap)
{
    bpe->pairs = calloc(cap, sizeof *bpe->pairs);
    if (!bpe->pairs) return ERR_NO_MEMORY;
    for (size_t i = 0; i < cap; i++) bpe->pairs[i].left = TOKEN_NONE;
    bpe->pair_cap = cap;
    return 0;
}

static int pairs_grow(struct bpe *bpe)
{
    struct bpe_pair *old = bpe->pairs;
    size_t old_cap = bpe->pair_cap;

    if (pairs_alloc(bpe, old_cap * 2) < 0) {
        bpe->pairs = old;
        return ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < old_cap; i++)
        if (old[i].left != TOKEN_NONE) bpe->pairs[pair_slot(bpe, old[i].left, old[i].right)] = old[i];
    free(old);
    return 0;
}

int bpe_init(struct bpe *bpe, size_t n_tokens, size_t n_merges)
{
    size_t cap = 64;

    *bpe = (struct bpe){ .unk = TOKEN_NONE };
    for (int i = 0; i < 256; i++) bpe->byte_ids[i] = TOKEN_NONE;
    if (n_merges > SIZE_MAX / 256 || n_tokens > TOKENIZER_MAX_VOCAB) return ERR_NO_MEMORY;
    while (cap < n_merges * 2) cap *= 2;
    if (str_map_init(&bpe->vocab, n_tokens) < 0 || pairs_alloc(bpe, cap) < 0) return ERR_NO_MEMORY;
    return 0;
}

int bpe_add_token(struct bpe *bpe, const char *key, size_t len, token_id id)
{
    return str_map_put(&bpe->vocab, key, len, id, NULL);
}

int bpe_add_merge(struct bpe *bpe, token_id left, token_id right, token_id merged, uint32_t rank)
{
    if ((bpe->pair_count + 1) * 4 > bpe->pair_cap * 3 && pairs_grow(bpe) < 0) return ERR_NO_MEMORY;
    struct bpe_pair *pair = &bpe->pairs[pair_slot(bpe, left, right)];
    bpe->pair_count += pair->left == TOKEN_NONE;
    *pair = (struct bpe_pair){ .left = left, .right = right, .merged = merged, .rank = rank };
    return 0;
}

struct scored { float score; token_id id; };

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;

    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int add_splits(struct bpe *bpe, const char *key, size_t len, token_id id, uint32_t rank, const bool *mergeable)
{
    for (size_t cut = 1; cut < len; cut++) {
        if (((unsigned char)key[cut] & 0xc0) == 0x80) continue;
        token_id left = str_map_get(&bpe->vocab, key, cut);
        token_id right = left < 0 ? -1 : str_map_get(&bpe->vocab, key + cut, len - cut);
        if (right < 0 || !mergeable[left] || !mergeable[right]) continue;
        if (bpe_add_merge(bpe, left, right, id, rank) < 0) return ERR_NO_MEMORY;
    }
    return 0;
}

int bpe_merges_from_scores(struct bpe *bpe, const char *const *keys, const uint32_t *lens, const float *scores,
                           const bool *mergeable, int32_t n_tokens)
{
    struct scored *order = calloc(n_tokens > 0 ? (size_t)n_tokens : 1, sizeof *order);
    int rc = order ? 0 : ERR_NO_MEMORY;
    size_t n = 0;

    for (int32_t id = 0; !rc && id < n_tokens; id++)
        if (mergeable[id] && lens[id]) order[n++] = (struct scored){ scores[id], id };
    if (n) qsort(order, n, sizeof *order, by_score);
    uint32_t rank = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        if (i && order[i].score != order[i - 1].score) rank++;
        token_id id = order[i].id;
        if (str_map_get(&bpe->vocab, keys[id], lens[id]) != id) continue;   /* a duplicate text: the first one counts */
        rc = add_splits(bpe, keys[id], lens[id], id, rank, mergeable);
    }
    free(order);
    return rc;
}

/* ---- finishing ---- */
static void fill_byte_ids(struct bpe *bpe)
{
    for (int i = 0; i < 256; i++) {
        char name[8], byte = (char)i;
        if (bpe->byte_level) {
            bpe->byte_ids[i] = str_map_get(&bpe->vocab, &byte, 1);
        } else {
            snprintf(name, sizeof name, "<0x%02X>", i);
            bpe->byte_ids[i] = str_map_get(&bpe->vocab, name, strlen(name));
        }
    }
}

/* Does key have the mark after something that is not the mark? Then a merge may cross a word start. */
static bool mark_inside(const char *key, size_t len, const char *mark, size_t mark_len)
{
    size_t at = 0;

    while (len - at >= mark_len && !memcmp(key + at, mark, mark_len)) at += mark_len;
    return memmem(key + at, len - at, mark, mark_len) != NULL;
}

static void find_cut_rule(struct bpe *bpe, const char *mark)
{
    size_t mark_len = strlen(mark);

    for (size_t i = 0; i < bpe->vocab.cap; i++) {
        const struct str_map_slot *slot = &bpe->vocab.slots[i];
        if (slot->key && mark_inside(slot->key, slot->len, mark, mark_len)) return;
    }
    /* A run of unknown characters may fuse to one unk across a cut. */
    if (bpe->fuse_unk && bpe->unk != TOKEN_NONE && !bpe->byte_fallback) return;
    bpe->word_start = mark;
    bpe->word_start_len = mark_len;
}

static int merge_word(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t len,
                      struct token_buf *tokens, struct err *err);

static uint32_t whole_hash(const char *text, size_t len)
{
    return (uint32_t)hash_bytes(text, len, 0x736c75696365u);
}

static token_id whole_find(const struct bpe *bpe, const char *text, size_t len, uint32_t hash)
{
    for (size_t i = hash & (bpe->whole_cap - 1); bpe->whole[i].key; i = (i + 1) & (bpe->whole_cap - 1)) {
        const struct bpe_whole *slot = &bpe->whole[i];
        if (slot->hash == hash && slot->len == len && !memcmp(slot->key, text, len)) return slot->id;
    }
    return TOKEN_NONE;
}

static void whole_put(struct bpe *bpe, const char *key, uint32_t len, token_id id)
{
    uint32_t hash = whole_hash(key, len);
    size_t i = hash & (bpe->whole_cap - 1);

    while (bpe->whole[i].key) i = (i + 1) & (bpe->whole_cap - 1);
    bpe->whole[i] = (struct bpe_whole){ .hash = hash, .len = len, .key = key, .id = id };
    if (len > bpe->max_whole_len) bpe->max_whole_len = len;
}

/* Every key that merging turns into exactly its own token. */
static int fill_whole(struct bpe *bpe)
{
    struct bpe_work work = { 0 };
    struct token_buf ids = { 0 };
    int rc = 0;

    for (bpe->whole_cap = 64; bpe->whole_cap < bpe->vocab.count * 2;) bpe->whole_cap *= 2;
    struct bpe_whole *table = calloc(bpe->whole_cap, sizeof *table);
    if (!table) return ERR_NO_MEMORY;
    bpe->whole = table;
    for (size_t i = 0; !rc && i < bpe->vocab.cap; i++) {
        const struct str_map_slot *slot = &bpe->vocab.slots[i];
        if (!slot->key || !slot->len) continue;
        if (bpe->ignore_merges) {
            whole_put(bpe, slot->key, slot->len, slot->value);
            continue;
        }
        if (slot->len > WHOLE_LEN_MAX) continue;
        ids.len = 0;
        rc = merge_word(bpe, &work, slot->key, slot->len, &ids, NULL);
        if (!rc && ids.len == 1 && ids.ids[0] == slot->value) whole_put(bpe, slot->key, slot->len, slot->value);
    }
    bpe_work_release(&work);
    token_buf_release(&ids);
    return rc;
}

int bpe_finish(struct bpe *bpe, const char *cut_before)
{
    fill_byte_ids(bpe);
    if (!bpe->byte_level && cut_before) find_cut_rule(bpe, cut_before);
    return fill_whole(bpe);
}

void bpe_release(struct bpe *bpe)
{
    str_map_release(&bpe->vocab);
    free(bpe->pairs);
    free(bpe->whole);
    *bpe = (struct bpe){ 0 };
}

void bpe_work_use_cache(struct bpe_work *work)
{
    if (!work->cache) work->cache = calloc(CACHE_WORDS, sizeof *work->cache);
}

void bpe_work_release(struct bpe_work *work)
{
    free(work->cache);
    free(work->symbols);
    free(work->heap);
    *work = (struct bpe_work){ 0 };
}

/* ---- token_buf ---- */
int token_buf_push(struct token_buf *tokens, token_id id, struct err *err)
{
    if (tokens->limit && tokens->len >= tokens->limit)
        return err_set(err, ERR_LIMIT, "text: more than %zu tokens", tokens->limit);
    if (tokens->len == tokens->cap) {
        size_t cap = tokens->cap ? tokens->cap * 2 : 64;
        token_id *bigger = cap < SIZE_MAX / sizeof *bigger ? realloc(tokens->ids, cap * sizeof *bigger) : NULL;
        if (!bigger) return err_set(err, ERR_NO_MEMORY, "no memory for %zu tokens", cap);
        tokens->ids = bigger;
        tokens->cap = cap;
    }
    tokens->ids[tokens->len++] = id;
    return 0;
}

void token_buf_release(struct token_buf *tokens)
{
    free(tokens->ids);
    tokens->ids = NULL;
    tokens->len = tokens->cap = 0;
}

/* ---- symbols ---- */
static int reserve_symbols(struct bpe_work *work, size_t n, struct err *err)
{
    if (n <= work->symbol_cap) return 0;
    if (n > INT32_MAX) return err_set(err, ERR_LIMIT, "a word of %zu symbols", n);
    size_t cap = n + n / 2 + 64;
    struct bpe_symbol *bigger = malloc(cap * sizeof *bigger);
    if (!bigger) return err_set(err, ERR_NO_MEMORY, "no memory for a word of %zu symbols", n);
    free(work->symbols);
    work->symbols = bigger;
    work->symbol_cap = cap;
    return 0;
}

static size_t byte_symbols(const struct bpe *bpe, struct bpe_symbol *symbols, const char *text, size_t len)
{
    size_t n = 0;
    bool unk_run = false;

    for (size_t i = 0; i < len; i++) {
        token_id id = bpe->byte_ids[(unsigned char)text[i]];
        bool unk = id == TOKEN_NONE;
        if (unk && bpe->unk != TOKEN_NONE && !(unk_run && bpe->fuse_unk)) symbols[n++].id = bpe->unk;
        if (!unk) symbols[n++].id = id;
        unk_run = unk;
    }
    return n;
}

/* Byte tokens of an unknown character; 0 when one of them is missing (then the character is unk as a whole). */
static size_t fallback_symbols(const struct bpe *bpe, struct bpe_symbol *symbols, const char *text, size_t len)
{
    if (!bpe->byte_fallback) return 0;
    for (size_t i = 0; i < len; i++)
        if (bpe->byte_ids[(unsigned char)text[i]] == TOKEN_NONE) return 0;
    for (size_t i = 0; i < len; i++) symbols[i].id = bpe->byte_ids[(unsigned char)text[i]];
    return len;
}

static size_t char_symbols(const struct bpe *bpe, struct bpe_symbol *symbols, const char *text, size_t len)
{
    size_t n = 0, step;
    bool unk_run = false;

    for (size_t i = 0; i < len; i += step) {
        uint32_t cp;
        int got = utf8_decode(text + i, len - i, &cp);
        step = got > 0 ? (size_t)got : 1;
        token_id id = str_map_get(&bpe->vocab, text + i, step);
        if (id != TOKEN_NONE) {
            symbols[n++].id = id;
            unk_run = false;
            continue;
        }
        size_t bytes = fallback_symbols(bpe, symbols + n, text + i, step);
        n += bytes;
        if (bytes || bpe->unk == TOKEN_NONE) continue;
        if (!(unk_run && bpe->fuse_unk)) symbols[n++].id = bpe->unk;
        unk_run = true;
    }
    return n;
}

/* ---- merging ---- */
static void heap_push(struct bpe_work *work, struct bpe_candidate item)
{
    size_t at = work->heap_len++;

    while (at && work->heap[(at - 1) / 2].order > item.order) {
        work->heap[at] = work->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    work->heap[at] = item;
}

static struct bpe_candidate heap_pop(struct bpe_work *work)
{
    struct bpe_candidate top = work->heap[0], last = work->heap[--work->heap_len];
    size_t at = 0, child;

    while ((child = 2 * at + 1) < work->heap_len) {
        if (child + 1 < work->heap_len && work->heap[child + 1].order < work->heap[child].order) child++;
        if (work->heap[child].order >= last.order) break;
        work->heap[at] = work->heap[child];
        at = child;
    }
    work->heap[at] = last;
    return top;
}

static void offer_pair(const struct bpe *bpe, struct bpe_work *work, int32_t at)
{
    const struct bpe_symbol *symbol = &work->symbols[at];

    if (symbol->next < 0) return;
    size_t slot = pair_slot(bpe, symbol->id, work->symbols[symbol->next].id);
    if (bpe->pairs[slot].left == TOKEN_NONE) return;
    uint64_t order = (uint64_t)bpe->pairs[slot].rank << 32 | (uint32_t)at;
    heap_push(work, (struct bpe_candidate){ order, (uint32_t)slot });
}

/* Each merge removes a symbol and offers at most two pairs: the heap never holds more than 3 n candidates. */
static int reserve_heap(struct bpe_work *work, size_t n, struct err *err)
{
    if (n * 3 <= work->heap_cap) return 0;
    struct bpe_candidate *bigger = malloc(n * 3 * sizeof *bigger);
    if (!bigger) return err_set(err, ERR_NO_MEMORY, "no memory to merge a word of %zu symbols", n);
    free(work->heap);
    work->heap = bigger;
    work->heap_cap = n * 3;
    return 0;
}

static int merge_by_heap(const struct bpe *bpe, struct bpe_work *work, size_t n, struct err *err)
{
    struct bpe_symbol *symbols = work->symbols;
    int rc = reserve_heap(work, n, err);

    if (rc < 0) return rc;
    for (size_t i = 0; i < n; i++) {
        symbols[i].prev = (int32_t)i - 1;
        symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    work->heap_len = 0;
    for (size_t i = 0; i + 1 < n; i++) offer_pair(bpe, work, (int32_t)i);
    while (work->heap_len) {
        struct bpe_candidate top = heap_pop(work);
        const struct bpe_pair *pair = &bpe->pairs[top.slot];
        int32_t at = (int32_t)(uint32_t)top.order, next = symbols[at].next;
        /* the pair may be gone: a symbol merged away has id TOKEN_NONE, a grown one another id */
        if (symbols[at].id != pair->left || next < 0 || symbols[next].id != pair->right) continue;
        symbols[at].id = pair->merged;
        symbols[at].next = symbols[next].next;
        symbols[next].id = TOKEN_NONE;
        if (symbols[at].next >= 0) symbols[symbols[at].next].prev = at;
        if (symbols[at].prev >= 0) offer_pair(bpe, work, symbols[at].prev);
        offer_pair(bpe, work, at);
    }
    return 0;
}

/* Short words: keep each neighbour pair's slot and take the lowest rank, first position, until none is left. */
static size_t merge_in_place(const struct bpe *bpe, struct bpe_symbol *symbols, size_t n)
{
    const struct bpe_pair *slots[SMALL_WORD];

    for (size_t i = 0; i + 1 < n; i++) slots[i] = &bpe->pairs[pair_slot(bpe, symbols[i].id, symbols[i + 1].id)];
    for (;;) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; i++)
            if (slots[i]->left != TOKEN_NONE && (best == n || slots[i]->rank < slots[best]->rank)) best = i;
        if (best == n) return n;
        symbols[best].id = slots[best]->merged;
        n--;
        for (size_t i = best + 1; i < n; i++) {
            symbols[i].id = symbols[i + 1].id;
            slots[i - 1] = slots[i];
        }
        if (best + 1 < n) slots[best] = &bpe->pairs[pair_slot(bpe, symbols[best].id, symbols[best + 1].id)];
        if (best) slots[best - 1] = &bpe->pairs[pair_slot(bpe, symbols[best - 1].id, symbols[best].id)];
    }
}

static int merge_word(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t len,
                      struct token_buf *tokens, struct err *err)
{
    int rc = reserve_symbols(work, len, err);

    if (rc < 0) return rc;
    size_t n =
        bpe->byte_level ? byte_symbols(bpe, work->symbols, text, len) : char_symbols(bpe, work->symbols, text, len);
    if (n <= SMALL_WORD) {
        n = merge_in_place(bpe, work->symbols, n);
        for (size_t i = 0; !rc && i < n; i++) rc = token_buf_push(tokens, work->symbols[i].id, err);
        return rc;
    }
    rc = merge_by_heap(bpe, work, n, err);
    for (int32_t at = 0; !rc && at >= 0; at = work->symbols[at].next)
        rc = token_buf_push(tokens, work->symbols[at].id, err);
    return rc;
}

static int push_cached(const struct bpe_cached *cached, struct token_buf *tokens, struct err *err)
{
    int rc = 0;

    for (int i = 0; !rc && i < cached->n_ids; i++) rc = token_buf_push(tokens, cached->ids[i], err);
    return rc;
}

static int merge_and_cache(const struct bpe *bpe, struct bpe_work *work, struct bpe_cached *cached, const char *text,
                           size_t len, uint32_t hash, struct token_buf *tokens, struct err *err)
{
    size_t before = tokens->len;
    int rc = merge_word(bpe, work, text, len, tokens, err);
    size_t n = tokens->len - before;

    if (rc < 0 || n > sizeof cached->ids / sizeof *cached->ids) return rc;
    *cached = (struct bpe_cached){ .hash = hash, .len = (uint8_t)len, .n_ids = (uint8_t)n };
    memcpy(cached->word, text, len);
    if (n) memcpy(cached->ids, tokens->ids + before, n * sizeof *tokens->ids);
    return 0;
}

static int encode_uncut(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t len,
                        struct token_buf *tokens, struct err *err)
{
    if (len > bpe->max_whole_len && len > sizeof work->cache->word)
        return merge_word(bpe, work, text, len, tokens, err);
    uint32_t hash = whole_hash(text, len);
    token_id id = whole_find(bpe, text, len, hash);
    if (id != TOKEN_NONE) return token_buf_push(tokens, id, err);
    if (!work->cache || len > sizeof work->cache->word) return merge_word(bpe, work, text, len, tokens, err);
    struct bpe_cached *cached = &work->cache[hash & (CACHE_WORDS - 1)];
    if (cached->hash == hash && cached->len == len && !memcmp(cached->word, text, len))
        return push_cached(cached, tokens, err);
    return merge_and_cache(bpe, work, cached, text, len, hash, tokens, err);
}

int bpe_encode_word(const struct bpe *bpe, struct bpe_work *work, const char *text, size_t len,
                    struct token_buf *tokens, struct err *err)
{
    size_t mark_len = bpe->word_start_len, start = 0;
    int rc = 0;

    if (!len) return 0;
    if (!bpe->word_start) return encode_uncut(bpe, work, text, len, tokens, err);
    while (!rc && start < len) {
        size_t at = start;
        while (len - at >= mark_len && !memcmp(text + at, bpe->word_start, mark_len)) at += mark_len;
        const char *mark = memmem(text + at, len - at, bpe->word_start, mark_len);
        size_t end = mark ? (size_t)(mark - text) : len;
        rc = encode_uncut(bpe, work, text + start, end - start, tokens, err);
        start = end;
    }
    return rc;
}
