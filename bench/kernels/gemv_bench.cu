/* gemv_bench.cu - matrix products of few rows at the shapes of the models: own kernels and library, cold L2, chained.
 *   gemv_bench [8b|0.6b|135m|all] [sweep|skinny|layer|norms]
 * Without a mode: every kernel as it chooses itself, the library by its guess, and what gemm_run chose. sweep, skinny: every cut of gemv_plan.h
 * and gemm_skinny_plan.h. layer: the products of a layer of the 8B shape with small kernels between them, as a step runs them. norms: the same
 * through launch_gemm_skinny, with the two norms as kernels, without them, and inside the products; cuts tried one product after the other. */
#include <cmath>
#include <cstring>
#include <string>

#include "products.cuh"

extern "C" {
#include "gemm.h"
}
#include "gemm_skinny_plan.h"
#include "gemv_plan.h"

static const shape shapes[] = {
    { "8b", "qkv", 6144, 4096, false, false },    { "8b", "o", 4096, 4096, false, false },        { "8b", "gate_up", 28672, 4096, false, false },
    { "8b", "gate_up_silu", 28672, 4096, false, true }, { "8b", "down", 4096, 14336, false, false }, { "8b", "head", 128256, 4096, true, false },
    { "0.6b", "qkv", 4096, 1024, false, false },  { "0.6b", "o", 1024, 2048, false, false },      { "0.6b", "gate_up", 6144, 1024, false, false },
    { "0.6b", "gate_up_silu", 6144, 1024, false, true }, { "0.6b", "down", 1024, 3072, false, false }, { "0.6b", "head", 151936, 1024, true, false },
    { "135m", "qkv", 960, 576, false, false },    { "135m", "o", 576, 576, false, false },        { "135m", "gate_up", 3072, 576, false, false },
    { "135m", "gate_up_silu", 3072, 576, false, true }, { "135m", "down", 576, 1536, false, false }, { "135m", "head", 49152, 576, true, false },
};

static unsigned char *weights, *inputs, *outputs, *counters, *matmul_workspace;
static const size_t INPUT_BYTES = (size_t)2 * 256 * 14336 * 2, OUTPUT_BYTES = (size_t)256 * 151936 * 4;

/* The read ceiling: every byte once, nothing else. */
__global__ void read_all(const uint4 *p, size_t n, unsigned *out)
{
    unsigned sum = 0;
    size_t stride = (size_t)gridDim.x * blockDim.x, i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i + 7 * stride < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(p + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (sum == 0x12345678) *out = sum;
}

static double ceiling_gb_s()
{
    size_t bytes = (size_t)1 << 30;
    double best = 1e30;
    for (int blocks = 2; blocks <= 8; blocks *= 2)
        best = std::min(best, bench_us(4, 5, [&](int i, cudaStream_t s) { read_all<<<132 * blocks, 512, 0, s>>>((const uint4 *)(weights + (size_t)(i % 2) * bytes), bytes / 16, (unsigned *)outputs); }));
    return bytes / best * 1e-3;
}


static double time_gemv(const shape &s, int T, bool pdl, const gemv_plan *plan)
{
    int copies = copies_of(s), n = std::max(copies, std::min(16, 1 + (int)(((size_t)1 << 30) / ((size_t)s.n * s.k * 2))));
    return bench_us(n, 7, [&](int i, cudaStream_t stream) {
        launch l = device_launch(pdl);
        gemv_kernel a = { inputs, weights + (size_t)(i % copies) * s.n * s.k * 2, outputs, T, s.n, s.k, s.f32, s.silu, counters, matmul_workspace, 0 };
        l.stream = stream;
        must(plan ? launch_gemv_planned(&a, plan, &l) : launch_gemv(&a, &l), s.name);
    });
}

/* tuned: gemm_run, whatever it chose; else the library. */
static double time_gemm(gemm *g, const shape &s, int T, bool tuned)
{
    int copies = copies_of(s), n = std::max(copies, std::min(16, 1 + (int)(((size_t)1 << 30) / ((size_t)s.n * s.k * 2))));
    return bench_us(n, 7, [&](int i, cudaStream_t stream) {
        launch l = device_launch(true);
        gemm_args a = { inputs, weights + (size_t)(i % copies) * s.n * s.k * 2, outputs, T, s.n, s.k, s.f32, false };
        err e = {};
        l.stream = stream;
        must(tuned ? gemm_run(g, &a, &l, &e) : gemm_run_library(g, &a, &l, &e), e.message);
    });
}

static void row(const shape &s, int T, const char *how, double us, double ceiling)
{
    double bytes = (double)s.n * s.k * 2;
    printf("{\"op\":\"%s\",\"case\":\"%s/%s\",\"N\":%d,\"K\":%d,\"T\":%d,\"us\":%.2f,\"gb_s\":%.0f,\"of_ceiling\":%.3f,\"tflop_s\":%.1f}\n", how, s.model, s.name,
           s.n, s.k, T, us, bytes / us * 1e-3, bytes / us * 1e-3 / ceiling, bytes * T / us * 1e-6);
    fflush(stdout);
}

static double time_skinny(const shape &s, int T, const gemm_skinny_plan *plan)
{
    int copies = copies_of(s), n = std::max(copies, std::min(16, 1 + (int)(((size_t)1 << 30) / ((size_t)s.n * s.k * 2))));
    return bench_us(n, 7, [&](int i, cudaStream_t stream) {
        launch l = device_launch(true);
        gemv_kernel a = { inputs, weights + (size_t)(i % copies) * s.n * s.k * 2, outputs, T, s.n, s.k, s.f32, s.silu, counters, matmul_workspace, 0 };
        l.stream = stream;
        must(plan ? launch_gemm_skinny_planned(&a, plan, &l) : launch_gemm_skinny(&a, &l), s.name);
    });
}

static void sweep(const shape &s, int T, const launch &l, double ceiling)
{
    struct tried { double us; gemv_plan p; };
    std::vector<tried> all;
    int n = s.silu ? s.n / 2 : s.n;
    for (int deep = 8; deep <= 16; deep *= 2)
        for (int split = 1; split <= 8; split *= 2)
            for (int warps = 2; warps <= 16; warps *= 2)
                for (int per_sm = 1; per_sm <= 2; per_sm *= 2)
                    {
                        if (s.k / (split * warps) < 32 || (per_sm > 1 && warps * deep > 128)) continue;
                        if (s.k / split > 8192 && T > 8) continue;
                        gemv_plan p = gemv_plan_cut(n, s.k, s.silu, deep, split, warps, per_sm * l.num_sms);
                        all.push_back({ time_gemv(s, T, true, &p), p });
                    }
    std::sort(all.begin(), all.end(), [](const tried &a, const tried &b) { return a.us < b.us; });
    for (size_t i = 0; i < all.size() && i < 4; i++) {
        const gemv_plan &p = all[i].p;
        printf("%s/%s T %2d  %7.2f us %.0f  deep %2d split %d warps %d clusters %d\n", s.model, s.name, T, all[i].us,
               (double)s.n * s.k * 2 / all[i].us * 1e-3, p.deep, p.split, p.warps, p.clusters);
    }
    fflush(stdout);
}

static void sweep_skinny(const shape &s, int T, const launch &l)
{
    for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++) {
        gemm_skinny_plan p = gemm_skinny_plan_cut(T, s.n, s.k, cut, l.num_sms, GEMM_SKINNY_SMEM_MAX);
        if (p.stages < 2) continue;
        double us = time_skinny(s, T, &p);
        printf("%s/%s T %3d %7.2f us %.0f  cut %d: %s groups %d panels %d cluster %d stages %d ctas %d tiles %d\n", s.model, s.name, T, us,
               (double)s.n * s.k * 2 / us * 1e-3, cut, p.how == SKINNY_DEALT ? "dealt" : "split", p.groups, p.panels, p.cluster,
               p.stages, p.ctas, p.tiles);
    }
    fflush(stdout);
}

/* A layer of the 8B shape as a step runs it; norms stand where the small kernels are (two for rope and attention). */
enum way { STATIC_GEMV, GEMV, SKINNY, LIBRARY, TUNED };
static double time_layer(gemm *g, int T, way how)
{
    enum { LAYERS = 4, C = 4096, F = 14336, QKV = 6144 };
    static const size_t layer_bytes = (size_t)2 * C * (QKV + C + 3 * F);
    float *residual = (float *)(outputs + OUTPUT_BYTES / 2), *norm = (float *)(weights + WEIGHT_BYTES - (1 << 20));
    unsigned char *h = inputs, *q = outputs, *act = outputs + OUTPUT_BYTES / 4, *gate_up = outputs + OUTPUT_BYTES / 8 * 3, *mid = inputs + INPUT_BYTES / 2;
    return bench_us(LAYERS, 9, [&](int i, cudaStream_t stream) {
        unsigned char *w = weights + (size_t)(i % LAYERS) * layer_bytes;
        launch l = device_launch(true);
        l.stream = stream;
        auto product = [&](const void *x, void *out, int n, int k, bool silu) {
            err e = {};
            gemv_kernel v = { x, w, out, T, n, k, false, silu, how == STATIC_GEMV ? NULL : counters, matmul_workspace, 0 };
            gemm_args a = { x, w, out, T, n, k, false, silu };
            if (how == STATIC_GEMV || how == GEMV) must(launch_gemv(&v, &l), "gemv");
            else if (how == SKINNY) must(launch_gemm_skinny(&v, &l), "skinny");
            else must(how == TUNED ? gemm_run(g, &a, &l, &e) : gemm_run_library(g, &a, &l, &e), e.message);
            w += (size_t)2 * n * k;
        };
        auto small = [&](const void *x) {
            rmsnorm_kernel a = { x, residual, norm, h, NULL, T, C, 1e-5f };
            must(launch_rmsnorm(&a, &l), "rmsnorm");
        };
        small(act);
        product(h, q, QKV, C, false);
        small(q);
        small(q);
        product(h, act, C, C, false);
        small(act);
        if (how == TUNED ? gemm_fuses_silu(g, T, 2 * F, C) : how != LIBRARY) {
            product(h, mid, 2 * F, C, true);
        } else {
            silu_mul_kernel a = { gate_up, mid, T, F };
            product(h, gate_up, 2 * F, C, false);
            must(launch_silu_mul(&a, &l), "silu_mul");
        }
        product(mid, act, C, F, false);
    });
}

static void layers(gemm *g)
{
    static const struct { const char *name; way how; int max_rows; } ways[] = {
        { "gemv, equal shares", STATIC_GEMV, GEMV_MAX_ROWS }, { "gemv", GEMV, GEMV_MAX_ROWS }, { "skinny", SKINNY, GEMM_SKINNY_MAX_ROWS },
        { "library", LIBRARY, 1 << 20 }, { "gemm_run", TUNED, 1 << 20 } };
    double floor_us = 2.0 * 4096 * (6144 + 4096 + 3 * 14336) / 4.45e6;
    for (int T : { 1, 4, 8, 16, 32, 64, 128, 256 })
        for (auto &w : ways)
            if (T <= w.max_rows) {
                printf("{\"op\":\"layer\",\"case\":\"8b/%s\",\"T\":%d,\"us\":%.1f,\"floor_us\":%.1f}\n", w.name, T, time_layer(g, T, w.how), floor_us);
                fflush(stdout);
            }
}

/* Two small kernels stand where rope and attention are. plans: of qkv, o, gate_up, down. */
struct layer_shape { const char *model; int c, f, qkv, heads, layers; };
enum norms { APART, NONE, FUSED };
static double time_norms(const layer_shape &m, int T, norms how, const gemm_skinny_plan *plans)
{
    const size_t layer_bytes = (size_t)2 * m.c * (m.qkv + m.heads + 3 * m.f);
    float *residual = (float *)(outputs + OUTPUT_BYTES / 2), *other = residual + 128 * 4096, *squares = other + 128 * 4096;
    float *norm = (float *)(weights + WEIGHT_BYTES - (1 << 20));
    unsigned char *h = inputs, *q = outputs, *attention = inputs + INPUT_BYTES / 4, *act = outputs + OUTPUT_BYTES / 4, *mid = inputs + INPUT_BYTES / 2;
    int32_t pieces = 16;
    return bench_us(m.layers, 7, [&](int i, cudaStream_t stream) {
        unsigned char *w = weights + (size_t)(i % m.layers) * layer_bytes;
        launch l = device_launch(true);
        l.stream = stream;
        auto product = [&](const gemm_skinny_plan &plan, const void *x, void *out, int n, int k, bool silu, bool add, bool scale) {
            gemv_kernel a = { x, w, out, T, n, k, false, silu, counters, matmul_workspace, 0 };
            if (how == FUSED && add) a.add = { residual, norm, squares, &pieces };
            if (how == FUSED && scale) a.scale = { squares, pieces, 1e-5f };
            must(launch_gemm_skinny_planned(&a, &plan, &l), "skinny");
            w += (size_t)2 * n * k;
        };
        auto small = [&](const void *x, float *to, void *out, int c) {
            rmsnorm_kernel a = { x, to, norm, out, NULL, T, c, 1e-5f };
            must(launch_rmsnorm(&a, &l), "rmsnorm");
        };
        if (how == APART) small(act, residual, h, m.c);
        product(plans[0], h, q, m.qkv, m.c, false, false, true);
        small(q, other, attention, m.heads);
        small(q, other, attention, m.heads);
        product(plans[1], attention, how == FUSED ? h : act, m.c, m.heads, false, true, false);
        if (how == APART) small(act, residual, h, m.c);
        product(plans[2], h, mid, 2 * m.f, m.c, true, false, true);
        product(plans[3], mid, how == FUSED ? h : act, m.c, m.f, false, true, false);
    });
}

static void norms_of(const layer_shape &m, const launch &l)
{
    static const char *const ways[] = { "apart", "none", "fused" };
    const int n[] = { m.qkv, m.c, 2 * m.f, m.c }, k[] = { m.c, m.heads, m.c, m.f };
    for (int T : { 16, 64, 128 })
        for (norms how : { APART, NONE, FUSED }) {
            gemm_skinny_plan plans[4];
            int cuts[4] = { 1, 1, 1, 1 };
            for (int i = 0; i < 4; i++) plans[i] = gemm_skinny_plan_cut(T, n[i], k[i], 1, l.num_sms, GEMM_SKINNY_SMEM_MAX);
            for (int i : { 2, 3, 1, 0 }) {
                gemm_skinny_plan best = plans[i];
                double best_us = 1e30;
                for (int cut = 1; cut <= GEMM_SKINNY_CUTS; cut++) {
                    plans[i] = gemm_skinny_plan_cut(T, n[i], k[i], cut, l.num_sms, GEMM_SKINNY_SMEM_MAX);
                    double us = plans[i].stages < 2 ? 1e30 : time_norms(m, T, how, plans);
                    if (us >= best_us) continue;
                    best_us = us;
                    best = plans[i];
                    cuts[i] = cut;
                }
                plans[i] = best;
            }
            printf("{\"op\":\"norms\",\"case\":\"%s/%s\",\"T\":%d,\"us\":%.2f,\"cuts\":[%d,%d,%d,%d]}\n", m.model, ways[how], T, time_norms(m, T, how, plans),
                   cuts[0], cuts[1], cuts[2], cuts[3]);
            fflush(stdout);
        }
}

int main(int argc, char **argv)
{
    std::string model = argc > 1 ? argv[1] : "8b", mode = argc > 2 ? argv[2] : "";
    static const int rows[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256 };
    launch l = device_launch(false);
    void *workspace;
    gemm *g;
    err e = {};

    BENCH_MUST(cudaMalloc(&weights, WEIGHT_BYTES));
    BENCH_MUST(cudaMalloc(&inputs, INPUT_BYTES));
    BENCH_MUST(cudaMalloc(&outputs, OUTPUT_BYTES));
    BENCH_MUST(cudaMalloc(&matmul_workspace, GEMM_SKINNY_WORKSPACE_BYTES));
    BENCH_MUST(cudaMalloc(&counters, MATMUL_COUNTER_BYTES));
    BENCH_MUST(cudaMemset(counters, 0, MATMUL_COUNTER_BYTES));
    BENCH_MUST(cudaMalloc(&workspace, GEMM_WORKSPACE_BYTES));
    fill<<<1024, 512>>>((__nv_bfloat16 *)weights, WEIGHT_BYTES / 2, 0.02f);
    fill<<<1024, 512>>>((__nv_bfloat16 *)inputs, INPUT_BYTES / 2, 1.0f);
    BENCH_MUST(cudaDeviceSynchronize());
    double ceiling = ceiling_gb_s();
    printf("{\"op\":\"read\",\"gb_s\":%.0f}\n", ceiling);

    if (mode == "norms") {
        static const layer_shape layers[] = { { "8b", 4096, 14336, 6144, 4096, 4 }, { "0.6b", 1024, 3072, 4096, 2048, 14 } };
        for (const layer_shape &m : layers)
            if (model == "all" || model == m.model) norms_of(m, l);
        return 0;
    }
    gemm_options options = { 0, workspace, GEMM_WORKSPACE_BYTES, NULL };
    must(gemm_open(&g, &options, &e), e.message);
    for (const shape &s : shapes) {
        if (mode == "layer") break;
        if (model != "all" && model != s.model) continue;
        if (mode == "sweep") {
            for (int T : { 1, 4, 16 }) sweep(s, T, l, ceiling);
            continue;
        }
        if (mode == "skinny") {
            for (int T : { 16, 32, 64, 128 }) sweep_skinny(s, T, l);
            continue;
        }
        for (int T : rows) {
            if (T <= GEMV_MAX_ROWS) row(s, T, "gemv_pdl", time_gemv(s, T, true, NULL), ceiling);
            if (T == 1) row(s, T, "gemv", time_gemv(s, T, false, NULL), ceiling);
            if (T <= GEMM_SKINNY_MAX_ROWS) row(s, T, "skinny_pdl", time_skinny(s, T, NULL), ceiling);
            if (!s.silu) row(s, T, "library_guess", time_gemm(g, s, T, false), ceiling);
        }
    }
    if (mode == "layer") {
        std::vector<gemm_shape> wanted = { { 6144, 4096, false, false }, { 4096, 4096, false, false }, { 28672, 4096, false, true }, { 4096, 14336, false, false } };
        gemm_tune_args tune = { wanted.data(), (int)wanted.size(), 256, weights, WEIGHT_BYTES / 2, false, 20000, NULL, NULL };
        must(gemm_tune(g, &tune, &l, &e), e.message);
        layers(g);
    }
    gemm_close(g);

    if (mode.empty()) {                                   /* what gemm_run does after its timing */
        must(gemm_open(&g, &options, &e), e.message);
        std::vector<gemm_shape> wanted;
        for (const shape &s : shapes)
            if ((model == "all" || model == s.model) && !s.silu) wanted.push_back({ s.n, s.k, s.f32, false });
        gemm_tune_args tune = { wanted.data(), (int)wanted.size(), 256, weights, WEIGHT_BYTES, false, 20000, NULL, NULL };
        must(gemm_tune(g, &tune, &l, &e), e.message);
        for (const shape &s : shapes)
            for (int T : rows)
                if ((model == "all" || model == s.model) && !s.silu && T > 8) row(s, T, "gemm_run", time_gemm(g, s, T, true), ceiling);
        gemm_close(g);
    }
    BENCH_MUST(cudaDeviceSynchronize());
    return 0;
}
