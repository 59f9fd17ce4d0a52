/* yaml_test.c - the accepted subset of YAML, and the place named for what is refused. */
#include "yaml_read.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"

/* Entries as text: "key@1:1=value@1:6 " and "key@2:1=[a@2:8 b@2:11] ". */
static int record(void *context, const struct yaml_entry *entry, struct err *err)
{
    struct buf *out = context;

    (void)err;
    buf_printf(out, "%s@%zu:%zu=%s", entry->key, entry->key_place.line, entry->key_place.column,
               entry->is_list ? "[" : "");
    for (size_t i = 0; i < entry->n; i++)
        buf_printf(out, "%s%s@%zu:%zu", i ? " " : "", entry->items[i], entry->places[i].line, entry->places[i].column);
    buf_puts(out, entry->is_list ? "] " : " ");
    return 0;
}

static void assert_read(const char *text, const char *expected)
{
    struct buf out = BUF_INIT;
    struct err err = { 0 };

    if (yaml_read_text("t.yaml", text, strlen(text), record, &out, &err) < 0) fail_msg("refused: %s", err.message);
    assert_string_equal(out.data ? out.data : "", expected);
    buf_release(&out);
}

static void assert_refused_bytes(const char *text, size_t len, const char *message)
{
    struct buf out = BUF_INIT;
    struct err err = { 0 };

    if (yaml_read_text("t.yaml", text, len, record, &out, &err) != ERR_CONFIG) fail_msg("accepted: %s", text);
    if (strncmp(err.message, message, strlen(message)) != 0) fail_msg("'%s' does not begin with '%s'", err.message,
                                                                      message);
    buf_release(&out);
}

static void assert_refused(const char *text, const char *message) { assert_refused_bytes(text, strlen(text), message); }

static void scalars_stay_text(void **state)
{
    (void)state;
    assert_read("port: 010\nlog_level: no\nhost: 2026-01-01\n",
                "port@1:1=010@1:7 log_level@2:1=no@2:12 host@3:1=2026-01-01@3:7 ");
    assert_read("host: \"\"\n", "host@1:1=@1:7 ");
    assert_read("'host':   'a b' # comment\n", "host@1:1=a b@1:11 ");
}

static void lists_keep_places(void **state)
{
    (void)state;
    assert_read("a: [x, y]\nb:\n  - z\n  - 'w'\nc: []\n", "a@1:1=[x@1:5 y@1:8] b@2:1=[z@3:5 w@4:5] c@5:1=[] ");
}

static void nothing_is_a_file_too(void **state)
{
    (void)state;
    assert_read("", "");
    assert_read("# only a comment\n", "");
    assert_read("---\n", "");
    assert_read("---\nport: 1\n...\n", "port@2:1=1@2:7 ");
    assert_read("{}\n", "");
}

static void the_rest_of_yaml_is_refused(void **state)
{
    (void)state;
    assert_refused("a: &x 1\n", "t.yaml:1:4: anchors");
    assert_refused("&x a: 1\n", "t.yaml:1:1: anchors");
    assert_refused("a: &x [1]\n", "t.yaml:1:4: anchors");
    assert_refused("a: 1\nb: *x\n", "t.yaml:2:4: aliases");
    assert_refused("*x : 1\n", "t.yaml:1:1: aliases");
    assert_refused("a: [*x]\n", "t.yaml:1:5: aliases");
    assert_refused("a: !!str 1\n", "t.yaml:1:4: tags");
    assert_refused("a: ! 1\n", "t.yaml:1:4: tags");
    assert_refused("a: !!seq [1]\n", "t.yaml:1:4: tags");
    assert_refused("!!map {a: 1}\n", "t.yaml:1:1: tags");
    assert_refused("<<: 1\n", "t.yaml:1:1: merge keys");
    assert_refused("a: 1\n---\nb: 2\n", "t.yaml:2:1: a second document");
    assert_refused("%YAML 1.1\n---\na: 1\n", "t.yaml:1:1: directives");
    assert_refused("%TAG ! !foo\n---\na: 1\n", "t.yaml:1:1: directives");
}

static void nesting_is_refused(void **state)
{
    (void)state;
    assert_refused("server:\n  port: 1\n", "t.yaml:2:3: expected one value or a list, found a mapping");
    assert_refused("a: [[1]]\n", "t.yaml:1:5: a list item must be one value");
    assert_refused("a:\n- b: 1\n", "t.yaml:2:3: a list item must be one value");
    assert_refused("? [a]\n: 1\n", "t.yaml:1:3: an option's name");
    assert_refused("- a\n", "t.yaml:1:1: expected lines of name: value");
    assert_refused("just text\n", "t.yaml:1:1: expected lines of name: value");
}

static void missing_values_are_refused(void **state)
{
    (void)state;
    assert_refused("a:\nb: 1\n", "t.yaml:1:3: no value");
    assert_refused("a: ~\n", "t.yaml:1:4: no value");
    assert_refused("a: null\n", "t.yaml:1:4: no value");
    assert_refused("a: [1, null]\n", "t.yaml:1:8: no value");
}

static void broken_text_is_refused_with_its_place(void **state)
{
    (void)state;
    assert_refused("a: 1\n b: 2\n", "t.yaml:2:");
    assert_refused("a: [1\n", "t.yaml:2:1:");
    assert_refused("a: \"x\n", "t.yaml:2:1:");
    assert_refused("a: 1\n\tb: 2\n", "t.yaml:2:");
    assert_refused_bytes("a: \xff\n", 5, "t.yaml:1:");
    assert_refused_bytes("a: x\0y\n", 7, "t.yaml:1:");
    assert_refused("a: \"x\\0y\"\n", "t.yaml:1:4: a NUL byte");
    assert_refused_bytes("\xff\xfe" "a\0:\0 \0001\0", 10, "t.yaml:1:");   /* UTF-16 */
}

static int stop_at_second(void *context, const struct yaml_entry *entry, struct err *err)
{
    int *count = context;

    (void)entry;
    return ++*count == 2 ? err_set(err, ERR_LIMIT, "enough") : 0;
}

static void the_receiver_can_stop(void **state)
{
    int count = 0;
    struct err err = { 0 };

    (void)state;
    assert_int_equal(yaml_read_text("t", "a: 1\nb: 2\nc: 3\n", 15, stop_at_second, &count, &err), ERR_LIMIT);
    assert_int_equal(count, 2);
}

static void long_lists_are_refused(void **state)
{
    struct buf text = BUF_INIT, out = BUF_INIT;
    struct err err = { 0 };

    (void)state;
    buf_puts(&text, "a: [");
    for (int i = 0; i <= YAML_LIST_MAX_ITEMS; i++) buf_puts(&text, "1,");
    buf_puts(&text, "]\n");
    assert_int_equal(yaml_read_text("t", text.data, text.len, record, &out, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "too many list items"));
    buf_release(&text);
    buf_release(&out);
}

static void files_are_read_or_named(void **state)
{
    struct buf out = BUF_INIT;
    struct err err = { 0 };

    (void)state;
    assert_int_equal(yaml_read_file("does/not/exist.yaml", record, &out, &err), ERR_CONFIG);
    assert_string_equal(err.message, "does/not/exist.yaml: No such file or directory");
    err_clear(&err);
    assert_int_equal(yaml_read_file("/", record, &out, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "Is a directory"));
    err_clear(&err);
    assert_int_equal(yaml_read_file("/dev/zero", record, &out, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "larger than 1048576 bytes"));
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scalars_stay_text),
        cmocka_unit_test(lists_keep_places),
        cmocka_unit_test(nothing_is_a_file_too),
        cmocka_unit_test(the_rest_of_yaml_is_refused),
        cmocka_unit_test(nesting_is_refused),
        cmocka_unit_test(missing_values_are_refused),
        cmocka_unit_test(broken_text_is_refused_with_its_place),
        cmocka_unit_test(the_receiver_can_stop),
        cmocka_unit_test(long_lists_are_refused),
        cmocka_unit_test(files_are_read_or_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
