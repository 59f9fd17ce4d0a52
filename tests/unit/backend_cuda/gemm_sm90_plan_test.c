/* gemm_sm90_plan.h: every way offered is valid, different and in memory; nothing is offered that the kernel refuses. */
#include "gemm_sm90_plan.c"
#include "unit/base/cmocka_all.h"

static struct gemm_kernel product(int32_t t, int32_t n, int32_t k)
{
    return (struct gemm_kernel){ .num_tokens = t, .n = n, .k = k };
}

static void ways_are_valid_and_different(void **state)
{
    static const int32_t rows[] = { 1, 96, 128, 200, 256, 1000, 8192 };

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        struct gemm_kernel a = product(rows[r], 4096, 1024);
        struct gemm_sm90_plan all[200];
        int n = 0;
        while (n < 200 && gemm_sm90_plan_at(&all[n], n, &a, 132)) n++;
        assert_in_range(n, 8, 128);
        for (int i = 0; i < n; i++) {
            assert_true(gemm_sm90_plan_valid(&all[i], &a, 132));
            for (int j = 0; j < i; j++) assert_memory_not_equal(&all[i], &all[j], sizeof all[i]);
        }
    }
}

static void a_split_needs_room(void **state)
{
    struct gemm_kernel a = product(256, 3840, 1024);
    struct gemm_sm90_plan p = { 128, 256, 2, 1, 2 };

    (void)state;
    assert_true(gemm_sm90_plan_valid(&p, &a, 132));        /* 15 clusters of 2 tiles of 2 parts */
    assert_false(gemm_sm90_plan_valid(&p, &a, 68));        /* all of them run at once */
    p.split = 4;
    assert_false(gemm_sm90_plan_valid(&p, &a, 132));       /* eight blocks a cluster */
    p.cluster_m = 1;                                       /* 30 tiles of 4 parts */
    assert_true(gemm_sm90_plan_valid(&p, &a, 132));
    a.k = 128;
    assert_false(gemm_sm90_plan_valid(&p, &a, 132));       /* two stages for four */
}

static void shapes_of_odd_pieces_are_refused(void **state)
{
    struct gemm_kernel a = product(256, 4096, 1020);
    struct gemm_sm90_plan p;

    (void)state;
    assert_false(gemm_sm90_plan_at(&p, 0, &a, 132));
    a = product(256, 4100, 1024);
    assert_false(gemm_sm90_plan_at(&p, 0, &a, 132));
    a = product(256, 4104, 1024);
    assert_true(gemm_sm90_plan_at(&p, 0, &a, 132));
    a.silu_mul = true;                                     /* F % 8 */
    assert_false(gemm_sm90_plan_at(&p, 0, &a, 132));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(ways_are_valid_and_different), cmocka_unit_test(a_split_needs_room),
                                        cmocka_unit_test(shapes_of_odd_pieces_are_refused) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
