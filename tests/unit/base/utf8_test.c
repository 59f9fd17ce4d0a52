#include <string.h>

#include "base/utf8.h"
#include "unit/base/cmocka_all.h"

static void every_code_point_round_trips(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        char bytes[4];
        uint32_t back = 0;
        int len = utf8_encode(cp, bytes);
        bool surrogate = cp >= 0xd800 && cp <= 0xdfff;
        assert_int_equal(utf8_decode(bytes, (size_t)len, &back), surrogate ? -1 : len);
        if (!surrogate) assert_int_equal(back, cp);
        for (int cut = 1; cut < len && !surrogate; cut++) assert_int_equal(utf8_decode(bytes, (size_t)cut, &back), -2);
    }
}

static void what_is_not_utf8_is_refused(void **state)
{
    static const char *const bad[] = { "\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xed\xa0\x80",
                                       "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3(" };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(utf8_valid(bad[i], strlen(bad[i])));
    assert_true(utf8_valid("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10));
}

static void complete_len_holds_back_only_unfinished_ends(void **state)
{
    (void)state;
    assert_int_equal(utf8_complete_len("ab\xf0\x9f\x98", 5), 2);
    assert_int_equal(utf8_complete_len("ab\xf0\x9f\x98\x80", 6), 6);
    assert_int_equal(utf8_complete_len("ab\xe2\x82", 4), 2);
    assert_int_equal(utf8_complete_len("\x80\x80\x80\x80", 4), 4);     /* can never become valid: complete */
    assert_int_equal(utf8_complete_len("ab\xc3(", 4), 4);
    assert_int_equal(utf8_complete_len("", 0), 0);
    assert_int_equal(utf8_count("a\xc3\xa9\xe2\x82\xac", 6), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_round_trips),
        cmocka_unit_test(what_is_not_utf8_is_refused),
        cmocka_unit_test(complete_len_holds_back_only_unfinished_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
