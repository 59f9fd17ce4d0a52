/* half.h - IEEE binary16: as wide as bf16 with eight times its precision, which keys, values and most weights fit (65,504; what is
 * larger is cut to it, infinities and NaN stay). To float is exact, from float rounds to nearest, ties to even. */
#ifndef SLUICE_BASE_HALF_H
#define SLUICE_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_to_f32(uint16_t half)
{
    uint32_t exponent = half >> 10 & 31, bits = (uint32_t)(half & 0x7fff) << 13;
    float value;

    if (exponent == 31) bits |= 0x7f800000u;
    memcpy(&value, &bits, sizeof value);
    if (exponent != 31) value *= 0x1p112f;           /* the difference of the exponents' biases; normalises denormals too */
    return half & 0x8000 ? -value : value;
}

static inline uint16_t half_from_f32(float value)
{
    uint32_t bits, sign;
    const float denormal = 0.5f;                     /* adding it puts 2^-24 on the last bit of the sum */

    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (bits == 0x7f800000u) return (uint16_t)(sign | 0x7c00);
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7bff);
    if (bits < 0x38800000u) {
        float sum;
        memcpy(&sum, &bits, sizeof sum);
        sum += denormal;
        memcpy(&bits, &sum, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + (bits >> 13 & 1) - (112u << 23);
    return (uint16_t)(sign | bits >> 13);
}

#endif
