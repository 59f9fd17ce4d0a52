#include "helpers.h"

#include <math.h>

#include "step_time.h"

/* A repeatable mix of decode steps and steps with prompts. */
static void teach(struct step_time *t, int steps, double a, double b, double c, double noise)
{
    uint32_t state = 12345;

    for (int i = 0; i < steps; i++) {
        state = state * 1664525u + 1013904223u;
        int64_t tokens = i % 3 ? 16 : 16 + (state >> 8) % 1000, keys = tokens * (100 + (state >> 20));
        double wobble = 1 + noise * ((double)(state >> 16 & 0xff) / 127.5 - 1);
        step_time_learn(t, tokens, keys, (a + b * (double)tokens + c * (double)keys) * wobble);
    }
}

static void assert_near(double found, double expected, double share)
{
    if (fabs(found - expected) > share * expected) fail_msg("%g is not about %g", found, expected);
}

static void the_terms_of_a_machine_are_found(void **state)
{
    struct step_time t;

    (void)state;
    step_time_init(&t);
    assert_false(step_time_ready(&t));
    teach(&t, 200, 5, 0.05, 2e-6, 0);
    assert_true(step_time_ready(&t));
    assert_near(step_time_of(&t, 0, 0), 5, 0.01);
    assert_near(step_time_of(&t, 1000, 0), 55, 0.01);
    assert_near(step_time_of(&t, 0, 1000000) - step_time_of(&t, 0, 0), 2, 0.01);
    teach(&t, 600, 10, 0.1, 4e-6, 0.1);                /* it gets slower, and noisy */
    assert_near(step_time_of(&t, 500, 500000), 62, 0.1);
}

static void a_hiccup_moves_little_and_nonsense_nothing(void **state)
{
    struct step_time t;

    (void)state;
    step_time_init(&t);
    teach(&t, 300, 5, 0.05, 2e-6, 0.05);
    double before = step_time_of(&t, 500, 500000);
    step_time_learn(&t, 500, 500000, 60000);           /* one step of a minute */
    assert_near(step_time_of(&t, 500, 500000), before, 0.2);
    struct step_time kept = t;
    step_time_learn(&t, 500, 500000, NAN);
    step_time_learn(&t, 500, 500000, -1);
    assert_memory_equal(&t, &kept, sizeof t);
}

/* An hour of the same step: what is not learned about must not blow up. */
static void the_same_step_for_long_leaves_the_fit_sane(void **state)
{
    struct step_time t;

    (void)state;
    step_time_init(&t);
    for (int i = 0; i < 400000; i++) step_time_learn(&t, 8, 8000, 10 + (i % 7) * 0.01);
    assert_near(step_time_of(&t, 8, 8000), 10.03, 0.01);
    for (int i = 0; i < STEP_TIME_TERMS; i++) assert_true(isfinite(t.terms[i]) && t.cov[i][i] >= 0);
    teach(&t, 600, 5, 0.05, 2e-6, 0);
    assert_near(step_time_of(&t, 1000, 100000), 55.2, 0.05);
}

static void fit_is_the_most_that_is_within_the_time(void **state)
{
    struct step_time t;

    (void)state;
    step_time_init(&t);
    teach(&t, 300, 5, 0.05, 2e-6, 0);
    for (int64_t held = 0; held < 20000; held += 4999) {
        int32_t n = step_time_fit(&t, 20, held, 100000);
        double base = step_time_of(&t, 0, 0);
        assert_true(step_time_of(&t, n, step_time_keys(held, n)) - base <= 20.01);
        assert_true(step_time_of(&t, n + 1, step_time_keys(held, n + 1)) - base > 19.99);
    }
    assert_int_equal(step_time_fit(&t, 20, 0, 50), 50);
    assert_int_equal(step_time_fit(&t, -1, 0, 50), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_terms_of_a_machine_are_found),
        cmocka_unit_test(a_hiccup_moves_little_and_nonsense_nothing),
        cmocka_unit_test(the_same_step_for_long_leaves_the_fit_sane),
        cmocka_unit_test(fit_is_the_most_that_is_within_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
