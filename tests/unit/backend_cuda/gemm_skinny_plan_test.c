#include "gemm_skinny_plan.c"
#include "unit/base/cmocka_all.h"

/* Steps are dealt out evenly, the ring fits, T fits its bucket. */
static void cuts_fit(void **state)
{
    (void)state;
    for (int t = 1; t <= 128; t++)
        for (int n = 1; n < 200000; n = n * 3 + 1)
            for (int k = 8; k < 40000; k = k * 2 + 8)
                for (int cut = 0; cut <= GEMM_SKINNY_CUTS; cut++) {
                    struct gemm_skinny_plan p = gemm_skinny_plan_for(t, n, k, cut, 132);
                    bool split = p.how == SKINNY_SPLIT;
                    assert_in_range(p.rows, t, 128);
                    assert_true(p.groups == 1 || p.groups == 2);
                    assert_true((int64_t)p.tiles * p.groups * 64 >= n && (int64_t)p.steps * 64 * p.panels >= k);
                    if (cut == 0) assert_true(p.stages > 0 && !split);
                    if (p.stages == 0) continue;           /* does not suit */
                    assert_true(p.ctas >= 1 && p.ctas % p.cluster == 0);
                    if (split) assert_true(p.ctas == p.tiles * p.cluster && p.cluster <= p.steps && p.rows % p.cluster == 0);
                    else assert_true(p.ctas <= 132 && (int64_t)p.ctas <= (int64_t)p.tiles * p.steps);
                    assert_in_range(p.stages, split || p.panels > 1 ? 2 : 3, 16);
                    assert_true(gemm_skinny_smem(&p, p.stages) <= 227 << 10);
                }
}

static void heads_fit_a_tile(void **state)
{
    (void)state;
    for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++) {
        struct gemm_skinny_plan p = gemm_skinny_plan_cut(64, 4096, 4096, cut, 132, GEMM_SKINNY_SMEM_MAX);
        assert_false(gemm_skinny_rotates(cut, 96, false));
        assert_int_equal(gemm_skinny_rotates(cut, 128, false), gemm_skinny_rotates(cut, 64, true));
        assert_int_equal(gemm_skinny_rotates(cut, 128, true), p.groups == 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(cuts_fit), cmocka_unit_test(heads_fit_a_tile) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
