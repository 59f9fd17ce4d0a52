/* gemv_plan.c - the cut of a skinny product; gemv_plan.h has the terms. */
#include "gemv_plan.h"

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

struct gemv_plan gemv_plan_cut(int32_t n, int32_t k, bool silu_mul, int deep, int split, int warps_k, int warps_n, int max_ctas)
{
    struct gemv_plan p = { .deep = deep, .split = split, .warps_k = warps_k, .warps_n = warps_n };
    int32_t room = max_ctas / split;

    p.k_warp = ceil_div(ceil_div(k, split * warps_k), 32) * 32;
    p.k_cta = p.k_warp * warps_k;
    p.units = ceil_div(n, warps_n * (silu_mul ? 8 : 16));
    p.clusters = p.units < room ? p.units : room > 0 ? room : 1;
    return p;
}

struct gemv_plan gemv_plan_for(int32_t n, int32_t k, bool silu_mul, int sm, int num_sms)
{
    int32_t warps_k = 16, split = 1;

    /* Short K: fewer warps share it, so that each still has a full batch of loads. */
    while (warps_k > 4 && k < warps_k * 96) warps_k /= 2;
    /* Long K: cut until x fits in shared memory beside a successor's block. */
    if (sm >= 90)
        while (split < 8 && k / split > 4096) split *= 2;
    /* One cta per multiprocessor: a successor's blocks then spread as evenly, one beside each. */
    return gemv_plan_cut(n, k, silu_mul, 8, split, warps_k, 1, num_sms);
}
