#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bpe.h"

/* Letters a..d and every merge of two tokens up to a length, in a fixed shuffled order. */
struct model { struct bpe bpe; char keys[64][16]; uint32_t lens[64]; int n; int left[64], right[64]; int n_merges; };

static uint32_t next_random(uint32_t *seed) { return *seed = *seed * 1664525u + 1013904223u, *seed >> 8; }

static int key_id(const struct model *m, const char *key)
{
    for (int i = 0; i < m->n; i++)
        if (!strcmp(m->keys[i], key)) return i;
    return -1;
}

static void model_add(struct model *m, int left, int right)
{
    char key[16];

    if (strlen(m->keys[left]) + strlen(m->keys[right]) >= sizeof key || m->n == 64) return;
    snprintf(key, sizeof key, "%.7s%.7s", m->keys[left], m->keys[right]);
    int id = key_id(m, key);
    if (id < 0) {
        id = m->n++;
        memcpy(m->keys[id], key, sizeof key);
        m->lens[id] = (uint32_t)strlen(key);
        assert_int_equal(bpe_add_token(&m->bpe, m->keys[id], strlen(key), id), 0);
    }
    for (int i = 0; i < m->n_merges; i++)
        if (m->left[i] == left && m->right[i] == right) return;
    m->left[m->n_merges] = left;
    m->right[m->n_merges] = right;
    assert_int_equal(bpe_add_merge(&m->bpe, left, right, id, (uint32_t)m->n_merges++), 0);
}

static void model_make(struct model *m, uint32_t seed, bool byte_level)
{
    memset(m, 0, sizeof *m);
    assert_int_equal(bpe_init(&m->bpe, 4, 2), 0);
    m->bpe.byte_level = byte_level;
    for (int i = 0; i < 4; i++) {
        m->keys[i][0] = (char)('a' + i);
        m->lens[i] = 1;
        assert_int_equal(bpe_add_token(&m->bpe, m->keys[i], 1, i), 0);
    }
    m->n = 4;
    while (m->n_merges < 40)
        model_add(m, (int)(next_random(&seed) % (uint32_t)(m->n < 12 ? m->n : 12)), (int)(next_random(&seed) % 4));
    assert_int_equal(bpe_finish(&m->bpe, NULL), 0);
}

/* The definition: of all neighbouring pairs with a merge take the lowest rank, leftmost; repeat. */
static size_t merge_by_definition(const struct model *m, int *ids, size_t n)
{
    for (;;) {
        int best_rank = m->n_merges;
        size_t best = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (int r = 0; r < best_rank; r++)
                if (m->left[r] == ids[i] && m->right[r] == ids[i + 1]) {
                    best_rank = r;
                    best = i;
                }
        if (best_rank == m->n_merges) return n;
        char key[16];
        snprintf(key, sizeof key, "%.7s%.7s", m->keys[ids[best]], m->keys[ids[best + 1]]);
        ids[best] = key_id(m, key);
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

static void check_word(const struct model *m, struct bpe_work *work, const char *word, size_t len)
{
    struct token_buf found = { 0 };
    int *ids = calloc(len, sizeof *ids);

    for (size_t i = 0; i < len; i++) ids[i] = word[i] - 'a';
    size_t n = merge_by_definition(m, ids, len);
    assert_int_equal(bpe_encode_word(&m->bpe, work, word, len, &found, NULL), 0);
    assert_int_equal(found.len, n);
    assert_memory_equal(found.ids, ids, n * sizeof *ids);
    token_buf_release(&found);
    free(ids);
}

/* Short words take the in-place path and the cache, long ones the heap; both must follow the definition. */
static void merging_follows_the_definition(void **state)
{
    struct bpe_work work = { 0 };
    struct model m;
    char word[200];
    uint32_t seed = 7;
    (void)state;

    bpe_work_use_cache(&work);
    for (uint32_t round = 0; round < 24; round++) {
        model_make(&m, round, round & 1);
        for (int i = 0; i < 120; i++) {
            size_t len = 1 + next_random(&seed) % (i % 3 ? 30 : sizeof word);
            for (size_t at = 0; at < len; at++) word[at] = (char)('a' + next_random(&seed) % (1 + i % 4));
            check_word(&m, &work, word, len);
            check_word(&m, &work, word, len);
        }
        bpe_release(&m.bpe);
        bpe_work_release(&work);
        bpe_work_use_cache(&work);
    }
    bpe_work_release(&work);
}

static void a_mebibyte_of_one_letter(void **state)
{
    enum { LEN = 1 << 20 };
    struct bpe_work work = { 0 };
    struct token_buf ids = { 0 };
    struct bpe bpe;
    char *text = malloc(LEN);
    (void)state;

    assert_non_null(text);
    memset(text, 'a', LEN);
    assert_int_equal(bpe_init(&bpe, 4, 4), 0);
    bpe.byte_level = true;
    for (int i = 0; i < 4; i++) assert_int_equal(bpe_add_token(&bpe, "aaaaaaaa", (size_t)1 << i, i), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(bpe_add_merge(&bpe, i, i, i + 1, (uint32_t)i), 0);
    assert_int_equal(bpe_finish(&bpe, NULL), 0);
    assert_int_equal(bpe_encode_word(&bpe, &work, text, LEN - 3, &ids, NULL), 0);
    assert_int_equal(ids.len, LEN / 8 - 1 + 2);
    assert_int_equal(ids.ids[0], 3);
    assert_int_equal(ids.ids[ids.len - 2], 2);
    assert_int_equal(ids.ids[ids.len - 1], 0);
    token_buf_release(&ids);
    bpe_work_release(&work);
    bpe_release(&bpe);
    free(text);
}

/* Equal scores merge leftmost first; a token that is not mergeable is never made. */
static void scores_become_ranks(void **state)
{
    static const char *const keys[] = { "a", "b", "ab", "ba", "aba", "x" };
    const uint32_t lens[] = { 1, 1, 2, 2, 3, 1 };
    const float scores[] = { -9, -9, -1, -1, -2, -9 };
    bool mergeable[] = { true, true, true, true, true, true };
    struct bpe_work work = { 0 };
    struct token_buf ids = { 0 };
    struct bpe bpe;
    (void)state;

    for (int round = 0; round < 2; round++) {
        mergeable[4] = round == 0;
        assert_int_equal(bpe_init(&bpe, 6, 2), 0);
        for (int i = 0; i < 6; i++) assert_int_equal(bpe_add_token(&bpe, keys[i], lens[i], i), 0);
        assert_int_equal(bpe_merges_from_scores(&bpe, keys, lens, scores, mergeable, 6), 0);
        assert_int_equal(bpe_finish(&bpe, NULL), 0);
        ids.len = 0;
        assert_int_equal(bpe_encode_word(&bpe, &work, "babax", 5, &ids, NULL), 0);
        const token_id expected[] = {3, 3, 5}; /* ba ba x: the leftmost of ba, ab, ba goes first */
        assert_int_equal(ids.len, 3);
        assert_memory_equal(ids.ids, expected, sizeof expected);
        ids.len = 0;
        assert_int_equal(bpe_encode_word(&bpe, &work, "aba", 3, &ids, NULL), 0);
        assert_int_equal(ids.len, round == 0 ? 1 : 2);
        bpe_release(&bpe);
        bpe_work_release(&work);
    }
    token_buf_release(&ids);
}

static void unknown_characters(void **state)
{
    struct bpe_work work = { 0 };
    struct token_buf ids = { 0 };
    struct bpe bpe;
    (void)state;

    for (int fuse = 0; fuse < 2; fuse++) {
        assert_int_equal(bpe_init(&bpe, 4, 2), 0);
        assert_int_equal(bpe_add_token(&bpe, "<unk>", 5, 0), 0);
        assert_int_equal(bpe_add_token(&bpe, "a", 1, 1), 0);
        assert_int_equal(bpe_add_token(&bpe, "<0xC3>", 6, 2), 0);
        bpe.unk = 0;
        bpe.fuse_unk = fuse;
        bpe.byte_fallback = true;                            /* A9 has no token: the character is unknown as a whole */
        assert_int_equal(bpe_finish(&bpe, "\xe2\x96\x81"), 0);
        ids.len = 0;
        assert_int_equal(bpe_encode_word(&bpe, &work, "a\xc3\xa9\xc3\xa9" "a", 6, &ids, NULL), 0);
        assert_int_equal(ids.len, fuse ? 3 : 4);
        assert_int_equal(ids.ids[1], 0);
        assert_int_equal(ids.ids[ids.len - 1], 1);
        bpe_release(&bpe);
        bpe_work_release(&work);
    }
    token_buf_release(&ids);
}

/* Text is only cut at word starts when no token reaches over one. */
static void cut_rule_needs_a_vocabulary_without_inner_marks(void **state)
{
    struct bpe bpe;
    (void)state;

    for (int inner = 0; inner < 2; inner++) {
        assert_int_equal(bpe_init(&bpe, 4, 2), 0);
        assert_int_equal(bpe_add_token(&bpe, "__a", 3, 0), 0);
        assert_int_equal(bpe_add_token(&bpe, "__", 2, 1), 0);
        if (inner) assert_int_equal(bpe_add_token(&bpe, "a_", 2, 2), 0);
        assert_int_equal(bpe_finish(&bpe, "_"), 0);
        assert_int_equal(bpe.word_start != NULL, !inner);
        bpe_release(&bpe);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_follows_the_definition), cmocka_unit_test(a_mebibyte_of_one_letter),
        cmocka_unit_test(scores_become_ranks), cmocka_unit_test(unknown_characters),
        cmocka_unit_test(cut_rule_needs_a_vocabulary_without_inner_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
