/* attn_decode_step_bench.cu - decode attention as a step of the engine runs it, and when its ctas get where.
 *   attn_decode_step_bench [timeline]
 * A layer is a product that fills every multiprocessor for 5 us, rope_store, attention; each layer has K and V of its own, a sequence's
 * blocks follow each other as the engine hands them out, launches are dependent. What attention takes is a captured chain with it less
 * the same chain without it. timeline: microseconds from the first cta's start to each cta's start, first issue, end of the
 * wait for the predecessor, first full stage, last issue, end; of the last launch. */
#include <cmath>
#include <cstring>
#include <random>

#include <sluice/kernels.h>

#include "attn_decode_cases.cuh"
#include "bench.cuh"

enum { MARK_START, MARK_ISSUE, MARK_WAITED, MARK_FULL, MARK_END, MARK_ISSUED = MARK_END + 4, NUM_MARKS };       /* ends of four warps */
typedef unsigned long long marks[NUM_MARKS];
__constant__ marks *attn_decode_marks;                         /* [grid]; NULL: nothing is noted */
#define ATTN_DECODE_MARK(event) note(event)
static __device__ __forceinline__ void note(int event)
{
    if (!attn_decode_marks || threadIdx.x % 32) return;
    unsigned long long now, *to = attn_decode_marks[blockIdx.x];
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (event == MARK_START) to[MARK_FULL] = 0;
    if (event != MARK_FULL || to[event] == 0) to[event] = now;
}
#include "attn_decode.cu"

enum { BLOCK = 64, POOL_BLOCKS = 8192, MOST_LAYERS = 16, WEIGHTS_BYTES = 8 << 20, PRODUCT_NS = 5000, PRODUCT_SMEM = 100 << 10, PRODUCT_THREADS = 1024 };

/* Two ctas take all threads of a multiprocessor; weights are read, then time passes. */
__global__ void __launch_bounds__(PRODUCT_THREADS, 2) product(const uint4 *w, size_t n, uint4 *sink)
{
    extern __shared__ uint8_t room[];
    unsigned long long begin, now;
    uint4 x = make_uint4(0, 0, 0, 0);

    pdl_trigger();
    pdl_wait();
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        uint4 v = load_once(w + i);
        x.x ^= v.x; x.y ^= v.y; x.z ^= v.z; x.w ^= v.w;
    }
    room[threadIdx.x] = (uint8_t)x.x;
    do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); while (now - begin < PRODUCT_NS);
    if (x.x == 0x12345678 && x.y == 0x9ABCDEF0 && room[0]) *sink = x;
}

struct bench {
    int sms, sm;
    size_t pool_bytes;                                         /* of all layers' K, and of V */
    uint8_t *k, *v, *qkv, *out, *weights;
    void *workspace, *plan;
    int32_t *lens, *tables, *positions;
    int64_t *slots;
    float *cos_sin;
    marks *notes;                                              /* [2 * sms] */
};

static double chain_us(const bench &b, const model &m, attn_decode_kernel a, int layers, int replays, bool attention)
{
    size_t layer_bytes = (size_t)a.kv.num_blocks * m.Hk * BLOCK * m.D * 2;
    return bench_us(MOST_LAYERS / layers * layers, replays, [&](int i, cudaStream_t stream) {
        launch l = { stream, b.sm, b.sms, true, false };
        a.kv.k = b.k + i % layers * layer_bytes;
        a.kv.v = b.v + i % layers * layer_bytes;
        rope_store_kernel rope = { b.qkv, nullptr, nullptr, nullptr, b.cos_sin, b.positions, b.slots, (void *)a.kv.k, (void *)a.kv.v,
                                   a.num_seqs, m.H, m.Hk, m.D, BLOCK, 1e-6f };
        if (launch_kernel(&l, product, dim3(2 * b.sms), dim3(PRODUCT_THREADS), PRODUCT_SMEM, (const uint4 *)(b.weights + (size_t)i * WEIGHTS_BYTES),
                          (size_t)WEIGHTS_BYTES / 16, (uint4 *)b.out) || launch_rope_store(&rope, &l) || (attention && launch_attn_decode(&a, &l))) {
            fprintf(stderr, "launch failed\n");
            exit(1);
        }
    });
}

static void print_timeline(const bench &b, int grid)
{
    static const char *const names[] = { "start", "issue", "waited", "full", "end", 0, 0, 0, "issued" };
    std::vector<unsigned long long> all((size_t)grid * NUM_MARKS);
    unsigned long long zero = ~0ull;
    BENCH_MUST(cudaMemcpy(all.data(), b.notes, all.size() * 8, cudaMemcpyDeviceToHost));
    for (int c = 0; c < grid; c++) zero = std::min(zero, all[(size_t)c * NUM_MARKS]);
    for (int e : { 0 + MARK_START, 0 + MARK_ISSUE, 0 + MARK_WAITED, 0 + MARK_FULL, 0 + MARK_ISSUED, 0 + MARK_END }) {
        std::vector<double> t;
        for (int c = 0; c < grid; c++) {
            const unsigned long long *of = &all[(size_t)c * NUM_MARKS];
            unsigned long long at = e == MARK_END ? *std::max_element(of + MARK_END, of + MARK_END + 4) : of[e];
            if (at >= zero) t.push_back((double)(at - zero) * 1e-3);     /* ctas without work do not get everywhere */
        }
        std::sort(t.begin(), t.end());
        if (t.empty()) continue;
        size_t last = t.size() - 1;
        printf("{\"timeline\":\"%s\",\"ctas\":%zu,\"p0\":%.2f,\"p10\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p100\":%.2f}\n", names[e], t.size(), t[0],
               t[last / 10], t[last / 2], t[last * 9 / 10], t[last]);
    }
}

/* A sequence's first `prompt` tokens lie in neighbouring blocks, what came later in those that were next when it came. */
static void run(const bench &b, const model &m, const char *what, const std::vector<int32_t> &lens, int prompt, int most_layers, bool timeline)
{
    int B = (int)lens.size(), per_seq = 0, next = 0, first = (prompt + BLOCK - 1) / BLOCK;
    int64_t used = 0;
    double bytes = 0;
    for (int32_t len : lens) {
        per_seq = std::max(per_seq, (len + BLOCK - 1) / BLOCK);
        used += (len + BLOCK - 1) / BLOCK;
        bytes += (double)len * m.Hk * m.D * 4;
    }
    int64_t blocks = std::max<int64_t>(POOL_BLOCKS, used);
    int layers = (int)std::min<size_t>(most_layers, b.pool_bytes / ((size_t)blocks * m.Hk * BLOCK * m.D * 2));
    std::vector<int32_t> tables((size_t)B * per_seq, 0), positions(B);
    std::vector<int64_t> slots(B);
    for (int i = 0; i < B; i++)
        for (int n = 0; n < first && n * BLOCK < lens[i]; n++) tables[(size_t)i * per_seq + n] = next++;
    for (int n = first; n < per_seq; n++)
        for (int i = 0; i < B; i++)
            if (n * BLOCK < lens[i]) tables[(size_t)i * per_seq + n] = next++;
    for (int i = 0; i < B; i++) {
        positions[i] = lens[i] - 1;
        slots[i] = (int64_t)tables[(size_t)i * per_seq + positions[i] / BLOCK] * BLOCK + positions[i] % BLOCK;
    }
    upload_plan(b.plan, m, lens, b.sms);
    BENCH_MUST(cudaMemcpy(b.tables, tables.data(), tables.size() * 4, cudaMemcpyHostToDevice));
    BENCH_MUST(cudaMemcpy(b.lens, lens.data(), B * 4, cudaMemcpyHostToDevice));
    BENCH_MUST(cudaMemcpy(b.positions, positions.data(), B * 4, cudaMemcpyHostToDevice));
    BENCH_MUST(cudaMemcpy(b.slots, slots.data(), B * 8, cudaMemcpyHostToDevice));

    attn_decode_kernel a = decode_of(m, B);
    a.q = b.qkv;
    a.out = b.out;
    a.kv = { b.k, b.v, b.tables, per_seq, BLOCK, blocks };
    a.context_lens = b.lens;
    a.plan = b.plan;
    a.workspace = b.workspace;
    int replays = bytes > 2e8 ? 5 : 11;
    char name[96];
    double us = chain_us(b, m, a, layers, replays, true) - chain_us(b, m, a, layers, replays, false);
    snprintf(name, sizeof name, "%s %s in a step", m.name, what);
    bench_line("attn_decode", name, us, bytes, 0);
    if (!timeline) return;
    marks *to = b.notes;
    BENCH_MUST(cudaMemset(b.notes, 0, 2 * b.sms * sizeof(marks)));
    BENCH_MUST(cudaMemcpyToSymbol(attn_decode_marks, &to, sizeof to));
    chain_us(b, m, a, layers, 1, true);
    to = nullptr;
    BENCH_MUST(cudaMemcpyToSymbol(attn_decode_marks, &to, sizeof to));
    print_timeline(b, attn_decode_grid(m.D, b.sms) >> attn_decode_shift(m.D, (int64_t)B * m.Hk));
}

int main(int argc, char **argv)
{
    bool timeline = argc > 1 && !strcmp(argv[1], "timeline");
    size_t rows = 512ull * 64 * 128 * 2, free_bytes, total;
    cudaDeviceProp p;
    bench b = {};
    BENCH_MUST(cudaGetDeviceProperties(&p, 0));
    BENCH_MUST(cudaMemGetInfo(&free_bytes, &total));
    b.sms = p.multiProcessorCount;
    b.sm = p.major * 10 + p.minor;
    b.pool_bytes = std::min<size_t>(16ull << 30, free_bytes / 5 * 2) >> 20 << 20;
    b.k = device_new<uint8_t>(b.pool_bytes);
    b.v = device_new<uint8_t>(b.pool_bytes);
    b.qkv = device_new<uint8_t>(rows);
    b.out = device_new<uint8_t>(rows);
    b.weights = device_new<uint8_t>((size_t)MOST_LAYERS * WEIGHTS_BYTES);
    b.workspace = device_new<uint8_t>(attn_decode_workspace_bytes(128, b.sms));
    b.plan = device_new<uint8_t>(attn_decode_plan_bytes(b.sms));
    b.lens = device_new<int32_t>(512);
    b.positions = device_new<int32_t>(512);
    b.slots = device_new<int64_t>(512);
    b.tables = device_new<int32_t>(1 << 17);
    b.cos_sin = device_new<float>(32768 * 128);                /* zeros: q becomes 0, which takes as long */
    b.notes = device_new<marks>(2 * b.sms);
    fill<<<2048, 256>>>((uint4 *)b.k, b.pool_bytes / 16);
    fill<<<2048, 256>>>((uint4 *)b.v, b.pool_bytes / 16);
    fill<<<2048, 256>>>((uint4 *)b.qkv, rows / 16);
    BENCH_MUST(cudaFuncSetAttribute(product, cudaFuncAttributeMaxDynamicSharedMemorySize, PRODUCT_SMEM));
    BENCH_MUST(cudaDeviceSynchronize());

    run(b, Q06B, "1 x 268", even(1, 268), 256, 16, timeline);
    run(b, L8B, "8 x 268", even(8, 268), 256, 16, timeline);
    run(b, Q06B, "64 x 268", even(64, 268), 256, 16, timeline);
    run(b, Q06B, "64 x 128 to 384", between(64, 128, 384), 128, 16, timeline);
    run(b, Q06B, "128 x 128 to 384", between(128, 128, 384), 128, 16, timeline);
    run(b, Q06B, "256 x 256", even(256, 256), 256, 16, timeline);
    run(b, Q06B, "256 x 268", even(256, 268), 256, 16, timeline);
    run(b, L8B, "256 x 268", even(256, 268), 256, 16, timeline);
    run(b, Q06B, "256 x 128 to 384", between(256, 128, 384), 128, 16, timeline);
    run(b, Q06B, "256 x 1k", even(256, 1024), 1000, 8, timeline);
    run(b, Q06B, "512 x 1500", even(512, 1500), 1000, 4, timeline);
    run(b, Q06B, "512 x 1000 to 2000", between(512, 1000, 2000), 1000, 4, timeline);
    run(b, L8B, "64 x 4k", even(64, 4096), 4000, 4, timeline);
    run(b, L8B, "1 x 32k", even(1, 32768), 32768, 16, timeline);
    run(b, L8B, "32k beside 255 x 128", one_long(256, 32768, 128), 128, 16, timeline);
    return 0;
}
