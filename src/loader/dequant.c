/* dequant.c - rows of every element type -> fp32, bit for bit what the formats' reference computes.
 * Each format is one loop of constant trip count per block that the compiler turns into vector code; the whole set is
 * compiled twice on x86-64 (baseline and AVX2) and chosen by the processor. Multiply-add is never fused: the reference
 * rounds in between. Blocks are packed, 2-byte aligned at best: scales are read with memcpy. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("O3", "fp-contract=off", "no-trapping-math")
#endif

#include <string.h>

#include <sluice/loader.h>

#include "base/bug.h"

#define INLINE static inline __attribute__((always_inline))

INLINE float bits_to_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t float_to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* All cases are computed and one picked, so that a loop over it vectorises. No fp32 subnormal occurs on the way, so the
 * result does not depend on the thread's flush-to-zero mode. */
INLINE float half_to_float(uint16_t half)
{
    uint32_t magnitude = (uint32_t)(half & 0x7FFF) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t normal = magnitude + (112u << 23);
    uint32_t subnormal = float_to_bits(bits_to_float(magnitude + (113u << 23)) - bits_to_float(113u << 23));
    uint32_t special = magnitude | 0x7F800000u;   /* infinity, NaN */
    uint32_t bits = magnitude < (1u << 23) ? subnormal : magnitude >= (31u << 23) ? special : normal;
    return bits_to_float(bits | sign);
}

INLINE uint16_t u16_at(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

INLINE float half_at(const uint8_t *at) { return half_to_float(u16_at(at)); }

/* ---- plain types ---- */
INLINE void row_f16(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = half_at(src + 2 * i);
}

INLINE void row_bf16(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = bits_to_float((uint32_t)u16_at(src + 2 * i) << 16);
}

INLINE void row_i32(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t value;
        memcpy(&value, src + 4 * i, sizeof value);
        dst[i] = (float)value;
    }
}

INLINE void row_i8(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = (float)(int8_t)src[i];
}

INLINE void row_u8(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = (float)src[i];
}

/* ---- blocks of 32: element i in the low nibble of byte i, element 16 + i in its high nibble ---- */
/* {d f16, nibbles [16]}: d * (q - 8) */
INLINE void row_q4_0(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 32, src += 18, dst += 32) {
        const float d = half_at(src);
        const uint8_t *qs = src + 2;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)((qs[i] & 0xF) - 8);
            dst[16 + i] = d * (float)((qs[i] >> 4) - 8);
        }
    }
}

/* {d f16, m f16, nibbles [16]}: d * q + m */
INLINE void row_q4_1(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 32, src += 20, dst += 32) {
        const float d = half_at(src), m = half_at(src + 2);
        const uint8_t *qs = src + 4;
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)(qs[i] & 0xF) + m;
            dst[16 + i] = d * (float)(qs[i] >> 4) + m;
        }
    }
}

/* {d f16, fifth bits u32, nibbles [16]}: d * (q - 16) */
INLINE void row_q5_0(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 32, src += 22, dst += 32) {
        const float d = half_at(src);
        const uint8_t *qs = src + 6;
        uint32_t high;
        memcpy(&high, src + 2, sizeof high);
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)((int)((qs[i] & 0xF) | (high >> i & 1) << 4) - 16);
            dst[16 + i] = d * (float)((int)((qs[i] >> 4) | (high >> (16 + i) & 1) << 4) - 16);
        }
    }
}

/* {d f16, m f16, fifth bits u32, nibbles [16]}: d * q + m */
INLINE void row_q5_1(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 32, src += 24, dst += 32) {
        const float d = half_at(src), m = half_at(src + 2);
        const uint8_t *qs = src + 8;
        uint32_t high;
        memcpy(&high, src + 4, sizeof high);
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)(int)((qs[i] & 0xF) | (high >> i & 1) << 4) + m;
            dst[16 + i] = d * (float)(int)((qs[i] >> 4) | (high >> (16 + i) & 1) << 4) + m;
        }
    }
}

/* {d f16, q i8 [32]}: d * q */
INLINE void row_q8_0(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 32, src += 34, dst += 32) {
        const float d = half_at(src);
        const uint8_t *qs = src + 2;
        for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)qs[i] * d;
    }
}

/* ---- super-blocks of 256 ---- */
/* {scale:4 min:4 [16], crumbs [64], d f16, dmin f16}: 16 groups of 16; d * scale * q - dmin * min.
 * Each half of 128 uses 32 bytes; its k-th 32 elements are bits 2k of those bytes. */
INLINE void row_q2_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 256, src += 84, dst += 256) {
        const float d = half_at(src + 80), dmin = half_at(src + 82);
        for (int group = 0; group < 16; group++) {
            const uint8_t *qs = src + 16 + group / 8 * 32 + group % 2 * 16;
            const int shift = group % 8 / 2 * 2;
            const float scale = d * (float)(src[group] & 0xF), min = dmin * (float)(src[group] >> 4);
            for (int i = 0; i < 16; i++) dst[16 * group + i] = scale * (float)(qs[i] >> shift & 3) - min;
        }
    }
}

/* {third bits [32], crumbs [64], scales 6 bit [12 bytes], d f16}: d * (scale - 32) * (q - 4), third bit = 4. */
INLINE void row_q3_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 256, src += 110, dst += 256) {
        const float d = half_at(src + 108);
        const uint8_t *packed = src + 96;
        for (int group = 0; group < 16; group++) {
            const uint8_t *qs = src + 32 + group / 8 * 32 + group % 2 * 16, *third = src + group % 2 * 16;
            const int shift = group % 8 / 2 * 2, bit = group / 2;
            const int low = group < 8 ? packed[group] & 0xF : packed[group - 8] >> 4;
            const int high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
            const float scale = d * (float)((low | high << 4) - 32);
            for (int i = 0; i < 16; i++) {
                dst[16 * group + i] = scale * (float)((qs[i] >> shift & 3) + (third[i] >> bit & 1) * 4 - 4);
            }
        }
    }
}

/* The 12 bytes of 8 scales and 8 mins of 6 bits. */
INLINE void scale_and_min(const uint8_t *packed, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 0xF) | packed[j - 4] >> 6 << 4;
        *min = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    }
}

/* {d f16, dmin f16, scales and mins [12], nibbles [128]}: 8 groups of 32; pairs of groups share 32 bytes. */
INLINE void row_q4_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 256, src += 144, dst += 256) {
        const float d = half_at(src), dmin = half_at(src + 2);
        for (int group = 0; group < 8; group++) {
            const uint8_t *qs = src + 16 + group / 2 * 32;
            const int shift = group % 2 * 4;
            int scale, min;
            scale_and_min(src + 4, group, &scale, &min);
            const float ds = d * (float)scale, dm = dmin * (float)min;
            for (int i = 0; i < 32; i++) dst[32 * group + i] = ds * (float)(qs[i] >> shift & 0xF) - dm;
        }
    }
}

/* {d f16, dmin f16, scales and mins [12], fifth bits [32], nibbles [128]}: as q4_k, bit `group` of byte i is the
 * fifth. */
INLINE void row_q5_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 256, src += 176, dst += 256) {
        const float d = half_at(src), dmin = half_at(src + 2);
        const uint8_t *fifth = src + 16;
        for (int group = 0; group < 8; group++) {
            const uint8_t *qs = src + 48 + group / 2 * 32;
            const int shift = group % 2 * 4;
            int scale, min;
            scale_and_min(src + 4, group, &scale, &min);
            const float ds = d * (float)scale, dm = dmin * (float)min;
            for (int i = 0; i < 32; i++) {
                dst[32 * group + i] = ds * (float)((qs[i] >> shift & 0xF) | (fifth[i] >> group & 1) << 4) - dm;
            }
        }
    }
}

/* {nibbles [128], crumbs [64], scales i8 [16], d f16}: d * scale * (q - 32). Each half of 128 uses 64 nibble bytes and
 * 32 crumb bytes; its k-th 32 elements are nibble k / 2 of bytes 32 (k % 2).. and crumb k. */
INLINE void row_q6_k(const uint8_t *restrict src, float *restrict dst, int64_t n)
{
    for (; n > 0; n -= 256, src += 210, dst += 256) {
        const float d = half_at(src + 208);
        for (int group = 0; group < 16; group++) {
            const int half = group / 8, k = group % 8 / 2, start = group % 2 * 16;
            const uint8_t *low = src + half * 64 + k % 2 * 32 + start, *high = src + 128 + half * 32 + start;
            const float scale = d * (float)(int8_t)src[192 + group];
            for (int i = 0; i < 16; i++) {
                dst[16 * group + i] =
                    scale * (float)((int)((low[i] >> k / 2 * 4 & 0xF) | (high[i] >> 2 * k & 3) << 4) - 32);
            }
        }
    }
}

INLINE void row_any(enum dtype dtype, const uint8_t *src, float *dst, int64_t n)
{
    switch (dtype) {
    case DTYPE_F32: memcpy(dst, src, (size_t)n * sizeof *dst); break;
    case DTYPE_F16: row_f16(src, dst, n); break;
    case DTYPE_BF16: row_bf16(src, dst, n); break;
    case DTYPE_I32: row_i32(src, dst, n); break;
    case DTYPE_I8: row_i8(src, dst, n); break;
    case DTYPE_U8: row_u8(src, dst, n); break;
    case DTYPE_Q4_0: row_q4_0(src, dst, n); break;
    case DTYPE_Q4_1: row_q4_1(src, dst, n); break;
    case DTYPE_Q5_0: row_q5_0(src, dst, n); break;
    case DTYPE_Q5_1: row_q5_1(src, dst, n); break;
    case DTYPE_Q8_0: row_q8_0(src, dst, n); break;
    case DTYPE_Q2_K: row_q2_k(src, dst, n); break;
    case DTYPE_Q3_K: row_q3_k(src, dst, n); break;
    case DTYPE_Q4_K: row_q4_k(src, dst, n); break;
    case DTYPE_Q5_K: row_q5_k(src, dst, n); break;
    case DTYPE_Q6_K: row_q6_k(src, dst, n); break;
    case DTYPE_COUNT: break;
    }
}

static void row_baseline(enum dtype dtype, const uint8_t *src, float *dst, int64_t n)
{
    row_any(dtype, src, dst, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void row_avx2(enum dtype dtype, const uint8_t *src, float *dst, int64_t n)
{
    row_any(dtype, src, dst, n);
}
#endif

void dequantize_row(enum dtype dtype, const void *src, float *dst, int64_t n)
{
    BUG_ON((unsigned)dtype >= DTYPE_COUNT || n < 0 || n % dtype_block_elems(dtype) != 0);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        row_avx2(dtype, src, dst, n);
        return;
    }
#endif
    row_baseline(dtype, src, dst, n);
}
