/* attn_prefill_bench.cu - prefill attention: TFLOP/s over 4 H D (sum of visible keys), and % of the 790 TFLOP/s that a bf16 matrix
 * product reaches on an H200. With an argument "mma": the mma.sync version; a second
 * argument: only cases whose name contains it. Last line: host time of one launch. */
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include <cuda_bf16.h>
#include <sluice/kernels.h>

#include "bench.cuh"

constexpr double CEILING = 790;

/* Nearly normal numbers (sum of four uniform ones), standard deviation 1. */
static __global__ void fill_normal(__nv_bfloat16 *x, size_t n, uint64_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t h = (i + seed) * 0x9E3779B97F4A7C15u;
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
        h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
        h ^= h >> 31;
        float sum = 0;
        for (int part = 0; part < 4; part++) sum += (float)((h >> (16 * part)) & 0xFFFF) / 65536.0f - 0.5f;
        x[i] = __float2bfloat16(sum * 1.7320508f);
    }
}

struct bench_case { const char *name; int head_dim, heads, kv_heads, num_seqs, q_len, context; };

static const bench_case cases[] = {
    { "512", 128, 32, 8, 1, 512, 512 },
    { "1k", 128, 32, 8, 1, 1024, 1024 },
    { "1k, group 2", 128, 16, 8, 1, 1024, 1024 },
    { "1k, head 64, group 3", 64, 9, 3, 1, 1024, 1024 },
    { "2k", 128, 32, 8, 1, 2048, 2048 },
    { "8k", 128, 32, 8, 1, 8192, 8192 },
    { "32k", 128, 32, 8, 1, 32768, 32768 },
    { "8 x 1k", 128, 32, 8, 8, 1024, 1024 },
    { "32 x 256", 128, 32, 8, 32, 256, 256 },
    { "2k at 32k", 128, 32, 8, 1, 2048, 32768 },
    { "8k, no groups", 128, 32, 32, 1, 8192, 8192 },
    { "8k, group 8", 128, 64, 8, 1, 8192, 8192 },
    { "8k, head 64", 64, 32, 8, 1, 8192, 8192 },
    { "8 x 1k, head 64", 64, 32, 8, 8, 1024, 1024 },
    { "8k, head 256", 256, 16, 4, 1, 8192, 8192 },
};

template <typename T> static T *on_device(const std::vector<T> &x)
{
    T *p;
    BENCH_MUST(cudaMalloc(&p, x.size() * sizeof(T)));
    BENCH_MUST(cudaMemcpy(p, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

static __nv_bfloat16 *random_on_device(size_t n, uint64_t seed)
{
    __nv_bfloat16 *p;
    BENCH_MUST(cudaMalloc(&p, n * sizeof *p));
    fill_normal<<<1024, 256>>>(p, n, seed);
    BENCH_MUST(cudaGetLastError());
    return p;
}

static void run(const bench_case &c, struct launch l, const char *version, bool host_time)
{
    constexpr int BLOCK = 64;
    int blocks_per_seq = (c.context + BLOCK - 1) / BLOCK, num_blocks = blocks_per_seq * c.num_seqs, tokens = c.q_len * c.num_seqs;
    int64_t q_stride = (int64_t)(c.heads + 2 * c.kv_heads) * c.head_dim;
    size_t pool = (size_t)num_blocks * BLOCK * c.kv_heads * c.head_dim, out_count = (size_t)tokens * c.heads * c.head_dim;
    std::vector<int32_t> cu(c.num_seqs + 1), contexts(c.num_seqs, c.context), tables(num_blocks);
    std::mt19937 rng(1);
    double visible = 0;

    for (int i = 0; i < num_blocks; i++) tables[i] = i;
    std::shuffle(tables.begin(), tables.end(), rng);
    for (int i = 0; i <= c.num_seqs; i++) cu[i] = i * c.q_len;
    for (int q = 0; q < c.q_len; q++) visible += (double)c.num_seqs * (c.context - c.q_len + q + 1);

    struct attn_prefill_kernel a = {};
    a.q = random_on_device((size_t)tokens * q_stride, 1);
    a.q_stride = q_stride;
    a.out = random_on_device(out_count, 2);
    a.kv = { random_on_device(pool, 3), random_on_device(pool, 5), on_device(tables), blocks_per_seq, BLOCK, num_blocks };
    a.cu_seqlens_q = on_device(cu);
    a.context_lens = on_device(contexts);
    a.num_seqs = c.num_seqs;
    a.max_q_len = c.q_len;
    a.num_heads = c.heads;
    a.num_kv_heads = c.kv_heads;
    a.head_dim = c.head_dim;
    a.scale = 1.0f / sqrtf((float)c.head_dim);
    a.num_tokens = tokens;
    auto launch_once = [&](cudaStream_t stream) {
        l.stream = stream;
        if (launch_attn_prefill(&a, &l)) { fprintf(stderr, "%s: launch failed\n", c.name); exit(1); }
    };
    BENCH_MUST(cudaDeviceSynchronize());
    if (host_time) {
        launch_once(nullptr);
        BENCH_MUST(cudaDeviceSynchronize());
        auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < 200; i++) launch_once(nullptr);
        double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / 200;
        printf("{\"op\":\"attn_prefill\",\"case\":\"%s\",\"host_us_per_launch\":%.2f}\n", c.name, us);
        BENCH_MUST(cudaDeviceSynchronize());
    } else {
        double flops = 4.0 * c.heads * c.head_dim * visible;
        int n = (int)std::min(20.0, std::max(1.0, 2e12 / flops));
        double us = bench_us(n, 9, [&](int, cudaStream_t stream) { launch_once(stream); });
        bench_line("attn_prefill", (std::string(version) + ", " + c.name + (", " + std::to_string((int)std::lround(100 * flops / us * 1e-6 / CEILING)) + "% of 790")).c_str(), us, 0, flops);
    }
    for (const void *p : { a.q, (const void *)a.out, a.kv.k, a.kv.v, (const void *)a.kv.block_tables, (const void *)a.cu_seqlens_q, (const void *)a.context_lens })
        BENCH_MUST(cudaFree(const_cast<void *>(p)));
}

int main(int argc, char **argv)
{
    cudaDeviceProp device;
    struct launch l = {};
    bool mma = argc > 1 && !strcmp(argv[1], "mma");

    BENCH_MUST(cudaGetDeviceProperties(&device, 0));
    l.sm = mma ? 80 : device.major * 10 + device.minor;
    l.num_sms = device.multiProcessorCount;
    l.pdl = !mma;
    for (const bench_case &c : cases)
        if (argc <= 2 || strstr(c.name, argv[2])) run(c, l, mma ? "mma" : "native", false);
    run(cases[0], l, "", true);
}
