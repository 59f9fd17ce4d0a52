/* fused_norm.cuh - the device side of norm_add and norm_scale (kernels.h), for the products that take them. */
#ifndef SLUICE_FUSED_NORM_CUH
#define SLUICE_FUSED_NORM_CUH

#include "common.cuh"

/* scales[r] (shared memory) for rows 0 .. rows - 1, by `threads` threads (a multiple of LANES, whole warps) of which this is number
 * `thread`; the caller has waited for the predecessor and synchronises afterwards. LANES neighbouring lanes sum a row: four pieces at a
 * time in order, then the lanes by a tree. One order whatever the rows. Few rows want many lanes: all of a row's loads at once. */
template <int LANES = 8>
__device__ __forceinline__ void norm_scales(const struct norm_scale &s, int rows, int hidden, float *scales, int thread, int threads)
{
    constexpr int AT_ONCE = 64 / LANES;                                /* all of a row of 256 pieces */
    const int lane = thread % LANES;
    for (int first = 0; first < rows; first += threads / LANES) {      /* all lanes of a warp take part in the tree */
        const int r = first + thread / LANES;
        const float4 *const from = (const float4 *)(s.squares + (size_t)r * NORM_PIECES);
        float sum = 0.0f;
        if (r < rows) {
#pragma unroll AT_ONCE
            for (int i = lane; 4 * i < s.num_pieces; i += LANES) {
                const float4 p = __ldcg(from + i);
                const int left = s.num_pieces - 4 * i;                 /* what lies behind the last piece is nobody's */
                sum += (p.x + (left > 1 ? p.y : 0.0f)) + ((left > 2 ? p.z : 0.0f) + (left > 3 ? p.w : 0.0f));
            }
        }
#pragma unroll
        for (int over = LANES / 2; over > 0; over /= 2) sum += __shfl_xor_sync(~0u, sum, over);
        if (r < rows && lane == 0) scales[r] = rsqrtf(sum / (float)hidden + s.eps);
    }
}

/* One value of a product that takes norm_add: -> what goes to out; *square grows by the residual's square. */
__device__ __forceinline__ float norm_add_to(const struct norm_add &a, size_t at, float residual, float weight, float y, float *square)
{
    const float r = residual + y;
    a.residual[at] = r;
    *square += r * r;
    return r * weight;
}
__device__ __forceinline__ float norm_add_one(const struct norm_add &a, size_t at, int n, float y, float *square)
{
    return norm_add_to(a, at, a.residual[at], __ldg(a.weight + n), y, square);
}

#endif
