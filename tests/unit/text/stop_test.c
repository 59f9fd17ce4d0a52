#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/text.h>

static struct stop_set *make(const char *const *strings, size_t n)
{
    size_t lens[STOP_MAX_STRINGS];
    struct stop_set *set = NULL;

    for (size_t i = 0; i < n; i++) lens[i] = strlen(strings[i]);
    assert_int_equal(stop_set_new(&set, strings, lens, n, NULL), 0);
    assert_non_null(set);
    return set;
}

static void earliest_end_then_earliest_start(void **state)
{
    static const char *const strings[] = { "bcd", "abcde", "c", "xbc" };
    struct stop_set *set = make(strings, 2);
    struct stop_state at = { 0 };
    size_t safe = 0, end = 0;
    (void)state;

    assert_int_equal(stop_push(set, &at, "zabcdef", 7, 0, &safe, &end), 0);    /* bcd ends before abcde */
    assert_int_equal(safe, 2);
    assert_int_equal(end, 5);
    stop_set_free(set);
    set = make(strings, 4);
    at.node = 0;
    assert_int_equal(stop_push(set, &at, "axbc", 4, 10, &safe, &end), 3);      /* xbc and c end together */
    assert_int_equal(safe, 11);
    assert_int_equal(end, 14);
    stop_set_free(set);
}

static void what_may_begin_a_stop_is_held_back(void **state)
{
    static const char *const strings[] = { "\nUser:" };
    struct stop_set *set = make(strings, 1);
    struct stop_state at = { 0 };
    size_t safe = 0, end = 0;
    (void)state;

    assert_int_equal(stop_push(set, &at, "hi\nUs", 5, 0, &safe, &end), -1);
    assert_int_equal(safe, 2);
    assert_int_equal(stop_push(set, &at, "age\n", 4, 5, &safe, &end), -1);
    assert_int_equal(safe, 8);
    assert_int_equal(stop_push(set, &at, "User:!", 6, 9, &safe, &end), 0);
    assert_int_equal(safe, 8);
    assert_int_equal(end, 14);
    stop_set_free(set);
}

static void no_strings_let_all_through(void **state)
{
    struct stop_set *set = (struct stop_set *)&set;
    struct stop_state at = { 0 };
    size_t safe = 0, end = 0;
    (void)state;

    assert_int_equal(stop_set_new(&set, NULL, NULL, 0, NULL), 0);
    assert_null(set);
    assert_int_equal(stop_push(set, &at, "abc", 3, 4, &safe, &end), -1);
    assert_int_equal(safe, 7);
}

static void limits(void **state)
{
    static char long_string[STOP_MAX_BYTES + 1];
    const char *strings[STOP_MAX_STRINGS + 1];
    size_t lens[STOP_MAX_STRINGS + 1];
    struct stop_set *set = NULL;
    (void)state;

    memset(long_string, 'a', sizeof long_string);
    for (size_t i = 0; i <= STOP_MAX_STRINGS; i++) {
        strings[i] = long_string;
        lens[i] = STOP_MAX_BYTES;
    }
    assert_int_equal(stop_set_new(&set, strings, lens, STOP_MAX_STRINGS + 1, NULL), ERR_ARRAY_LONG);
    lens[1] = STOP_MAX_BYTES + 1;
    assert_int_equal(stop_set_new(&set, strings, lens, 2, NULL), ERR_VALUE);
    lens[1] = 0;
    assert_int_equal(stop_set_new(&set, strings, lens, 2, NULL), ERR_VALUE);
    assert_null(set);
    lens[1] = STOP_MAX_BYTES;
    assert_int_equal(stop_set_new(&set, strings, lens, STOP_MAX_STRINGS, NULL), 0);
    stop_set_free(set);
}

/* The definition: the smallest end, of those the smallest start; safe is the start of the longest suffix that
 * begins one. */
static int search(const char *const *strings, size_t n, const char *text, size_t len, size_t *safe, size_t *end)
{
    for (size_t e = 1; e <= len; e++) {
        int best = -1;
        for (size_t i = 0; i < n; i++) {
            size_t l = strlen(strings[i]);
            bool ends = l <= e && !memcmp(text + e - l, strings[i], l);
            if (ends && (best < 0 || l > strlen(strings[best]))) best = (int)i;
        }
        if (best < 0) continue;
        *end = e;
        *safe = e - strlen(strings[best]);
        return best;
    }
    for (*safe = 0; *safe < len; ++*safe)
        for (size_t i = 0; i < n; i++)
            if (strlen(strings[i]) > len - *safe && !memcmp(strings[i], text + *safe, len - *safe)) return -1;
    return -1;
}

static void random_texts_in_random_pieces(void **state)
{
    char store[4][8], text[40];
    const char *strings[4] = { store[0], store[1], store[2], store[3] };
    uint32_t seed = 5;
    (void)state;

    for (int round = 0; round < 20000; round++) {
        size_t n = 1 + round % 4, len = 1 + (size_t)round % sizeof text, safe = 0, end = 0, want_safe = 0, want_end = 0;
        for (size_t i = 0; i < n; i++) {
            size_t l = 1 + (seed = seed * 1664525u + 1013904223u, seed >> 8) % 6;
            for (size_t at = 0; at < l; at++)
                store[i][at] = (char)('a' + (seed = seed * 1664525u + 1013904223u, seed >> 8) % 3);
            store[i][l] = '\0';
        }
        for (size_t at = 0; at < len; at++)
            text[at] = (char)('a' + (seed = seed * 1664525u + 1013904223u, seed >> 8) % 3);
        struct stop_set *set = make(strings, n);
        struct stop_state at = { 0 };
        int want = search(strings, n, text, len, &want_safe, &want_end), found = -1;
        for (size_t fed = 0; fed < len && found < 0;) {
            size_t piece = 1 + (seed = seed * 1664525u + 1013904223u, seed >> 8) % 5;
            if (piece > len - fed) piece = len - fed;
            found = stop_push(set, &at, text + fed, piece, fed, &safe, &end);
            fed += piece;
        }
        assert_int_equal(found < 0, want < 0);
        assert_int_equal(safe, want_safe);
        if (found >= 0) {
            assert_int_equal(end, want_end);
            assert_string_equal(strings[found], strings[want]);
        }
        stop_set_free(set);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(earliest_end_then_earliest_start), cmocka_unit_test(what_may_begin_a_stop_is_held_back),
        cmocka_unit_test(no_strings_let_all_through),       cmocka_unit_test(limits),
        cmocka_unit_test(random_texts_in_random_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
