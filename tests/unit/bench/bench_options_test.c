/* bench_options_test.c - what each type of option accepts, and what is handed on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/bench.h>

static struct { bool flag; int64_t number; double real; const char *text; struct bench_ints ints; struct bench_range range; } got;

static const struct bench_option table[] = {
    { "--flag", BENCH_FLAG, &got.flag, 0, 0, "" },        { "--number", BENCH_INT, &got.number, 1, 100, "" },
    { "--real", BENCH_REAL, &got.real, 0, 10, "" },       { "--text", BENCH_TEXT, &got.text, 0, 0, "" },
    { "--ints", BENCH_INTS, &got.ints, 1, 4096, "" },     { "--range", BENCH_RANGE, &got.range, 1, 1000, "" },
};
enum { N = sizeof table / sizeof table[0] };

static int take(int argc, char **argv, char **rest, int *n_rest, struct err *err)
{
    memset(&got, 0, sizeof got);
    return bench_options_take(table, N, argc, argv, rest, n_rest, err);
}

static void takes_its_own_and_leaves_the_rest(void **state)
{
    char *argv[] = { "--model", "m", "--number", "7", "--flag", "--real=2.5", "--text", "--odd", "-pp", "2", "--", "--number" };
    char *rest[12];
    int n_rest = 0;

    (void)state;
    assert_int_equal(take(12, argv, rest, &n_rest, NULL), 0);
    assert_int_equal(got.number, 7);
    assert_true(got.flag);
    assert_float_equal(got.real, 2.5, 0);
    assert_string_equal(got.text, "--odd");
    assert_int_equal(n_rest, 6);
    assert_string_equal(rest[0], "--model");
    assert_string_equal(rest[3], "2");
    assert_string_equal(rest[5], "--number");            /* behind "--" nothing is an option */
}

static void lists_and_ranges(void **state)
{
    char *argv[] = { "--ints", "1,8,64", "--range", "128-384" }, *one[] = { "--range=256", "--ints=4" };

    (void)state;
    assert_int_equal(take(4, argv, NULL, NULL, NULL), 0);
    assert_int_equal(got.ints.n, 3);
    assert_int_equal(got.ints.items[2], 64);
    assert_int_equal(got.range.low, 128);
    assert_int_equal(got.range.high, 384);
    assert_int_equal(take(2, one, NULL, NULL, NULL), 0);
    assert_int_equal(got.range.low, 256);
    assert_int_equal(got.range.high, 256);
    assert_int_equal(got.ints.n, 1);
}

static void refuses(void **state)
{
    char *wrong[] = { "--number=0", "--number=101", "--number=7x", "--number= 7", "--number=-7", "--number=", "--real=nan",
                      "--real=11", "--real=1x", "--ints=1,", "--ints=,1", "--ints=1,5000", "--range=9-8", "--range=1-2-3",
                      "--range=0", "--flag=yes", "--number", "--bogus", "plain" };

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct err err = { 0 };
        assert_int_equal(take(1, &wrong[i], NULL, NULL, &err), ERR_CONFIG);
        assert_true(err.message[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_its_own_and_leaves_the_rest),
        cmocka_unit_test(lists_and_ranges),
        cmocka_unit_test(refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
