/* gemm_skinny_plan.c - gemm_skinny_plan.h has the terms. */
#include "gemm_skinny_plan.h"

enum { SMEM_MAX = 227 << 10, STAGES_MAX = 16, STEPS_MIN = 4 };

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

/* The ring, its barriers and what alignment costs. */
int gemm_skinny_smem(const struct gemm_skinny_plan *p, int stages)
{
    return stages * (p->groups * 64 * 128 + p->rows * 128) + 1024 + 512;
}

struct gemm_skinny_plan gemm_skinny_plan_cut(int32_t t, int32_t n, int32_t k, int groups, int max_ctas, int smem_bytes)
{
    static const int32_t sizes[] = { 16, 32, 48, 64, 96, 128 };
    struct gemm_skinny_plan p = { .groups = groups, .tiles = ceil_div(n, groups * 64), .steps = ceil_div(k, 64) };
    int64_t most;

    for (int i = 0; p.rows < t && i < (int)(sizeof sizes / sizeof sizes[0]); i++) p.rows = sizes[i];
    most = ((int64_t)p.tiles * p.steps + STEPS_MIN - 1) / STEPS_MIN;
    p.ctas = most < max_ctas ? (int32_t)most : max_ctas;
    while (p.stages < STAGES_MAX && gemm_skinny_smem(&p, p.stages + 1) <= smem_bytes) p.stages++;
    return p;
}

struct gemm_skinny_plan gemm_skinny_plan_for(int32_t t, int32_t n, int32_t k, int groups, int num_sms)
{
    /* Wide tiles read x less often, narrow ones are shared by fewer ctas: wide where a cta has many steps. */
    if (groups == 0) groups = (int64_t)ceil_div(n, 128) * ceil_div(k, 64) >= 32 * (int64_t)num_sms ? 2 : 1;
    return gemm_skinny_plan_cut(t, n, k, groups, num_sms, SMEM_MAX);
}
