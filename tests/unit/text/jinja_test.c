/* jinja_test.c - the lexer's white space rules, the parser's bounds and values in isolation. Equality with
 * jinja2 over some thousand programs is proved by tests/golden/template_parity.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "jinja_ast.h"

#include "jinja_unicode.h"

/* Runs a program and gives its output, or "error". Freed by the caller. */
static char *run(const char *source)
{
    struct jtemplate tmpl = { .body = NULL };
    struct arena arena;
    struct jrt rt = { .arena = &arena, .tmpl = &tmpl, .fuel = (int64_t)JRT_MAX_STEPS * JRT_UNITS_PER_STEP };
    struct jscope root = { .parent = NULL };
    struct jout out = { .n = 0 };
    char *text;

    arena_init(&arena, JRT_MAX_MEMORY);
    rt.rc = jtemplate_compile(&tmpl, source, strlen(source), NULL);
    rt.root = jrt_alloc(&rt, (size_t)tmpl.n_names + 1, sizeof(*rt.root));
    if (!rt.rc) jexec(&rt, &root, tmpl.body, &out);
    const struct jstr *s = rt.rc ? NULL : jto_str(&rt, jout_take(&rt, &out));
    text = s ? strndup(s->data, s->len) : strdup("error");
    assert_int_equal(rt.depth, rt.rc ? rt.depth : 0);
    assert_int_equal(rt.calls, rt.rc ? rt.calls : 0);
    arena_release(&arena);
    jtemplate_release(&tmpl);
    return text;
}

static void same(const char *source, const char *want)
{
    char *got = run(source);

    if (strcmp(got, want) != 0) fail_msg("%s gives \"%s\", not \"%s\"", source, got, want);
    free(got);
}

static void blocks_eat_their_line(void **state)
{
    (void)state;
    same("a\n  {% if 1 %}\n  b\n  {% endif %}\nc", "a\n  b\nc");
    same("a\n  {%+ if 1 +%}\n  b{% endif %}", "a\n  \n  b");
    same("a \n {%- if 1 -%} \n b {%- endif %} c", "ab c");
    same("a {% if 1 %} b {% endif %} c", "a  b  c");
    same("  {{ 1 }}\n {{- 2 -}} \n3", "  123");
    same("{# c #}\nx{#- c -#} \n y", "xy");
    same("x\n", "x");
    same("x\n\n", "x\n");
    same("a\r\nb\rc", "a\nb\nc");
    same("{% raw %}{{ x }}{% endraw %}", "{{ x }}");
    same("{{ '}}' }}{{ {'a': {'b': 1}}['a']['b'] }}", "}}1");
}

static void numbers_print_like_python(void **state)
{
    (void)state;
    same("{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e15 }} {{ 1e-5 }} {{ -0.0 }} {{ 100.0 / 3 }}",
         "1.0 0.30000000000000004 1e+16 1000000000000000.0 1e-05 -0.0 33.333333333333336");
    same("{{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 62 }} {{ 2 ** 63 }}", "error");
    same("{{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 62 }}", "-4 2 -2 4611686018427387904");
    same("{{ [1, 'it\\'s', none, true, 1.5, {'a': (1,)}] }}", "[1, \"it's\", None, True, 1.5, {'a': (1,)}]");
    same("{{ -9223372036854775807 - 1 }}", "-9223372036854775808");
    same("{{ (-9223372036854775807 - 1) // -1 }}", "error");
    same("{{ (-9223372036854775807 - 1)|abs }}", "error");
}

static void scopes_follow_jinja(void **state)
{
    (void)state;
    same("{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}", "15151");
    same("{% if 1 %}{% set x = 2 %}{% endif %}{{ x }}", "2");
    same("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3");
    same("{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}", "1112");
    same("{% for i in [1] %}{% break %}{% else %}else{% endfor %}", "else");
}

static void slices_count_code_points(void **state)
{
    (void)state;
    same("{{ 'h\xc3\xa9\xe4\xb8\x96\xf0\x9f\x98\x80!'[1:4] }}", "\xc3\xa9\xe4\xb8\x96\xf0\x9f\x98\x80");
    same("{{ 'h\xc3\xa9!'[::-1] }}{{ 'h\xc3\xa9'|length }}{{ 'h\xc3\xa9!'.find('!') }}", "!\xc3\xa9h22");
    same("{{ 'abc'[9223372036854775807:] }}{{ 'abc'[-9223372036854775807:2:9223372036854775807] }}{{ "
         "'abc'[::-9223372036854775807] }}",
         "ac");
}

static void lists_cannot_be_changed(void **state)
{
    (void)state;
    same("{% set l = [1] %}{{ l.append is defined }}", "False");
    same("{% set l = [1] %}{{ l.append(2) }}", "error");
    same("{% set d = {} %}{{ d.update({'a': 1}) }}", "error");
}

static void float_repr_is_shortest(void **state)
{
    static const struct { double f; const char *text;
    } cases[] = {
        {5e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {123456789012345680.0, "1.2345678901234568e+17"},
        {0.0001, "0.0001"},
        {9007199254740993.0, "9007199254740992.0"},
        {1.0 / 3, "0.3333333333333333"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[40];
        jfloat_repr(cases[i].f, text);
        assert_string_equal(text, cases[i].text);
    }
}

static void strip_knows_unicode_space(void **state)
{
    (void)state;
    assert_int_equal(jtext_lstrip("\xc2\xa0 x", 4), 3);
    assert_int_equal(jtext_rstrip("x\xe3\x80\x80", 4), 1);
    assert_int_equal(jtext_rstrip("\xe3\x80\x80", 3), 0);
    assert_int_equal(jtext_rstrip("\x80\x80", 2), 2);        /* not UTF-8: kept */
}

static void names_are_bounded_by_source_size(void **state)
{
    size_t len = JINJA_MAX_SOURCE + 1;
    char *source = malloc(len);
    struct jtemplate tmpl = { .body = NULL };
    struct err err = { 0 };

    (void)state;
    assert_non_null(source);
    memset(source, 'x', len);
    assert_int_equal(jtemplate_compile(&tmpl, source, len, &err), ERR_TEMPLATE);
    assert_non_null(strstr(err.message, "limit 1048576"));
    jtemplate_release(&tmpl);
    assert_int_equal(jtemplate_compile(&tmpl, source, len - 1, &err), 0);
    jtemplate_release(&tmpl);
    for (size_t i = 0; i + 3 < len; i += 3) memcpy(source + i, "{{1", 3);
    memcpy(source, "{{ ", 3);
    for (size_t i = 3; i + 2 < len; i += 2) memcpy(source + i, "1,", 2);
    assert_int_equal(jtemplate_compile(&tmpl, source, len - 1, &err), ERR_TEMPLATE);
    jtemplate_release(&tmpl);
    free(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_eat_their_line),     cmocka_unit_test(numbers_print_like_python),
        cmocka_unit_test(scopes_follow_jinja),       cmocka_unit_test(slices_count_code_points),
        cmocka_unit_test(lists_cannot_be_changed),   cmocka_unit_test(float_repr_is_shortest),
        cmocka_unit_test(strip_knows_unicode_space), cmocka_unit_test(names_are_bounded_by_source_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
