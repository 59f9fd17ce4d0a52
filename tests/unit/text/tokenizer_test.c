#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "tiny_tokenizer.h"

static const char *const the_merges[] = { "t", "h", "th", "e", " ", "the", "l", "l", "a", "a", NULL };
enum { TH = 256, THE, SPACE_THE, LL, AA, ADDED };
#define PREFIX_SUFFIX                                                                                             \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<b>\"}},{\"Sequence\":{\"id\":\"A\"}}," \
    "{\"SpecialToken\":{\"id\":\"<e>\"}}],\"special_tokens\":{\"<b>\":{\"ids\":[261]},\"<e>\":{\"ids\":[262]}}}"
#define SPECIALS "{\"id\":261,\"content\":\"<b>\",\"special\":true},{\"id\":262,\"content\":\"<e>\",\"special\":true}"

static struct tokenizer *load(const struct tiny *tiny)
{
    struct tokenizer *tok = NULL;
    struct err err = { 0 };

    if (tiny_load(&tok, tiny, &err) < 0) fail_msg("%s", err.message);
    return tok;
}

static void expect(const struct tokenizer *tok, const struct text_segment *segments, size_t n, bool add_special,
                   const token_id *ids, size_t n_ids)
{
    struct token_buf found = { 0 };
    struct err err = { 0 };

    assert_int_equal(tokenizer_encode(tok, segments, n, add_special, &found, &err), 0);
    assert_int_equal(found.len, n_ids);
    if (n_ids) assert_memory_equal(found.ids, ids, n_ids * sizeof *ids);
    token_buf_release(&found);
}

#define SEG(text, special) { text, sizeof(text) - 1, special }
#define EXPECT(tok, add_special, segments, ...)                                                             \
    do {                                                                                                    \
        const token_id ids_[] = { __VA_ARGS__ };                                                            \
        expect(tok, segments, sizeof(segments) / sizeof *(segments), add_special, ids_, sizeof ids_ / sizeof *ids_); \
    } while (0)

static void words_and_ranks(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .merges = the_merges });
    const struct text_segment text[] = { SEG("the the thll", false) };

    EXPECT(tok, false, text, THE, SPACE_THE, ' ', TH, LL);
    assert_int_equal(tokenizer_vocab_size(tok), 261);
    assert_int_equal(tokenizer_find(tok, " the", 4), SPACE_THE);
    assert_int_equal(tokenizer_find(tok, "no", 2), TOKEN_NONE);
    tokenizer_free(tok);
}

static void segments_join_without_a_seam(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .merges = the_merges });
    const struct text_segment text[] = { SEG("t", true), SEG("h", false), SEG("", true), SEG("e", true) };

    EXPECT(tok, false, text, THE);
    tokenizer_free(tok);
}

static void special_text_of_a_client_stays_text(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .merges = the_merges, .added = SPECIALS });
    const struct text_segment client[] = { SEG("<b>", false) }, template[] = { SEG("<b>a<e>", true) };
    const struct text_segment forged[] = { SEG("<", true), SEG("b", false), SEG(">", true) };
    const struct text_segment hidden[] = { SEG("<", false), SEG("<b>", true), SEG("b>", false) };

    EXPECT(tok, false, client, '<', 'b', '>');
    EXPECT(tok, false, template, 261, 'a', 262);
    EXPECT(tok, false, forged, '<', 'b', '>');
    EXPECT(tok, false, hidden, '<', 261, 'b', '>');
    assert_true(tokenizer_is_special(tok, 261));
    assert_false(tokenizer_is_special(tok, 'a'));
    assert_false(tokenizer_is_special(tok, -1));
    tokenizer_free(tok);
}

/* A longer special token that would swallow client bytes must not hide the template's shorter one. */
static void client_text_cannot_hide_a_template_token(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .added = "{\"id\":256,\"content\":\"<b>\",\"special\":true},"
                                                          "{\"id\":257,\"content\":\"<b>x\",\"special\":true},"
                                                          "{\"id\":258,\"content\":\"y<b\",\"special\":true}" });
    const struct text_segment after[] = { SEG("<b>", true), SEG("x", false) };
    const struct text_segment before[] = { SEG("y", false), SEG("<b>", true) };
    const struct text_segment whole[] = { SEG("<b>x", true) };

    EXPECT(tok, false, after, 256, 'x');
    EXPECT(tok, false, before, 'y', 256);
    EXPECT(tok, false, whole, 257);
    tokenizer_free(tok);
}

static void added_tokens_that_are_not_special_are_always_found(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .added = "{\"id\":256,\"content\":\"<tool>\",\"special\":false}" });
    const struct text_segment text[] = { SEG("a<tool>", false) };

    EXPECT(tok, false, text, 'a', 256);
    assert_false(tokenizer_is_special(tok, 256));
    tokenizer_free(tok);
}

static void added_token_flags(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){
        .added = "{\"id\":256,\"content\":\"<l>\",\"special\":true,\"lstrip\":true},"
                 "{\"id\":257,\"content\":\"<r>\",\"special\":true,\"rstrip\":true},"
                 "{\"id\":258,\"content\":\"word\",\"special\":true,\"single_word\":true}" });
    const struct text_segment spaces[] = { SEG("a  <l> b <r> \xe3\x80\x80 c", true) };
    const struct text_segment words[] = { SEG("word,words", true) };

    EXPECT(tok, false, spaces, 'a', 256, ' ', 'b', ' ', 257, 'c');
    EXPECT(tok, false, words, 258, ',', 'w', 'o', 'r', 'd', 's');
    tokenizer_free(tok);
}

static void nul_bytes_and_invalid_bytes(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ 0 });
    const struct text_segment nul[] = { SEG("a\0b", false) }, broken[] = { SEG("\xff" "a\xe2\x82", false) };
    char *text;
    size_t len;

    EXPECT(tok, false, nul, 'a', 0, 'b');
    EXPECT(tok, false, broken, 0xef, 0xbf, 0xbd, 'a', 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd);
    assert_int_equal(tokenizer_decode(tok, (token_id[]){ 'a', 0, 'b' }, 3, true, &text, &len, NULL), 0);
    assert_int_equal(len, 3);
    assert_memory_equal(text, "a\0b", 4);
    free(text);
    tokenizer_free(tok);
}

static void template_adds_both_ends(void **state)
{
    (void)state;
    struct tokenizer *tok =
        load(&(struct tiny){.merges = the_merges, .added = SPECIALS, .post_processor = PREFIX_SUFFIX});
    const struct text_segment text[] = { SEG("the", false) };

    EXPECT(tok, true, text, 261, THE, 262);
    EXPECT(tok, false, text, THE);
    expect(tok, NULL, 0, true, (token_id[]){ 261, 262 }, 2);
    assert_int_equal(tokenizer_bos(tok), 261);
    assert_string_equal(tokenizer_bos_text(tok), "<b>");
    assert_true(tokenizer_adds_bos(tok));
    tokenizer_free(tok);
}

static void limit_leaves_the_buffer_as_it_was(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .merges = the_merges });
    const struct text_segment one = SEG("the", false), many = SEG("the xyz", false);
    struct token_buf ids = { .limit = 3 };
    struct err err = { 0 };

    assert_int_equal(tokenizer_encode(tok, &one, 1, false, &ids, &err), 0);
    assert_int_equal(tokenizer_encode(tok, &many, 1, false, &ids, &err), ERR_LIMIT);
    assert_int_equal(ids.len, 1);
    assert_int_equal(ids.ids[0], THE);
    token_buf_release(&ids);
    tokenizer_free(tok);
}

static void normalizer_comes_before_the_split(void **state)
{
    (void)state;
    struct tokenizer *tok = load(&(struct tiny){ .normalizer = "{\"type\":\"NFC\"}" });
    const struct text_segment text[] = { SEG("e\xcc\x81", false) };

    EXPECT(tok, false, text, 0xc3, 0xa9);
    tokenizer_free(tok);
}

static void unknown_components_are_refused(void **state)
{
    static const struct { struct tiny tiny; const char *word;
    } cases[] = {
        {{.normalizer = "{\"type\":\"Precompiled\"}"}, "Precompiled"},
        {{.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}"}, "Regex"},
        {{.pre_tokenizer = "{\"type\":\"BertPreTokenizer\"}"}, "BertPreTokenizer"},
        {{.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z&&[^b]]\"},\"behavior\":\"Isolated\"}"},
         "class"},
        {{.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Sideways\"}"}, "Sideways"},
        {{.pre_tokenizer =
              "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}"},
         "Digits"},
        {{.pre_tokenizer = "{\"type\":\"Digits\"}"}, "ByteLevel"},
        {{.post_processor = "{\"type\":\"BertProcessing\"}"}, "BertProcessing"},
        {{.added = "{\"id\":5,\"content\":\"<x>\",\"special\":true}"}, "two tokens"},
        {{.added = "{\"id\":99999999,\"content\":\"<x>\",\"special\":true}"}, "range"},
        {{.added = "{\"id\":256}"}, "string"},
        {{.added = "{\"id\":4194303,\"content\":\"<x>\",\"special\":true}"}, "far beyond"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *tok = NULL;
        struct err err = { 0 };
        assert_int_equal(tiny_load(&tok, &cases[i].tiny, &err), ERR_MODEL_FILE);
        assert_null(tok);
        if (!strstr(err.message, cases[i].word)) fail_msg("\"%s\" is not in: %s", cases[i].word, err.message);
    }
}

static void broken_models_are_refused(void **state)
{
    static const char *const cases[] = {
        "{}",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"?\"}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.5}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}",
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokenizer *tok = NULL;
        assert_int_equal(tokenizer_load_json(&tok, cases[i], strlen(cases[i]), NULL, 0, NULL), ERR_MODEL_FILE);
        assert_null(tok);
    }
}

/* ---- SentencePiece style ---- */
static void sentencepiece_prefix_fallback_and_decode(void **state)
{
    static const char *const merges[] = { "a", "b", "\u2581", "ab", "\u2581", "\u2581", NULL };
    enum { A = 259, MARK = A + 26, AB, MARK_AB, MARK_MARK };
    struct buf json = BUF_INIT;
    struct tokenizer *tok = NULL;
    struct err err = { 0 };
    char *text;
    size_t len;
    (void)state;

    tiny_sentencepiece_json(&json, merges,
                            "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"
                            "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]}");
    if (tokenizer_load_json(&tok, json.data, json.len, NULL, 0, &err) < 0) fail_msg("%s", err.message);
    const struct text_segment words[] = { SEG("ab abc   ab", false) }, bytes[] = { SEG("\xc3\xa9\n", false) };
    EXPECT(tok, true, words, 1, MARK_AB, MARK_AB, A + 2, MARK_MARK, MARK_AB);
    EXPECT(tok, false, bytes, MARK, 3 + 0xc3, 3 + 0xa9, 3 + '\n');
    const token_id ids[] = { 1, MARK_AB, MARK_AB, 3 + 0xc3, 3 + 0xa9 };
    assert_int_equal(tokenizer_decode(tok, ids, 5, true, &text, &len, NULL), 0);
    assert_string_equal(text, "ab ab\xc3\xa9");
    free(text);
    assert_int_equal(tokenizer_decode(tok, ids, 5, false, &text, &len, NULL), 0);
    assert_string_equal(text, "<s> ab ab\xc3\xa9");
    free(text);
    tokenizer_free(tok);
    buf_release(&json);
}

static void metaspace_first_marks_the_start_of_the_input_only(void **state)
{
    static const char json[] = "{\"added_tokens\":[{\"id\":2,\"content\":\"<s>\",\"special\":true}],"
                               "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\u2581\",\"prepend_"
                               "scheme\":\"first\",\"split\":true},"
                               "\"model\":{\"vocab\":{\"a\":0,\"\u2581\":1},\"merges\":[]}}";
    struct tokenizer *meta = NULL;
    (void)state;

    assert_int_equal(tokenizer_load_json(&meta, json, strlen(json), NULL, 0, NULL), 0);
    const struct text_segment start[] = { SEG("a a<s>a", true) }, special[] = { SEG("<s>a", true) };
    EXPECT(meta, false, start, 1, 0, 1, 0, 2, 0);
    EXPECT(meta, false, special, 2, 0);
    tokenizer_free(meta);
}

/* ---- the files of a model directory ---- */
static void put_file(const char *dir, const char *name, const char *text, size_t len)
{
    char path[256];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    fclose(file);
}

static void directory_names_the_special_ids(void **state)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                         "generation_config.json" };
    static const char config[] = "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"add_bos_token\":true,"
                                 "\"bos_token\":{\"content\":\"<b>\"},\"eos_token\":null}";
    static const char map[] = "{\"eos_token\":\"<e>\"}", generation[] = "{\"eos_token_id\":[97,262,97,-4,999999]}";
    char dir[] = "/tmp/sluice-tokenizer-XXXXXX", path[256];
    struct buf json = BUF_INIT;
    struct tokenizer *tok = NULL;
    struct err err = { 0 };
    const token_id *eos;
    (void)state;

    assert_non_null(mkdtemp(dir));
    int fd = open(dir, O_RDONLY | O_DIRECTORY);
    assert_int_equal(tokenizer_load_dir(&tok, fd, &err), ERR_MODEL_FILE);
    err_clear(&err);
    tiny_json(&json, &(struct tiny){ .merges = the_merges, .added = SPECIALS });
    put_file(dir, names[0], json.data, json.len);
    put_file(dir, names[1], config, sizeof config - 1);
    put_file(dir, names[2], map, sizeof map - 1);
    put_file(dir, names[3], generation, sizeof generation - 1);
    if (tokenizer_load_dir(&tok, fd, &err) < 0) fail_msg("%s", err.message);
    assert_int_equal(tokenizer_bos(tok), 261);
    assert_int_equal(tokenizer_eos(tok), 262);
    assert_string_equal(tokenizer_eos_text(tok), "<e>");
    assert_string_equal(tokenizer_class(tok), "LlamaTokenizerFast");
    assert_true(tokenizer_adds_bos(tok));
    assert_int_equal(tokenizer_eos_ids(tok, &eos), 2);
    assert_int_equal(eos[0], 97);
    assert_int_equal(eos[1], 262);
    tokenizer_free(tok);
    buf_release(&json);
    close(fd);
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

/* ---- threads share one tokenizer ---- */
static void *encode_many(void *arg)
{
    const struct text_segment text[] = { SEG("the <b> the\xc3\xa9 aaaa 12 \xe3\x81\x82\n\n the", true) };
    struct token_buf ids = { 0 };
    size_t sum = 0;

    for (int i = 0; i < 200; i++) {
        ids.len = 0;
        if (tokenizer_encode(arg, text, 1, true, &ids, NULL) < 0) break;
        for (size_t at = 0; at < ids.len; at++) sum = sum * 31 + (size_t)ids.ids[at];
    }
    token_buf_release(&ids);
    return (void *)sum;
}

static void threads_get_the_same_ids(void **state)
{
    struct tokenizer *tok =
        load(&(struct tiny){.merges = the_merges, .added = SPECIALS, .normalizer = "{\"type\":\"NFC\"}"});
    void *expected = encode_many(tok), *found = NULL;
    pthread_t threads[4];
    (void)state;

    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, encode_many, tok), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &found);
        assert_ptr_equal(found, expected);
    }
    tokenizer_free(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_and_ranks),
        cmocka_unit_test(segments_join_without_a_seam),
        cmocka_unit_test(special_text_of_a_client_stays_text),
        cmocka_unit_test(client_text_cannot_hide_a_template_token),
        cmocka_unit_test(added_tokens_that_are_not_special_are_always_found),
        cmocka_unit_test(added_token_flags),
        cmocka_unit_test(nul_bytes_and_invalid_bytes),
        cmocka_unit_test(template_adds_both_ends),
        cmocka_unit_test(limit_leaves_the_buffer_as_it_was),
        cmocka_unit_test(normalizer_comes_before_the_split),
        cmocka_unit_test(unknown_components_are_refused),
        cmocka_unit_test(broken_models_are_refused),
        cmocka_unit_test(sentencepiece_prefix_fallback_and_decode),
        cmocka_unit_test(metaspace_first_marks_the_start_of_the_input_only),
        cmocka_unit_test(directory_names_the_special_ids),
        cmocka_unit_test(threads_get_the_same_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
