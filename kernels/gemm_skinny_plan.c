/* gemm_skinny_plan.c - gemm_skinny_plan.h has the terms. */
#include "gemm_skinny_plan.h"

#include <sluice/kernels.h>

enum { STAGES_MAX = 16, STEPS_MIN = 4, SPLIT_WAVES = 2 };

static const struct { enum gemm_skinny_how how; int32_t groups, panels, cluster; } cuts[GEMM_SKINNY_CUTS] = {
    { SKINNY_DEALT, 1, 1, 1 }, { SKINNY_DEALT, 2, 1, 1 }, { SKINNY_DEALT, 1, 2, 1 }, { SKINNY_DEALT, 1, 4, 1 }, { SKINNY_DEALT, 2, 2, 1 },
    { SKINNY_SPLIT, 1, 1, 2 }, { SKINNY_SPLIT, 1, 1, 4 }, { SKINNY_SPLIT, 1, 1, 8 }, { SKINNY_SPLIT, 1, 2, 2 }, { SKINNY_SPLIT, 1, 2, 4 },
    { SKINNY_SPLIT, 1, 2, 8 }, { SKINNY_SPLIT, 1, 4, 2 }, { SKINNY_SPLIT, 2, 2, 2 },
    { SKINNY_SPLIT, 2, 1, 4 },
};

static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

/* The ring; split: the parts of all ctas of the sums that meet in one; squares of each warp's columns and scales; what alignment costs. */
int gemm_skinny_smem(const struct gemm_skinny_plan *p, int stages)
{
    int ring = stages * p->panels * (p->groups * 64 * 128 + p->rows * 128);
    int parts = p->how == SKINNY_SPLIT ? p->cluster * ceil_div(p->rows / 8, p->cluster) * p->groups * 128 * 16 : 0;
    return ring + parts + (p->groups * 4 + 1) * p->rows * 4 + 1024;
}

struct gemm_skinny_plan gemm_skinny_plan_cut(int32_t t, int32_t n, int32_t k, int cut, int max_ctas, int smem_bytes)
{
    static const int32_t sizes[] = { 16, 32, 48, 64, 96, 128 };
    struct gemm_skinny_plan p = { .how = cuts[cut - 1].how, .groups = cuts[cut - 1].groups, .panels = cuts[cut - 1].panels,
                                  .cluster = cuts[cut - 1].cluster };
    int64_t most;
    int32_t deepest = STAGES_MAX;

    for (int i = 0; p.rows < t && i < (int)(sizeof sizes / sizeof sizes[0]); i++) p.rows = sizes[i];
    p.tiles = ceil_div(n, p.groups * 64);
    p.steps = ceil_div(k, 64 * p.panels);
    if (p.panels > 1 && (k % 64 != 0 || n % 8 != 0)) return p;
    if (p.how == SKINNY_SPLIT) {
        p.ctas = p.tiles * p.cluster;
        if (p.cluster > p.steps || p.ctas > SPLIT_WAVES * max_ctas) return p;
        if (deepest > ceil_div(p.steps, p.cluster)) deepest = ceil_div(p.steps, p.cluster);
        if (deepest < 2) deepest = 2;
    } else {
        most = ((int64_t)p.tiles * p.steps + STEPS_MIN - 1) / STEPS_MIN;
        p.ctas = most < max_ctas ? (int32_t)most : max_ctas;
    }
    while (p.stages < deepest && gemm_skinny_smem(&p, p.stages + 1) <= smem_bytes) p.stages++;
    if (p.stages < 2) p.stages = 0;
    return p;
}

bool gemm_skinny_rotates(int cut, int32_t head_dim, bool norms_heads)
{
    const int groups = cuts[cut - 1].groups;
    if ((head_dim != 64 && head_dim != 128) || (norms_heads && groups * 64 < head_dim)) return false;
    return groups == 2 || (cuts[cut - 1].how == SKINNY_SPLIT && cuts[cut - 1].panels <= 2);
}

struct gemm_skinny_plan gemm_skinny_plan_for(int32_t t, int32_t n, int32_t k, int cut, int num_sms)
{
    /* Wide tiles read x less often, narrow ones are shared by fewer ctas: wide where a cta has many steps. */
    if (cut == 0) cut = (int64_t)ceil_div(n, 128) * ceil_div(k, 64) >= 32 * (int64_t)num_sms ? 2 : 1;
    return gemm_skinny_plan_cut(t, n, k, cut, num_sms, GEMM_SKINNY_SMEM_MAX);
}
