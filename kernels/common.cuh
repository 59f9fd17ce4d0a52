/* common.cuh - what the kernels share: the element type, dependent launch, 16-byte loads, reductions, mma. Each with its
 * why. Private to kernels/. */
#ifndef SLUICE_KERNELS_COMMON_CUH
#define SLUICE_KERNELS_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <sluice/kernels.h>

constexpr int WARP = 32;

/* ---- the element type: what matrices, activations, K and V are made of ----
 * A file that touches elements is compiled twice (ELEMENT_OPS in CMakeLists.txt), the second time with SLUICE_ELEM_F16. What it launches
 * with has a name for each, ELEM_NAME(launch_x); the door of kernels.h chooses between them, ELEM_DOOR. All else is in an unnamed
 * namespace, so that the two do not meet. */

#ifndef SLUICE_ELEM_F16
using elem = __nv_bfloat16;
using elem2 = __nv_bfloat162;
#define ELEM_NAME(name) name##_bf16
#define ELEM_DOOR(name, args)                                                                              \
    extern "C" int name##_f16(const struct args *a, const struct launch *l);                               \
    extern "C" int name(const struct args *a, const struct launch *l) { return l->f16 ? name##_f16(a, l) : name##_bf16(a, l); }
#define ELEM_PLANNED_DOOR(name, args, plan)                                                                \
    extern "C" int name##_f16(const struct args *a, const struct plan *p, const struct launch *l);         \
    extern "C" int name(const struct args *a, const struct plan *p, const struct launch *l)                \
    {                                                                                                      \
        return l->f16 ? name##_f16(a, p, l) : name##_bf16(a, p, l);                                        \
    }
#define ELEM_PTX "bf16"
#define ELEM_TENSOR_MAP CU_TENSOR_MAP_DATA_TYPE_BFLOAT16

__device__ __forceinline__ elem to_elem(float x) { return __float2bfloat16(x); }
__device__ __forceinline__ elem2 to_elem2(float low, float high) { return __floats2bfloat162_rn(low, high); }
__device__ __forceinline__ float2 to_float2(elem2 x) { return __bfloat1622float2(x); }
__device__ __forceinline__ float2 to_finite2(elem2 x) { return to_float2(x); }
#else
using elem = __half;
using elem2 = __half2;
#define ELEM_NAME(name) name##_f16
#define ELEM_DOOR(name, args)
#define ELEM_PLANNED_DOOR(name, args, plan)
#define ELEM_PTX "f16"
#define ELEM_TENSOR_MAP CU_TENSOR_MAP_DATA_TYPE_FLOAT16

/* What is beyond +-65504 becomes +-65504: an infinity would come back as NaN from the next product. NaN stays NaN. */
__device__ __forceinline__ elem to_elem(float x)
{
    __half_raw y;
    asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(y.x) : "f"(x));
    return y;
}
__device__ __forceinline__ elem2 to_elem2(float low, float high)
{
    uint32_t y;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return *reinterpret_cast<elem2 *>(&y);
}
__device__ __forceinline__ float2 to_float2(elem2 x) { return __half22float2(x); }
/* The same of what the library or the communicator wrote: these let sums overflow. */
__device__ __forceinline__ float2 to_finite2(elem2 x)
{
    return to_float2(__hmax2_nan(__hmin2_nan(x, __float2half2_rn(65504.0f)), __float2half2_rn(-65504.0f)));
}
#endif

__device__ __forceinline__ uint32_t pack_elem(float low, float high)
{
    elem2 pair = to_elem2(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}

/* ---- programmatic dependent launch (kernels.h says the rule) ---- */

__device__ __forceinline__ void pdl_trigger()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void pdl_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* One launch of clusters of so many blocks (x; 1: none), with the dependent-launch attribute where asked for. Returns 0 or ERR_INTERNAL. */
template <typename... Params, typename... Args>
static int launch_clusters(const struct launch *l, int cluster, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, Args... args)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = (cudaStream_t)l->stream;
    config.attrs = attributes;
    if (cluster > 1) {
        cudaLaunchAttribute *attribute = &attributes[config.numAttrs++];
        attribute->id = cudaLaunchAttributeClusterDimension;
        attribute->val.clusterDim.x = (unsigned)cluster;
        attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    }
    if (l->pdl && l->sm >= 90) {
        cudaLaunchAttribute *attribute = &attributes[config.numAttrs++];
        attribute->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute->val.programmaticStreamSerializationAllowed = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...) == cudaSuccess ? 0 : ERR_INTERNAL;
}

template <typename... Params, typename... Args>
static int launch_kernel(const struct launch *l, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, Args... args)
{
    return launch_clusters(l, 1, kernel, grid, block, smem, args...);
}

/* ---- loads ---- */

__device__ __forceinline__ void prefetch_l1(const void *at) { asm volatile("prefetch.global.L1 [%0];" :: "l"(at)); }

/* Eight elements in one 16-byte access: the widest a thread can do. */
union elem8 { uint4 raw; elem2 pair[4]; };

/* Data that is read once by this kernel and by nobody soon after (weights): does not push others out of L1. */
__device__ __forceinline__ uint4 load_once(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

/* ---- reductions: a fixed tree, so a row's result does not depend on its neighbours ---- */

__device__ __forceinline__ float warp_sum(float x)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ __forceinline__ float warp_max(float x)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* Sum over the block; every thread gets it. scratch: at least one float per warp in shared memory, free to reuse after the next
 * __syncthreads(). */
__device__ __forceinline__ float block_sum(float x, float *scratch)
{
    int warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < warps ? scratch[threadIdx.x % WARP] : 0.0f;
    return warp_sum(x);
}

/* ---- tensor cores of sm_80 and newer: D[16,8] += A[16,16] * B[16,8], elements in, fp32 sums ---- */

__device__ __forceinline__ void mma_elem(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ELEM_PTX "." ELEM_PTX ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif
