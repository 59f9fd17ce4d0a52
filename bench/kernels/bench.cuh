/* bench.cuh - timing shared by the kernel benches: median over replays of a captured graph, L2 flushed by rotation of inputs.
 * Prints one JSON line per case: op, shape, microseconds, GB/s or TFLOP/s, device, clocks. */
#ifndef SLUICE_BENCH_KERNELS_BENCH_CUH
#define SLUICE_BENCH_KERNELS_BENCH_CUH

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include <cuda_runtime.h>

#define BENCH_MUST(call) do { cudaError_t e_ = (call); \
    if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_)); exit(1); } } while (0)

/* n zeroed elements of device memory; the benches keep theirs to the end. */
template <typename T> static T *device_new(size_t n)
{
    void *p;
    BENCH_MUST(cudaMalloc(&p, n * sizeof(T)));
    BENCH_MUST(cudaMemset(p, 0, n * sizeof(T)));
    return (T *)p;
}

/* Median microseconds of one call of fn(i, stream). Calls i = 0..n-1 are captured into one graph (rotate input copies by i so
 * that together they exceed the L2 several times), replayed `replays` times; each replay is divided by n. */
static inline double bench_us(int n, int replays, const std::function<void(int, cudaStream_t)> &fn)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    std::vector<float> ms(replays);
    BENCH_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    BENCH_MUST(cudaEventCreate(&begin));
    BENCH_MUST(cudaEventCreate(&end));
    fn(0, stream);                                         /* modules loaded, attributes set */
    BENCH_MUST(cudaStreamSynchronize(stream));
    BENCH_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < n; i++) fn(i, stream);
    BENCH_MUST(cudaStreamEndCapture(stream, &graph));
    BENCH_MUST(cudaGraphInstantiate(&exec, graph, 0));
    BENCH_MUST(cudaGraphLaunch(exec, stream));
    for (int r = 0; r < replays; r++) {
        BENCH_MUST(cudaEventRecord(begin, stream));
        BENCH_MUST(cudaGraphLaunch(exec, stream));
        BENCH_MUST(cudaEventRecord(end, stream));
        BENCH_MUST(cudaEventSynchronize(end));
        BENCH_MUST(cudaEventElapsedTime(&ms[r], begin, end));
    }
    std::sort(ms.begin(), ms.end());
    BENCH_MUST(cudaGraphExecDestroy(exec));
    BENCH_MUST(cudaGraphDestroy(graph));
    BENCH_MUST(cudaStreamDestroy(stream));
    return ms[replays / 2] * 1000.0 / n;
}

/* {"op":..., "case":..., "us":..., "gb_s":..., "tflop_s":..., "device":...}; bytes or flops 0 = leave out. */
static inline void bench_line(const char *op, const char *name, double us, double bytes, double flops)
{
    cudaDeviceProp p;
    BENCH_MUST(cudaGetDeviceProperties(&p, 0));
    printf("{\"op\":\"%s\",\"case\":\"%s\",\"us\":%.2f", op, name, us);
    if (bytes > 0) printf(",\"gb_s\":%.0f", bytes / us * 1e-3);
    if (flops > 0) printf(",\"tflop_s\":%.1f", flops / us * 1e-6);
    printf(",\"device\":\"%s\"}\n", p.name);
    fflush(stdout);
}

#endif
