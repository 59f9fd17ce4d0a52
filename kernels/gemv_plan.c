/* gemv_plan.c - the cut of a skinny product; gemv_plan.h has the terms. */
#include "gemv_plan.h"

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

struct gemv_plan gemv_plan_cut(int32_t n, int32_t k, bool silu_mul, int deep, int split, int warps, int max_ctas)
{
    struct gemv_plan p = { .deep = deep, .split = split, .warps = warps };
    int32_t room = max_ctas / split;

    p.k_warp = ceil_div(ceil_div(k, split * warps), 32) * 32;
    p.k_cta = p.k_warp * warps;
    p.units = ceil_div(n, silu_mul ? 8 : 16);
    p.clusters = p.units < room ? p.units : room > 0 ? room : 1;
    return p;
}

struct gemv_plan gemv_plan_for(int32_t n, int32_t k, bool silu_mul, int sm, int num_sms)
{
    int32_t units = ceil_div(n, silu_mul ? 8 : 16), warps = 16, split = 1;

    /* About 256 k per warp: one full batch of loads a unit. */
    while (warps > 4 && k < warps * 192) warps /= 2;
    /* Long K: two ctas share it, so that x fits in shared memory. */
    if (sm >= 90 && k > 8192) split = 2;
    /* A cta of 16 warps fills a multiprocessor: the next kernel's ctas then come one to each, as this one's leave. Smaller ones:
     * all at once if they fit, so that the hardware deals them out, else two to each. */
    if (warps == 16) return gemv_plan_cut(n, k, silu_mul, 16, split, warps, num_sms);
    return gemv_plan_cut(n, k, silu_mul, 16, split, warps, units <= 3 * num_sms ? units : 2 * num_sms);
}
