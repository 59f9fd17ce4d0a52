/* rope_test.c - the table against numbers worked out with transformers' formulas. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "rope.h"

static struct model_config base(int head_dim, float theta)
{
    return (struct model_config){ .head_dim = head_dim, .rope_theta = theta };
}

static void default_is_the_formula(void **state)
{
    struct model_config config = base(8, 10000);
    float table[5 * 8];
    (void)state;
    rope_table_fill(table, &config, NULL, 0, 5);
    for (int i = 0; i < 4; i++) {
        assert_float_equal(table[i], 1, 0);                            /* position 0 */
        assert_float_equal(table[4 + i], 0, 0);
        assert_float_equal(table[3 * 8 + i], cos(3 * pow(10, -i)), 1e-7);
        assert_float_equal(table[3 * 8 + 4 + i], sin(3 * pow(10, -i)), 1e-7);
    }
}

static void parts_of_a_table_are_the_table(void **state)
{
    struct model_config config = base(16, 500000);
    float whole[20 * 16], parts[20 * 16];
    (void)state;
    rope_table_fill(whole, &config, NULL, 0, 20);
    rope_table_fill(parts, &config, NULL, 7, 20);
    rope_table_fill(parts, &config, NULL, 0, 7);
    assert_memory_equal(whole, parts, sizeof(whole));
}

static void linear_stretches_positions(void **state)
{
    struct model_config config = base(16, 10000);
    float plain[9 * 16], stretched[9 * 16];
    (void)state;
    rope_table_fill(plain, &config, NULL, 0, 9);
    config.rope_scaling = (struct rope_scaling){ .type = ROPE_LINEAR, .factor = 4 };
    rope_table_fill(stretched, &config, NULL, 0, 9);
    for (int i = 0; i < 16; i++) assert_float_equal(stretched[8 * 16 + i], plain[2 * 16 + i], 1e-7);
}

/* Llama 3.1 8B (head_dim 128, theta 500000, factor 8, low 1, high 4, 8192). */
static void llama3_keeps_fast_and_divides_slow(void **state)
{
    struct model_config config = base(128, 500000);
    double plain[64], scaled[64];
    (void)state;
    rope_inv_freqs(plain, &config, NULL);
    config.rope_scaling = (struct rope_scaling){ .type = ROPE_LLAMA3, .factor = 8, .low_freq_factor = 1,
                                                 .high_freq_factor = 4,
                                                 .original_max_position_embeddings = 8192 };
    assert_float_equal(rope_inv_freqs(scaled, &config, NULL), 1, 0);
    for (int i = 0; i <= 28; i++) assert_float_equal(plain[i] / scaled[i], 1, 1e-12);
    static const double between[] = { 1.207484, 1.553415, 2.026313, 2.694530, 3.684253, 5.257327 };
    for (int i = 0; i < 6; i++) assert_float_equal(plain[29 + i] / scaled[29 + i], between[i], 1e-5);
    for (int i = 35; i < 64; i++) assert_float_equal(plain[i] / scaled[i], 8, 1e-12);
}

/* Qwen2.5's long-context setting: factor 4 over 32768, head_dim 128, theta 1e6. */
static void yarn_interpolates_slow_dimensions(void **state)
{
    struct model_config config = base(128, 1000000);
    double plain[64], scaled[64];
    (void)state;
    rope_inv_freqs(plain, &config, NULL);
    config.rope_scaling = (struct rope_scaling){ .type = ROPE_YARN, .factor = 4, .beta_fast = 32, .beta_slow = 1,
                                                 .original_max_position_embeddings = 32768 };
    assert_float_equal(rope_inv_freqs(scaled, &config, NULL), 0.1 * log(4) + 1, 1e-12);
    /* Correction range: floor(23.59) .. ceil(39.65). */
    for (int i = 0; i <= 23; i++) assert_float_equal(plain[i] / scaled[i], 1, 1e-12);
    for (int i = 40; i < 64; i++) assert_float_equal(plain[i] / scaled[i], 4, 1e-12);
    double ramp = (30 - 23) / (40.0 - 23.0);
    assert_float_equal(scaled[30] / plain[30], ramp / 4 + 1 - ramp, 1e-12);
    config.rope_scaling.attention_factor = 1.25f;
    assert_float_equal(rope_inv_freqs(scaled, &config, NULL), 1.25, 0);
}

static void factors_of_the_file_divide(void **state)
{
    struct model_config config = base(8, 10000);
    const float factors[4] = { 1, 2, 4, 8 };
    double plain[4], divided[4];
    (void)state;
    rope_inv_freqs(plain, &config, NULL);
    rope_inv_freqs(divided, &config, factors);
    for (int i = 0; i < 4; i++) assert_float_equal(plain[i] / divided[i], factors[i], 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_is_the_formula),            cmocka_unit_test(parts_of_a_table_are_the_table),
        cmocka_unit_test(linear_stretches_positions),        cmocka_unit_test(llama3_keeps_fast_and_divides_slow),
        cmocka_unit_test(yarn_interpolates_slow_dimensions), cmocka_unit_test(factors_of_the_file_divide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
