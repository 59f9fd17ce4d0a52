/* ramp_test.c - which level comes next, and what is made of a level's figures. */
#include "ramp.c"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void levels_double_then_halve(void **state)
{
    struct ramp_args args = { .start = 2, .max_concurrency = 100 };
    int halvings = 0;

    (void)state;
    assert_int_equal(next_level(&args, 0, 0, &halvings), 2);
    assert_int_equal(next_level(&args, 2, 0, &halvings), 4);
    assert_int_equal(next_level(&args, 64, 0, &halvings), 100);
    assert_int_equal(next_level(&args, 100, 0, &halvings), 0);
    assert_int_equal(next_level(&args, 0, 2, &halvings), 0);
    assert_int_equal(next_level(&args, 32, 64, &halvings), 48);
    assert_int_equal(next_level(&args, 32, 48, &halvings), 40);
    assert_int_equal(next_level(&args, 40, 48, &halvings), 44);
    assert_int_equal(next_level(&args, 40, 44, &halvings), 0);       /* near enough */
    assert_int_equal(halvings, 3);
    assert_int_equal(next_level(&args, 32, 64, &halvings), 0);       /* often enough */
}

static void metrics_are_summed(void **state)
{
    static const char text[] = "HTTP/1.1 200 OK\r\n\r\n# TYPE a counter\na{replica=\"0\"} 2\na{replica=\"1\"} 3.5\nab 7\nc 1e3\n";

    (void)state;
    assert_float_equal(metric_sum(text, "a"), 5.5, 0);
    assert_float_equal(metric_sum(text, "ab"), 7, 0);
    assert_float_equal(metric_sum(text, "c"), 1000, 0);
    assert_true(isnan(metric_sum(text, "b")));
}

static void what_gives_way(void **state)
{
    struct level level = { .queue_ms = 10, .prefill_ms = 30, .rest_ms = 5, .peaks = { .samples = 10 } };

    (void)state;
    assert_int_equal(bound_of(&level, true), BOUND_PREFILL);
    assert_int_equal(bound_of(&level, false), BOUND_UNKNOWN);
    level.queue_ms = 100;
    assert_int_equal(bound_of(&level, true), BOUND_PREFILL);         /* they wait for prompts, not for places */
    level.peaks.waiting_samples = 9;
    assert_int_equal(bound_of(&level, true), BOUND_BATCH);
    level.peaks.kv_usage = 0.99;
    assert_int_equal(bound_of(&level, true), BOUND_KV);
    level.peaks.kv_usage = 0.2;
    level.rest_ms = 200;
    assert_int_equal(bound_of(&level, true), BOUND_FRONT_END);
    level.report.failed = 1;
    assert_int_equal(bound_of(&level, true), BOUND_FAILURES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_double_then_halve),
        cmocka_unit_test(metrics_are_summed),
        cmocka_unit_test(what_gives_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
