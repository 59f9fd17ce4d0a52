/* attn_prefill.cuh - what the two versions of prefill attention share. Private to kernels/attn_prefill*.cu.
 *
 * Rows: the G = H / Hk query heads of one KV head read the same keys, so they are packed: row r of (sequence, KV head) is query r / G
 * of head r % G. A tile of rows is then G times fewer queries, and a short chunk still fills the matrix unit. */
#ifndef SLUICE_KERNELS_ATTN_PREFILL_CUH
#define SLUICE_KERNELS_ATTN_PREFILL_CUH

#include "common.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

/* Keys that queries first..last of a sequence see together: begin <= position < end; empty when end <= begin. offset is the
 * position of query 0: context_len - q_len. */
struct key_range { int begin, end; };
__device__ __forceinline__ struct key_range visible_keys(int offset, int first, int last, int window)
{
    return { window > 0 ? max(0, offset + first - window + 1) : 0, offset + last + 1 };
}

/* 2^x by the special-function unit; results below 2^-126 are zero. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Largest and sum over the four lanes that share a row of an mma fragment. */
__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* The wgmma version, attn_prefill_sm90.cu. ERR_UNSUPPORTED: the shape is not one of its own. */
int ELEM_NAME(launch_attn_prefill_sm90)(const struct attn_prefill_kernel *a, const struct launch *l);

#endif
