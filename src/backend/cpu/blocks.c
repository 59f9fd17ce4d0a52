/* blocks.c - see blocks.h. Files are little-endian, as are the machines this runs on. */
#include "blocks.h"

#include <stdbool.h>
#include <string.h>

#include "base/bug.h"

static bool has_min(enum dtype dtype) { return dtype == DTYPE_Q4_1 || dtype == DTYPE_Q5_1; }
static bool has_fifth_bit(enum dtype dtype) { return dtype == DTYPE_Q5_0 || dtype == DTYPE_Q5_1; }

static uint8_t *integers_of(uint8_t *block, enum dtype dtype, int lane)
{
    return block + (has_min(dtype) ? 128 : 64) + lane * (dtype == DTYPE_Q8_0 ? 2 : 4);
}

/* Eight nibbles, a byte each: those of even inputs into the lower word, of odd ones into the upper. */
static uint32_t gather_nibbles(uint64_t bytes)
{
    uint64_t even = bytes & 0x000f000f000f000full, odd = bytes >> 8 & 0x000f000f000f000full;
    even |= even >> 12 | even >> 24 | even >> 36;
    odd |= odd >> 12 | odd >> 24 | odd >> 36;
    return (uint32_t)(even & 0xffff) | (uint32_t)(odd & 0xffff) << 16;
}

static void store_nibbles(uint8_t *at, const uint8_t *nibbles)
{
    for (int half = 0; half < 2; half++)           /* inputs 0..15 in the lower nibbles, 16..31 in the upper */
        for (int g = 0; g < 2; g++) {
            uint64_t bytes;
            memcpy(&bytes, nibbles + 8 * g, sizeof bytes);
            uint32_t words = gather_nibbles(bytes >> 4 * half);
            memcpy(at + (2 * half + g) * GROUP_BYTES, &words, sizeof words);
        }
}

static void store_fives(uint8_t *at, const uint8_t *nibbles, uint32_t fifth)
{
    uint32_t words[5] = { 0 };
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 16; i++) {
            int input = 2 * i + c;
            uint32_t q = (uint32_t)(input < 16 ? nibbles[input] & 15 : nibbles[input - 16] >> 4) | (fifth >> input & 1) << 4;
            if (i < 15) words[i / 3] |= q << (16 * c + i % 3 * 5);
            else for (int g = 0; g < 5; g++) words[g] |= (q >> g & 1) << (16 * c + 15);
        }
    }
    for (int g = 0; g < 5; g++) memcpy(at + g * GROUP_BYTES, &words[g], sizeof words[g]);
}

void blocks_store(void *panel, enum dtype dtype, int lane, const void *row, int64_t num_blocks)
{
    size_t bytes = block_panel_bytes(dtype), from = (size_t)dtype_block_bytes(dtype);
    const uint8_t *src = row;
    uint8_t *block = panel;

    BUG_ON(bytes == 0 || lane < 0 || lane >= BLOCK_OUTPUTS);
    for (int64_t b = 0; b < num_blocks; b++, block += bytes, src += from) {
        const uint8_t *rest = src + 2;
        uint8_t *at = integers_of(block, dtype, lane);
        memcpy(block + 2 * lane, src, 2);
        if (has_min(dtype)) {
            memcpy(block + 64 + 2 * lane, rest, 2);
            rest += 2;
        }
        if (dtype == DTYPE_Q8_0) {
            for (int pair = 0; pair < BLOCK_PAIRS; pair++) memcpy(at + pair * PAIR_BYTES, rest + 2 * pair, 2);
        } else if (has_fifth_bit(dtype)) {
            uint32_t fifth;
            memcpy(&fifth, rest, sizeof fifth);
            store_fives(at, rest + 4, fifth);
        } else {
            store_nibbles(at, rest);
        }
    }
}

static float half_to_float(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;                     /* the exponent's bias is 127 instead of 15; exact */
    memcpy(&bits, &value, sizeof bits);
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000u;    /* infinity and NaN stay so */
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Input 0..31 of a block: the integer, without the offset of its format. */
static int integer_at(const uint8_t *at, enum dtype dtype, int input)
{
    int pair = input / 2, c = input % 2, q = 0;
    uint16_t word;
    if (dtype == DTYPE_Q8_0) return (int8_t)at[pair * PAIR_BYTES + c];
    if (!has_fifth_bit(dtype)) {
        memcpy(&word, at + pair / 4 * GROUP_BYTES + 2 * c, sizeof word);
        return word >> 4 * (pair % 4) & 15;
    }
    if (pair < 15) {
        memcpy(&word, at + pair / 3 * GROUP_BYTES + 2 * c, sizeof word);
        return word >> 5 * (pair % 3) & 31;
    }
    for (int g = 0; g < 5; g++) {
        memcpy(&word, at + g * GROUP_BYTES + 2 * c, sizeof word);
        q |= (word >> 15) << g;
    }
    return q;
}

void blocks_load(float *row, const void *panel, enum dtype dtype, int lane, int64_t num_blocks)
{
    size_t bytes = block_panel_bytes(dtype);
    int offset = dtype == DTYPE_Q4_0 ? 8 : dtype == DTYPE_Q5_0 ? 16 : 0;

    BUG_ON(bytes == 0 || lane < 0 || lane >= BLOCK_OUTPUTS);
    for (int64_t b = 0; b < num_blocks; b++) {
        uint8_t *block = (uint8_t *)(uintptr_t)panel + (size_t)b * bytes;
        const uint8_t *at = integers_of(block, dtype, lane);
        uint16_t half;
        float d, m = 0;
        memcpy(&half, block + 2 * lane, sizeof half);
        d = half_to_float(half);
        if (has_min(dtype)) {
            memcpy(&half, block + 64 + 2 * lane, sizeof half);
            m = half_to_float(half);
        }
        for (int i = 0; i < BLOCK_INPUTS; i++, row++) *row = d * (float)(integer_at(at, dtype, i) - offset) + m;
    }
}
