/* stats_test.c - percentiles as numpy's, moments, and that the random numbers have the distribution they claim. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sluice/bench.h>

static void percentiles_are_linear_between_neighbours(void **state)
{
    double values[] = { 4, 1, 3, 2 };
    struct bench_stats stats;

    (void)state;
    bench_stats_of(&stats, values, 4);
    assert_float_equal(stats.mean, 2.5, 1e-12);
    assert_float_equal(stats.median, 2.5, 1e-12);
    assert_float_equal(stats.p90, 3.7, 1e-12);          /* numpy.percentile([1, 2, 3, 4], 90) */
    assert_float_equal(stats.p99, 3.97, 1e-12);
    assert_float_equal(stats.std, sqrt(1.25), 1e-12);
    assert_float_equal(stats.min, 1, 0);
    assert_float_equal(stats.max, 4, 0);
}

static void one_value_and_none(void **state)
{
    double value = 7;
    struct bench_stats stats;

    (void)state;
    bench_stats_of(&stats, &value, 1);
    assert_float_equal(stats.median, 7, 0);
    assert_float_equal(stats.p99, 7, 0);
    bench_stats_of(&stats, NULL, 0);
    assert_float_equal(stats.mean, 0, 0);
    assert_int_equal(stats.n, 0);
}

static void random_integers_stay_between(void **state)
{
    struct bench_random random = { 5 };
    bool low = false, high = false;

    (void)state;
    for (int i = 0; i < 1000; i++) {
        int64_t drawn = bench_random_between(&random, 3, 6);
        assert_true(drawn >= 3 && drawn <= 6);
        low = low || drawn == 3;
        high = high || drawn == 6;
    }
    assert_true(low && high);
}

/* Of shape k and mean 1 the variance is 1/k: burstiness 1 is a Poisson process, below it comes in bursts. */
static void gamma_has_mean_one(void **state)
{
    static const double shapes[] = { 0.25, 1, 4 };
    enum { N = 200000 };

    (void)state;
    for (int s = 0; s < 3; s++) {
        struct bench_random random = { 11 };
        double sum = 0, squares = 0;
        for (int i = 0; i < N; i++) {
            double drawn = bench_random_gamma(&random, shapes[s]);
            sum += drawn;
            squares += drawn * drawn;
        }
        assert_float_equal(sum / N, 1, 0.02);
        assert_float_equal(squares / N - sum / N * (sum / N), 1 / shapes[s], 0.1 / shapes[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_linear_between_neighbours),
        cmocka_unit_test(one_value_and_none),
        cmocka_unit_test(random_integers_stay_between),
        cmocka_unit_test(gamma_has_mean_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
