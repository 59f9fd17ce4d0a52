/* sample_bench.cu - the sampler: one kind of row per case, R and V of real steps. Up to R = 64 the logits lie in L2, as they do
 * behind the head's product; at R = 256 launches rotate through copies larger than the L2. GB/s counts one read of the logits. */
#include <sluice/kernels.h>

#include <cmath>
#include <cstring>

#include "bench.cuh"

struct kind { const char *name; float temperature, top_p, min_p, frequency; int top_k, num_logprobs; };

static const struct kind KINDS[] = {
    { "greedy", 0, 1, 0, 0, 0, -1 },
    { "greedy logprobs 5", 0, 1, 0, 0, 0, 5 },
    { "greedy logprobs 20", 0, 1, 0, 0, 0, 20 },
    { "temperature", 1, 1, 0, 0, 0, -1 },
    { "top_k 50", 1, 1, 0, 0, 50, -1 },
    { "top_p 0.95", 1, 0.95f, 0, 0, 0, -1 },
    { "top_k 20 top_p 0.95", 0.6f, 0.95f, 0, 0, 20, -1 },
    { "top_p 0.99 temperature 2", 2, 0.99f, 0, 0, 0, -1 },
    { "min_p 0.05", 1, 1, 0.05f, 0, 0, -1 },
    { "penalties", 1, 1, 0, 0.5f, 0, -1 },
};
static const int ROWS[] = { 1, 16, 64, 256 }, VOCABS[] = { 128256, 151936, 49152 };
constexpr int MAX_ROWS = 256, NUM_SEEN = 1000;
constexpr double COLD_BYTES = 300e6;

/* Sums of four uniform numbers, width 2.3 or so, and a few tokens that stand out by up to 14: a row of a language model. */
static __global__ void fill_logits(float *to, size_t n, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + seed, sum = 0;
        for (int k = 0; k < 4; k++) { x ^= x >> 15; x *= 0x85ebca6bu; x ^= x >> 13; x *= 0xc2b2ae35u; sum += x >> 16; }
        to[i] = ((float)sum / 65536.0f - 2.0f) * 4.0f + (x % 6007 == 0 ? (float)(x >> 8 & 0xffff) / 65536.0f * 14.0f : 0.0f);
    }
}

int main()
{
    cudaDeviceProp device;
    BENCH_MUST(cudaGetDeviceProperties(&device, 0));
    for (int V : VOCABS) {
        size_t words = (V + 31) / 32;
        uint16_t *counts = device_new<uint16_t>((size_t)MAX_ROWS * V);
        uint32_t *seen = device_new<uint32_t>(MAX_ROWS * words);
        token_id *last = device_new<token_id>(MAX_ROWS);
        struct sample_head *heads = device_new<struct sample_head>(MAX_ROWS);
        struct token_logprob *tops = device_new<struct token_logprob>(MAX_ROWS * MAX_TOP_LOGPROBS);
        struct sampling_row *d_rows = device_new<struct sampling_row>(MAX_ROWS);
        std::vector<uint32_t> host_seen(MAX_ROWS * words);
        for (int r = 0; r < MAX_ROWS; r++)
            for (int i = 0; i < NUM_SEEN; i++) { uint32_t id = (i * 7919u + r * 31u) % V; host_seen[r * words + id / 32] |= 1u << id % 32; }
        BENCH_MUST(cudaMemcpy(seen, host_seen.data(), host_seen.size() * 4, cudaMemcpyHostToDevice));
        int max_copies = (int)(COLD_BYTES / (MAX_ROWS * 4.0 * V)) + 1;
        float *logits = device_new<float>((size_t)max_copies * MAX_ROWS * V);
        fill_logits<<<1024, 256>>>(logits, (size_t)max_copies * MAX_ROWS * V, 777);
        for (int R : ROWS)
            for (const struct kind &k : KINDS) {
                std::vector<struct sampling_row> rows(R);
                for (int r = 0; r < R; r++) {
                    memset(&rows[r], 0, sizeof rows[r]);
                    rows[r].token = rows[r].seq = rows[r].slot = r;
                    rows[r].target = TOKEN_NONE;
                    rows[r].use_penalties = k.frequency != 0;
                    rows[r].params = { k.temperature, k.top_p, k.min_p, k.frequency, 0, 1, k.top_k, k.num_logprobs, 1234567u * (uint64_t)r, 0, 0 };
                }
                BENCH_MUST(cudaMemcpy(d_rows, rows.data(), R * sizeof rows[0], cudaMemcpyHostToDevice));
                int copies = R > 64 ? max_copies : 1;
                auto call = [&](int i, cudaStream_t stream) {
                    struct launch l = { stream, device.major * 10 + device.minor, device.multiProcessorCount, true };
                    struct sample_kernel a = { logits + (size_t)(i % copies) * R * V, d_rows, NULL, NULL, NULL, NULL, 0, counts, seen, last,
                                               heads, tops, NULL, R, V };
                    if (launch_sample(&a, &l) != 0) { fprintf(stderr, "launch_sample failed\n"); exit(1); }
                };
                char name[96];
                snprintf(name, sizeof name, "V=%d R=%d %s", V, R, k.name);
                bench_line("sample", name, bench_us(12, 9, call), (double)R * V * 4, 0);
            }
        for (void *p : { (void *)counts, (void *)seen, (void *)last, (void *)heads, (void *)tops, (void *)d_rows, (void *)logits })
            BENCH_MUST(cudaFree(p));
    }
    return 0;
}
