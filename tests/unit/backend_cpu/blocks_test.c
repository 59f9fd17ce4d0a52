/* blocks_test.c - matrices kept in the file's blocks: exactly the file's values, on every instruction set, whatever the
 * number of rows, threads and pieces. The expected values come from the format's definition, written here once more. */
#include "fixture.h"

#include "blocks.h"
#include "fast_ops.h"

static const struct backend_ops *const FAST = &backend_cpu_fast, *const REF = &backend_cpu_ref;
static const enum dtype KEPT[] = { DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_Q8_0 };
enum { NUM_KEPT = 5 };

#define FOR_EACH_ISA(isa) \
    for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa < CPU_ISA_COUNT; isa++) if (cpu_kernels_for(isa))

static struct backend *open_fast(enum cpu_isa isa, int threads)
{
    struct backend *b = open_backend(FAST, DTYPE_F16, threads, 64, 8);
    assert_int_equal(backend_cpu_fast_force_isa(b, isa), 0);
    return b;
}

static float half_value(const uint8_t *at)
{
    int bits = at[0] | at[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double size = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return (float)(bits >> 15 ? -size : size);
}

/* Any bits, but scales of a size that adds up to something: now and then one below the normal range of f16. */
static uint8_t *random_blocks(enum dtype dtype, int64_t n, uint64_t seed)
{
    size_t bytes = (size_t)dtype_block_bytes(dtype);
    uint8_t *blocks = zeroed((size_t)n, bytes);
    for (int64_t i = 0; i < n; i++) {
        uint8_t *block = blocks + (size_t)i * bytes;
        for (size_t j = 0; j < bytes; j++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            block[j] = (uint8_t)(seed >> 56);
        }
        for (int scale = 0; scale < 2; scale++)
            if (scale == 0 || dtype == DTYPE_Q4_1 || dtype == DTYPE_Q5_1)
                block[2 * scale + 1] = (block[2 * scale + 1] & 0x83) | (i % 7 == 3 ? 0 : 0x20);
    }
    return blocks;
}

static float *values_of(enum dtype dtype, const uint8_t *blocks, int64_t n)
{
    float *values = zeroed((size_t)n * 32, sizeof *values);
    for (int64_t b = 0; b < n; b++, blocks += dtype_block_bytes(dtype)) {
        bool min = dtype == DTYPE_Q4_1 || dtype == DTYPE_Q5_1, five = dtype == DTYPE_Q5_0 || dtype == DTYPE_Q5_1;
        const uint8_t *rest = blocks + (min ? 4 : 2), *nibbles = rest + (five ? 4 : 0);
        float d = half_value(blocks), m = min ? half_value(blocks + 2) : 0;
        for (int i = 0; i < 32; i++) {
            int q = i < 16 ? nibbles[i] % 16 : nibbles[i - 16] / 16;
            if (five) q += (rest[i / 8] >> i % 8 & 1) * 16;
            if (dtype == DTYPE_Q4_0) q -= 8;
            if (dtype == DTYPE_Q5_0) q -= 16;
            if (dtype == DTYPE_Q8_0) q = (int8_t)rest[i];
            values[b * 32 + i] = d * (float)q + m;
        }
    }
    return values;
}

static struct weight keep(struct backend *b, enum dtype dtype, int64_t rows, int64_t cols, const uint8_t *blocks)
{
    struct weight w = { .rows = rows, .cols = cols, .kept = dtype };
    w.data = FAST->carve(b, FAST->kept_bytes(dtype, rows, cols));
    if (blocks) FAST->store_kept(b, &w, 0, rows, blocks);
    return w;
}

static void only_block_formats_of_whole_blocks_are_kept(void **state)
{
    (void)state;
    assert_int_equal(FAST->kept_bytes(DTYPE_Q4_1, 33, 64), 2 * 2 * 640);
    assert_int_equal(FAST->kept_bytes(DTYPE_Q8_0, 32, 32), 1088);
    assert_int_equal(FAST->kept_bytes(DTYPE_Q4_1, 32, 48), 0);
    assert_int_equal(FAST->kept_bytes(DTYPE_Q6_K, 32, 256), 0);
    assert_int_equal(FAST->kept_bytes(DTYPE_BF16, 32, 256), 0);
    assert_int_equal(FAST->kept_bytes(DTYPE_F32, 32, 256), 0);
}

static void a_kept_row_reads_back_exactly(void **state)
{
    (void)state;
    enum { N = 77, K = 192 };
    for (int f = 0; f < NUM_KEPT; f++) {
        struct backend *b = open_fast(CPU_ISA_PORTABLE, 2);
        uint8_t *blocks = random_blocks(KEPT[f], N * K / 32, 11 + f);
        float *want = values_of(KEPT[f], blocks, N * K / 32), *got = zeroed(N * K, sizeof *got);
        struct weight w = keep(b, KEPT[f], N, K, blocks);
        token_id ids[N];
        for (int i = 0; i < N; i++) ids[i] = N - 1 - i;
        FAST->embed(b, &(struct embed_args){ .ids = ids, .num_tokens = N, .table = &w, .out = got });
        for (int i = 0; i < N; i++) assert_memory_equal(got + i * K, want + (N - 1 - i) * K, K * sizeof(float));
        ids[0] = N;                        /* another shard's */
        FAST->embed(b, &(struct embed_args){ .ids = ids, .num_tokens = 1, .table = &w, .out = got });
        for (int i = 0; i < K; i++) assert_true(got[i] == 0.0f);
        free(blocks), free(want), free(got);
        FAST->close(b);
    }
}

/* What is left is the order of the sums and, with integer inputs, their rounding: a 65534th of a block's largest. */
static void product_agrees_with_the_oracle(void **state)
{
    (void)state;
    static const int shapes[][3] = { { 1, 1, 32 }, { 1, 33, 96 }, { 2, 31, 64 }, { 3, 47, 96 }, { 5, 64, 32 }, { 7, 100, 576 },
                                     { 14, 64, 160 }, { 29, 65, 1536 } };
    FOR_EACH_ISA(isa)
        for (int i = 0; i < 8 * NUM_KEPT; i++) {
            enum dtype dtype = KEPT[i / 8];
            int t = shapes[i % 8][0], n = shapes[i % 8][1], k = shapes[i % 8][2];
            struct backend *fast = open_fast(isa, 2), *ref = open_backend(REF, DTYPE_F32, 2, 64, 8);
            uint8_t *blocks = random_blocks(dtype, (int64_t)n * k / 32, 5 + i);
            float *values = values_of(dtype, blocks, (int64_t)n * k / 32);
            float *x = random_floats((size_t)t * k, 1 + i, 1), *bias = random_floats((size_t)n, 3 + i, 1);
            float *got = zeroed((size_t)t * n, sizeof *got), *want = zeroed((size_t)t * n, sizeof *want);
            struct weight wf = keep(fast, dtype, n, k, blocks), bf = make_weight(FAST, fast, WEIGHT_VECTOR, 1, n, bias);
            struct weight wr = make_weight(REF, ref, WEIGHT_MATRIX, n, k, values), br = make_weight(REF, ref, WEIGHT_VECTOR, 1, n, bias);
            double size = 0, fine = isa == CPU_ISA_AVX512_BF16 ? 2e-4 : 2e-5;
            for (int j = 0; j < n * k; j++) size += pow(values[j], 2);
            for (int with_bias = 0; with_bias < 2; with_bias++) {
                struct matmul_args args = { .x = x, .w = &wf, .bias = with_bias ? &bf : NULL, .out = got, .num_tokens = t };
                FAST->matmul(fast, &args);
                args.w = &wr, args.bias = with_bias ? &br : NULL, args.out = want;
                REF->matmul(ref, &args);
                assert_true(largest_difference(got, want, (size_t)t * n) < fine * (sqrt(size / n) + 1));
            }
            free(blocks), free(values), free(x), free(bias), free(got), free(want);
            FAST->close(fast);
            REF->close(ref);
        }
}

/* A zero, a tiny and a broken input: nothing is lost that f32 would hold. */
static void odd_inputs_stay_what_they_are(void **state)
{
    (void)state;
    enum { N = 32, K = 64 };
    float x[3 * K] = { 0 }, got[3 * N];
    uint8_t *blocks = random_blocks(DTYPE_Q5_1, N * K / 32, 4);
    x[K + 5] = 1e-20f;
    x[2 * K + 40] = NAN;
    FOR_EACH_ISA(isa) {
        struct backend *b = open_fast(isa, 1);
        struct weight w = keep(b, DTYPE_Q5_1, N, K, blocks);
        float *values = values_of(DTYPE_Q5_1, blocks, N * K / 32);
        FAST->matmul(b, &(struct matmul_args){ .x = x, .w = &w, .out = got, .num_tokens = 3 });
        for (int i = 0; i < N; i++) {
            double want = 1e-20 * (double)values[i * K + 5];
            assert_true(got[i] == 0.0f);
            assert_true(fabs(got[N + i] - want) <= 1e-25 + 1e-4 * fabs(want));
            assert_true(isnan(got[2 * N + i]));
        }
        free(values);
        FAST->close(b);
    }
    free(blocks);
}

static void product_rows_do_not_see_each_other(void **state)
{
    (void)state;
    enum { T = 64, N = 97, K = 608 };
    float *x = random_floats((size_t)T * K, 1, 1);
    float *all = zeroed((size_t)T * N, sizeof *all), *part = zeroed((size_t)T * N, sizeof *part);
    FOR_EACH_ISA(isa)
        for (int f = 0; f < NUM_KEPT; f++) {
            struct backend *one = open_fast(isa, 1), *three = open_fast(isa, 3);
            uint8_t *blocks = random_blocks(KEPT[f], N * K / 32, 20 + f);
            struct weight w1 = keep(one, KEPT[f], N, K, blocks), w3 = keep(three, KEPT[f], N, K, blocks);
            FAST->matmul(one, &(struct matmul_args){ .x = x, .w = &w1, .out = all, .num_tokens = T });
            for (int size = 1; size <= 17; size++) {
                memset(part, 0, (size_t)T * N * sizeof *part);
                for (int t = 0; t < T; t += size) {
                    int rows = T - t < size ? T - t : size;
                    FAST->matmul(three, &(struct matmul_args){ .x = x + (size_t)t * K, .w = &w3, .out = part + (size_t)t * N,
                                                               .num_tokens = rows });
                }
                assert_memory_equal(part, all, (size_t)T * N * sizeof *part);
            }
            free(blocks);
            FAST->close(one);
            FAST->close(three);
        }
    free(x), free(all), free(part);
}

static void kept_rows_may_come_in_any_pieces(void **state)
{
    (void)state;
    enum { N = 77, K = 160 };
    static const int steps[] = { 1, 5, 32, 40, 77 };
    for (int f = 0; f < NUM_KEPT; f++) {
        struct backend *b = open_fast(CPU_ISA_PORTABLE, 1);
        size_t row = (size_t)dtype_row_bytes(KEPT[f], K), bytes = FAST->kept_bytes(KEPT[f], N, K);
        uint8_t *blocks = random_blocks(KEPT[f], N * K / 32, 2 + f);
        struct weight whole = keep(b, KEPT[f], N, K, blocks);
        for (int s = 0; s < 5; s++) {
            struct weight w = keep(b, KEPT[f], N, K, NULL);
            for (int at = (N - 1) / steps[s] * steps[s]; at >= 0; at -= steps[s])
                FAST->store_kept(b, &w, at, N - at < steps[s] ? N - at : steps[s], blocks + (size_t)at * row);
            assert_memory_equal(w.data, whole.data, bytes);
        }
        free(blocks);
        FAST->close(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_block_formats_of_whole_blocks_are_kept),
        cmocka_unit_test(a_kept_row_reads_back_exactly),
        cmocka_unit_test(product_agrees_with_the_oracle),
        cmocka_unit_test(odd_inputs_stay_what_they_are),
        cmocka_unit_test(product_rows_do_not_see_each_other),
        cmocka_unit_test(kept_rows_may_come_in_any_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
