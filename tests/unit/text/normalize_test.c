#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "normalize.h"

static void expect(const struct normalizer *normalizer, const char *text, const char *wanted)
{
    struct normalize_scratch scratch = { 0 };
    const char *out;
    size_t len;

    assert_int_equal(normalize_run(normalizer, &scratch, text, strlen(text), &out, &len, NULL), 0);
    assert_int_equal(len, strlen(wanted));
    assert_memory_equal(out, wanted, len);
    normalize_scratch_release(&scratch);
}

static void normal_forms(void **state)
{
    static const struct { enum normalize_kind kind; const char *text, *wanted; } cases[] = {
        { NORM_NFC, "abc", "abc" }, { NORM_NFC, "xe\u0301y", "x\u00e9y" }, { NORM_NFC, "\u0301", "\u0301" },
        { NORM_NFC, "\u1100\u1161\u11a8", "\uac01" }, { NORM_NFC, "\uac00\u11a8", "\uac01" },
        { NORM_NFC, "\u304b\u3099", "\u304c" }, { NORM_NFC, "\u212b", "\u00c5" }, { NORM_NFC, "\ufb01", "\ufb01" },
        { NORM_NFC, "q\u0307\u0323", "q\u0323\u0307" }, { NORM_NFC, "\u4e2d\u6587e\u0301", "\u4e2d\u6587\u00e9" },
        { NORM_NFC, "\u0302\u1ac0", "\u0302\u1ac0" },               /* a class newer than Unicode 9 does not move */
        { NORM_NFC, "e\u1abf\u0301", "e\u1abf\u0301" },
        { NORM_NFD, "\u00e9", "e\u0301" }, { NORM_NFKC, "\ufb01\u2460", "fi1" }, { NORM_NFKD, "\u01c4", "DZ\u030c" },
        { NORM_LOWERCASE, "A\u0130\u03a3", "ai\u0307\u03c3" },
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct normalizer normalizer = { .steps = { { .kind = cases[i].kind } }, .n_steps = 1 };
        expect(&normalizer, cases[i].text, cases[i].wanted);
    }
}

static void steps_run_in_order(void **state)
{
    struct normalizer normalizer = { .n_steps = 4, .steps = {
        { .kind = NORM_STRIP, .left = true, .right = true },
        { .kind = NORM_PREPEND, .content = "_", .content_len = 1 },
        { .kind = NORM_REPLACE, .pattern = " ", .pattern_len = 1, .content = "_", .content_len = 1 },
        { .kind = NORM_REPLACE, .pattern = "b_", .pattern_len = 2, .content = "", .content_len = 0 } } };
    (void)state;

    expect(&normalizer, "\u3000 a b c \n", "_a_c");
    expect(&normalizer, " ", "");
    expect(&normalizer, "", "");
}

/* Half a million marks of alternating class after one letter: sorted stably, lower class first. */
static void long_runs_of_marks_are_sorted(void **state)
{
    enum { PAIRS = 1 << 18 };
    struct normalizer normalizer = { .steps = { { .kind = NORM_NFC } }, .n_steps = 1 };
    struct normalize_scratch scratch = { 0 };
    struct buf text = BUF_INIT;
    const char *out;
    size_t len;
    (void)state;

    buf_putc(&text, 'q');
    for (int i = 0; i < PAIRS; i++) buf_puts(&text, i & 1 ? "\u0301\u0316" : "\u0300\u0316"); /* classes 230 and 220 */
    assert_int_equal(normalize_run(&normalizer, &scratch, text.data, text.len, &out, &len, NULL), 0);
    assert_int_equal(len, text.len);
    for (size_t i = 0; i < PAIRS; i++) {
        assert_memory_equal(out + 1 + 2 * i, "\u0316", 2);
        assert_memory_equal(out + 1 + 2 * (PAIRS + i), i & 1 ? "\u0301" : "\u0300", 2);
    }
    normalize_scratch_release(&scratch);
    buf_release(&text);
}

static void classes_of_characters(void **state)
{
    (void)state;
    assert_true(text_is_space(' ') && text_is_space(0x85) && text_is_space(0x3000));
    assert_false(text_is_space(0x180e) || text_is_space(0x200b) || text_is_space('a'));
    assert_true(text_is_word('_') && text_is_word('7') && text_is_word(0x4e00) && text_is_word(0x301) &&
                text_is_word(0x24b6));
    assert_false(text_is_word('-') || text_is_word(' ') || text_is_word(0xbd));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(normal_forms), cmocka_unit_test(steps_run_in_order),
        cmocka_unit_test(long_runs_of_marks_are_sorted), cmocka_unit_test(classes_of_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
