/* jinja_tests.c - `x is name(arg)`. The table at the end lists them all. */
#include <string.h>

#include "jinja_ast.h"
#include "jinja_unicode.h"

#define TEST(name)                                                                                                     \
    static struct jval test_##name(struct jrt *rt, struct jval v, const struct jval *argv, const struct jargs *args)
#define UNUSED3 (void)rt, (void)argv, (void)args

TEST(defined) { UNUSED3; return jbool(v.kind != JK_UNDEFINED); }
TEST(undefined) { UNUSED3; return jbool(v.kind == JK_UNDEFINED); }
TEST(none) { UNUSED3; return jbool(v.kind == JK_NONE); }
TEST(boolean) { UNUSED3; return jbool(v.kind == JK_BOOL); }
TEST(true) { UNUSED3; return jbool(v.kind == JK_BOOL && v.b); }
TEST(false) { UNUSED3; return jbool(v.kind == JK_BOOL && !v.b); }
TEST(integer) { UNUSED3; return jbool(v.kind == JK_INT); }
TEST(float) { UNUSED3; return jbool(v.kind == JK_FLOAT); }
TEST(number) { UNUSED3; return jbool(jis_num(v)); }
TEST(string) { UNUSED3; return jbool(v.kind == JK_STR); }
TEST(mapping) { UNUSED3; return jbool(v.kind == JK_DICT); }
TEST(iterable) { UNUSED3; return jbool(jiterable(v)); }
TEST(escaped) { UNUSED3; return jbool(v.kind == JK_STR && v.s->markup); }

TEST(sequence)
{
    UNUSED3;
    return jbool(v.kind == JK_UNDEFINED || v.kind == JK_STR || v.kind == JK_LIST || v.kind == JK_TUPLE ||
                 v.kind == JK_DICT || v.kind == JK_RANGE);
}

TEST(callable)
{
    UNUSED3;
    return jbool(v.kind == JK_UNDEFINED || v.kind == JK_MACRO || v.kind == JK_FUNC || v.kind == JK_LOOP);
}

static struct jval modulo(struct jrt *rt, struct jval v, struct jval by, double want)
{
    struct jval rest = jbinary(rt, JOP_MOD, v, by);

    return jbool(jis_num(rest) && jnum_of(rest) == want);
}

TEST(odd) { UNUSED3; return modulo(rt, v, jint(2), 1); }
TEST(even) { UNUSED3; return modulo(rt, v, jint(2), 0); }
TEST(divisibleby) { UNUSED3; return modulo(rt, v, argv[0], 0); }

TEST(eq) { UNUSED3; return jbool(jequal(rt, v, argv[0])); }
TEST(ne) { UNUSED3; return jbool(!jequal(rt, v, argv[0])); }
TEST(lt) { UNUSED3; return jbool(jcompare(rt, v, argv[0]) < 0); }
TEST(gt) { UNUSED3; return jbool(jcompare(rt, argv[0], v) < 0); }
TEST(le) { UNUSED3; return jbool(jcompare(rt, v, argv[0]) <= 0); }
TEST(ge) { UNUSED3; return jbool(jcompare(rt, argv[0], v) <= 0); }
TEST(in) { UNUSED3; return jbool(jcontains(rt, argv[0], v)); }

/* Identity: Python's small and constant values are shared, containers are themselves only. */
TEST(sameas)
{
    struct jval other = argv[0];

    UNUSED3;
    if (v.kind != other.kind) return jbool(false);
    if (v.kind <= JK_STR) return jbool(jequal(rt, v, other));
    return jbool(v.list == other.list);
}

/* str.isupper, str.islower: at least one cased letter and none of the other case. */
static struct jval all_cased(struct jrt *rt, struct jval v, bool (*want)(uint32_t), bool (*refuse)(uint32_t))
{
    const struct jstr *s = jto_str(rt, v);
    bool seen = false;
    size_t n = 0;

    for (size_t i = 0; i < s->len; i += n) {
        uint32_t cp = jcp_next(s->data + i, s->len - i, &n);
        if (refuse(cp)) return jbool(false);
        seen = seen || want(cp);
    }
    return jbool(seen);
}

TEST(upper) { UNUSED3; return all_cased(rt, v, jcp_upper, jcp_lower); }
TEST(lower) { UNUSED3; return all_cased(rt, v, jcp_lower, jcp_upper); }

static struct jval is_known(struct jrt *rt, struct jval v, const struct jdef *(*find)(const char *))
{
    const struct jstr *s = jto_str(rt, v);
    char name[32] = "";

    if (s->len < sizeof(name)) memcpy(name, s->data, s->len);
    return jbool(find(name) != NULL);
}

TEST(filter) { UNUSED3; return is_known(rt, v, jfilter_find); }
TEST(test) { UNUSED3; return is_known(rt, v, jtest_find); }

static const struct jdef tests[] = {
    { "defined", test_defined, 0, false, { NULL } },     { "undefined", test_undefined, 0, false, { NULL } },
    { "none", test_none, 0, false, { NULL } },           { "boolean", test_boolean, 0, false, { NULL } },
    { "true", test_true, 0, false, { NULL } },           { "false", test_false, 0, false, { NULL } },
    { "integer", test_integer, 0, false, { NULL } },     { "float", test_float, 0, false, { NULL } },
    { "number", test_number, 0, false, { NULL } },       { "string", test_string, 0, false, { NULL } },
    { "mapping", test_mapping, 0, false, { NULL } },     { "iterable", test_iterable, 0, false, { NULL } },
    { "sequence", test_sequence, 0, false, { NULL } },   { "callable", test_callable, 0, false, { NULL } },
    { "escaped", test_escaped, 0, false, { NULL } },     { "odd", test_odd, 0, false, { NULL } },
    { "even", test_even, 0, false, { NULL } },           { "divisibleby", test_divisibleby, 1, false, { "num" } },
    { "eq", test_eq, 1, false, { "_" } },                { "==", test_eq, 1, false, { "_" } },
    { "equalto", test_eq, 1, false, { "_" } },           { "ne", test_ne, 1, false, { "_" } },
    { "!=", test_ne, 1, false, { "_" } },                { "lt", test_lt, 1, false, { "_" } },
    { "<", test_lt, 1, false, { "_" } },                 { "lessthan", test_lt, 1, false, { "_" } },
    { "le", test_le, 1, false, { "_" } },                { "<=", test_le, 1, false, { "_" } },
    { "gt", test_gt, 1, false, { "_" } },                { ">", test_gt, 1, false, { "_" } },
    { "greaterthan", test_gt, 1, false, { "_" } },       { "ge", test_ge, 1, false, { "_" } },
    { ">=", test_ge, 1, false, { "_" } },                { "in", test_in, 1, false, { "seq" } },
    { "sameas", test_sameas, 1, false, { "other" } },    { "upper", test_upper, 0, false, { NULL } },
    { "lower", test_lower, 0, false, { NULL } },         { "filter", test_filter, 0, false, { NULL } },
    { "test", test_test, 0, false, { NULL } },
};

const struct jdef *jtest_find(const char *name)
{
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        if (strcmp(tests[i].name, name) == 0) return &tests[i];
    return NULL;
}
