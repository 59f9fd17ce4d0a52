/* small_ops_bench.cu - embed, rmsnorm, rope_store and silu_mul at the shapes of three models. Up to T = 256 the inputs lie in L2,
 * as they do behind the op that wrote them; T = 8192 rotates through copies larger than the L2. */
#include <sluice/kernels.h>

#include <cstring>
#include <string>

#include "bench.cuh"

struct shape { const char *name; int hidden, ffn, heads, kv_heads, head_dim; bool norm; };

static const struct shape SHAPES[] = {
    { "8B", 4096, 14336, 32, 8, 128, false },
    { "0.6B", 1024, 3072, 16, 8, 128, true },
    { "135M", 576, 1536, 9, 3, 64, false },
};
static const int TOKENS[] = { 1, 16, 64, 256, 8192 };
constexpr int VOCAB = 49152, BLOCK = 16;
constexpr double COLD_BYTES = 400e6;       /* together several times the L2 */

static __global__ void fill_bf16(uint16_t *to, size_t n, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u + seed;
        x ^= x >> 15; x *= 0x85ebca6bu; x ^= x >> 13;
        to[i] = (uint16_t)((x & 0x8000u) | 0x3c00u | (x & 0x3ffu));        /* +-0.01 .. +-0.06 */
    }
}

static void *filled_new(size_t bytes)      /* filled with numbers that are fine as bf16 and as f32 */
{
    void *p;
    BENCH_MUST(cudaMalloc(&p, bytes));
    fill_bf16<<<512, 256>>>((uint16_t *)p, bytes / 2, 12345);
    BENCH_MUST(cudaDeviceSynchronize());
    return p;
}

template <typename T>
static T *device_copy(const std::vector<T> &from)
{
    T *p;
    BENCH_MUST(cudaMalloc(&p, from.size() * sizeof(T)));
    BENCH_MUST(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

static void must(int rc) { if (rc != 0) { fprintf(stderr, "a launch was refused: %d\n", rc); exit(1); } }

int main()
{
    cudaDeviceProp p;
    BENCH_MUST(cudaGetDeviceProperties(&p, 0));
    for (const struct shape &s : SHAPES)
        for (int T : TOKENS) {
            size_t C = s.hidden, F = s.ffn, qkv_row = (size_t)(s.heads + 2 * s.kv_heads) * s.head_dim;
            size_t kv_row = (size_t)s.kv_heads * s.head_dim;
            double bytes[4] = { T * C * 6.0, T * C * 12.0 + C * 4.0, T * qkv_row * 4.0, T * F * 6.0 };
            char name[64];
            snprintf(name, sizeof name, "%s T=%d", s.name, T);
            for (int op = 0; op < 4; op++) {
                int copies = T <= 256 ? 1 : (int)(COLD_BYTES / bytes[op]) + 2, n = T <= 256 ? 64 : copies < 8 ? 8 : copies;
                std::vector<void *> in(copies), out(copies), more(copies);
                std::vector<token_id> ids(T);
                std::vector<int32_t> positions(T);
                std::vector<int64_t> slots(T);
                for (int t = 0; t < T; t++) { ids[t] = (int)((t * 7919u) % VOCAB); positions[t] = t; slots[t] = t; }
                token_id *d_ids = device_copy(ids);
                int32_t *d_positions = device_copy(positions);
                int64_t *d_slots = device_copy(slots);
                size_t in_bytes[4] = { VOCAB * C * 2, T * C * 2, T * qkv_row * 2, T * F * 4 };
                size_t out_bytes[4] = { T * C * 4, T * C * 2, (T + BLOCK) * kv_row * 2, T * F * 2 };
                size_t more_bytes[4] = { 16, T * C * 4, (T + BLOCK) * kv_row * 2, 16 };
                for (int i = 0; i < copies; i++) {
                    in[i] = i > 0 && op == 0 ? in[0] : filled_new(in_bytes[op]);
                    out[i] = filled_new(out_bytes[op]);
                    more[i] = filled_new(more_bytes[op]);
                }
                float *weight = (float *)filled_new(C * 4 + 1024), *table = (float *)filled_new((size_t)(T + 1) * s.head_dim * 4);
                auto call = [&](int i, cudaStream_t stream) {
                    struct launch l = { stream, p.major * 10 + p.minor, p.multiProcessorCount, true };
                    void *x = in[i % copies], *y = out[i % copies], *z = more[i % copies];
                    struct embed_kernel embed = { d_ids, x, (float *)y, T, s.hidden, 0, VOCAB };
                    struct rmsnorm_kernel norm = { x, (float *)z, weight, y, NULL, T, s.hidden, 1e-5f };
                    struct rope_store_kernel rope = { x, NULL, s.norm ? weight : NULL, s.norm ? weight : NULL, table, d_positions,
                                                      d_slots, y, z, T, s.heads, s.kv_heads, s.head_dim, BLOCK, 1e-6f };
                    struct silu_mul_kernel silu = { x, y, T, s.ffn };
                    must(op == 0 ? launch_embed(&embed, &l) : op == 1 ? launch_rmsnorm(&norm, &l)
                         : op == 2 ? launch_rope_store(&rope, &l) : launch_silu_mul(&silu, &l));
                };
                static const char *const OPS[] = { "embed", "rmsnorm", "rope_store", "silu_mul" };
                bench_line(OPS[op], name, bench_us(n, 15, call), bytes[op], 0);
                for (int i = 0; i < copies; i++) {
                    if (i == 0 || op != 0) BENCH_MUST(cudaFree(in[i]));
                    BENCH_MUST(cudaFree(out[i]));
                    BENCH_MUST(cudaFree(more[i]));
                }
                BENCH_MUST(cudaFree(d_ids)); BENCH_MUST(cudaFree(d_positions)); BENCH_MUST(cudaFree(d_slots));
                BENCH_MUST(cudaFree(weight)); BENCH_MUST(cudaFree(table));
            }
        }
    return 0;
}
