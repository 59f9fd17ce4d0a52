/* attn_decode_bench.cu - decode attention at the shapes of the models: microseconds, GB/s of KV, % of the read ceiling of this run.
 *   attn_decode_bench [quick | short]      quick: without the cases of many gigabytes; short: contexts of a few hundred tokens only
 * A case is a chain: small kernel, attention, small kernel, ... with dependent launch; the small kernel alone is a case of its own.
 * KV lies in random blocks of a pool far larger than the L2; small cases rotate over several sets of tables. */
#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include <sluice/kernels.h>

#include "attn_decode_cases.cuh"
#include "bench.cuh"
#include "common.cuh"

static const model SMOL = { "SmolLM2", 9, 3, 64 };

__global__ void __launch_bounds__(512) read_all(const uint4 *p, size_t n, uint4 *sink)
{
    uint4 x = make_uint4(0, 0, 0, 0);
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i + 7 * step < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(p + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++) { x.x ^= v[j].x; x.y ^= v[j].y; x.z ^= v[j].z; x.w ^= v[j].w; }
    }
    if (x.x == 0x12345678 && x.y == 0x9ABCDEF0) *sink = x;
}

/* What stands between two layers' attentions: small, launched dependently like them. */
__global__ void __launch_bounds__(256) small_kernel(uint4 *p)
{
    pdl_trigger();
    pdl_wait();
    p[blockIdx.x * 256 + threadIdx.x].x = 0x3F803F80u;
}

/* The same in blocks of 16 KiB, in the order of a table: what random places cost. */
__global__ void __launch_bounds__(512) read_blocks(const uint4 *p, const int32_t *table, int n, uint4 *sink)
{
    uint4 x = make_uint4(0, 0, 0, 0);
    for (int i = blockIdx.x * 4; i + 3 < n; i += gridDim.x * 4) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(p + (size_t)table[i + j / 2] * 1024 + j % 2 * 512 + threadIdx.x);
#pragma unroll
        for (int j = 0; j < 8; j++) { x.x ^= v[j].x; x.y ^= v[j].y; x.z ^= v[j].z; x.w ^= v[j].w; }
    }
    if (x.x == 0x12345678 && x.y == 0x9ABCDEF0) *sink = x;
}

struct bench {
    cudaDeviceProp device;
    size_t pool_bytes;                                         /* of K, and of V */
    uint8_t *k, *v, *q, *out;
    void *workspace, *plan;
    int32_t *lens, *tables;
    size_t tables_room;
    double ceiling;                                            /* bytes per microsecond */
    int pdl;
};

static void run(bench &b, const model &m, const char *what, const std::vector<int32_t> &lens, int block_size, int replays)
{
    int B = (int)lens.size(), per_seq = 0;
    int64_t tokens = 0, used = 0;
    size_t block_bytes = (size_t)m.Hk * block_size * m.D * 2;
    for (int32_t len : lens) {
        tokens += len;
        used += (len + block_size - 1) / block_size;
        per_seq = std::max(per_seq, (len + block_size - 1) / block_size);
    }
    double bytes = (double)tokens * m.Hk * m.D * 4;
    int64_t pool = (int64_t)(b.pool_bytes / block_bytes);
    int copies = (int)std::max<int64_t>(1, std::min<int64_t>({ 48, pool / used, (int64_t)(1.5e9 / bytes) }));
    size_t table = (size_t)B * per_seq;
    if (used > pool || table * copies > b.tables_room) {
        printf("{\"op\":\"attn_decode\",\"case\":\"%s %s\",\"skipped\":\"does not fit\"}\n", m.name, what);
        return;
    }
    pool = std::min<int64_t>(pool, std::max<int64_t>(used * copies, (int64_t)(2e9 / block_bytes)));
    std::vector<int32_t> order(pool), tables(table * copies, 0);
    std::mt19937 rng(1);
    for (int64_t i = 0; i < pool; i++) order[i] = (int32_t)i;
    std::shuffle(order.begin(), order.end(), rng);
    size_t next = 0;
    for (int c = 0; c < copies; c++)
        for (int i = 0; i < B; i++)
            for (int n = 0; n * block_size < lens[i]; n++) tables[c * table + (size_t)i * per_seq + n] = order[next++];
    BENCH_MUST(cudaMemcpy(b.tables, tables.data(), tables.size() * 4, cudaMemcpyHostToDevice));
    BENCH_MUST(cudaMemcpy(b.lens, lens.data(), B * 4, cudaMemcpyHostToDevice));

    upload_plan(b.plan, m, lens, b.device.multiProcessorCount);

    attn_decode_kernel a = decode_of(m, B);
    a.q = b.q;
    a.out = b.out;
    a.kv = { b.k, b.v, b.tables, per_seq, block_size, pool };
    a.context_lens = b.lens;
    a.plan = b.plan;
    a.workspace = b.workspace;
    int calls = copies < 4 && bytes < 1e9 ? 4 : copies;
    double us = bench_us(calls, replays, [&](int i, cudaStream_t stream) {
        launch l = { stream, b.device.major * 10 + b.device.minor, b.device.multiProcessorCount, b.pdl != 0 };
        if (b.pdl && launch_kernel(&l, small_kernel, dim3(l.num_sms), dim3(256), 0, (uint4 *)b.q)) exit(1);
        attn_decode_kernel one = a;
        one.kv.block_tables = b.tables + (size_t)(i % copies) * table;
        if (launch_attn_decode(&one, &l)) { fprintf(stderr, "launch failed\n"); exit(1); }
    });
    char name[128];
    snprintf(name, sizeof name, "%s %s block %d%s, %.1f%% of read", m.name, what, block_size, b.pdl ? " chained" : "", 100 * bytes / us / b.ceiling);
    bench_line("attn_decode", name, us, bytes, 0);
}

/* Half of the sequences short, a long tail: the mean stays about `mean`. */
static std::vector<int32_t> spread(int n, int32_t mean)
{
    std::vector<int32_t> lens(n);
    std::mt19937 rng(7);
    std::exponential_distribution<double> tail(1.0 / mean);
    for (int32_t &len : lens) len = 1 + (int32_t)std::min(tail(rng), 8.0 * mean);
    return lens;
}

/* What decode steps see soon after short prompts. */
static void run_short(bench &b)
{
    run(b, L8B, "1 x 256", even(1, 256), 64, 21);
    run(b, L8B, "8 x 256", even(8, 256), 64, 21);
    run(b, L8B, "64 x 256", even(64, 256), 64, 11);
    run(b, L8B, "64 x 268", even(64, 268), 64, 11);
    run(b, L8B, "64 x 128 to 384", between(64, 128, 384), 64, 11);
    run(b, L8B, "128 x 256", even(128, 256), 64, 11);
    run(b, L8B, "128 x 128 to 384", between(128, 128, 384), 64, 11);
    run(b, L8B, "256 x 128", even(256, 128), 64, 11);
    run(b, L8B, "256 x 200", even(256, 200), 64, 11);
    run(b, L8B, "256 x 256", even(256, 256), 64, 11);
    run(b, L8B, "256 x 268", even(256, 268), 64, 11);
    run(b, L8B, "256 x 384", even(256, 384), 64, 11);
    run(b, L8B, "256 x 128 to 384", between(256, 128, 384), 64, 11);
    run(b, Q06B, "1 x 256", even(1, 256), 64, 21);
    run(b, Q06B, "64 x 256", even(64, 256), 64, 11);
    run(b, Q06B, "256 x 256", even(256, 256), 64, 11);
    run(b, Q06B, "256 x 128 to 384", between(256, 128, 384), 64, 11);
    run(b, SMOL, "1 x 256", even(1, 256), 64, 21);
    run(b, SMOL, "64 x 256", even(64, 256), 64, 11);
    run(b, SMOL, "256 x 256", even(256, 256), 64, 11);
    run(b, SMOL, "256 x 268", even(256, 268), 64, 11);
    run(b, SMOL, "256 x 128 to 384", between(256, 128, 384), 64, 11);
}

int main(int argc, char **argv)
{
    bool only_short = argc > 1 && !strcmp(argv[1], "short"), quick = only_short || (argc > 1 && !strcmp(argv[1], "quick"));
    bench b = {};
    BENCH_MUST(cudaGetDeviceProperties(&b.device, 0));
    size_t free_bytes, total;
    BENCH_MUST(cudaMemGetInfo(&free_bytes, &total));
    b.pool_bytes = std::min<size_t>(quick ? 4ull << 30 : 18ull << 30, free_bytes / 5 * 2) >> 20 << 20;
    b.tables_room = 8 << 20;
    b.pdl = 1;
    size_t q_bytes = 512ull * 64 * 128 * 2, workspace = attn_decode_workspace_bytes(256, b.device.multiProcessorCount) * 2;
    BENCH_MUST(cudaMalloc(&b.k, b.pool_bytes));
    BENCH_MUST(cudaMalloc(&b.v, b.pool_bytes));
    BENCH_MUST(cudaMalloc(&b.q, q_bytes));
    BENCH_MUST(cudaMalloc(&b.out, q_bytes));
    BENCH_MUST(cudaMalloc(&b.workspace, workspace));
    BENCH_MUST(cudaMemset(b.workspace, 0, workspace));
    BENCH_MUST(cudaMalloc(&b.plan, attn_decode_plan_bytes(b.device.multiProcessorCount)));
    BENCH_MUST(cudaMalloc(&b.lens, 4096 * 4));
    BENCH_MUST(cudaMalloc(&b.tables, b.tables_room * 4));
    fill<<<2048, 256>>>((uint4 *)b.k, b.pool_bytes / 16);
    fill<<<2048, 256>>>((uint4 *)b.v, b.pool_bytes / 16);
    fill<<<2048, 256>>>((uint4 *)b.q, q_bytes / 16);
    BENCH_MUST(cudaGetLastError());
    BENCH_MUST(cudaDeviceSynchronize());

    size_t bytes = std::min<size_t>(b.pool_bytes, 4ull << 30);
    double us = bench_us(1, 9, [&](int, cudaStream_t s) { read_all<<<b.device.multiProcessorCount * 4, 512, 0, s>>>((const uint4 *)b.k, bytes / 16, (uint4 *)b.out); });
    b.ceiling = bytes / us;
    bench_line("read", "4 GiB", us, (double)bytes, 0);

    us = bench_us(32, 21, [&](int, cudaStream_t s) {
        launch l = { s, b.device.major * 10 + b.device.minor, b.device.multiProcessorCount, true };
        if (launch_kernel(&l, small_kernel, dim3(l.num_sms), dim3(256), 0, (uint4 *)b.q)) exit(1);
    });
    bench_line("small kernel", "chained", us, 0, 0);
    run_short(b);
    if (only_short) return 0;
    for (size_t some = 256 << 20; some <= b.pool_bytes && some <= 4ull << 30; some *= 4) {
        std::vector<int32_t> order(b.pool_bytes >> 14);
        std::mt19937 rng(3);
        for (size_t i = 0; i < order.size(); i++) order[i] = (int32_t)i;
        std::shuffle(order.begin(), order.end(), rng);
        BENCH_MUST(cudaMemcpy(b.tables, order.data(), std::min(order.size(), b.tables_room) * 4, cudaMemcpyHostToDevice));
        us = bench_us(4, 7, [&](int i, cudaStream_t s) {
            size_t n = some >> 14, first = order.size() / 4 * i;
            if (first + n > order.size()) first = 0;
            read_blocks<<<b.device.multiProcessorCount * 4, 512, 0, s>>>((const uint4 *)b.k, b.tables + first, (int)n, (uint4 *)b.out); });
        char name[48];
        snprintf(name, sizeof name, "%zu MiB in random blocks of 16 KiB", some >> 20);
        bench_line("read", name, us, (double)some, 0);
    }
    for (size_t some = 64 << 20; some <= 1 << 30; some *= 4) {
        us = bench_us(4, 9, [&](int i, cudaStream_t s) {
            read_all<<<b.device.multiProcessorCount * 4, 512, 0, s>>>((const uint4 *)(b.k + i % 4 * (b.pool_bytes / 4)), some / 16, (uint4 *)b.out); });
        char name[32];
        snprintf(name, sizeof name, "%zu MiB", some >> 20);
        bench_line("read", name, us, (double)some, 0);
    }
    run(b, L8B, "1 x 128", even(1, 128), 64, 21);
    run(b, L8B, "1 x 1k", even(1, 1024), 64, 21);
    run(b, L8B, "1 x 4k", even(1, 4096), 64, 21);
    run(b, L8B, "1 x 32k", even(1, 32768), 64, 21);
    run(b, L8B, "8 x 1k", even(8, 1024), 64, 21);
    run(b, L8B, "64 x 1k", even(64, 1024), 64, 11);
    run(b, L8B, "64 x 1000 spread", spread(64, 1000), 64, 11);
    run(b, L8B, "256 x 1k", even(256, 1024), 64, 7);
    run(b, L8B, "256 x 1k", even(256, 1024), 16, 7);
    run(b, L8B, "256 x 1000 spread", spread(256, 1000), 64, 7);
    run(b, L8B, "32k beside 255 x 128", one_long(256, 32768, 128), 64, 7);
    run(b, L8B, "32k beside 63 x 1k", one_long(64, 32768, 1024), 64, 7);
    run(b, L8B, "64 x 4k", even(64, 4096), 64, 7);
    run(b, L8B, "128 x 4k", even(128, 4096), 64, 7);
    if (!quick) {
        run(b, L8B, "256 x 4k", even(256, 4096), 64, 5);
        run(b, L8B, "64 x 32k", even(64, 32768), 64, 5);
        run(b, L8B, "128 x 32k", even(128, 32768), 64, 3);
        run(b, L8B, "256 x 32k", even(256, 32768), 64, 3);
        run(b, L8B, "256 x 8k spread", spread(256, 8192), 64, 3);
    }
    run(b, Q06B, "256 x 1k", even(256, 1024), 64, 7);
    run(b, SMOL, "256 x 1k", even(256, 1024), 64, 11);
    run(b, SMOL, "256 x 1000 spread", spread(256, 1000), 64, 11);
    return 0;
}
