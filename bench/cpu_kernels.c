/* cpu_kernels.c - what the CPU backend's ops reach on this machine, at the shapes of SmolLM2-135M. One JSON line each:
 *   bandwidth   plain reading of 512 MiB
 *   matmul      one product; all layers' weights in turn, so that they come from memory as in a real step
 *   attention, sample, rmsnorm, silu_mul     one call
 *   step        the ops of a whole forward of R decode rows or a prefill of T tokens, without sampling
 *   pack        fp32 -> panels, all 135M weights
 *   onednn      the same bf16 products by oneDNN, where it is installed
 * usage: cpu_kernels_bench [threads] [portable|avx2|avx512|avx512_bf16] [what] [bf16|kept]; kept: weights as in a Q4_1 file */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sluice/backend.h>
#include <sluice/sampling.h>

#include "base/clock.h"
#include "fast_ops.h"

#if defined(HAVE_DNNL)
#include <dnnl.h>
#endif

enum { HIDDEN = 576, FFN = 1536, LAYERS = 30, HEADS = 9, KV_HEADS = 3, DIM = 64, VOCAB = 49152, QKV = 960,
       BLOCK = 64, MAX_CONTEXT = 2048, MAX_SEQS = 64, MAX_T = 512 };

struct layer { struct weight qkv, o, gate_up, down, norm; struct kv_layer kv; };

struct bench {
    const struct backend_ops *ops;
    struct backend *b;
    int threads;
    bool kept;                             /* q4_1 layers and a q8_0 head instead of bf16 */
    struct layer layers[LAYERS];
    struct weight head;
    float *x, *qkv, *attn, *ffn_in, *ffn_out, *logits, *cos_sin, *residual;
    block_id *tables;
    int32_t cu[MAX_SEQS + 1], context[MAX_SEQS], positions[MAX_T];
    int64_t slots[MAX_T];
};

static void die(const char *what)
{
    fprintf(stderr, "cpu_kernels_bench: %s\n", what);
    exit(1);
}

static void *must(void *p)
{
    if (!p) die("out of memory");
    return p;
}

static void fill(float *x, size_t n, float scale)
{
    uint32_t state = 12345;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = scale * ((float)(state >> 8) * 0x1p-24f - 0.5f);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* One thread: its own processor time, so that other programs on the machine do not count. More: the clock on the wall. */
static int64_t bench_now_ns(const struct bench *bench)
{
    struct timespec t;
    if (bench->threads > 1) return clock_now_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The tenth of the runs that ends the fastest tenth, in seconds: the machine may be shared, so the least disturbed runs say
 * what the code can do. Per-layer calls get the layer's number, so that weights come from memory as in a real step. */
static double good_time(void (*fn)(struct bench *, void *, int), struct bench *bench, void *arg, int runs)
{
    enum { MOST = 256 };
    double times[MOST];
    if (runs > MOST) runs = MOST;
    for (int i = 0; i < runs; i++) {
        int64_t start = bench_now_ns(bench);
        fn(bench, arg, i % LAYERS);
        times[i] = (double)(bench_now_ns(bench) - start) * 1e-9;
    }
    qsort(times, (size_t)runs, sizeof times[0], by_value);
    return times[runs / 10];
}

static void line(const struct bench *bench, const char *op, const char *shape, int rows, double seconds, double bytes,
                 double flops)
{
    printf("{\"op\":\"%s\",\"shape\":\"%s\",\"rows\":%d,\"threads\":%d,\"us\":%.1f,\"gb_s\":%.1f,\"gflop_s\":%.1f}\n", op, shape,
           rows, bench->threads, seconds * 1e6, bytes / seconds * 1e-9, flops / seconds * 1e-9);
    fflush(stdout);
}

/* ---- bandwidth ---- */

struct read_job { const uint64_t *data; _Atomic uint64_t sum; };
enum { READ_BYTES = 512 << 20, SLICES = 16 };
typedef uint64_t wide __attribute__((vector_size(64)));

static void read_part(void *arg, int64_t begin, int64_t end)
{
    struct read_job *job = arg;
    wide sum[4] = { { 0 } };
    const wide *at = (const wide *)job->data + begin * 1024, *stop = (const wide *)job->data + end * 1024;
    for (; at < stop; at += 4)
        for (int i = 0; i < 4; i++) sum[i] ^= at[i];
    job->sum += sum[0][0] ^ sum[1][1] ^ sum[2][2] ^ sum[3][3];
}

static void read_slice(struct bench *bench, void *arg, int slice)
{
    struct read_job *job = arg, part = { .data = job->data + (size_t)(slice % SLICES) * (READ_BYTES / SLICES / 8) };
    bench->ops->parallel_for(bench->b, READ_BYTES / SLICES / 65536, 16, read_part, &part);
    job->sum += part.sum;
}

/* ---- the model's parts ---- */

static struct weight store(struct bench *bench, enum weight_kind kind, int64_t rows, int64_t cols, const float *src)
{
    struct weight w = { .rows = rows, .cols = cols, .data = bench->ops->carve(bench->b, bench->ops->weight_bytes(kind, rows, cols)) };
    bench->ops->weight_store(bench->b, &w, kind, 0, rows, src);
    return w;
}

/* Any bits with small scales: what the model's file holds, as far as time goes. */
static struct weight store_kept(struct bench *bench, enum dtype dtype, int64_t rows, int64_t cols)
{
    size_t bytes = bench->ops->kept_bytes(dtype, rows, cols), row_bytes = (size_t)dtype_row_bytes(dtype, cols);
    struct weight w = { .rows = rows, .cols = cols, .data = bench->ops->carve(bench->b, bytes), .kept = dtype };
    uint8_t *blocks = must(malloc((size_t)rows * row_bytes));
    uint32_t state = 777;
    for (size_t i = 0; i < (size_t)rows * row_bytes; i++) {
        state = state * 1664525u + 1013904223u;
        blocks[i] = (uint8_t)(state >> 24);
    }
    for (size_t at = 0; at < (size_t)rows * row_bytes; at += (size_t)dtype_block_bytes(dtype))
        blocks[at + 1] = 0x1c, blocks[at + 3] = dtype == DTYPE_Q4_1 ? 0x9c : blocks[at + 3];
    bench->ops->store_kept(bench->b, &w, 0, rows, blocks);
    free(blocks);
    return w;
}

static struct weight matrix(struct bench *bench, int64_t rows, int64_t cols, const float *src)
{
    if (bench->kept && bench->ops->kept_bytes) return store_kept(bench, rows == VOCAB ? DTYPE_Q8_0 : DTYPE_Q4_1, rows, cols);
    return store(bench, WEIGHT_MATRIX, rows, cols, src);
}

struct pack_job { struct bench *bench; struct weight *w; const float *src; };

static void pack_part(void *arg, int64_t begin, int64_t end)
{
    struct pack_job *job = arg;
    job->bench->ops->weight_store(job->bench->b, job->w, WEIGHT_MATRIX, begin, end - begin, job->src);
}

static void pack_all(struct bench *bench, void *arg, int unused)
{
    (void)unused;
    struct pack_job job = { bench, NULL, arg };
    struct weight *of[4];
    for (int l = 0; l < LAYERS; l++) {
        of[0] = &bench->layers[l].qkv, of[1] = &bench->layers[l].o;
        of[2] = &bench->layers[l].gate_up, of[3] = &bench->layers[l].down;
        for (int i = 0; i < 4; i++) {
            job.w = of[i];
            bench->ops->parallel_for(bench->b, of[i]->rows, 32, pack_part, &job);
        }
    }
    job.w = &bench->head;
    bench->ops->parallel_for(bench->b, VOCAB, 256, pack_part, &job);
}

static void bench_init(struct bench *bench, const struct backend_ops *ops, int threads, int isa, bool kept)
{
    struct err err = { 0 };
    struct backend_options options = { .threads = threads, .kv_dtype = DTYPE_F16, .max_tokens = MAX_T, .max_seqs = MAX_SEQS,
                                       .max_rows = MAX_SEQS, .vocab_size = VOCAB };
    float *src = must(malloc((size_t)VOCAB * HIDDEN * sizeof(float)));
    size_t kv_bytes = (size_t)MAX_SEQS * MAX_CONTEXT * KV_HEADS * DIM * 2;

    *bench = (struct bench){ .ops = ops, .threads = threads, .kept = kept };
    if (ops->open(&bench->b, &options, &err) < 0) die(err.message);
    if (isa >= 0 && backend_cpu_fast_force_isa(bench->b, (enum cpu_isa)isa) < 0) die("not on this machine");
    if (ops->reserve(bench->b, ((size_t)800 << 20) + 2 * LAYERS * kv_bytes, &err) < 0) die(err.message);
    fill(src, (size_t)VOCAB * HIDDEN, 0.1f);
    for (int l = 0; l < LAYERS; l++) {
        struct layer *layer = &bench->layers[l];
        layer->qkv = matrix(bench, QKV, HIDDEN, src);
        layer->o = matrix(bench, HIDDEN, HIDDEN, src);
        layer->gate_up = matrix(bench, 2 * FFN, HIDDEN, src);
        layer->down = matrix(bench, HIDDEN, FFN, src);
        layer->norm = store(bench, WEIGHT_VECTOR, 1, HIDDEN, src);
        layer->kv.k = ops->carve(bench->b, kv_bytes);
        layer->kv.v = ops->carve(bench->b, kv_bytes);
    }
    bench->head = matrix(bench, VOCAB, HIDDEN, src);
    free(src);
    bench->x = must(malloc(MAX_T * HIDDEN * sizeof(float)));
    bench->residual = must(malloc(MAX_T * HIDDEN * sizeof(float)));
    bench->qkv = must(malloc(MAX_T * QKV * sizeof(float)));
    bench->attn = must(malloc(MAX_T * HIDDEN * sizeof(float)));
    bench->ffn_in = must(malloc(MAX_T * 2 * FFN * sizeof(float)));
    bench->ffn_out = must(malloc(MAX_T * FFN * sizeof(float)));
    bench->logits = must(malloc((size_t)MAX_SEQS * VOCAB * sizeof(float)));
    bench->cos_sin = must(calloc(MAX_CONTEXT * DIM, sizeof(float)));
    bench->tables = must(calloc(MAX_SEQS * (MAX_CONTEXT / BLOCK), sizeof(block_id)));
    for (int i = 0; i < MAX_SEQS * (MAX_CONTEXT / BLOCK); i++) bench->tables[i] = i;
    for (int p = 0; p < MAX_CONTEXT; p++)
        for (int i = 0; i < DIM / 2; i++) {
            bench->cos_sin[p * DIM + i] = cosf((float)p * powf(10000, -2.0f * (float)i / DIM));
            bench->cos_sin[p * DIM + DIM / 2 + i] = sinf((float)p * powf(10000, -2.0f * (float)i / DIM));
        }
    fill(bench->x, MAX_T * HIDDEN, 1);
    fill(bench->residual, MAX_T * HIDDEN, 1);
    fill(bench->qkv, MAX_T * QKV, 1);
    fill(bench->attn, MAX_T * HIDDEN, 1);
    fill(bench->ffn_in, MAX_T * 2 * FFN, 1);
    fill(bench->ffn_out, MAX_T * FFN, 1);
}

static void bench_free(struct bench *bench)
{
    bench->ops->close(bench->b);
    free(bench->x), free(bench->residual), free(bench->qkv), free(bench->attn), free(bench->ffn_in), free(bench->ffn_out);
    free(bench->logits), free(bench->cos_sin), free(bench->tables);
}

static void mm(struct bench *bench, const float *x, const struct weight *w, float *out, int rows)
{
    bench->ops->matmul(bench->b, &(struct matmul_args){ .x = x, .w = w, .out = out, .num_tokens = rows });
}

static void run_qkv(struct bench *bench, void *arg, int l)
{
    mm(bench, bench->x, &bench->layers[l].qkv, bench->qkv, *(int *)arg);
}
static void run_o(struct bench *bench, void *arg, int l)
{
    mm(bench, bench->attn, &bench->layers[l].o, bench->x, *(int *)arg);
}
static void run_gate_up(struct bench *bench, void *arg, int l)
{
    mm(bench, bench->x, &bench->layers[l].gate_up, bench->ffn_in, *(int *)arg);
}
static void run_down(struct bench *bench, void *arg, int l)
{
    mm(bench, bench->ffn_out, &bench->layers[l].down, bench->x, *(int *)arg);
}
static void run_head(struct bench *bench, void *arg, int l) { (void)l; mm(bench, bench->x, &bench->head, bench->logits, *(int *)arg); }

struct shape { int num_seqs, q_len, context; };

static void set_shape(struct bench *bench, const struct shape *s)
{
    for (int i = 0; i < s->num_seqs; i++) {
        bench->cu[i + 1] = bench->cu[i] + s->q_len;
        bench->context[i] = s->context;
        for (int j = 0; j < s->q_len; j++) {
            int t = bench->cu[i] + j, p = s->context - s->q_len + j;
            bench->positions[t] = p;
            bench->slots[t] = (int64_t)bench->tables[i * (MAX_CONTEXT / BLOCK) + p / BLOCK] * BLOCK + p % BLOCK;
        }
    }
}

static void attend(struct bench *bench, const struct shape *s, int l)
{
    bench->ops->attention(bench->b, &(struct attention_args){ .qkv = bench->qkv, .out = bench->attn, .kv = bench->layers[l].kv,
        .cu_seqlens_q = bench->cu, .context_lens = bench->context, .block_tables = bench->tables,
        .num_tokens = s->num_seqs * s->q_len, .num_seqs = s->num_seqs, .max_blocks_per_seq = MAX_CONTEXT / BLOCK,
        .max_q_len = s->q_len, .max_context_len = s->context, .num_heads = HEADS, .num_kv_heads = KV_HEADS,
        .head_dim = DIM, .block_size = BLOCK, .scale = 0.125f });
}

static void run_attention(struct bench *bench, void *arg, int l)
{
    attend(bench, arg, l);
}

static void rope(struct bench *bench, const struct shape *s, int l)
{
    bench->ops->rope_store(bench->b, &(struct rope_store_args){ .qkv = bench->qkv, .cos_sin = bench->cos_sin,
        .positions = bench->positions, .slot_mapping = bench->slots, .kv = bench->layers[l].kv,
        .num_tokens = s->num_seqs * s->q_len, .num_heads = HEADS, .num_kv_heads = KV_HEADS, .head_dim = DIM,
        .block_size = BLOCK, .eps = 1e-5f });
}

static void run_rope(struct bench *bench, void *arg, int l)
{
    rope(bench, arg, l);
}

static void norm(struct bench *bench, int l, int rows)
{
    bench->ops->rmsnorm(bench->b, &(struct rmsnorm_args){ bench->x, bench->residual, &bench->layers[l].norm, bench->x, rows,
                                                          HIDDEN, 1e-5f });
}

static void run_norm(struct bench *bench, void *arg, int l)
{
    norm(bench, l, *(int *)arg);
}

static void run_silu(struct bench *bench, void *arg, int l)
{
    (void)l;
    bench->ops->silu_mul(bench->b, &(struct silu_mul_args){ bench->ffn_in, bench->ffn_out, *(int *)arg, FFN });
}

static void run_step(struct bench *bench, void *arg, int unused)
{
    (void)unused;
    const struct shape *s = arg;
    int rows = s->num_seqs * s->q_len;
    for (int l = 0; l < LAYERS; l++) {
        norm(bench, l, rows);
        mm(bench, bench->x, &bench->layers[l].qkv, bench->qkv, rows);
        rope(bench, s, l);
        attend(bench, s, l);
        mm(bench, bench->attn, &bench->layers[l].o, bench->x, rows);
        norm(bench, l, rows);
        mm(bench, bench->x, &bench->layers[l].gate_up, bench->ffn_in, rows);
        bench->ops->silu_mul(bench->b, &(struct silu_mul_args){ bench->ffn_in, bench->ffn_out, rows, FFN });
        mm(bench, bench->ffn_out, &bench->layers[l].down, bench->x, rows);
    }
    norm(bench, 0, rows);
    mm(bench, bench->x, &bench->head, bench->logits, s->num_seqs);
}

static void bench_matmuls(struct bench *bench)
{
    static const int rows[] = { 1, 2, 4, 8, 12, 14, 16, 28, 32, 64, 512 };
    static const struct { const char *name; void (*fn)(struct bench *, void *, int); double n, k; } ops[] = {
        { "qkv 960x576", run_qkv, QKV, HIDDEN },     { "o 576x576", run_o, HIDDEN, HIDDEN },
        { "gate_up 3072x576", run_gate_up, 2 * FFN, HIDDEN }, { "down 576x1536", run_down, HIDDEN, FFN },
        { "head 49152x576", run_head, VOCAB, HIDDEN },
    };
    for (int i = 0; i < 5; i++)
        for (int r = 0; r < 11; r++) {
            int t = rows[r];
            if (t > MAX_SEQS && i == 4) continue;
            double s = good_time(ops[i].fn, bench, &t, i == 4 ? 20 : 120);
            line(bench, "matmul", ops[i].name, t, s, ops[i].n * ops[i].k * 2, 2.0 * t * ops[i].n * ops[i].k);
        }
}

static void bench_small_ops(struct bench *bench)
{
    static const struct shape shapes[] = { { 1, 1, 128 }, { 1, 1, 2048 }, { 8, 1, 512 }, { 64, 1, 512 }, { 1, 512, 512 },
                                           { 1, 512, 2048 } };
    char name[64];
    for (int i = 0; i < 6; i++) {
        struct shape s = shapes[i];
        set_shape(bench, &s);
        double rows = (double)s.num_seqs * s.q_len, mean = s.context - (s.q_len - 1) / 2.0;
        snprintf(name, sizeof name, "%dx%d context %d", s.num_seqs, s.q_len, s.context);
        double t = good_time(run_rope, bench, &s, 90);
        line(bench, "rope_store", name, (int)rows, t, rows * QKV * 4, 0);
        t = good_time(run_attention, bench, &s, 90);
        line(bench, "attention", name, (int)rows, t, (double)s.num_seqs * s.context * KV_HEADS * DIM * 4,
             rows * mean * HEADS * DIM * 4);
    }
    for (int t = 1; t <= 512; t *= 8) {
        double s = good_time(run_norm, bench, &t, 240);
        line(bench, "rmsnorm", "576, with add", t, s, (double)t * HIDDEN * 4 * 4, 0);
        s = good_time(run_silu, bench, &t, 240);
        line(bench, "silu_mul", "1536", t, s, (double)t * FFN * 4 * 3, 0);
    }
}

static void bench_steps(struct bench *bench)
{
    static const struct shape shapes[] = { { 1, 1, 128 }, { 1, 1, 1024 }, { 2, 1, 128 }, { 4, 1, 128 }, { 8, 1, 128 },
                                           { 12, 1, 128 }, { 16, 1, 128 }, { 32, 1, 128 }, { 64, 1, 128 }, { 1, 128, 128 },
                                           { 1, 512, 512 } };
    for (int i = 0; i < 11; i++) {
        struct shape s = shapes[i];
        set_shape(bench, &s);
        double t = good_time(run_step, bench, &s, s.q_len > 1 ? 4 : 20);
        printf("{\"op\":\"step\",\"isa\":\"%s\",\"threads\":%d,\"seqs\":%d,\"tokens\":%d,\"context\":%d,\"ms\":%.2f,\"tok_s\":%.0f}\n",
               bench->ops->describe(bench->b), bench->threads, s.num_seqs, s.num_seqs * s.q_len, s.context, t * 1e3,
               s.num_seqs * s.q_len / t);
        fflush(stdout);
    }
}

/* ---- sampling ---- */

struct sample_setup { struct step_plan *plan; struct step_result result; float *logits; };

static void run_sample(struct bench *bench, void *arg, int unused)
{
    (void)unused;
    struct sample_setup *s = arg;
    bench->ops->sample(bench->b, &(struct sample_args){ s->logits, s->plan, &s->result, VOCAB });
}

static void bench_sampling(struct bench *bench)
{
    static const char *const kinds[] = { "greedy", "temperature", "top_p 0.9", "top_k 40", "min_p 0.05", "greedy, 5 logprobs" };
    struct sample_setup s = { .plan = must(calloc(1, sizeof *s.plan + MAX_SEQS * sizeof(struct sampling_row))) };
    s.result.rows = must(calloc(MAX_SEQS, sizeof *s.result.rows));
    s.logits = must(malloc((size_t)MAX_SEQS * VOCAB * sizeof(float)));
    fill(s.logits, (size_t)MAX_SEQS * VOCAB, 1);
    /* a bell of standard deviation 3: near the spread of a model's logits */
    for (size_t i = 0; i + 6 < (size_t)MAX_SEQS * VOCAB; i++)
        s.logits[i] = 4.24f * (s.logits[i] + s.logits[i + 1] + s.logits[i + 2] + s.logits[i + 3] + s.logits[i + 4] + s.logits[i + 5]);
    s.plan->off_rows = sizeof *s.plan;
    for (int kind = 0; kind < 6; kind++)
        for (int rows = 1; rows <= 64; rows *= 8) {
            s.plan->num_rows = rows;
            for (int r = 0; r < rows; r++) {
                struct sampling_row *row = &plan_rows(s.plan)[r];
                *row = (struct sampling_row){ .target = TOKEN_NONE, .slot = r };
                sampling_params_default(&row->params);
                row->params.seed = (uint64_t)r;
                if (kind == 0 || kind == 5) row->params.temperature = 0;
                if (kind == 2) row->params.top_p = 0.9f;
                if (kind == 3) row->params.top_k = 40;
                if (kind == 4) row->params.min_p = 0.05f;
                if (kind == 5) row->params.num_logprobs = 5;
            }
            double t = good_time(run_sample, bench, &s, 30);
            line(bench, "sample", kinds[kind], rows, t, (double)rows * VOCAB * 4, 0);
        }
    free(s.plan), free(s.result.rows), free(s.logits);
}

/* ---- oneDNN ---- */

#if defined(HAVE_DNNL)
struct dnnl_run { dnnl_primitive_t mm; dnnl_stream_t stream; dnnl_exec_arg_t args[3]; };

static void run_dnnl(struct bench *bench, void *arg, int unused)
{
    (void)unused;
    struct dnnl_run *run = arg;
    (void)bench;
    dnnl_primitive_execute(run->mm, run->stream, 3, run->args);
    dnnl_stream_wait(run->stream);
}

static void dnnl_case(struct bench *bench, dnnl_engine_t engine, dnnl_stream_t stream, const char *name, int t, int n, int k)
{
    dnnl_memory_desc_t xd, wd, od;
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, w, o;
    dnnl_dims_t xs = { t, k }, ws = { k, n }, os = { t, n };

    dnnl_memory_desc_init_by_tag(&xd, 2, xs, dnnl_bf16, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&wd, 2, ws, dnnl_bf16, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&od, 2, os, dnnl_f32, dnnl_ab);
    if (dnnl_matmul_desc_init(&desc, &xd, &wd, NULL, &od) != dnnl_success) return;
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL) != dnnl_success) return;
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_primitive_create(&primitive, pd);
    dnnl_memory_create(&x, &xd, engine, DNNL_MEMORY_ALLOCATE);
    dnnl_memory_create(&w, packed, engine, DNNL_MEMORY_ALLOCATE);
    dnnl_memory_create(&o, &od, engine, DNNL_MEMORY_ALLOCATE);
    struct dnnl_run run = { primitive, stream, { { DNNL_ARG_SRC, x }, { DNNL_ARG_WEIGHTS, w }, { DNNL_ARG_DST, o } } };
    void *data;
    dnnl_memory_get_data_handle(x, &data);
    memset(data, 0, (size_t)t * (size_t)k * 2);
    dnnl_memory_get_data_handle(w, &data);
    memset(data, 0, dnnl_memory_desc_get_size(packed));
    run_dnnl(bench, &run, 0);
    double s = good_time(run_dnnl, bench, &run, 40);
    line(bench, "onednn", name, t, s, (double)n * k * 2, 2.0 * t * n * k);
    dnnl_memory_destroy(x), dnnl_memory_destroy(w), dnnl_memory_destroy(o);
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(pd);
}

/* The thread count is OpenMP's: OMP_NUM_THREADS. Small weights stay in the cache here; the head does not. */
static void bench_dnnl(struct bench *bench)
{
    static const int rows[] = { 1, 8, 14, 64, 512 };
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) return;
    if (dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success) return;
    for (int r = 0; r < 5; r++) {
        dnnl_case(bench, engine, stream, "gate_up 3072x576", rows[r], 2 * FFN, HIDDEN);
        dnnl_case(bench, engine, stream, "down 576x1536", rows[r], HIDDEN, FFN);
        if (rows[r] <= 64) dnnl_case(bench, engine, stream, "head 49152x576", rows[r], VOCAB, HIDDEN);
    }
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
}
#else
static void bench_dnnl(struct bench *bench) { (void)bench; }
#endif

static void bench_bandwidth(struct bench *bench)
{
    struct read_job job = { .data = must(aligned_alloc(64, READ_BYTES)) };
    memset((void *)job.data, 1, READ_BYTES);
    double s = good_time(read_slice, bench, &job, 60);
    line(bench, "bandwidth", "read", 0, s, READ_BYTES / SLICES, 0);
    free((void *)job.data);
}

static void bench_pack(struct bench *bench)
{
    float *src = must(malloc((size_t)VOCAB * HIDDEN * sizeof(float)));
    fill(src, (size_t)VOCAB * HIDDEN, 1);
    double weights = 134.5e6, s = good_time(pack_all, bench, src, 3);
    line(bench, "pack", "135M weights", 0, s, weights * 6, 0);
    free(src);
}

int main(int argc, char **argv)
{
    static const char *const isas[] = { "portable", "avx2", "avx512", "avx512_bf16" };
    int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1, isa = -1;
    const char *what = argc > 3 ? argv[3] : "all";
    bool all = strcmp(what, "all") == 0;
    static struct bench bench;

    for (int i = 0; argc > 2 && i < 4; i++) if (strcmp(argv[2], isas[i]) == 0) isa = i;
    bench_init(&bench, isa < 0 && argc > 2 && strcmp(argv[2], "ref") == 0 ? &backend_cpu_ref : &backend_cpu_fast, threads, isa,
               argc > 4 && strcmp(argv[4], "kept") == 0);
    if (all || strcmp(what, "bandwidth") == 0) bench_bandwidth(&bench);
    if (!bench.kept && (all || strcmp(what, "pack") == 0)) bench_pack(&bench);
    if (all || strcmp(what, "step") == 0) bench_steps(&bench);
    if (all || strcmp(what, "matmul") == 0) bench_matmuls(&bench);
    if (all || strcmp(what, "ops") == 0) bench_small_ops(&bench);
    if (all || strcmp(what, "sample") == 0) bench_sampling(&bench);
    if (all || strcmp(what, "onednn") == 0) bench_dnnl(&bench);
    bench_free(&bench);
    return 0;
}
