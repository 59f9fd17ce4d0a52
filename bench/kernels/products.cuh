/* products.cuh - what the benches of matrix products share: shapes, random weights, the launch, and how many copies of a weight are
 * cold. */
#ifndef SLUICE_BENCH_KERNELS_PRODUCTS_CUH
#define SLUICE_BENCH_KERNELS_PRODUCTS_CUH

#include "bench.cuh"

#include <cuda_bf16.h>

#include <sluice/kernels.h>

struct shape { const char *model, *name; int n, k; bool f32, silu; };

static const size_t WEIGHT_BYTES = (size_t)2200 << 20;     /* of all copies */

/* About N(0, s): sum of four uniform numbers. */
static __global__ void fill(__nv_bfloat16 *p, size_t n, float s)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned long long x = (i + 1) * 0x9E3779B97F4A7C15ull;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
        float sum = (float)(x & 0xFFFF) + (float)(x >> 16 & 0xFFFF) + (float)(x >> 32 & 0xFFFF) + (float)(x >> 48);
        p[i] = __float2bfloat16((sum / 65536 - 2) * 1.73f * s);
    }
}

static inline launch device_launch(bool pdl)
{
    static const launch l = [] {
        cudaDeviceProp p;
        launch here = {};
        BENCH_MUST(cudaGetDeviceProperties(&p, 0));
        here.sm = p.major * 10 + p.minor;
        here.num_sms = p.multiProcessorCount;
        return here;
    }();
    launch asked = l;
    asked.pdl = pdl;
    return asked;
}

static inline void must(int rc, const char *what) { if (rc < 0) { fprintf(stderr, "%s: error %d\n", what, rc); exit(1); } }
static inline size_t weight_bytes(const shape &s) { return (size_t)s.n * s.k * 2; }

/* Copies of the weight so that a round over them is several L2s. */
static inline int copies_of(const shape &s)
{
    return (int)std::max<size_t>(1, std::min<size_t>(WEIGHT_BYTES / weight_bytes(s), ((size_t)300 << 20) / weight_bytes(s) + 1));
}

#endif
