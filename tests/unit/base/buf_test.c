#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/buf.h"
#include "unit/base/cmocka_all.h"

static void limit_sticks_and_keeps_what_was_there(void **state)
{
    struct buf buf;

    (void)state;
    buf_init(&buf, 8);
    buf_puts(&buf, "12345");
    buf_puts(&buf, "6789");                /* 9 bytes: refused whole */
    assert_true(buf.failed);
    assert_int_equal(buf.len, 5);
    buf_puts(&buf, "6");                   /* would fit, but a failed buf stays failed */
    assert_int_equal(buf.len, 5);
    assert_null(buf_detach(&buf));
    buf_release(&buf);
}

static void json_escape_covers_every_control_byte(void **state)
{
    struct buf buf = BUF_INIT;

    (void)state;
    buf_json_escape(&buf, "a\"b\\c\n\r\t\0\x1f\x7f\xc3\xa9", 13);
    assert_string_equal(buf.data, "a\\\"b\\\\c\\n\\r\\t\\u0000\\u001f\\u007f\xc3\xa9");
    buf_release(&buf);
}

static void printf_grows_over_many_appends(void **state)
{
    struct buf buf = BUF_INIT;

    (void)state;
    for (int i = 0; i < 1000; i++) buf_printf(&buf, "%d,", i);
    assert_int_equal(buf.len, 10 * 2 + 90 * 3 + 900 * 4);
    assert_memory_equal(buf.data + buf.len - 4, "999,", 4);
    assert_int_equal(buf.data[buf.len], '\0');
    char *text = buf_detach(&buf);
    assert_non_null(text);
    assert_null(buf.data);
    free(text);
}

static void arena_limit_and_overflow_answer_null(void **state)
{
    struct arena arena;

    (void)state;
    arena_init(&arena, 1000);
    char *first = arena_alloc(&arena, 900);
    assert_non_null(first);
    assert_null(arena_alloc(&arena, 200));
    assert_null(arena_array(&arena, SIZE_MAX / 2, 3));
    assert_null(arena_alloc(&arena, SIZE_MAX));
    for (int i = 0; i < 900; i++) assert_int_equal(first[i], 0);
    arena_release(&arena);
    assert_int_equal(arena.used_bytes, 0);
    assert_non_null(arena_alloc(&arena, 900));
    arena_release(&arena);
}

static void arena_pieces_do_not_overlap(void **state)
{
    struct arena arena;
    char *pieces[300];

    (void)state;
    arena_init(&arena, 0);
    for (int i = 0; i < 300; i++) {
        size_t len = (size_t)(i * 37 % 5000) + 1;
        pieces[i] = arena_alloc(&arena, len);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        memset(pieces[i], i & 0xff, len);
    }
    for (int i = 0; i < 300; i++) {
        for (int j = 0; j <= i * 37 % 5000; j++) assert_int_equal((unsigned char)pieces[i][j], i & 0xff);
    }
    char *copy = arena_strndup(&arena, "ab\0cd", 5);
    assert_memory_equal(copy, "ab\0cd", 6);
    assert_string_equal(arena_printf(&arena, "%s-%d", "x", 7), "x-7");
    arena_release(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limit_sticks_and_keeps_what_was_there), cmocka_unit_test(json_escape_covers_every_control_byte),
        cmocka_unit_test(printf_grows_over_many_appends),        cmocka_unit_test(arena_limit_and_overflow_answer_null),
        cmocka_unit_test(arena_pieces_do_not_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
