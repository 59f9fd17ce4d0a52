/* buckets_test.c - captured steps: every batch finds the smallest bucket that holds it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "../../../src/backend/cuda/buckets.c"

static void sizes_rise_to_the_largest(void **state)
{
    (void)state;
    assert_int_equal(bucket_size(0), 1);
    for (int i = 1; i < NUM_BUCKETS; i++) assert_true(bucket_size(i) > bucket_size(i - 1));
    assert_int_equal(bucket_size(NUM_BUCKETS - 1), MAX_BUCKET);
}

static void every_batch_gets_the_smallest_that_holds_it(void **state)
{
    (void)state;
    for (int n = 1; n <= MAX_BUCKET; n++) {
        int index = bucket_of(n);
        assert_in_range(index, 0, NUM_BUCKETS - 1);
        assert_true(bucket_size(index) >= n);
        assert_true(index == 0 || bucket_size(index - 1) < n);
    }
}

static void others_have_none(void **state)
{
    (void)state;
    assert_int_equal(bucket_of(0), -1);
    assert_int_equal(bucket_of(-3), -1);
    assert_int_equal(bucket_of(MAX_BUCKET + 1), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_rise_to_the_largest), cmocka_unit_test(every_batch_gets_the_smallest_that_holds_it),
        cmocka_unit_test(others_have_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
