/* silu_mul_test.c - kernels/silu_mul.cu against plain loops: every element within one rounding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "gpu.h"

static void check(int num_tokens, int ffn, float scale, int pdl)
{
    uint64_t rng = (uint64_t)num_tokens * 7919 + (uint64_t)ffn;
    size_t n = (size_t)num_tokens * ffn;
    uint16_t *gate_up = malloc(n * 4), *out = malloc(n * 2);
    struct launch launch = gpu_launch(pdl);

    random_elem(&rng, scale, NULL, gate_up, 2 * n);
    void *d_gate_up = gpu_copy(gate_up, n * 4), *d_out = gpu_new(n * 2);
    struct silu_mul_kernel args = { d_gate_up, d_out, num_tokens, ffn };
    assert_int_equal(launch_silu_mul(&args, &launch), 0);
    gpu_sync();
    gpu_read(out, d_out, n * 2);
    for (int t = 0; t < num_tokens; t++)
        for (int f = 0; f < ffn; f++) {
            double g = of_elem(gate_up[(size_t)t * 2 * ffn + f]), u = of_elem(gate_up[(size_t)t * 2 * ffn + ffn + f]);
            double expected = g / (1 + exp(-g)) * u;
            if (gpu_f16) expected = fmax(fmin(expected, 65504), -65504);
            double got = of_elem(out[(size_t)t * ffn + f]);
            if (!(fabs(got - expected) <= gpu_rounding(expected) + 1e-30))
                fail_msg("T=%d F=%d: [%d, %d] is %g, not %g", num_tokens, ffn, t, f, got, expected);
        }
    gpu_free(d_gate_up); gpu_free(d_out);
    free(gate_up); free(out);
}

static void gate_times_up(void **state)
{
    static const int tokens[] = { 1, 3, 64, 257 }, ffn[] = { 8, 1536, 3072, 14336 };
    (void)state;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (size_t j = 0; j < sizeof ffn / sizeof *ffn; j++) check(tokens[i], ffn[j], j & 1 ? 20.0f : 1.0f, (int)(j & 1));
    check(8192, 1536, 3.0f, 1);
    check(64, 1536, 20000.0f, 1);                          /* beyond the range of f16: its largest */
}

static void odd_shapes_are_refused(void **state)
{
    struct launch launch = gpu_launch(0);
    struct silu_mul_kernel args = { .num_tokens = 1, .ffn = 12 };
    (void)state;
    assert_int_equal(launch_silu_mul(&args, &launch), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(gate_times_up), cmocka_unit_test(odd_shapes_are_refused) };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
