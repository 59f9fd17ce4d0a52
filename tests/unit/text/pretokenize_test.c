#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pretokenize.h"
#include "scan_ascii.h"

/* Words joined by '|'. */
static int join(void *arg, const char *word, size_t len)
{
    struct buf *out = arg;

    if (out->len) buf_putc(out, '|');
    buf_append(out, word, len);
    return 0;
}

static void run(const struct pretokenizer *pre, const char *text, size_t len, bool at_origin, pretok_emit emit,
                void *arg)
{
    struct pretok_scratch *scratch = NULL;
    struct err err = { 0 };

    assert_int_equal(pretok_scratch_new(&scratch, pre, &err), 0);
    if (pretokenize_run(pre, scratch, text, len, at_origin, emit, arg, &err) < 0) fail_msg("%s", err.message);
    pretok_scratch_free(scratch);
}

static void expect(const struct pretokenizer *pre, const char *text, const char *words)
{
    struct buf out = BUF_INIT;

    run(pre, text, strlen(text), true, join, &out);
    assert_string_equal(out.data, words);
    buf_release(&out);
}

static void add(struct pretokenizer *pre, const char *pattern, enum split_behavior behavior, bool invert)
{
    struct err err = { 0 };

    if (pretok_add_regex(pre, pattern, strlen(pattern), behavior, invert, &err) < 0) fail_msg("%s", err.message);
}

static void behaviors(void **state)
{
    static const struct { enum split_behavior behavior; const char *words, *inverted; } cases[] = {
        { SPLIT_ISOLATED, "-|a|-|-|bc|-", "-|a|-|-|bc|-" },
        { SPLIT_REMOVED, "a|bc", "-|-|-|-" },
        { SPLIT_MERGED_WITH_PREVIOUS, "-|a-|-|bc-", "-a|-|-bc|-" },
        { SPLIT_MERGED_WITH_NEXT, "-a|-|-bc|-", "-|a-|-|bc-" },
        { SPLIT_CONTIGUOUS, "-|a|--|bc|-", "-|a|--|bc|-" },
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int invert = 0; invert < 2; invert++) {
            struct pretokenizer pre = { 0 };
            add(&pre, "-", cases[i].behavior, invert);
            expect(&pre, "-a--bc-", invert ? cases[i].inverted : cases[i].words);
            pretokenizer_release(&pre);
        }
    }
}

static void stages_cut_what_the_ones_before_left(void **state)
{
    struct pretokenizer pre = { 0 };
    (void)state;

    add(&pre, "\\p{N}{1,3}", SPLIT_ISOLATED, false);
    assert_int_equal(pretok_add(&pre, &(struct pretok_stage){ .kind = PRETOK_PREFIX_SPACE }, NULL), 0);
    add(&pre, PATTERN_GPT2, SPLIT_ISOLATED, false);
    expect(&pre, "ab1234 it's", " ab| 123| 4| it|'s");
    pretokenizer_release(&pre);
}

static void metaspace_schemes(void **state)
{
    static const char *const first[] = { "_a|_b", "_a|_b", "a|_b" }, *const later[] = { "_a|_b", "a|_b", "a|_b" };
    (void)state;

    for (int scheme = 0; scheme < 3; scheme++) {
        struct pretokenizer pre = { 0 };
        struct buf out = BUF_INIT;
        struct pretok_stage stage = {
            .kind = PRETOK_METASPACE, .literal = "_", .literal_len = 1, .prepend = (enum prepend_scheme)scheme};
        assert_int_equal(pretok_add(&pre, &stage, NULL), 0);
        stage.kind = PRETOK_SPLIT;
        stage.behavior = SPLIT_MERGED_WITH_NEXT;
        assert_int_equal(pretok_add(&pre, &stage, NULL), 0);
        expect(&pre, "a b", first[scheme]);
        run(&pre, "a b", 3, false, join, &out);
        assert_string_equal(out.data, later[scheme]);
        expect(&pre, " a", "_a");
        buf_release(&out);
        pretokenizer_release(&pre);
    }
}

static void patterns_keep_their_meaning(void **state)
{
    static const struct { const char *from, *to; } cases[] = {
        { "\\s+(?!\\S)", "[\\x{9}-\\x{d}\\x{85}\\p{Z}]+(?![^\\x{9}-\\x{d}\\x{85}\\p{Z}])" },
        { "[^\\s\\p{L}]", "[^\\x{9}-\\x{d}\\x{85}\\p{Z}\\p{L}]" },
        { "\\p{Han}\\P{^Lu}", "\\p{sc:Han}\\P{^Lu}" },
        { "[\\[\\]]\\u4e00", "[\\[\\]]\\x{4e00}" },
        { "\\d\\w", "[\\p{Nd}][\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]" },
    };
    static const char *const refused[] = {"[a[b]]", "[a-z&&b]", "[",      "[]a]", "a{1,2}+",   "\\h",
                                          "\\",     "[\\S]",    "\\p{L",  "\\pL", "\\p{Nope}", "(",
                                          "\\R",    "\\G",      "(a)\\1", ""};
    struct pretokenizer pre = { 0 };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf out = BUF_INIT;
        assert_int_equal(pretok_translate(cases[i].from, strlen(cases[i].from), &out, NULL), 0);
        assert_string_equal(out.data, cases[i].to);
        buf_release(&out);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (pretok_add_regex(&pre, refused[i], strlen(refused[i]), SPLIT_ISOLATED, false, NULL) != ERR_MODEL_FILE)
            fail_msg("accepted: %s", refused[i]);
    assert_int_equal(pre.n_stages, 0);
    add(&pre, "\\s", SPLIT_REMOVED, false);
    expect(&pre, "a\u180e" "b\xc2\x85" "c\u3000" "d", "a\u180e" "b|c|d");    /* U+180E is no space for Oniguruma */
    pretokenizer_release(&pre);
}

/* The hand-written matchers answer what the regex answers. */
static void ascii_scanners_equal_their_regex(void **state)
{
    static const char *const patterns[] = { PATTERN_GPT2, PATTERN_LLAMA3, PATTERN_QWEN2 };
    static const char *const parts[] = {" ",      "  ",     "\n",      "\r\n",   "\t",     "a",      "bc",     "'s",
                                        "'S",     "'ll",    "'LL",     "'re",    "'v",     "'",      "''",     "1",
                                        "22",     "333",    "4444",    "!",      "?!",     ".",      "\u00e9", "\u00a0",
                                        "\u0661", "\u017f", "'\u017f", "\u2028", "\u3042", "\u0301", "_"};
    uint32_t seed = 1;
    (void)state;

    for (size_t p = 0; p < 3; p++) {
        struct pretokenizer fast = { 0 }, slow = { 0 };
        add(&fast, patterns[p], SPLIT_ISOLATED, false);
        add(&slow, patterns[p], SPLIT_ISOLATED, false);
        assert_non_null(fast.stages[0].scan);
        slow.stages[0].scan = NULL;
        for (int i = 0; i < 20000; i++) {
            struct buf text = BUF_INIT, a = BUF_INIT, b = BUF_INIT;
            for (int n = 1 + i % 12; n; n--) {
                seed = seed * 1664525u + 1013904223u;
                buf_puts(&text, parts[(seed >> 8) % (i % 2 ? 22 : sizeof parts / sizeof *parts)]);
            }
            run(&fast, text.data, text.len, true, join, &a);
            run(&slow, text.data, text.len, true, join, &b);
            assert_string_equal(a.data, b.data);
            buf_release(&text);
            buf_release(&a);
            buf_release(&b);
        }
        pretokenizer_release(&fast);
        pretokenizer_release(&slow);
    }
    assert_null(scan_ascii_for("\\p{N}", 5));
}

struct count { size_t words, bytes; };

static int count_word(void *arg, const char *word, size_t len)
{
    struct count *count = arg;

    (void)word;
    count->words++;
    count->bytes += len;
    return 0;
}

/* A mebibyte of what backtracks most; every byte comes out once. */
static void long_runs_are_split_within_the_limits(void **state)
{
    static const struct { const char *unit, *end; size_t words; } cases[] = {
        { " ", "", 1 }, { " ", "x", 2 }, { "\u00a0", "x", 2 }, { "\n", "", 1 }, { "\n", "x", 2 }, { "a", "", 1 },
        { "\u0301", "", 1 }, { "\U0001F600", "", 1 }, { "\u4e00", "", 1 }, { "'", "", 1 }, { " \n", " x", 2 },
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pretokenizer pre = { 0 };
        struct buf text = BUF_INIT;
        struct count count = { 0 };
        add(&pre, PATTERN_LLAMA3, SPLIT_ISOLATED, false);
        while (text.len < 1 << 20) buf_puts(&text, cases[i].unit);
        buf_puts(&text, cases[i].end);
        run(&pre, text.data, text.len, true, count_word, &count);
        assert_int_equal(count.bytes, text.len);
        assert_int_equal(count.words, cases[i].words);
        buf_release(&text);
        pretokenizer_release(&pre);
    }
}

static int refuse_word(void *arg, const char *word, size_t len)
{
    (void)arg;
    (void)word;
    (void)len;
    return ERR_LIMIT;
}

static void an_error_of_the_receiver_ends_the_run(void **state)
{
    struct pretok_scratch *scratch = NULL;
    struct pretokenizer pre = { 0 };
    (void)state;

    add(&pre, PATTERN_GPT2, SPLIT_ISOLATED, false);
    assert_int_equal(pretok_scratch_new(&scratch, &pre, NULL), 0);
    assert_int_equal(pretokenize_run(&pre, scratch, "a b", 3, true, refuse_word, NULL, NULL), ERR_LIMIT);
    pretok_scratch_free(scratch);
    pretokenizer_release(&pre);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaviors),
        cmocka_unit_test(stages_cut_what_the_ones_before_left),
        cmocka_unit_test(metaspace_schemes),
        cmocka_unit_test(patterns_keep_their_meaning),
        cmocka_unit_test(ascii_scanners_equal_their_regex),
        cmocka_unit_test(long_runs_are_split_within_the_limits),
        cmocka_unit_test(an_error_of_the_receiver_ends_the_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
