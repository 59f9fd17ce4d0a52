/* rmsnorm_test.c - kernels/rmsnorm.cu against plain loops in double: the residual exact, the output within one
 * rounding, and the same bits for a row whatever T. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "gpu.h"

enum mode { PLAIN, ADD, ROWS, ROWS_ADD };

static const float EPS = 1e-5f;

static void check(int num_tokens, int hidden, enum mode mode, int pdl)
{
    uint64_t rng = (uint64_t)num_tokens * 7919 + (uint64_t)hidden * 4 + mode;
    size_t n = (size_t)num_tokens * hidden;
    bool with_rows = mode == ROWS || mode == ROWS_ADD, add = mode == ADD || mode == ROWS_ADD;
    int num_out = with_rows ? (num_tokens + 1) / 2 + 1 : num_tokens;
    uint16_t *x = malloc(n * 2), *out = malloc((size_t)num_out * hidden * 2), *alone = malloc((size_t)hidden * 2);
    float *residual = malloc(n * 4), *after = malloc(n * 4), *weight = malloc((size_t)hidden * 4);
    struct sampling_row *rows = calloc((size_t)num_out, sizeof *rows);
    struct launch launch = gpu_launch(pdl);

    random_elem(&rng, 2.0f, NULL, x, n);
    for (size_t i = 0; i < n; i++) residual[i] = 3.0f * rng_normal(&rng);
    for (int c = 0; c < hidden; c++) weight[c] = 1.0f + 0.2f * rng_normal(&rng);
    for (int r = 0; r < num_out; r++) rows[r].token = (int32_t)(rng_next(&rng) % (uint64_t)num_tokens);
    void *d_x = gpu_copy(x, n * 2), *d_residual = gpu_copy(residual, n * 4), *d_weight = gpu_copy(weight, (size_t)hidden * 4);
    void *d_rows = gpu_copy(rows, (size_t)num_out * sizeof *rows), *d_out = gpu_new((size_t)num_out * hidden * 2);
    struct rmsnorm_kernel args = { add ? d_x : NULL, d_residual, d_weight, d_out, with_rows ? d_rows : NULL, num_out, hidden, EPS };
    assert_int_equal(launch_rmsnorm(&args, &launch), 0);
    gpu_sync();
    gpu_read(out, d_out, (size_t)num_out * hidden * 2);
    gpu_read(after, d_residual, n * 4);
    for (size_t i = 0; i < n; i++)
        if (after[i] != (mode == ADD ? residual[i] + of_elem(x[i]) : residual[i]))
            fail_msg("T=%d C=%d mode %d: residual %zu is %g", num_tokens, hidden, mode, i, after[i]);
    for (int r = 0; r < num_out; r++) {
        int64_t at = (int64_t)(with_rows ? rows[r].token : r) * hidden;
        double squares = 0;
        for (int c = 0; c < hidden; c++) {
            double v = residual[at + c] + (add ? of_elem(x[at + c]) : 0.0f);
            squares += v * v;
        }
        double scale = 1 / sqrt(squares / hidden + EPS);
        for (int c = 0; c < hidden; c++) {
            double v = residual[at + c] + (add ? of_elem(x[at + c]) : 0.0f), expected = v * scale * weight[c];
            double got = of_elem(out[(size_t)r * hidden + c]);
            if (!(fabs(got - expected) <= gpu_rounding(expected) + 1e-9))
                fail_msg("T=%d C=%d mode %d: [%d, %d] is %g, not %g", num_tokens, hidden, mode, r, c, got, expected);
        }
    }
    if (mode == PLAIN) {                                   /* the last row alone */
        struct rmsnorm_kernel one = args;
        one.residual = (float *)d_residual + (size_t)(num_tokens - 1) * hidden;
        one.num_tokens = 1;
        assert_int_equal(launch_rmsnorm(&one, &launch), 0);
        gpu_sync();
        gpu_read(alone, d_out, (size_t)hidden * 2);
        assert_memory_equal(alone, out + (size_t)(num_tokens - 1) * hidden, (size_t)hidden * 2);
    }
    gpu_free(d_x); gpu_free(d_residual); gpu_free(d_weight); gpu_free(d_rows); gpu_free(d_out);
    free(x); free(out); free(alone); free(residual); free(after); free(weight); free(rows);
}

static void rows_are_normed(void **state)
{
    static const int tokens[] = { 1, 3, 64, 257 }, hidden[] = { 8, 576, 1024, 1536, 4096, 5120, 8192, 16384 };
    (void)state;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (size_t j = 0; j < sizeof hidden / sizeof *hidden; j++)
            for (int mode = PLAIN; mode <= ROWS_ADD; mode++) check(tokens[i], hidden[j], (enum mode)mode, (int)(j & 1));
    check(8192, 576, ADD, 1);
}

static void odd_shapes_are_refused(void **state)
{
    struct launch launch = gpu_launch(0);
    struct rmsnorm_kernel args = { .num_tokens = 1, .hidden = 12 };
    (void)state;
    assert_int_equal(launch_rmsnorm(&args, &launch), ERR_UNSUPPORTED);
    args.hidden = 16384 + 8;
    assert_int_equal(launch_rmsnorm(&args, &launch), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(rows_are_normed), cmocka_unit_test(odd_shapes_are_refused) };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
