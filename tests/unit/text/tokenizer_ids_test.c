#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/text.h>

static struct tokenizer *make(void)
{
    static const token_id ends[] = { 9, 5 };
    struct tokenizer *tok = NULL;

    assert_int_equal(tokenizer_new_ids(&tok, 10, 1, ends, 2, NULL), 0);
    return tok;
}

static void ids_have_texts_of_their_own(void **state)
{
    struct tokenizer *tok = make();
    const token_id ids[] = { 0, 9, 9 }, *ends;
    struct err err = { 0 };
    char *text = NULL;
    size_t len = 0;

    (void)state;
    assert_int_equal(tokenizer_decode(tok, ids, 3, true, &text, &len, &err), 0);
    assert_string_equal(text, " t0 t9 t9");
    assert_int_equal(tokenizer_find(tok, " t9", 3), 9);
    assert_int_equal(tokenizer_vocab_size(tok), 10);
    assert_int_equal(tokenizer_bos(tok), 1);
    assert_int_equal(tokenizer_eos(tok), 9);
    assert_string_equal(tokenizer_eos_text(tok), " t9");
    assert_int_equal(tokenizer_eos_ids(tok, &ends), 2);
    assert_int_equal(ends[1], 5);
    free(text);
    tokenizer_free(tok);
}

static void text_is_refused(void **state)
{
    struct tokenizer *tok = make();
    struct text_segment segments[] = { { "hello", 5, false }, { "", 0, false } };
    struct token_buf tokens = { 0 };
    struct err err = { 0 };

    (void)state;
    assert_int_equal(tokenizer_encode(tok, segments, 1, true, &tokens, &err), ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "token ids"));
    assert_int_equal(tokenizer_encode(tok, segments + 1, 1, true, &tokens, NULL), 0);
    assert_int_equal(tokens.len, 0);
    token_buf_release(&tokens);
    tokenizer_free(tok);
}

static void ends_outside_the_vocabulary_are_ignored(void **state)
{
    static const token_id ends[] = { 10, -1 };
    struct tokenizer *tok = NULL;

    (void)state;
    assert_int_equal(tokenizer_new_ids(&tok, 10, 10, ends, 2, NULL), 0);
    assert_int_equal(tokenizer_eos(tok), TOKEN_NONE);
    assert_int_equal(tokenizer_bos(tok), TOKEN_NONE);
    tokenizer_free(tok);
    assert_int_equal(tokenizer_new_ids(&tok, 0, TOKEN_NONE, NULL, 0, NULL), ERR_MODEL_FILE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_have_texts_of_their_own),
        cmocka_unit_test(text_is_refused),
        cmocka_unit_test(ends_outside_the_vocabulary_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
