/* bf16.h - bfloat16 = the upper half of a float. To float is exact; from float rounds to nearest, ties to even. */
#ifndef SLUICE_BASE_BF16_H
#define SLUICE_BASE_BF16_H

#include <stdint.h>
#include <string.h>

static inline float bf16_to_f32(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t bf16_from_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    /* A NaN must stay one: the rounding carry could turn it into infinity or zero. */
    uint32_t is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return (uint16_t)((is_nan ? bits | 0x400000u : rounded) >> 16);
}

#endif
