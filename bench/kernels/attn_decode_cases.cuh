/* attn_decode_cases.cuh - models, contents and lengths that the benches of decode attention share. */
#ifndef SLUICE_BENCH_ATTN_DECODE_CASES_CUH
#define SLUICE_BENCH_ATTN_DECODE_CASES_CUH

#include <cmath>
#include <random>
#include <vector>

#include <sluice/kernels.h>

#include "attn_decode_plan.h"
#include "bench.cuh"

struct model { const char *name; int H, Hk, D; };
static const model L8B = { "8B", 32, 8, 128 }, Q06B = { "0.6B", 16, 8, 128 };

__global__ void fill(uint4 *p, size_t n)                       /* bf16 in about -2 .. 2 */
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t w[4];
        for (int j = 0; j < 4; j++) {
            uint64_t x = (i * 4 + j) * 0x9E3779B97F4A7C15ull;
            x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9ull;
            w[j] = ((uint32_t)(x >> 32) & 0x807F807Fu) | 0x3F003F00u | ((uint32_t)x & 0x00800080u);
        }
        p[i] = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

/* What of the arguments follows from the model and the number of sequences. */
static inline attn_decode_kernel decode_of(const model &m, int num_seqs)
{
    attn_decode_kernel a = {};
    a.q_stride = (int64_t)(m.H + 2 * m.Hk) * m.D;
    a.num_seqs = num_seqs;
    a.num_heads = m.H;
    a.num_kv_heads = m.Hk;
    a.head_dim = m.D;
    a.scale = 1 / std::sqrt((float)m.D);
    return a;
}

static inline void upload_plan(void *device, const model &m, const std::vector<int32_t> &lens, int num_sms)
{
    attn_decode_shape shape = { m.H, m.Hk, m.D, 0, num_sms };
    std::vector<uint8_t> plan(attn_decode_plan_bytes(num_sms));
    attn_decode_plan(&shape, lens.data(), (int)lens.size(), plan.data());
    BENCH_MUST(cudaMemcpy(device, plan.data(), plan.size(), cudaMemcpyHostToDevice));
}

static inline std::vector<int32_t> even(int n, int32_t len) { return std::vector<int32_t>(n, len); }
static inline std::vector<int32_t> between(int n, int32_t low, int32_t high)
{
    std::vector<int32_t> lens(n);
    std::mt19937 rng(11);
    for (int32_t &len : lens) len = low + (int32_t)(rng() % (unsigned)(high - low + 1));
    return lens;
}
static inline std::vector<int32_t> one_long(int n, int32_t len, int32_t rest)
{
    std::vector<int32_t> lens(n, rest);
    lens[n / 2] = len;
    return lens;
}

#endif
