/* json_guard_test.c - what json_parse refuses, repairs and leaves alone (api-contract 4.3, rows 14 to 16). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include <sluice/json.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct cJSON *parse_ok(const char *text, size_t len)
{
    struct cJSON *root;
    struct err err = { 0 };
    int rc = json_parse(text, len, &json_limits_request, &root, &err);
    if (rc != 0) fail_msg("%.60s: %s", text, err.message);
    assert_non_null(root);
    return root;
}

static void refuses(const char *text, size_t len, const char *message)
{
    struct cJSON *root = (struct cJSON *)&root;
    struct err err = { 0 };
    char *exact = malloc(len ? len : 1);   /* no byte after the text: ASan sees an over-read */
    memcpy(exact, text, len);
    int rc = json_parse(exact, len, &json_limits_request, &root, &err);
    free(exact);
    if (rc != ERR_JSON) fail_msg("accepted: %.60s", text);
    assert_null(root);
    assert_string_equal(err.message, message);
}

static void malformed_text_is_refused_with_its_offset(void **state)
{
    static const struct { const char *text, *message; } rows[] = {
        { "", "unexpected end at byte 0" },
        { "  ", "unexpected end at byte 2" },
        { "{", "expected a key in quotes at byte 1" },
        { "[", "unexpected end at byte 1" },
        { "{\"a\"", "expected ':' at byte 4" },
        { "{\"a\":", "unexpected end at byte 5" },
        { "{\"a\":1", "unexpected end at byte 6" },
        { "{\"a\":1,", "expected a key in quotes at byte 7" },
        { "{\"a\":1,}", "expected a key in quotes at byte 7" },
        { "{,}", "expected a key in quotes at byte 1" },
        { "{a:1}", "expected a key in quotes at byte 1" },
        { "{'a':1}", "expected a key in quotes at byte 1" },
        { "{\"a\" 1}", "expected ':' at byte 5" },
        { "[1 2]", "expected ',' or ']' at byte 3" },
        { "[1}", "expected ',' or ']' at byte 2" },
        { "{\"a\":1]", "expected ',' or '}' at byte 6" },
        { "[1,]", "unexpected character at byte 3" },
        { "[,1]", "unexpected character at byte 1" },
        { "{} x", "bytes after the document at byte 3" },
        { "{}{}", "bytes after the document at byte 2" },
        { "\xEF\xBB\xBF{}", "byte order mark at byte 0" },
        { "NaN", "unexpected character at byte 0" },
        { "[Infinity]", "unexpected character at byte 1" },
        { "[-Infinity]", "bad number at byte 1" },
        { "tru", "unexpected character at byte 0" },
        { "True", "unexpected character at byte 0" },
        { "nul", "unexpected character at byte 0" },
        { "truex", "bytes after the document at byte 4" },
        { "/* c */ 1", "unexpected character at byte 0" },
        { "\f1", "unexpected character at byte 0" },
        { "0123", "number with a leading zero at byte 0" },
        { "-012", "number with a leading zero at byte 0" },
        { "1.", "number without digits after the point at byte 0" },
        { "[1.e5]", "number without digits after the point at byte 1" },
        { ".5", "unexpected character at byte 0" },
        { "+1", "unexpected character at byte 0" },
        { "-", "bad number at byte 0" },
        { "1e", "number without digits in the exponent at byte 0" },
        { "1e+", "number without digits in the exponent at byte 0" },
        { "1e999", "number out of range at byte 0" },
        { "[-1e999]", "number out of range at byte 1" },
        { "0x10", "bytes after the document at byte 1" },
        { "\"abc", "unterminated string at byte 4" },
        { "\"abc\\", "unterminated string at byte 5" },
        { "\"a\nb\"", "raw control byte in string at byte 2" },
        { "\"0123456789\tb\"", "raw control byte in string at byte 11" },
        { "\"\\x41\"", "bad escape at byte 1" },
        { "\"\\u12\"", "bad \\u escape at byte 1" },
        { "\"\\u12g4\"", "bad \\u escape at byte 1" },
        { "\"\\u", "bad \\u escape at byte 1" },
        { "\"\\ud800\"", "lone high surrogate at byte 1" },
        { "\"\\ud800\\u0041\"", "lone high surrogate at byte 1" },
        { "\"\\ud800\\ud800\"", "lone high surrogate at byte 1" },
        { "\"\\udc00\"", "lone low surrogate at byte 1" },
        { "\"\xC0\x80\"", "invalid UTF-8 at byte 1" },
        { "\"\xC0\x81" "5\"", "invalid UTF-8 at byte 1" },
        { "\"0123456\x80\"", "invalid UTF-8 at byte 8" },
        { "\"\xED\xA0\x80\"", "invalid UTF-8 at byte 1" },
        { "\"\xF4\x90\x80\x80\"", "invalid UTF-8 at byte 1" },
        { "\"\xE2\x82\"", "invalid UTF-8 at byte 1" },
        { "\"\xE2\x82", "invalid UTF-8 at byte 1" },
        { "\xFF", "unexpected character at byte 0" },
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) refuses(rows[i].text, strlen(rows[i].text), rows[i].message);
    refuses("1\0", 2, "bytes after the document at byte 1");
    refuses("\"a\0b\"", 5, "raw control byte in string at byte 2");
}

static void duplicate_keys_are_found_after_unescaping(void **state)
{
    (void)state;
    static const struct { const char *text, *message; } rows[] = {
        { "{\"a\":1,\"a\":2}", "duplicate key at byte 7" },
        { "{\"a\":1,\"\\u0061\":2}", "duplicate key at byte 7" },
        { "{\"\\ud83d\\ude00\":1,\"\xF0\x9F\x98\x80\":2}", "duplicate key at byte 18" },
        { "{\"\\/\":1,\"/\":2}", "duplicate key at byte 8" },
        { "{\"\\u0000\":1,\"\\u0000\":2}", "duplicate key at byte 12" },
        { "[{\"x\":{\"b\":1,\"c\":{},\"b\":1}}]", "duplicate key at byte 20" },
        { "{\"\":1,\"\":2}", "duplicate key at byte 6" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) refuses(rows[i].text, strlen(rows[i].text), rows[i].message);
    /* Not duplicates: another case, another object, a prefix. */
    static const char *const fine[] = { "{\"a\":1,\"A\":2}", "{\"a\":{\"a\":1},\"b\":[{\"a\":1},{\"a\":2}]}",
                                        "{\"a\":1,\"a\\u0000\":2,\"ab\":3}" };
    for (size_t i = 0; i < COUNT(fine); i++) json_free(parse_ok(fine[i], strlen(fine[i])));
}

static void duplicate_key_of_a_large_object_is_found(void **state)
{
    enum { N = 5000 };
    char *text = malloc(N * 16);
    size_t len = 0;
    (void)state;
    text[len++] = '{';
    for (int i = 0; i < N; i++) len += (size_t)snprintf(text + len, 16, "\"k%d\":1,", i);
    size_t dup = len;
    memcpy(text + len, "\"\\u006b77\":1}", 13);
    char expected[64];
    snprintf(expected, sizeof expected, "duplicate key at byte %zu", dup);
    refuses(text, len + 13, expected);
    memcpy(text + len, "\"\\u006c77\":1}", 13);
    struct cJSON *root = parse_ok(text, len + 13);
    assert_int_equal(cJSON_GetArraySize(root), N + 1);
    assert_non_null(json_get(root, "l77"));
    json_free(root);
    free(text);
}

static void limits_hold(void **state)
{
    char text[600];
    struct cJSON *root;
    struct err err = { 0 };
    (void)state;

    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    json_free(parse_ok(text, 128));
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    refuses(text, 130, "nested more than 64 deep at byte 64");

    struct json_limits limits = { 1000, 3, 12, false };
    assert_int_equal(json_parse("[1,2]", 5, &limits, &root, &err), 0);
    json_free(root);
    assert_int_equal(json_parse("[1,2,3]", 7, &limits, &root, &err), ERR_JSON);
    assert_string_equal(err.message, "more than 3 values at byte 5");
    err_clear(&err);
    assert_int_equal(json_parse("\"12345678901\"", 13, &limits, &root, &err), ERR_JSON);
    assert_string_equal(err.message, "JSON of 13 bytes is too long at byte 12");
    err_clear(&err);
    assert_int_equal(json_parse("\"\\u0000\"", 8, &limits, &root, &err), ERR_JSON);
    assert_string_equal(err.message, "\\u0000 is not allowed at byte 1");

    limits = (struct json_limits){ 100000, 1000, 1000, true };   /* cut to what cJSON may recurse */
    memset(text, '[', 300);
    memset(text + 300, ']', 300);
    err_clear(&err);
    assert_int_equal(json_parse(text, 600, &limits, &root, &err), ERR_JSON);
    assert_string_equal(err.message, "nested more than 256 deep at byte 256");
    memmove(text + 256, text + 300, 256);
    assert_int_equal(json_parse(text, 512, &limits, &root, NULL), 0);
    json_free(root);
}

static void assert_string(const struct cJSON *item, const char *expected, size_t expected_len)
{
    const char *text;
    size_t len;
    assert_int_equal(json_string(item, &text, &len), 0);
    assert_int_equal(len, expected_len);
    assert_memory_equal(text, expected, len);
}

static void nul_inside_strings_survives(void **state)
{
    static const char text[] =
        "{\"a\":\"x\\u0000y\\u0000\",\"b\":\"\\u0000\",\"c\":[[\"\\u0000\\u00e9\\ud83d\\ude00\"]],"
        "\"d\":\"plain\",\"e\":\"\"}";
    (void)state;
    struct cJSON *root = parse_ok(text, sizeof text - 1);
    assert_string(json_get(root, "a"), "x\0y\0", 4);
    assert_string(json_get(root, "b"), "\0", 1);
    assert_string(json_get(root, "c")->child->child, "\0\xC3\xA9\xF0\x9F\x98\x80", 7);
    assert_string(json_get(root, "d"), "plain", 5);
    assert_string(json_get(root, "e"), "", 0);
    assert_true(json_has_nul(json_get(root, "a")));
    assert_true(json_has_nul(json_get(root, "b")));
    assert_false(json_has_nul(json_get(root, "d")));
    assert_false(json_has_nul(json_get(root, "c")));

    cJSON *copy = cJSON_Duplicate(json_get(root, "a"), 1);   /* cut at the NUL, but never read past its end */
    assert_string(copy, "x", 1);
    cJSON_Delete(copy);
    json_free(root);

    cJSON *made = cJSON_CreateString("hello");
    assert_string(made, "hello", 5);
    cJSON_Delete(made);
}

static void integers_are_exact(void **state)
{
    static const struct { const char *text; int rc; int64_t value; bool big; } rows[] = {
        { "0", 0, 0, false }, { "-0", 0, 0, false }, { "16", 0, 16, false }, { "16.0", 0, 16, false },
        { "1e2", 0, 100, false }, { "1.5e1", 0, 15, false }, { "-7", 0, -7, false },
        { "9007199254740992", 0, 9007199254740992, false }, { "9007199254740993", 0, 9007199254740993, true },
        { "-9007199254740993", 0, -9007199254740993, true },
        { "9223372036854775807", 0, INT64_MAX, true }, { "-9223372036854775808", 0, INT64_MIN, true },
        { "9223372036854775808", ERR_TYPE, 0, true }, { "-9223372036854775809", ERR_TYPE, 0, true },
        { "1e30", ERR_TYPE, 0, true }, { "100000000000000000000000000000000000000000000000000000000000000000000000",
                                         ERR_TYPE, 0, true },
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct cJSON *root = parse_ok(rows[i].text, strlen(rows[i].text));
        int64_t value = 0;
        assert_string_equal(json_kind(root), "integer");
        assert_true(json_is_int(root));
        assert_int_equal(json_int64(root, &value), rows[i].rc);
        assert_true(value == rows[i].value);
        assert_int_equal(json_is_big_int(root), rows[i].big);
        assert_int_equal(json_string(root, &(const char *){ NULL }, &(size_t){ 0 }), ERR_TYPE);
        json_free(root);
    }
    struct cJSON *root = parse_ok("[18446744073709551616,1,\"a\"]", 28);
    char *printed = cJSON_PrintUnformatted(root);
    assert_string_equal(printed, "[18446744073709551616,1,\"a\"]");
    free(printed);
    json_free(root);
}

static void numbers_keep_their_value(void **state)
{
    static const struct { const char *text; double value; } rows[] = {
        { "0.1", 0.1 }, { "-1.5E-3", -1.5e-3 }, { "1e-999", 0.0 }, { "1.7976931348623157e308", 1.7976931348623157e308 },
        { "0.10000000000000000000000000000000000000000000000000000000000000000000000000000000000000001", 0.1 },
        { "3.141592653589793238462643383279502884197169399375105820974944592307816406286", 3.141592653589793 },
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct cJSON *root = parse_ok(rows[i].text, strlen(rows[i].text));
        assert_true(cJSON_IsNumber(root));
        assert_true(root->valuedouble == rows[i].value);
        json_free(root);
    }
    char digits[1100] = "[";
    memset(digits + 1, '1', 1030);
    digits[1031] = ']';
    refuses(digits, 1032, "number of more than 1024 bytes at byte 1");
}

static void kinds_and_lookups(void **state)
{
    static const char text[] = "{\"s\":\"\",\"n\":null,\"t\":true,\"f\":1.5,\"o\":{},\"a\":[],\"Key\":1,\"key\":2}";
    (void)state;
    struct cJSON *root = parse_ok(text, sizeof text - 1);
    assert_string_equal(json_kind(json_get(root, "s")), "string");
    assert_string_equal(json_kind(json_get_raw(root, "n")), "null");
    assert_string_equal(json_kind(json_get(root, "t")), "boolean");
    assert_string_equal(json_kind(json_get(root, "f")), "number");
    assert_string_equal(json_kind(json_get(root, "o")), "object");
    assert_string_equal(json_kind(json_get(root, "a")), "array");
    assert_null(json_get(root, "n"));
    assert_null(json_get(root, "KEY"));
    assert_null(json_get(NULL, "a"));
    assert_null(json_get(json_get(root, "a"), "a"));
    int64_t value;
    assert_int_equal(json_int64(json_get(root, "key"), &value), 0);
    assert_int_equal(value, 2);
    assert_int_equal(json_int64(json_get(root, "t"), &value), ERR_TYPE);
    assert_int_equal(json_int64(json_get(root, "f"), &value), ERR_TYPE);
    assert_int_equal(json_int64(json_get(root, "s"), &value), ERR_TYPE);
    assert_int_equal(json_int64(NULL, &value), ERR_TYPE);
    assert_false(json_has_nul(NULL));
    json_free(root);
}

static void numbers_remember_how_they_were_written(void **state)
{
    static const char text[] = "[1,{\"a\":1.0,\"b\":[1e3,2]},9007199254740993,-0.5,3,1E2,\"\\u0000\",4.0]";
    static const bool real[] = { false, true, true, false, true, false, true, true };
    struct cJSON *root = NULL;
    struct err err = { 0 };
    size_t n = 0;

    (void)state;
    assert_int_equal(json_parse(text, sizeof text - 1, &json_limits_request, &root, &err), 0);
    const struct cJSON *all[] = { root->child, json_get(root->child->next, "a"), json_get(root->child->next, "b")->child,
        json_get(root->child->next, "b")->child->next, root->child->next->next->next, root->child->next->next->next->next,
        root->child->next->next->next->next->next, root->child->prev };
    for (; n < sizeof all / sizeof all[0]; n++) assert_int_equal(json_is_written_real(all[n]), real[n]);
    assert_true(json_is_big_int(root->child->next->next));
    assert_false(json_is_written_real(root->child->next->next));
    assert_true(json_is_int(all[1]) && cJSON_IsNumber(all[1]));
    json_free(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_remember_how_they_were_written),
        cmocka_unit_test(malformed_text_is_refused_with_its_offset),
        cmocka_unit_test(duplicate_keys_are_found_after_unescaping),
        cmocka_unit_test(duplicate_key_of_a_large_object_is_found),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(nul_inside_strings_survives),
        cmocka_unit_test(integers_are_exact),
        cmocka_unit_test(numbers_keep_their_value),
        cmocka_unit_test(kinds_and_lookups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
