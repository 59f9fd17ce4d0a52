/* fused_norm.cuh - the device side of norm_add and norm_scale (kernels.h), for the products that take them. */
#ifndef SLUICE_FUSED_NORM_CUH
#define SLUICE_FUSED_NORM_CUH

#include "common.cuh"

/* scales[r] (shared memory) for rows 0 .. rows - 1, by `threads` threads (a multiple of 8) of which this is number `thread`; the caller
 * has waited for the predecessor and synchronises afterwards. Eight neighbouring lanes sum a row, every eighth piece in order, then the
 * lanes by a tree: one order. */
__device__ __forceinline__ void norm_scales(const struct norm_scale &s, int rows, int hidden, float *scales, int thread, int threads)
{
    const int lane8 = thread % 8;
    for (int first = 0; first < rows; first += threads / 8) {          /* all lanes of a warp take part in the tree */
        const int r = first + thread / 8;
        const float *const from = s.squares + (size_t)r * NORM_PIECES;
        float sum = 0.0f;
        if (r < rows) {
#pragma unroll 8
            for (int i = lane8; i < s.num_pieces; i += 8) sum += __ldcg(from + i);
        }
#pragma unroll
        for (int over = 4; over > 0; over /= 2) sum += __shfl_xor_sync(~0u, sum, over);
        if (r < rows && lane8 == 0) scales[r] = rsqrtf(sum / (float)hidden + s.eps);
    }
}

/* One value of a product that takes norm_add: -> what goes to out; *square grows by the residual's square. */
__device__ __forceinline__ float norm_add_one(const struct norm_add &a, size_t at, int n, float y, float *square)
{
    const float r = a.residual[at] + y;
    a.residual[at] = r;
    *square += r * r;
    return r * __ldg(a.weight + n);
}

#endif
