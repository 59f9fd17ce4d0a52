#include <stdio.h>

#include "gemv_plan.c"
#include "unit/base/cmocka_all.h"

/* Every k and every row is somebody's, and a cta fits a device. */
static void everything_is_covered(void **state)
{
    static const int sms[] = { 80, 90 };

    (void)state;
    for (int s = 0; s < 2; s++)
        for (int silu = 0; silu < 2; silu++)
            for (int k = 8; k < 40000; k += k < 600 ? 8 : 1016)
                for (int n = 1; n < 200000; n = n * 3 + 1) {
                    struct gemv_plan p = gemv_plan_for(n, k, silu, sms[s], 132);
                    assert_true((int64_t)p.k_cta * p.split >= k);
                    assert_true(p.k_warp % 32 == 0 && p.k_cta == p.k_warp * p.warps);
                    assert_true((int64_t)p.units * (silu ? 8 : 16) >= n);
                    assert_true((int64_t)(p.units - 1) * (silu ? 8 : 16) < n);
                    assert_true(p.clusters >= 1 && p.clusters <= p.units);
                    assert_in_range(p.warps * 32, 32, 512);
                    assert_true(p.split == 1 || (sms[s] >= 90 && p.split <= 8));
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(everything_is_covered) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
