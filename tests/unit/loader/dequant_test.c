/* dequant_test.c - every block format against hand-made blocks and a slow formula; both compiled variants agree.
 * tests/golden/gguf_dequant_parity.py compares with the reference package on many more. */
#include "fixture.h"

#include <math.h>

#include "dequant.c"

/* 1.0 and 0.5 as f16. */
#define ONE "\x00\x3C"
#define HALF "\x00\x38"

static void halves_are_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double expected = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
        if (exponent == 31) expected = fraction ? (double)NAN : (double)INFINITY;
        if (h & 0x8000) expected = -expected;
        float found = half_to_float((uint16_t)h);
        if (isnan(expected)) {
            assert_true(isnan(found));
            continue;
        }
        assert_true((double)found == expected);
        assert_true(!signbit(found) == !signbit(expected));
    }
}

static void plain_types(void **state)
{
    float row[3];
    (void)state;
    dequantize_row(DTYPE_BF16, "\x80\x3F\x00\xC0\x00\x00", row, 3);
    assert_true(row[0] == 1.0f && row[1] == -2.0f && row[2] == 0.0f);
    dequantize_row(DTYPE_F32, &(float){ 0.1f }, row, 1);
    assert_true(row[0] == 0.1f);
    dequantize_row(DTYPE_I8, "\xFF\x7F", row, 2);
    assert_true(row[0] == -1.0f && row[1] == 127.0f);
    dequantize_row(DTYPE_U8, "\xFF", row, 1);
    assert_true(row[0] == 255.0f);
    dequantize_row(DTYPE_I32, &(int32_t){ -7 }, row, 1);
    assert_true(row[0] == -7.0f);
}

static void blocks_of_32(void **state)
{
    unsigned char block[34];
    float row[32];
    (void)state;
    memset(block, 0, sizeof block);
    memcpy(block, HALF, 2);
    block[2] = 0x3F, block[17] = 0xA1;
    dequantize_row(DTYPE_Q4_0, block, row, 32);
    assert_true(row[0] == 0.5f * 7 && row[16] == 0.5f * -5 && row[15] == 0.5f * -7 && row[31] == 0.5f * 2 &&
                row[1] == -4.0f);

    memcpy(block, HALF ONE, 4);
    memset(block + 4, 0, 16);
    block[4] = 0x3F, block[19] = 0xA1;
    dequantize_row(DTYPE_Q4_1, block, row, 32);
    assert_true(row[0] == 8.5f && row[16] == 2.5f && row[15] == 1.5f && row[31] == 6.0f && row[1] == 1.0f);

    memset(block, 0, sizeof block);
    memcpy(block, ONE, 2);
    block[2] = 0x01, block[5] = 0x80;    /* fifth bits of elements 0 and 31 */
    block[6] = 0x21, block[21] = 0x43;
    dequantize_row(DTYPE_Q5_0, block, row, 32);
    assert_true(row[0] == 1.0f && row[16] == -14.0f && row[15] == -13.0f && row[31] == 4.0f);

    memset(block, 0, sizeof block);
    memcpy(block, ONE HALF, 4);
    block[4] = 0x01, block[7] = 0x80;
    block[8] = 0x21, block[23] = 0x43;
    dequantize_row(DTYPE_Q5_1, block, row, 32);
    assert_true(row[0] == 17.5f && row[16] == 2.5f && row[15] == 3.5f && row[31] == 20.5f);

    memcpy(block, HALF, 2);
    for (int i = 0; i < 32; i++) block[2 + i] = (unsigned char)(i - 16);
    dequantize_row(DTYPE_Q8_0, block, row, 32);
    for (int i = 0; i < 32; i++) assert_true(row[i] == 0.5f * (float)(i - 16));
}

/* One element of a super-block, straight from the format's definition. */
static float element_of_k(enum dtype dtype, const unsigned char *b, int e)
{
    int half = e / 128, k = e % 128 / 32, l = e % 32, g16 = e / 16, g32 = e / 32, scale, min;
    switch (dtype) {
    case DTYPE_Q2_K: {
        int q = b[16 + half * 32 + l] >> 2 * k & 3;
        return half_at(b + 80) * (float)(b[g16] & 15) * (float)q - half_at(b + 82) * (float)(b[g16] >> 4);
    }
    case DTYPE_Q3_K: {
        int q = (b[32 + half * 32 + l] >> 2 * k & 3) - (b[l] >> g32 & 1 ? 0 : 4);
        int s = (g16 < 8 ? b[96 + g16] & 15 : b[96 + g16 - 8] >> 4) | (b[104 + g16 % 4] >> 2 * (g16 / 4) & 3) << 4;
        return half_at(b + 108) * (float)(s - 32) * (float)q;
    }
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        const unsigned char *s = b + 4, *qs = b + (dtype == DTYPE_Q4_K ? 16 : 48);
        scale = g32 < 4 ? s[g32] & 63 : (s[g32 + 4] & 15) + 16 * (s[g32 - 4] >> 6);
        min = g32 < 4 ? s[g32 + 4] & 63 : (s[g32 + 4] >> 4) + 16 * (s[g32] >> 6);
        int q = g32 % 2 ? qs[g32 / 2 * 32 + l] >> 4 : qs[g32 / 2 * 32 + l] & 15;
        if (dtype == DTYPE_Q5_K) q += 16 * (b[16 + l] >> g32 & 1);
        return half_at(b) * (float)scale * (float)q - half_at(b + 2) * (float)min;
    }
    default: {
        int low = b[half * 64 + k % 2 * 32 + l], high = b[128 + half * 32 + l] >> 2 * k & 3;
        int q = ((k < 2 ? low & 15 : low >> 4) | high << 4) - 32;
        return half_at(b + 208) * (float)(signed char)b[192 + g16] * (float)q;
    }
    }
}

static void fill(unsigned char *bytes, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (unsigned char)(seed >> 24);
    }
}

static void super_blocks_equal_the_definition(void **state)
{
    static const struct { enum dtype dtype; int scales[2]; } rows[] = {
        { DTYPE_Q2_K, { 80, 82 } }, { DTYPE_Q3_K, { 108, 108 } }, { DTYPE_Q4_K, { 0, 2 } }, { DTYPE_Q5_K, { 0, 2 } },
        { DTYPE_Q6_K, { 208, 208 } },
    };
    unsigned char block[210];
    float row[256];
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (uint32_t seed = 0; seed < 20; seed++) {
            fill(block, sizeof block, seed);
            block[rows[i].scales[0] + 1] &= 0xBF;   /* finite */
            block[rows[i].scales[1] + 1] &= 0xBF;
            dequantize_row(rows[i].dtype, block, row, 256);
            for (int e = 0; e < 256; e++) assert_true(row[e] == element_of_k(rows[i].dtype, block, e));
        }
    }
}

/* Whatever the machine picks, the baseline must give the same bits; sizes include rows of one block. */
static void variants_agree(void **state)
{
    enum { BLOCKS = 7 };
    static unsigned char bytes[BLOCKS * 210 + 2];
    static float picked[BLOCKS * 256], baseline[BLOCKS * 256];
    (void)state;
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        fill(bytes, sizeof bytes, (uint32_t)dtype);
        for (size_t i = 1; i < sizeof bytes; i += 2) bytes[i] &= 0xBF;   /* no NaN, whose payload may differ */
        for (int blocks = 1; blocks <= BLOCKS; blocks++) {
            int64_t n = (int64_t)blocks * dtype_block_elems((enum dtype)dtype);
            dequantize_row((enum dtype)dtype, bytes, picked, n);
            row_baseline((enum dtype)dtype, bytes, baseline, n);
            assert_memory_equal(picked, baseline, (size_t)n * sizeof *picked);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_are_exact),
        cmocka_unit_test(plain_types),
        cmocka_unit_test(blocks_of_32),
        cmocka_unit_test(super_blocks_equal_the_definition),
        cmocka_unit_test(variants_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
