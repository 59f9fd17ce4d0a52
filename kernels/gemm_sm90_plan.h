/* gemm_sm90_plan.h - how a large product is cut over the device: pure arithmetic, no CUDA. For launch_gemm and for who times cuts.
 * A tile is rows x cols of the output; a cluster is cluster_m x cluster_n neighbouring tiles whose blocks share what they load: blocks
 * side by side along M the weights, along N the tokens. split > 1: that many such clusters divide the K of their tiles and are one
 * cluster of blocks, through whose shared memory the sums are added. A cluster has 1, 2 or 4 blocks; the device sees to it that all of
 * them run at once, so nothing here waits for a block that may not have started. */
#ifndef SLUICE_KERNELS_GEMM_SM90_PLAN_H
#define SLUICE_KERNELS_GEMM_SM90_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/kernels.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gemm_sm90_plan { int32_t rows, cols, cluster_m, cluster_n, split; };

/* The i-th way to cut this product, best guess first; false: there are no more. */
bool gemm_sm90_plan_at(struct gemm_sm90_plan *plan, int i, const struct gemm_kernel *a, int num_sms);
/* Whether the kernel can run it at all. */
bool gemm_sm90_plan_valid(const struct gemm_sm90_plan *plan, const struct gemm_kernel *a, int num_sms);

/* launch_gemm with this cut. */
int launch_gemm_planned(const struct gemm_kernel *a, const struct gemm_sm90_plan *plan, const struct launch *l);

#ifdef __cplusplus
}
#endif
#endif
