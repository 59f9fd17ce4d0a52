/* gpu.h - what the kernel tests share: is there a GPU, device copies, random elements, comparison. Header of one test program. */
#ifndef SLUICE_TESTS_KERNELS_GPU_H
#define SLUICE_TESTS_KERNELS_GPU_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/kernels.h>

#include "base/bf16.h"
#include "base/half.h"

enum { GPU_SKIP = 77 };            /* ctest: skipped */

#define CUDA_MUST(call) do { cudaError_t e_ = (call); \
    if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_)); abort(); } } while (0)

/* First line of main: returns from it with GPU_SKIP and a reason where there is no GPU. */
static inline int gpu_absent(void)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) return 0;
    printf("skipped: no GPU here (%s)\n", e == cudaSuccess ? "0 devices" : cudaGetErrorString(e));
    return 1;
}

/* The element type under test: every test runs with both. */
static bool gpu_f16;
enum { GPU_KINDS = 2 };
static inline void gpu_kind(int kind)
{
    gpu_f16 = kind == 1;
    printf("# %s\n", gpu_f16 ? "f16" : "bf16");
}
/* Under compute-sanitizer all cases would take hours: SLUICE_KERNEL_CASES=i/n runs every n-th of a program's cases, from the i-th on.
 * true: this one's turn. */
static inline bool gpu_turn(void)
{
    static int count;
    const char *share = getenv("SLUICE_KERNEL_CASES");
    int i = 0, n = 1;

    if (share && (sscanf(share, "%d/%d", &i, &n) != 2 || n < 1 || i < 0 || i >= n)) {
        fprintf(stderr, "SLUICE_KERNEL_CASES=%s is not i/n with 0 <= i < n\n", share);
        exit(2);
    }
    return count++ % n == i;
}

/* What a tolerance for bf16 is for the type under test: f16 has three bits more. */
static inline double gpu_tolerance(double of_bf16) { return gpu_f16 ? of_bf16 / 8 : of_bf16; }
/* One rounding of the type under test; f16 has denormals where bf16 has none to speak of. */
static inline double gpu_rounding(double value) { return gpu_tolerance(0x1.02p-8) * fabs(value) + (gpu_f16 ? 0x1p-24 : 0); }

static inline struct launch gpu_launch(int pdl)
{
    struct cudaDeviceProp p;
    CUDA_MUST(cudaGetDeviceProperties(&p, 0));
    return (struct launch){ .stream = NULL, .sm = p.major * 10 + p.minor, .num_sms = p.multiProcessorCount, .pdl = pdl, .f16 = gpu_f16 };
}

/* Waits for the device; aborts on any error of the launches before. */
static inline void gpu_sync(void) { CUDA_MUST(cudaGetLastError()); CUDA_MUST(cudaDeviceSynchronize()); }

static inline void *gpu_new(size_t bytes)                  /* poisoned: what a kernel forgets to write shows as NaN */
{
    void *p;
    CUDA_MUST(cudaMalloc(&p, bytes ? bytes : 16));
    CUDA_MUST(cudaMemset(p, 0xFF, bytes ? bytes : 16));
    return p;
}
static inline void *gpu_copy(const void *host, size_t bytes)
{
    void *p = gpu_new(bytes);
    CUDA_MUST(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}
static inline void gpu_read(void *host, const void *device, size_t bytes) { CUDA_MUST(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost)); }
static inline void gpu_free(void *p) { CUDA_MUST(cudaFree(p)); }

/* ---- elements on the host ---- */
static inline uint16_t to_elem(float x) { return gpu_f16 ? half_from_f32(x) : bf16_from_f32(x); }
static inline float of_elem(uint16_t h) { return gpu_f16 ? half_to_f32(h) : bf16_to_f32(h); }

static inline uint64_t rng_next(uint64_t *state)           /* splitmix64 */
{
    uint64_t x = *state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}
static inline double rng_uniform(uint64_t *state) { return (double)(rng_next(state) >> 11) * 0x1p-53; }
static inline float rng_normal(uint64_t *state)
{
    double u = rng_uniform(state), v = rng_uniform(state);
    return (float)(sqrt(-2 * log(u + 1e-300)) * cos(6.283185307179586 * v));
}

/* n normal numbers times scale, rounded to elements: as[] the values, raw[] the bits; either may be NULL. */
static inline void random_elem(uint64_t *state, float scale, float *as, uint16_t *raw, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = to_elem(scale * rng_normal(state));
        if (raw) raw[i] = h;
        if (as) as[i] = of_elem(h);
    }
}

/* |a - b|_2 / |b|_2 of a (elements) against b; NaN where a has one. */
static inline double relative_error_elem(const uint16_t *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) { double x = (double)of_elem(a[i]) - b[i]; d += x * x; s += (double)b[i] * b[i]; }
    return s > 0 ? sqrt(d / s) : sqrt(d);
}
static inline double relative_error_f32(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) { double x = (double)a[i] - b[i]; d += x * x; s += (double)b[i] * b[i]; }
    return s > 0 ? sqrt(d / s) : sqrt(d);
}

#endif
