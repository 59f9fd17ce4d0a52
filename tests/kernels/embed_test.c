/* embed_test.c - kernels/embed.cu against a plain copy: exact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "gpu.h"

static void check(int num_tokens, int hidden, int first_row, int num_rows, int pdl)
{
    uint64_t rng = (uint64_t)num_tokens * 7919 + (uint64_t)hidden;
    size_t n = (size_t)num_tokens * hidden, table_size = (size_t)num_rows * hidden;
    uint16_t *table = malloc(table_size * 2);
    float *out = malloc(n * 4);
    token_id *ids = malloc((size_t)num_tokens * 4);
    struct launch launch = gpu_launch(pdl);

    random_elem(&rng, 1.0f, NULL, table, table_size);
    for (int t = 0; t < num_tokens; t++) ids[t] = first_row - 2 + (token_id)(rng_next(&rng) % (uint64_t)(num_rows + 4));
    ids[0] = -1;                                           /* TOKEN_NONE gives zeros too */
    void *d_table = gpu_copy(table, table_size * 2), *d_ids = gpu_copy(ids, (size_t)num_tokens * 4), *d_out = gpu_new(n * 4);
    struct embed_kernel args = { d_ids, d_table, d_out, num_tokens, hidden, first_row, num_rows };
    assert_int_equal(launch_embed(&args, &launch), 0);
    gpu_sync();
    gpu_read(out, d_out, n * 4);
    for (int t = 0; t < num_tokens; t++) {
        int64_t row = (int64_t)ids[t] - first_row;
        for (int c = 0; c < hidden; c++) {
            float expected = row >= 0 && row < num_rows ? of_elem(table[row * hidden + c]) : 0.0f;
            if (out[(size_t)t * hidden + c] != expected) fail_msg("T=%d C=%d: [%d, %d] is %g, not %g", num_tokens, hidden, t, c,
                                                                  out[(size_t)t * hidden + c], expected);
        }
    }
    gpu_free(d_table); gpu_free(d_ids); gpu_free(d_out);
    free(table); free(out); free(ids);
}

static void rows_are_copied(void **state)
{
    static const int tokens[] = { 1, 3, 64, 257, 1021 }, hidden[] = { 8, 576, 1024, 4096, 8192 };
    (void)state;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (size_t j = 0; j < sizeof hidden / sizeof *hidden; j++) check(tokens[i], hidden[j], (int)(i * 100), 777, (int)(j & 1));
    check(8192, 576, 0, 1000, 1);
}

static void odd_shapes_are_refused(void **state)
{
    struct launch launch = gpu_launch(0);
    struct embed_kernel args = { .num_tokens = 1, .hidden = 12 };
    (void)state;
    assert_int_equal(launch_embed(&args, &launch), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(rows_are_copied), cmocka_unit_test(odd_shapes_are_refused) };
    if (gpu_absent()) return GPU_SKIP;
    int failed = 0;
    for (int kind = 0; kind < GPU_KINDS; kind++) {
        gpu_kind(kind);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
