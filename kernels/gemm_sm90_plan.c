/* gemm_sm90_plan.c - gemm_sm90_plan.h has the terms. Costs are estimates in clocks of one multiprocessor, good enough for an order;
 * what is fastest is timed. */
#include "gemm_sm90_plan.h"

enum { BLOCK_K = 64, MAX_WAYS = 128 };

static const struct { int32_t rows, cols; } tiles[] = { { 128, 256 }, { 128, 224 }, { 128, 192 }, { 128, 128 }, { 128, 64 },
                                                        { 192, 192 }, { 192, 128 }, { 256, 128 } };
static const struct { int32_t m, n; } clusters[] = { { 2, 1 }, { 1, 2 }, { 2, 2 }, { 1, 1 } };

static int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

/* Clusters of tiles along both sides. */
static int64_t clusters_of(const struct gemm_sm90_plan *p, int32_t num_tokens, int32_t n)
{
    return up_to(num_tokens, (int64_t)p->rows * p->cluster_m) * up_to(n, (int64_t)p->cols * p->cluster_n);
}

static int blocks_of(const struct gemm_sm90_plan *p) { return p->cluster_m * p->cluster_n * p->split; }

/* Clusters that run at once. One has to fit into a group of 16 or 18 multiprocessors, of which some may be off: four do not fit
 * everywhere. */
static int resident(const struct gemm_sm90_plan *p, int num_sms) { return num_sms / blocks_of(p) - (blocks_of(p) == 4 ? 3 : 0); }

bool gemm_sm90_plan_valid(const struct gemm_sm90_plan *p, const struct gemm_kernel *a, int num_sms)
{
    bool known = false;

    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) known |= tiles[i].rows == p->rows && tiles[i].cols == p->cols;
    if (!known || a->num_tokens < 1 || a->n < 8 || a->k < 8 || a->k % 8 != 0 || a->n % (a->silu_mul ? 16 : 8) != 0) return false;
    if (a->silu_mul && a->out_f32) return false;
    if (p->cluster_m < 1 || p->cluster_m > 2 || p->cluster_n < 1 || p->cluster_n > 2) return false;
    if (p->split == 1) return true;
    /* The parts of a tile are one cluster, and it has one tile: they exchange their sums where the operands were. */
    return (p->split == 2 || (p->split == 4 && p->cols % 64 == 0)) && up_to(a->k, BLOCK_K) >= p->split && blocks_of(p) <= 4 &&
           clusters_of(p, a->num_tokens, a->n) <= resident(p, num_sms);
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t cost(const struct gemm_sm90_plan *p, const struct gemm_kernel *a, int num_sms)
{
    int64_t matrix = p->rows * p->cols / 32, l2 = 5 * (p->rows / p->cluster_n + p->cols / p->cluster_m) / 4, stage = most(matrix, l2);
    int64_t rounds = up_to(clusters_of(p, a->num_tokens, a->n), resident(p, num_sms)), tile = (int64_t)p->rows * p->cols;

    return 5000 + 500 * (blocks_of(p) > 1) + rounds * (up_to(up_to(a->k, BLOCK_K), p->split) * stage + 500 + tile / 32) + (p->split > 1 ? 1500 + tile / 16 : 0);
}

bool gemm_sm90_plan_at(struct gemm_sm90_plan *plan, int index, const struct gemm_kernel *a, int num_sms)
{
    struct { struct gemm_sm90_plan plan; int64_t cost; } ways[MAX_WAYS];         /* 8 tiles, 4 clusters, 3 splits */
    int n = 0;

    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++)
        for (size_t c = 0; c < sizeof clusters / sizeof clusters[0]; c++)
            for (int split = 1; split <= 4; split *= 2) {
                struct gemm_sm90_plan p = { tiles[i].rows, tiles[i].cols, clusters[c].m, clusters[c].n, split };
                if (!gemm_sm90_plan_valid(&p, a, num_sms)) continue;
                if (p.cluster_m > 1 && a->num_tokens <= p.rows) continue;        /* the second block would have nothing */
                ways[n].plan = p;
                ways[n++].cost = cost(&p, a, num_sms);
            }
    if (index >= n) return false;
    for (int done = 0;; done++) {                            /* the best of what is left goes to the front */
        int best = done;
        for (int i = done + 1; i < n; i++)
            if (ways[i].cost < ways[best].cost) best = i;
        *plan = ways[best].plan;
        if (done == index) return true;
        ways[best] = ways[done];
    }
}
