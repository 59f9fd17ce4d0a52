#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tiny_tokenizer.h"

#define SPECIAL "{\"id\":256,\"content\":\"<b>\",\"special\":true}"

static int load(void **state)
{
    struct tokenizer *tok = NULL;

    if (tiny_load(&tok, &(struct tiny){ .added = SPECIAL }, NULL) < 0) return -1;
    *state = tok;
    return 0;
}

static int unload(void **state)
{
    tokenizer_free(*state);
    return 0;
}

/* The bytes of text as tokens, one at a time; what has come out so far is valid UTF-8 after every push. */
static void expect(const struct tokenizer *tok, const char *bytes, size_t len, const char *text)
{
    struct buf out = BUF_INIT;
    struct detok detok;

    detok_init(&detok, tok, true, true);
    for (size_t i = 0; i < len; i++) {
        detok_push(&detok, (unsigned char)bytes[i], &out);
        assert_true(utf8_valid(out.data ? out.data : "", out.len));
    }
    detok_finish(&detok, &out);
    assert_string_equal(out.data, text);
    buf_release(&out);
}

static void code_points_come_whole(void **state)
{
    struct buf out = BUF_INIT;
    struct detok detok;

    detok_init(&detok, *state, true, true);
    detok_push(&detok, 0xf0, &out);
    detok_push(&detok, 0x9f, &out);
    detok_push(&detok, 0x98, &out);
    assert_int_equal(out.len, 0);
    detok_push(&detok, 0x80, &out);
    assert_string_equal(out.data, "\U0001F600");
    buf_release(&out);
}

/* As Rust's from_utf8_lossy and the WHATWG decoder: one U+FFFD per maximal prefix. */
static void broken_bytes_become_replacement_characters(void **state)
{
    expect(*state, "a\xff" "b", 3, "a\ufffd" "b");
    expect(*state, "\xe2\x82" "A", 3, "\ufffd" "A");
    expect(*state, "\xe2\x82\xe2\x82\xac", 5, "\ufffd\u20ac");
    expect(*state, "\xf0\x80\x80", 3, "\ufffd\ufffd\ufffd");
    expect(*state, "\xed\xa0\x80", 3, "\ufffd\ufffd\ufffd");
    expect(*state, "\xc3", 1, "\ufffd");
    expect(*state, "\xf0\x9f\x98", 3, "\ufffd");
    expect(*state, "\xf0\x9f\xc3\xa9", 4, "\ufffd\u00e9");
}

/* A byte that cannot continue is known at once, not one token later. */
static void hopeless_bytes_are_not_held(void **state)
{
    struct buf out = BUF_INIT;
    struct detok detok;

    detok_init(&detok, *state, true, true);
    detok_push(&detok, 0xff, &out);
    assert_string_equal(out.data, "\ufffd");
    assert_int_equal(detok.pending_len, 0);
    buf_release(&out);
}

static void special_tokens_are_skipped_on_request(void **state)
{
    for (int skip = 0; skip < 2; skip++) {
        struct buf out = BUF_INIT;
        struct detok detok;
        detok_init(&detok, *state, skip, true);
        detok_push(&detok, 'a', &out);
        detok_push(&detok, 256, &out);
        detok_push(&detok, 99999, &out);
        detok_push(&detok, -1, &out);
        detok_push(&detok, 'b', &out);
        assert_string_equal(out.data, skip ? "ab" : "a<b>b");
        buf_release(&out);
    }
}

static void pieces_equal_the_whole(void **state)
{
    static const char text[] = "na\u00efve \U0001F468\u200d\U0001F469 \u4f60\u597d \xff\xc3 end";
    token_id ids[sizeof text - 1];
    struct buf out = BUF_INIT;
    struct detok detok;
    char *whole;
    size_t len;

    detok_init(&detok, *state, true, true);
    for (size_t i = 0; i < sizeof text - 1; i++) {
        ids[i] = (unsigned char)text[i];
        detok_push(&detok, ids[i], &out);
    }
    detok_finish(&detok, &out);
    assert_int_equal(tokenizer_decode(*state, ids, sizeof text - 1, true, &whole, &len, NULL), 0);
    assert_int_equal(len, out.len);
    assert_memory_equal(whole, out.data, len);
    free(whole);
    buf_release(&out);
}

/* SentencePiece: the first space of a text goes, the first space of a continuation stays. */
static void leading_space_goes_once(void **state)
{
    enum { A = 259, MARK = A + 26, MARK_A };
    static const char *const merges[] = { "\u2581", "a", NULL };
    struct buf json = BUF_INIT;
    struct tokenizer *tok = NULL;
    (void)state;

    tiny_sentencepiece_json(&json, merges,
                            "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}");
    assert_int_equal(tokenizer_load_json(&tok, json.data, json.len, NULL, 0, NULL), 0);
    for (int at_start = 0; at_start < 2; at_start++) {
        struct buf out = BUF_INIT;
        struct detok detok;
        detok_init(&detok, tok, true, at_start);
        detok_push(&detok, 1, &out);
        detok_push(&detok, MARK, &out);
        detok_push(&detok, MARK_A, &out);
        detok_push(&detok, 3 + 0x0a, &out);
        assert_string_equal(out.data, at_start ? " a\n" : "  a\n");
        buf_release(&out);
    }
    tokenizer_free(tok);
    buf_release(&json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code_points_come_whole), cmocka_unit_test(broken_bytes_become_replacement_characters),
        cmocka_unit_test(hopeless_bytes_are_not_held), cmocka_unit_test(special_tokens_are_skipped_on_request),
        cmocka_unit_test(pieces_equal_the_whole), cmocka_unit_test(leading_space_goes_once),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
