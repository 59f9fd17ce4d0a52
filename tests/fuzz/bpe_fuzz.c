/* The first bytes make merges over four letters, the rest is a word: the tokens spell the word again, and encoding does
 * not depend on which path (in place, cache, heap) merged it. */
#include <string.h>

#include "base/bug.h"
#include "text/bpe.h"

enum { LETTERS = 4, MERGES = 16, KEY_MAX = 64 };

struct model { struct bpe bpe; char keys[LETTERS + MERGES][KEY_MAX]; size_t lens[LETTERS + MERGES]; int n; };

static void add_merge(struct model *m, unsigned choice)
{
    int left = (int)(choice % (unsigned)m->n), right = (int)(choice / 16 % (unsigned)m->n);
    size_t len = m->lens[left] + m->lens[right];

    if (len > KEY_MAX) return;
    memcpy(m->keys[m->n], m->keys[left], m->lens[left]);
    memcpy(m->keys[m->n] + m->lens[left], m->keys[right], m->lens[right]);
    if (str_map_get(&m->bpe.vocab, m->keys[m->n], len) >= 0) return;
    BUG_ON(bpe_add_token(&m->bpe, m->keys[m->n], len, m->n) < 0);
    BUG_ON(bpe_add_merge(&m->bpe, left, right, m->n, (uint32_t)m->n) < 0);
    m->lens[m->n++] = len;
}

static void check_spelling(const struct model *m, const struct token_buf *ids, const char *word, size_t len)
{
    size_t at = 0;

    for (size_t i = 0; i < ids->len; i++) {
        size_t n = m->lens[ids->ids[i]];
        BUG_ON(n > len - at || memcmp(word + at, m->keys[ids->ids[i]], n) != 0);
        at += n;
    }
    BUG_ON(at != len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model m = { .n = LETTERS };
    struct bpe_work work = { 0 };
    struct token_buf ids = { 0 }, again = { 0 };
    char word[4096];

    if (size < MERGES + 1) return 0;
    size_t len = size - MERGES < sizeof word ? size - MERGES : sizeof word;
    for (size_t i = 0; i < len; i++) word[i] = (char)('a' + data[MERGES + i] % LETTERS);
    if (bpe_init(&m.bpe, LETTERS, MERGES) < 0) return 0;
    m.bpe.byte_level = data[0] & 1;
    for (int i = 0; i < LETTERS; i++) {
        m.keys[i][0] = (char)('a' + i);
        m.lens[i] = 1;
        BUG_ON(bpe_add_token(&m.bpe, m.keys[i], 1, i) < 0);
    }
    for (int i = 0; i < MERGES; i++) add_merge(&m, data[i]);
    BUG_ON(bpe_finish(&m.bpe, NULL) < 0);
    BUG_ON(bpe_encode_word(&m.bpe, &work, word, len, &ids, NULL) < 0);
    check_spelling(&m, &ids, word, len);
    bpe_work_use_cache(&work);
    for (int i = 0; i < 2; i++) {
        again.len = 0;
        BUG_ON(bpe_encode_word(&m.bpe, &work, word, len, &again, NULL) < 0);
        BUG_ON(again.len != ids.len || memcmp(again.ids, ids.ids, ids.len * sizeof *ids.ids) != 0);
    }
    token_buf_release(&ids);
    token_buf_release(&again);
    bpe_work_release(&work);
    bpe_release(&m.bpe);
    return 0;
}
