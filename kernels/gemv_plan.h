/* gemv_plan.h - how a product of few rows is cut over the device: pure arithmetic, no CUDA. Private to kernels/.
 * K is cut over `split` ctas of a cluster and over the `warps` warps of each; N over units of rows, dealt out in turn to the
 * clusters. The cut depends on the weight's shape and the device only, never on the number of rows of x: that fixes the order
 * of every sum. */
#ifndef SLUICE_GEMV_PLAN_H
#define SLUICE_GEMV_PLAN_H

#include <stdbool.h>
#include <stdint.h>

struct gemv_plan {
    int32_t deep;                  /* 16-byte loads in flight per thread: 8 or 16 (64 or 128 registers) */
    int32_t split;                 /* ctas of a cluster that share a unit's K: 1, 2, 4, 8 */
    int32_t warps;                 /* of a cta, all along K */
    int32_t clusters;              /* grid = clusters * split */
    int32_t k_cta, k_warp;         /* K slice of a cta and of a warp, multiples of 32 */
    int32_t units;                 /* pieces of N: 16 rows of w each (with silu_mul: 8 gate rows and their up rows) */
};

#ifdef __cplusplus
extern "C" {
#endif
struct gemv_kernel;
struct launch;
/* n: outputs (F with silu_mul). */
struct gemv_plan gemv_plan_cut(int32_t n, int32_t k, bool silu_mul, int deep, int split, int warps, int max_ctas);
struct gemv_plan gemv_plan_for(int32_t n, int32_t k, bool silu_mul, int sm, int num_sms);
int launch_gemv_planned(const struct gemv_kernel *a, const struct gemv_plan *plan, const struct launch *l);
#ifdef __cplusplus
}
#endif
#endif
