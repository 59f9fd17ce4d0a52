/* gemm_skinny_plan.h - how a product of 9..128 rows is cut over the device: pure arithmetic, no CUDA. Private to kernels/.
 * w is cut into tiles of groups * 64 rows and these into steps of panels * 64 k. Who does which steps:
 *   dealt  the steps of all tiles in a row are dealt out evenly to the ctas, so a cta has the end of one tile, some whole ones and the
 *          beginning of another. For much w: no multiprocessor idles.
 *   split  a tile is one cluster's, each of whose ctas has an even share of its K; they add up through shared memory. For little w. */
#ifndef SLUICE_GEMM_SKINNY_PLAN_H
#define SLUICE_GEMM_SKINNY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

enum gemm_skinny_how { SKINNY_DEALT, SKINNY_SPLIT };

struct gemm_skinny_plan {
    enum gemm_skinny_how how;
    int32_t rows;                  /* T rounded up to what one instruction takes: 16 32 48 64 96 128 */
    int32_t groups;                /* warpgroups of a cta, 64 rows of w each: 1, 2 */
    int32_t panels;                /* of 64 k that a step fetches side by side: 1, 2, 4 */
    int32_t cluster;               /* ctas of a cluster */
    int32_t tiles, steps;          /* of N; of each tile's K */
    int32_t ctas;
    int32_t stages;                /* of the ring of steps; 0: this cut does not suit this product */
};

enum { GEMM_SKINNY_SMEM_MAX = (227 << 10) - 288 };     /* what a cta may use besides its barriers */

#ifdef __cplusplus
extern "C" {
#endif
struct gemv_kernel;
struct launch;
/* cut: 1..GEMM_SKINNY_CUTS. n: rows of w. smem_bytes: up to GEMM_SKINNY_SMEM_MAX. */
struct gemm_skinny_plan gemm_skinny_plan_cut(int32_t t, int32_t n, int32_t k, int cut, int max_ctas, int smem_bytes);
struct gemm_skinny_plan gemm_skinny_plan_for(int32_t t, int32_t n, int32_t k, int cut, int num_sms);       /* cut 0: its choice */
/* Whether launch_gemm_skinny takes rope with this cut. norms_heads: a head's norm wants all of it in one cta. */
bool gemm_skinny_rotates(int cut, int32_t head_dim, bool norms_heads);
int gemm_skinny_smem(const struct gemm_skinny_plan *p, int stages);
int launch_gemm_skinny_planned(const struct gemv_kernel *a, const struct gemm_skinny_plan *plan, const struct launch *l);
#ifdef __cplusplus
}
#endif
#endif
