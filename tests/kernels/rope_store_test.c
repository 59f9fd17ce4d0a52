/* rope_store_test.c - kernels/rope_store.cu against plain loops: q, and every element of the K and V cache (what no token is
 * stored in keeps its bits). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "gpu.h"

enum { BLOCK_SIZE = 16, MAX_POSITION = 512 };

static const float EPS = 1e-6f;

struct shape { int num_tokens, num_heads, num_kv_heads, head_dim; bool bias, norm; };

static void head_expected(float *head, const struct shape *s, const float *bias, const float *norm, const float *cos_sin)
{
    int d = s->head_dim, half = d / 2;
    double squares = 0;
    for (int i = 0; bias && i < d; i++) head[i] += bias[i];
    if (!cos_sin) return;                                  /* v */
    for (int i = 0; norm && i < d; i++) squares += (double)head[i] * head[i];
    for (int i = 0; norm && i < d; i++) head[i] = (float)(head[i] / sqrt(squares / d + EPS) * norm[i]);
    for (int i = 0; i < half; i++) {
        float x = head[i], y = head[i + half];
        head[i] = x * cos_sin[i] - y * cos_sin[i + half];
        head[i + half] = y * cos_sin[i] + x * cos_sin[i + half];
    }
}

static void compare(const char *what, const struct shape *s, const uint16_t *got, const float *expected, float scale)
{
    for (int i = 0; i < s->head_dim; i++)
        if (!(fabsf(of_elem(got[i]) - expected[i]) <= gpu_rounding(expected[i]) + 2e-6 * scale))
            fail_msg("%s: T=%d H=%d Hk=%d D=%d bias %d norm %d: element %d is %g, not %g", what, s->num_tokens, s->num_heads,
                     s->num_kv_heads, s->head_dim, s->bias, s->norm, i, of_elem(got[i]), expected[i]);
}

static void check(struct shape s, int pdl)
{
    uint64_t rng = (uint64_t)s.num_tokens * 7919 + (uint64_t)s.head_dim * 4 + s.bias * 2 + s.norm;
    int d = s.head_dim, heads = s.num_heads + 2 * s.num_kv_heads;
    int num_blocks = s.num_tokens / BLOCK_SIZE + 3;
    size_t row = (size_t)heads * d, n = row * s.num_tokens, cache = (size_t)num_blocks * s.num_kv_heads * BLOCK_SIZE * d;
    uint16_t *qkv = malloc(n * 2), *got = malloc(n * 2), *kv[2] = { malloc(cache * 2), malloc(cache * 2) };
    float *bias = malloc(row * 4), *norms = malloc((size_t)d * 8), *table = malloc((size_t)MAX_POSITION * d * 4), head[256];
    int32_t *positions = malloc((size_t)s.num_tokens * 4);
    int64_t *slots = malloc((size_t)s.num_tokens * 8);
    struct launch launch = gpu_launch(pdl);

    random_elem(&rng, 2.0f, NULL, qkv, n);
    for (size_t i = 0; i < row; i++) bias[i] = rng_normal(&rng);
    for (int i = 0; i < 2 * d; i++) norms[i] = 1.0f + 0.3f * rng_normal(&rng);
    for (int p = 0; p < MAX_POSITION; p++)
        for (int i = 0; i < d / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / d);
            table[p * d + i] = (float)cos(angle);
            table[p * d + d / 2 + i] = (float)sin(angle);
        }
    for (int t = 0; t < s.num_tokens; t++) {
        positions[t] = (int32_t)(rng_next(&rng) % MAX_POSITION);
        slots[t] = t % 5 == 3 ? -1 : num_blocks * BLOCK_SIZE - 1 - t;
    }
    void *d_qkv = gpu_copy(qkv, n * 2), *d_bias = gpu_copy(bias, row * 4), *d_norms = gpu_copy(norms, (size_t)d * 8);
    void *d_table = gpu_copy(table, (size_t)MAX_POSITION * d * 4), *d_positions = gpu_copy(positions, (size_t)s.num_tokens * 4);
    void *d_slots = gpu_copy(slots, (size_t)s.num_tokens * 8), *d_kv[2] = { gpu_new(cache * 2), gpu_new(cache * 2) };
    struct rope_store_kernel args = { d_qkv, s.bias ? d_bias : NULL, s.norm ? d_norms : NULL, s.norm ? (float *)d_norms + d : NULL,
                                      d_table, d_positions, d_slots, d_kv[0], d_kv[1], s.num_tokens, s.num_heads, s.num_kv_heads, d,
                                      BLOCK_SIZE, EPS };
    assert_int_equal(launch_rope_store(&args, &launch), 0);
    gpu_sync();
    gpu_read(got, d_qkv, n * 2);
    for (int i = 0; i < 2; i++) gpu_read(kv[i], d_kv[i], cache * 2);
    for (int t = 0; t < s.num_tokens; t++)
        for (int h = 0; h < heads; h++) {
            size_t at = t * row + (size_t)h * d;
            int which = h < s.num_heads ? 0 : h < s.num_heads + s.num_kv_heads ? 1 : 2;
            for (int i = 0; i < d; i++) head[i] = of_elem(qkv[at + i]);
            head_expected(head, &s, s.bias ? bias + (size_t)h * d : NULL, s.norm ? norms + (which == 1 ? d : 0) : NULL,
                          which < 2 ? table + (size_t)positions[t] * d : NULL);
            if (which == 0) { compare("q", &s, got + at, head, 10); continue; }
            if (slots[t] < 0) continue;
            int kv_head = (h - s.num_heads) % s.num_kv_heads;
            int64_t block = slots[t] / BLOCK_SIZE, offset = slots[t] % BLOCK_SIZE;
            uint16_t *stored = kv[which - 1] + ((block * s.num_kv_heads + kv_head) * BLOCK_SIZE + offset) * d;
            compare(which == 1 ? "k" : "v", &s, stored, head, 10);
            memset(stored, 0xFF, (size_t)d * 2);           /* back to the poison: the rest is checked below */
        }
    for (size_t i = 0; i < cache; i++)
        if (kv[0][i] != 0xFFFF || kv[1][i] != 0xFFFF) fail_msg("D=%d: the cache was written outside its slots at %zu", d, i);
    gpu_free(d_qkv); gpu_free(d_bias); gpu_free(d_norms); gpu_free(d_table); gpu_free(d_positions); gpu_free(d_slots);
    gpu_free(d_kv[0]); gpu_free(d_kv[1]);
    free(qkv); free(got); free(kv[0]); free(kv[1]); free(bias); free(norms); free(table); free(positions); free(slots);
}

static void heads_are_rotated_and_stored(void **state)
{
    static const int tokens[] = { 1, 3, 64, 301 }, dims[] = { 64, 80, 96, 128, 256 };
    static const int heads[][2] = { { 9, 3 }, { 32, 8 }, { 16, 8 }, { 28, 4 }, { 1, 1 }, { 64, 8 } };
    (void)state;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (size_t j = 0; j < sizeof dims / sizeof *dims; j++)
            for (size_t h = 0; h < sizeof heads / sizeof *heads; h++) {
                int with = (int)((i + j + h) & 3);
                check((struct shape){ tokens[i], heads[h][0], heads[h][1], dims[j], with & 1, with & 2 }, (int)(h & 1));
            }
    for (int with = 0; with < 4; with++) check((struct shape){ 65, 32, 8, 128, with & 1, with & 2 }, 1);
    check((struct shape){ 8192, 9, 3, 64, true, true }, 1);
}

static void odd_shapes_are_refused(void **state)
{
    struct launch launch = gpu_launch(0);
    struct rope_store_kernel args = { .num_tokens = 1, .num_heads = 1, .num_kv_heads = 1, .head_dim = 72, .block_size = 16 };
    (void)state;
    assert_int_equal(launch_rope_store(&args, &launch), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(heads_are_rotated_and_stored), cmocka_unit_test(odd_shapes_are_refused) };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
