/* gemm_bench.cu - large matrix products at the shapes of the models: own kernel in its best cuts beside the library's best algorithm,
 * weights cold.   gemm_bench [8b|0.6b|all] [shapes|layer|both] [T,T,..]      layer: the products of layers one behind the other for
 * a fifth of a second each, so that the clock is what the engine gets; up to 512 rows. */
#include <cmath>
#include <cstring>
#include <string>

#include "products.cuh"

extern "C" {
#include "gemm.h"
}
#include "gemm_sm90_plan.h"

static const shape shapes[] = {
    { "8b", "qkv", 6144, 4096, false, false }, { "8b", "o", 4096, 4096, false, false }, { "8b", "gate_up", 28672, 4096, false, true },
    { "8b", "down", 4096, 14336, false, false }, { "8b", "head", 128256, 4096, true, false },
    { "0.6b", "qkv", 4096, 1024, false, false }, { "0.6b", "o", 1024, 2048, false, false }, { "0.6b", "gate_up", 6144, 1024, false, true },
    { "0.6b", "down", 1024, 3072, false, false },
    { "0.6b", "head", 151936, 1024, true, false },
};

static unsigned char *weights, *inputs, *outputs;
static const size_t INPUT_BYTES = (size_t)8192 * 14336 * 2, OUTPUT_BYTES = (size_t)8192 * 28672 * 2;

static int own(const shape &s, int T, const gemm_sm90_plan *plan, const void *w, cudaStream_t stream)
{
    launch l = device_launch(true);
    gemm_kernel a = { inputs, w, outputs, T, s.n, s.k, s.f32, s.silu };
    l.stream = stream;
    return plan ? launch_gemm_planned(&a, plan, &l) : launch_gemm(&a, &l);
}

static void library(gemm *g, const shape &s, int T, const void *w, cudaStream_t stream)
{
    launch l = device_launch(true);
    gemm_args a = { inputs, w, outputs, T, s.n, s.k, s.f32, false };
    err e = {};
    l.stream = stream;
    must(gemm_run_library(g, &a, &l, &e), e.message);
    if (s.silu) {
        silu_mul_kernel m = { outputs, inputs + INPUT_BYTES, T, s.n / 2 };
        must(launch_silu_mul(&m, &l), "silu_mul");
    }
}

struct tried { double us; gemm_sm90_plan plan; int rank; };

static std::vector<tried> time_plans(const shape &s, int T)
{
    std::vector<tried> all;
    gemm_kernel a = { inputs, weights, outputs, T, s.n, s.k, s.f32, s.silu };
    gemm_sm90_plan plan;
    int copies = copies_of(s), most = T >= 4096 ? 16 : 100;
    double work = 2.0 * T * s.n * s.k;
    for (int i = 0; i < most && gemm_sm90_plan_at(&plan, i, &a, device_launch(true).num_sms); i++) {
        if (own(s, T, &plan, weights, NULL) == ERR_UNSUPPORTED) continue;
        double us = bench_us(std::max(2, std::min(copies * 2, (int)(4e11 / work))), 5, [&](int r, cudaStream_t stream) {
            must(own(s, T, &plan, weights + (size_t)(r % copies) * weight_bytes(s), stream), s.name);
        });
        all.push_back({ us, plan, i });
    }
    std::sort(all.begin(), all.end(), [](const tried &x, const tried &y) { return x.us < y.us; });
    return all;
}

static double time_library(gemm *g, const shape &s, int T)
{
    int copies = copies_of(s);
    double work = 2.0 * T * s.n * s.k;
    return bench_us(std::max(2, std::min(copies * 2, (int)(4e11 / work))), 5, [&](int r, cudaStream_t stream) { library(g, s, T, weights + (size_t)(r % copies) * weight_bytes(s), stream); });
}

/* Microseconds of a layer in a row of them, after a warm-up, over about a fifth of a second. */
static double sustained_us(const std::function<void(cudaStream_t)> &layers, int num_layers)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float ms;
    BENCH_MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    BENCH_MUST(cudaEventCreate(&begin));
    BENCH_MUST(cudaEventCreate(&end));
    BENCH_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    layers(stream);
    BENCH_MUST(cudaStreamEndCapture(stream, &graph));
    BENCH_MUST(cudaGraphInstantiate(&exec, graph, 0));
    for (int r = 0, n = 20; r < 2; r++, n = std::max(3, (int)(200 / std::max(ms / n, 0.001f)))) {
        BENCH_MUST(cudaEventRecord(begin, stream));
        for (int i = 0; i < n; i++) BENCH_MUST(cudaGraphLaunch(exec, stream));
        BENCH_MUST(cudaEventRecord(end, stream));
        BENCH_MUST(cudaEventSynchronize(end));
        BENCH_MUST(cudaEventElapsedTime(&ms, begin, end));
        if (r == 1) ms /= n;
    }
    BENCH_MUST(cudaGraphExecDestroy(exec));
    BENCH_MUST(cudaGraphDestroy(graph));
    BENCH_MUST(cudaStreamDestroy(stream));
    return ms * 1000.0 / num_layers;
}

static void layer(gemm *g, const std::string &model, int T)
{
    enum { LAYERS = 4 };
    std::vector<shape> parts;
    std::vector<gemm_sm90_plan> plans;
    size_t bytes = 0;
    for (const shape &s : shapes)
        if (model == s.model && !s.f32) {
            parts.push_back(s);
            plans.push_back(time_plans(s, T).at(0).plan);
            bytes += weight_bytes(s);
        }
    int layers = LAYERS;
    auto run = [&](cudaStream_t stream, int which, bool use_own) {
        for (int i = 0; i < layers; i++) {
            const unsigned char *w = weights + (size_t)i * bytes;
            for (size_t j = 0; j < parts.size(); w += weight_bytes(parts[j]), j++) {
                if (which >= 0 && which != (int)j) continue;
                if (use_own) must(own(parts[j], T, &plans[j], w, stream), parts[j].name); else library(g, parts[j], T, w, stream);
            }
        }
    };
    for (int which = -1; which < (int)parts.size(); which++) {
        double ours = sustained_us([&](cudaStream_t s) { run(s, which, true); }, layers), theirs = sustained_us([&](cudaStream_t s) { run(s, which, false); }, layers);
        double flops = 0;
        for (size_t j = 0; j < parts.size(); j++)
            if (which < 0 || which == (int)j) flops += 2.0 * T * parts[j].n * parts[j].k;
        printf("{\"op\":\"layer\",\"case\":\"%s/%s\",\"T\":%d,\"us\":%.1f,\"tflop_s\":%.0f,\"library_us\":%.1f,\"library_tflop_s\":%.0f}\n", model.c_str(),
               which < 0 ? "layer" : parts[which].name, T, ours, flops / ours * 1e-6, theirs, flops / theirs * 1e-6);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    std::string model = argc > 1 ? argv[1] : "8b", mode = argc > 2 ? argv[2] : "shapes";
    std::vector<int> rows = { 128, 192, 256, 384, 512, 1024, 2048, 8192 };
    launch l = device_launch(true);
    void *workspace;
    gemm *g;
    err e = {};

    if (argc > 3) {
        rows.clear();
        char *end = argv[3];
        for (rows.push_back((int)strtol(end, &end, 10)); *end == ','; ) rows.push_back((int)strtol(end + 1, &end, 10));
    }
    BENCH_MUST(cudaMalloc(&weights, WEIGHT_BYTES));
    BENCH_MUST(cudaMalloc(&inputs, INPUT_BYTES * 2));
    BENCH_MUST(cudaMalloc(&outputs, OUTPUT_BYTES));
    BENCH_MUST(cudaMalloc(&workspace, GEMM_WORKSPACE_BYTES));
    fill<<<1024, 512>>>((__nv_bfloat16 *)inputs, INPUT_BYTES, 1.0f);
    fill<<<1024, 512>>>((__nv_bfloat16 *)weights, WEIGHT_BYTES / 2, 0.02f);
    BENCH_MUST(cudaDeviceSynchronize());

    gemm_options options = { 0, workspace, GEMM_WORKSPACE_BYTES, NULL };
    must(gemm_open(&g, &options, &e), e.message);
    std::vector<gemm_shape> wanted;
    for (const shape &s : shapes)
        if (model == "all" || model == s.model) wanted.push_back({ s.n, s.k, s.f32, false });
    gemm_tune_args tune = { wanted.data(), (int)wanted.size(), *std::max_element(rows.begin(), rows.end()), weights, WEIGHT_BYTES, true, 15000, NULL, NULL };
    must(gemm_tune(g, &tune, &l, &e), e.message);
    fill<<<1024, 512>>>((__nv_bfloat16 *)weights, WEIGHT_BYTES / 2, 0.02f);
    BENCH_MUST(cudaDeviceSynchronize());

    for (int T : rows) {
        if (mode != "shapes" && T <= 512) layer(g, model, T);
        if (mode == "layer") continue;
        for (const shape &s : shapes) {
            if ((model != "all" && model != s.model) || (s.f32 && T > 512)) continue;
            double theirs = time_library(g, s, T), flops = 2.0 * T * s.n * s.k;
            std::vector<tried> all = time_plans(s, T);
            if (all.empty()) continue;
            printf("{\"op\":\"gemm\",\"case\":\"%s/%s\",\"T\":%d,\"us\":%.1f,\"tflop_s\":%.0f,\"library_us\":%.1f,\"plans\":\"", s.model, s.name, T, all[0].us, flops / all[0].us * 1e-6, theirs);
            for (size_t i = 0; i < all.size() && i < 4; i++)
                printf("%s%dx%d/%dx%d/%d#%d %.1f", i ? ", " : "", all[i].plan.rows, all[i].plan.cols, all[i].plan.cluster_m, all[i].plan.cluster_n, all[i].plan.split, all[i].rank, all[i].us);
            printf("\"}\n");
            fflush(stdout);
        }
    }
    gemm_close(g);
    BENCH_MUST(cudaDeviceSynchronize());
    return 0;
}
