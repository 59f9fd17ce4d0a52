/* attn_decode_test.c - kernels/attn_decode.cu against plain float loops: head dims, groups, block sizes, lengths even, odd and skewed,
 * windows, padding, replays of a captured launch with other lengths. KV that nobody wrote and tables past a sequence's end are
 * poison. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "attn_decode_plan.h"
#include "gpu.h"

/* Of bf16: probabilities are rounded to it before they meet V. */
static const double TOLERANCE = 1e-2;

struct shape { int H, Hk, D, block_size, window; };

/* A batch that lives on both sides. */
struct batch {
    struct shape s;
    int B, max_blocks;
    int64_t num_blocks;
    int32_t *lens;
    block_id *tables;
    uint16_t *q, *k, *v, *out;
    float *expected;
    void *d_q, *d_k, *d_v, *d_tables, *d_lens, *d_plan, *d_workspace, *d_out;
    struct launch launch;
    uint64_t rng;
};

static size_t q_stride(const struct shape *s) { return (size_t)(s->H + 2 * s->Hk) * s->D; }
static size_t kv_at(const struct batch *b, int seq, int head, int pos)
{
    block_id block = b->tables[(size_t)seq * b->max_blocks + pos / b->s.block_size];
    return (((size_t)block * b->s.Hk + head) * b->s.block_size + pos % b->s.block_size) * b->s.D;
}

static void oracle_row(struct batch *b, int seq)
{
    const struct shape *s = &b->s;
    int len = b->lens[seq], from = s->window > 0 && len > s->window ? len - s->window : 0;
    float scale = 1 / sqrtf((float)s->D), *p = malloc(sizeof *p * (size_t)(len + 1));

    for (int h = 0; h < s->H; h++) {
        const uint16_t *q = b->q + (size_t)seq * q_stride(s) + (size_t)h * s->D;
        float *out = b->expected + ((size_t)seq * s->H + h) * s->D, top = -INFINITY, sum = 0, qf[256];
        for (int i = 0; i < s->D; i++) { qf[i] = of_elem(q[i]); out[i] = 0; }
        for (int pos = from; pos < len; pos++) {
            const uint16_t *k = b->k + kv_at(b, seq, h / (s->H / s->Hk), pos);
            float dot = 0;
            for (int i = 0; i < s->D; i++) dot += qf[i] * of_elem(k[i]);
            p[pos] = dot * scale;
            if (p[pos] > top) top = p[pos];
        }
        for (int pos = from; pos < len; pos++) sum += p[pos] = expf(p[pos] - top);
        for (int pos = from; pos < len; pos++) {
            const uint16_t *v = b->v + kv_at(b, seq, h / (s->H / s->Hk), pos);
            for (int i = 0; i < s->D; i++) out[i] += p[pos] / sum * of_elem(v[i]);
        }
    }
    free(p);
}

/* Random tables over a pool with a few blocks to spare; only positions below their sequence's length are written. */
static void batch_init(struct batch *b, struct shape s, int B, const int32_t *lens, int pdl)
{
    int64_t used = 0;
    int most = 1;

    *b = (struct batch){ .s = s, .B = B, .launch = gpu_launch(pdl), .rng = (uint64_t)(B * 7919 + s.H * 31 + s.D + s.block_size) };
    for (int i = 0; i < B; i++) {
        int n = (lens[i] + s.block_size - 1) / s.block_size;
        used += n;
        if (n > most) most = n;
    }
    b->max_blocks = most + 1;
    b->num_blocks = used + 3;
    size_t kv = (size_t)b->num_blocks * s.Hk * s.block_size * s.D, rows = (size_t)B * q_stride(&s), outs = (size_t)B * s.H * s.D;
    block_id *order = malloc(sizeof *order * (size_t)b->num_blocks);
    b->lens = malloc(sizeof *b->lens * (size_t)B);
    b->tables = malloc(sizeof *b->tables * (size_t)B * b->max_blocks);
    b->q = malloc(rows * 2);
    b->k = malloc(kv * 2);
    b->v = malloc(kv * 2);
    b->out = malloc(outs * 2);
    b->expected = malloc(outs * sizeof(float));
    memcpy(b->lens, lens, sizeof *lens * (size_t)B);
    memset(b->k, 0xFF, kv * 2);
    memset(b->v, 0xFF, kv * 2);
    for (int64_t i = 0; i < b->num_blocks; i++) order[i] = (block_id)i;
    for (int64_t i = b->num_blocks - 1; i > 0; i--) {
        int64_t j = (int64_t)(rng_next(&b->rng) % (uint64_t)(i + 1));
        block_id t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (int i = 0; i < B * b->max_blocks; i++) b->tables[i] = 0x3FFFFFFF;
    used = 0;
    for (int i = 0; i < B; i++)
        for (int n = 0; n * s.block_size < lens[i]; n++) b->tables[(size_t)i * b->max_blocks + n] = order[used++];
    random_elem(&b->rng, 1.5f, NULL, b->q, rows);
    for (int i = 0; i < B; i++)
        for (int h = 0; h < s.Hk; h++)
            for (int pos = 0; pos < lens[i]; pos++) {
                random_elem(&b->rng, 1, NULL, b->k + kv_at(b, i, h, pos), (size_t)s.D);
                random_elem(&b->rng, 1, NULL, b->v + kv_at(b, i, h, pos), (size_t)s.D);
            }
    free(order);
    b->d_q = gpu_copy(b->q, rows * 2);
    b->d_k = gpu_copy(b->k, kv * 2);
    b->d_v = gpu_copy(b->v, kv * 2);
    b->d_tables = gpu_copy(b->tables, sizeof *b->tables * (size_t)B * b->max_blocks);
    b->d_lens = gpu_copy(b->lens, sizeof *b->lens * (size_t)B);
    b->d_plan = gpu_new(attn_decode_plan_bytes(b->launch.num_sms));
    b->d_workspace = gpu_new(attn_decode_workspace_bytes(s.D, b->launch.num_sms));
    CUDA_MUST(cudaMemset(b->d_workspace, 0, attn_decode_workspace_bytes(s.D, b->launch.num_sms)));
    b->d_out = gpu_new(outs * 2);
}

static void batch_release(struct batch *b)
{
    gpu_free(b->d_q); gpu_free(b->d_k); gpu_free(b->d_v); gpu_free(b->d_tables); gpu_free(b->d_lens); gpu_free(b->d_plan);
    gpu_free(b->d_workspace); gpu_free(b->d_out);
    free(b->lens); free(b->tables); free(b->q); free(b->k); free(b->v); free(b->out); free(b->expected);
}

/* Lengths as they are in b->lens now (never above those of batch_init); the plan of the first `planned` of them. */
static void batch_plan(struct batch *b, int planned)
{
    struct attn_decode_shape s = { b->s.H, b->s.Hk, b->s.D, b->s.window, b->launch.num_sms };
    size_t bytes = attn_decode_plan_bytes(b->launch.num_sms);
    void *plan = calloc(1, bytes);
    attn_decode_plan(&s, b->lens, planned, plan);
    CUDA_MUST(cudaMemcpy(b->d_plan, plan, bytes, cudaMemcpyHostToDevice));
    CUDA_MUST(cudaMemcpy(b->d_lens, b->lens, sizeof *b->lens * (size_t)b->B, cudaMemcpyHostToDevice));
    free(plan);
    for (int i = 0; i < b->B; i++) oracle_row(b, i);
}

static int batch_launch(struct batch *b)
{
    struct attn_decode_kernel a = {
        .q = b->d_q, .q_stride = (int64_t)q_stride(&b->s), .out = b->d_out,
        .kv = { b->d_k, b->d_v, b->d_tables, b->max_blocks, b->s.block_size, b->num_blocks }, .context_lens = b->d_lens,
        .plan = b->d_plan, .workspace = b->d_workspace, .num_seqs = b->B, .num_heads = b->s.H, .num_kv_heads = b->s.Hk,
        .head_dim = b->s.D, .sliding_window = b->s.window, .scale = 1 / sqrtf((float)b->s.D),
    };
    return launch_attn_decode(&a, &b->launch);
}

static void poison_out(struct batch *b) { CUDA_MUST(cudaMemset(b->d_out, 0xFF, (size_t)b->B * b->s.H * b->s.D * 2)); }

static void batch_compare(struct batch *b, const char *what)
{
    size_t row = (size_t)b->s.H * b->s.D;
    gpu_sync();
    gpu_read(b->out, b->d_out, row * (size_t)b->B * 2);
    for (int i = 0; i < b->B; i++) {
        double e = relative_error_elem(b->out + row * (size_t)i, b->expected + row * (size_t)i, row);
        if (!(e <= gpu_tolerance(TOLERANCE)))
            fail_msg("%s: H=%d Hk=%d D=%d block %d window %d B=%d: row %d of length %d: error %g", what, b->s.H, b->s.Hk, b->s.D,
                     b->s.block_size, b->s.window, b->B, i, b->lens[i], e);
    }
    int32_t counters[2 * 256 + 1];
    gpu_read(counters, b->d_workspace, sizeof(int32_t) * (size_t)(attn_decode_grid(b->s.D, b->launch.num_sms) + 1));
    for (int i = 0; i <= attn_decode_grid(b->s.D, b->launch.num_sms); i++) assert_int_equal(counters[i], 0);
}

static void check(struct shape s, int B, const int32_t *lens, int pdl)
{
    if (!gpu_turn()) return;
    struct batch b;
    batch_init(&b, s, B, lens, pdl);
    batch_plan(&b, b.B);
    for (int round = 0; round < 2; round++) {              /* the counters were left zeroed */
        poison_out(&b);
        assert_int_equal(batch_launch(&b), 0);
        batch_compare(&b, round ? "again" : "first");
    }
    batch_release(&b);
}

static void lengths_of(int32_t *lens, int n, int most, uint64_t seed)
{
    for (int i = 0; i < n; i++) lens[i] = 1 + (int32_t)(rng_next(&seed) % (uint64_t)most);
}

static void one_sequence_of_every_length(void **state)
{
    static const int32_t lens[] = { 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 500, 1000, 4097 };
    (void)state;
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        check((struct shape){ 32, 8, 128, 64, 0 }, 1, &lens[i], 0);
        check((struct shape){ 9, 3, 64, 64, 0 }, 1, &lens[i], 0);
    }
}

static void head_dims_and_block_sizes(void **state)
{
    static const int dims[] = { 64, 80, 96, 128, 256 }, blocks[] = { 16, 48, 64, 256 };
    int32_t lens[3];
    (void)state;
    for (int d = 0; d < 5; d++)
        for (int k = 0; k < 4; k++) {
            lengths_of(lens, 3, 700, (uint64_t)(d * 4 + k));
            check((struct shape){ 8, 2, dims[d], blocks[k], 0 }, 3, lens, 0);
        }
}

static void groups(void **state)
{
    static const int heads[][2] = { { 4, 4 }, { 9, 3 }, { 8, 2 }, { 28, 4 }, { 16, 2 }, { 12, 1 }, { 32, 2 }, { 71, 1 }, { 2, 1 } };
    int32_t lens[5];
    (void)state;
    for (int g = 0; g < 9; g++)
        for (int d = 64; d <= 128; d += 64) {
            lengths_of(lens, 5, 900, (uint64_t)(g + d));
            check((struct shape){ heads[g][0], heads[g][1], d, 32, 0 }, 5, lens, 0);
        }
}

static void batches_even_and_skewed(void **state)
{
    int32_t lens[256];
    (void)state;
    for (int i = 0; i < 64; i++) lens[i] = 300;
    check((struct shape){ 16, 8, 128, 64, 0 }, 64, lens, 0);
    for (int i = 0; i < 256; i++) lens[i] = 268;            /* items that come out whole, a last tile of 12 tokens */
    check((struct shape){ 8, 8, 128, 64, 0 }, 256, lens, 0);
    check((struct shape){ 9, 3, 64, 64, 0 }, 256, lens, 1);
    check((struct shape){ 9, 3, 64, 16, 0 }, 256, lens, 0);
    lengths_of(lens, 256, 260, 3);
    check((struct shape){ 8, 2, 128, 64, 0 }, 256, lens, 0);
    for (int i = 0; i < 256; i++) lens[i] = i % 13 == 5 ? 0 : 1 + i * 41 % 290;        /* items that are dealt, some of rows without KV */
    check((struct shape){ 8, 8, 128, 64, 0 }, 256, lens, 1);
    check((struct shape){ 6, 6, 96, 16, 100 }, 256, lens, 1);
    check((struct shape){ 5, 5, 256, 64, 0 }, 256, lens, 0);
    for (int i = 0; i < 256; i++) lens[i] = 40;
    lens[200] = 32768;
    check((struct shape){ 6, 2, 64, 64, 0 }, 256, lens, 0);
    lens[0] = 20000;
    lens[255] = 9999;
    check((struct shape){ 4, 2, 128, 16, 0 }, 256, lens, 1);
}

static void windows(void **state)
{
    static const int window[] = { 1, 16, 63, 100, 511, 4096 };
    int32_t lens[7] = { 1, 50, 64, 100, 513, 700, 2049 };
    (void)state;
    for (int w = 0; w < 6; w++)
        for (int d = 64; d <= 256; d *= 2) check((struct shape){ 8, 4, d, d == 64 ? 16 : 64, window[w] }, 7, lens, 0);
}

static void padding_rows_are_zeros(void **state)
{
    int32_t lens[64] = { 100, 0, 300, 0, 0, 7 };
    (void)state;
    check((struct shape){ 32, 8, 128, 64, 0 }, 64, lens, 0);
    lens[0] = lens[2] = lens[5] = 0;
    check((struct shape){ 9, 3, 64, 64, 0 }, 64, lens, 0);
    lens[63] = 5000;
    check((struct shape){ 9, 3, 64, 64, 0 }, 64, lens, 1);

    struct batch b;                                        /* a captured launch of 64 rows, a plan of the 3 that are there */
    if (!gpu_turn()) return;
    memset(lens, 0, sizeof lens);
    lens[0] = lens[1] = lens[2] = 200;
    batch_init(&b, (struct shape){ 16, 8, 128, 64, 0 }, 64, lens, 1);
    batch_plan(&b, 3);
    poison_out(&b);
    assert_int_equal(batch_launch(&b), 0);
    batch_compare(&b, "padded bucket");
    batch_release(&b);
}

static void a_captured_launch_serves_other_lengths(void **state)
{
    struct batch b;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t stream;
    int32_t lens[48];

    (void)state;
    if (!gpu_turn()) return;
    for (int i = 0; i < 48; i++) lens[i] = 1500;
    batch_init(&b, (struct shape){ 16, 4, 128, 64, 0 }, 48, lens, 1);
    CUDA_MUST(cudaStreamCreate(&stream));
    b.launch.stream = stream;
    CUDA_MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(batch_launch(&b), 0);
    assert_int_equal(batch_launch(&b), 0);
    CUDA_MUST(cudaStreamEndCapture(stream, &graph));
    CUDA_MUST(cudaGraphInstantiate(&exec, graph, 0));
    for (int round = 0; round < 6; round++) {
        lengths_of(b.lens, 48, round == 1 ? 30 : 1500, (uint64_t)round);
        if (round == 2) for (int i = 1; i < 48; i++) b.lens[i] = 0;
        if (round == 3) for (int i = 0; i < 48; i++) b.lens[i] = i == 5 ? 1500 : 1;
        batch_plan(&b, b.B);
        poison_out(&b);
        CUDA_MUST(cudaGraphLaunch(exec, stream));
        batch_compare(&b, "replay");
    }
    CUDA_MUST(cudaGraphExecDestroy(exec));
    CUDA_MUST(cudaGraphDestroy(graph));
    CUDA_MUST(cudaStreamDestroy(stream));
    batch_release(&b);
}

/* The way of the older architectures, on whatever device there is. */
static void without_the_copy_engine(void **state)
{
    struct batch b;
    static const int dims[] = { 64, 80, 96, 128, 256 };
    int32_t lens[9] = { 1, 64, 65, 700, 0, 1500, 33, 2, 128 };

    (void)state;
    for (int d = 0; d < 5; d++) {
        if (!gpu_turn()) continue;
        batch_init(&b, (struct shape){ 12, 4, dims[d], d & 1 ? 16 : 64, d == 2 ? 100 : 0 }, 9, lens, 0);
        b.launch.sm = 80;
        batch_plan(&b, b.B);
        poison_out(&b);
        assert_int_equal(batch_launch(&b), 0);
        batch_compare(&b, "sm_80");
        batch_release(&b);
    }
}

static void odd_shapes_are_refused(void **state)
{
    struct launch launch = gpu_launch(0);
    struct attn_decode_kernel a = { .q_stride = 128, .kv.block_size = 64, .num_heads = 1, .num_kv_heads = 1, .head_dim = 72 };
    (void)state;
    assert_int_equal(launch_attn_decode(&a, &launch), ERR_UNSUPPORTED);
    a.head_dim = 128;
    a.kv.block_size = 24;
    assert_int_equal(launch_attn_decode(&a, &launch), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_sequence_of_every_length), cmocka_unit_test(head_dims_and_block_sizes), cmocka_unit_test(groups),
        cmocka_unit_test(batches_even_and_skewed), cmocka_unit_test(windows), cmocka_unit_test(padding_rows_are_zeros),
        cmocka_unit_test(a_captured_launch_serves_other_lengths), cmocka_unit_test(without_the_copy_engine),
        cmocka_unit_test(odd_shapes_are_refused),
    };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
