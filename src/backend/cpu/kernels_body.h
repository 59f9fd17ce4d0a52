/* kernels_body.h - the inner loops, written once over vectors of the compiler (GNU C vector extensions) and compiled per
 * instruction set: each kernels_<isa>.c sets KERNELS_TABLE, KERNELS_NAME and is built with that set's flags.
 * VL is the width in floats. Loops over constants are unrolled so that accumulators stay in registers.
 * Order: an output has one accumulator and adds its terms by rising k (matmul), position (attention) or element; how many
 * rows or columns share a loop never shows in the result. Reductions of a whole row use 16 lanes and one fixed tree.
 * Only included by kernels_<isa>.c: everything is static. */
#include <math.h>
#include <string.h>

#include "base/bf16.h"
#include "base/half.h"
#include "blocks.h"
#include "kernels.h"

#if defined(__AVX512F__)
#define VL 16
#include <immintrin.h>
#elif defined(__AVX2__)
#define VL 8
#include <immintrin.h>
#else
#define VL 4
#endif
#define LANES 16                           /* of a row reduction */
#define PREFETCH_PAIRS 32                  /* how far ahead of a panel's row: 4 KiB */

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#if defined(__clang__)
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define ROLLED _Pragma("GCC unroll 1")
#endif
#define INLINE static inline __attribute__((always_inline))

/* 32 vector registers: AVX-512 and arm64; 16 elsewhere. */
#if defined(__AVX512F__)
enum { TILE_ROWS = 14, TILE_VECS = 2, SCORE_ROWS = 8, MIX_ROWS = 4, MIX_VECS = 4 };
#else
enum { TILE_ROWS = 4, TILE_VECS = 2, SCORE_ROWS = 4, MIX_ROWS = 4, MIX_VECS = 2 };
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));

INLINE vf load_f(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vu load_u(const uint32_t *p) { vu v; memcpy(&v, p, sizeof v); return v; }
INLINE vf splat(float x) { return x - (vf){ 0 }; }
INLINE vf select_f(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* a * b + c in one rounding where the set has it; spelled out so that every loop does the same. */
INLINE vf fma_f(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* The even and the odd element of each bf16 pair. */
INLINE vf pair_even(vu pair) { return (vf)(pair << 16); }
INLINE vf pair_odd(vu pair) { return (vf)(pair & 0xffff0000u); }

/* binary16 in the lower halves of the lanes to float, exactly; what is above is ignored. */
INLINE vf half_values(vu lanes)
{
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)lanes));
#else
    vu special = (vu)((lanes & 0x7c00) == 0x7c00) & 0x7f800000u;
    vu bits = (vu)((vf)((lanes & 0x7fff) << 13) * 0x1p112f) | special | (lanes & 0x8000) << 16;
    return (vf)bits;
#endif
}

/* The even and the odd element of each pair of halves. */
INLINE vf half_even(vu pair) { return half_values(pair); }
INLINE vf half_odd(vu pair) { return half_values(pair >> 16); }

/* VL halves of memory. */
INLINE vf load_half(const void *at)
{
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
#else
    vh half;
    memcpy(&half, at, sizeof half);
    return half_values(__builtin_convertvector(half, vu));
#endif
}

/* Round to nearest even, as bf16_from_f32. */
INLINE vu round_bf16(vf x)
{
    vu bits = (vu)x;
    vu rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    vu is_nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
    return ((rounded & ~is_nan) | ((bits | 0x400000u) & is_nan)) >> 16;
}

/* exp(x), error below 2 ulp; exactly 1 at 0; 0 below -87.34, infinity above 88.37, NaN stays.
 * x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial of degree 7 for exp(r); 2^n by its exponent bits. */
INLINE vf exp_f(vf x)
{
    const float low = -87.33654f, high = 88.37626f, magic = 12582912.0f;    /* 1.5 * 2^23 rounds to an integer */
    vi below = x < low, above = x > high;
    vf t = select_f(below, splat(low), select_f(above, splat(high), x));
    vf shifted = fma_f(t, splat(1.44269504f), splat(magic));
    vi n = (vi)shifted - (vi)splat(magic);
    vf whole = shifted - magic;
    vf r = fma_f(whole, splat(-0.693359375f), t);
    r = fma_f(whole, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma_f(p, r, splat(1.3981999507e-3f));
    p = fma_f(p, r, splat(8.3334519073e-3f));
    p = fma_f(p, r, splat(4.1665795894e-2f));
    p = fma_f(p, r, splat(1.6666665459e-1f));
    p = fma_f(p, r, splat(5.0000001201e-1f));
    p = fma_f(p, r * r, r) + 1.0f;
    vf result = p * (vf)((n + 127) << 23);
    result = select_f(above, splat(INFINITY), result);
    return (vf)((vi)result & ~below);
}

/* The fixed tree over 16 lanes. */
INLINE float sum_lanes(const vf acc[LANES / VL])
{
    float lane[LANES];
    for (int v = 0; v < LANES / VL; v++) store_f(lane + v * VL, acc[v]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

INLINE float max_lanes(const vf acc[LANES / VL])
{
    float lane[LANES], top = -INFINITY;
    for (int v = 0; v < LANES / VL; v++) store_f(lane + v * VL, acc[v]);
    for (int i = 0; i < LANES; i++) top = lane[i] > top ? lane[i] : top;
    return top;
}

/* ---- matmul ---- */

INLINE void pack_pairs(uint32_t *out, const float *x, int64_t pairs)
{
    for (int64_t i = 0; i < pairs; i++)
        out[i] = (uint32_t)bf16_from_f32(x[2 * i]) | (uint32_t)bf16_from_f32(x[2 * i + 1]) << 16;
}

#if defined(__AVX512BF16__)
typedef uint32_t packed_pair;
INLINE packed_pair make_pair(float even, float odd)
{
    return (uint32_t)bf16_from_f32(even) | (uint32_t)bf16_from_f32(odd) << 16;
}
#else
typedef struct { float even, odd; } packed_pair;
INLINE packed_pair make_pair(float even, float odd) { return (packed_pair){ even, odd }; }
#endif

static void pack_rows(void *packed, const float *x, int rows, int64_t k)
{
    packed_pair *out = packed;
    for (int r = 0; r < rows; r++) {
        const float *row = x + r * k;
        for (int64_t i = 0; i < k / 2; i++) out[i * rows + r] = make_pair(row[2 * i], row[2 * i + 1]);
        if (k % 2) out[k / 2 * rows + r] = make_pair(row[k - 1], 0.0f);
    }
}

/* ROWS x VECS accumulators over all k; first: first column of the panel. */
INLINE void panel_tile(const struct panel_args *args, const int ROWS, const int VECS, const int first)
{
    vf acc[TILE_ROWS][PANEL_COLS / VL];
    const packed_pair *x = args->packed;
    const uint32_t *w = args->panel + first;

    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = (vf){ 0 };
    for (int64_t k = 0; k < args->k_pairs; k++, w += PANEL_COLS, x += ROWS) {
        vu weights[PANEL_COLS / VL];
        /* with many rows the arithmetic hides the loads from the hardware's look-ahead, which also stops at each page */
        if (ROWS > 4) {
            __builtin_prefetch(w + PREFETCH_PAIRS * PANEL_COLS);
            __builtin_prefetch(w + PREFETCH_PAIRS * PANEL_COLS + PANEL_COLS / 2);
        }
        UNROLL for (int v = 0; v < VECS; v++) weights[v] = load_u(w + v * VL);
#if defined(__AVX512BF16__)
        UNROLL for (int r = 0; r < ROWS; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[r]);
            UNROLL for (int v = 0; v < VECS; v++)
                acc[r][v] = (vf)_mm512_dpbf16_ps((__m512)acc[r][v], (__m512bh)weights[v], pair);
        }
#else
        UNROLL for (int r = 0; r < ROWS; r++) {
            vf even = splat(x[r].even);
            UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = fma_f(even, pair_even(weights[v]), acc[r][v]);
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            vf odd = splat(x[r].odd);
            UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = fma_f(odd, pair_odd(weights[v]), acc[r][v]);
        }
#endif
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
        float *out = args->out + r * args->out_stride + first;
        if (first + VECS * VL <= args->cols) {
            UNROLL for (int v = 0; v < VECS; v++) {
                vf bias = args->bias ? load_f(args->bias + first + v * VL) : (vf){ 0 };
                store_f(out + v * VL, acc[r][v] + bias);
            }
            continue;
        }
        float row[PANEL_COLS];
        UNROLL for (int v = 0; v < VECS; v++) store_f(row + v * VL, acc[r][v]);
        for (int c = 0; first + c < args->cols; c++) out[c] = row[c] + (args->bias ? args->bias[first + c] : 0.0f);
    }
}

INLINE void panel_rows(const struct panel_args *args, const int ROWS)
{
    for (int first = 0; first < args->cols; first += TILE_VECS * VL) panel_tile(args, ROWS, TILE_VECS, first);
}

static void panel(const struct panel_args *args)
{
    switch (args->rows) {
    case 1: panel_rows(args, 1); break;
    case 2: panel_rows(args, 2); break;
    case 3: panel_rows(args, 3); break;
    case 4: panel_rows(args, 4); break;
#if defined(__AVX512F__)
    case 5: panel_rows(args, 5); break;
    case 6: panel_rows(args, 6); break;
    case 7: panel_rows(args, 7); break;
    case 8: panel_rows(args, 8); break;
    case 9: panel_rows(args, 9); break;
    case 10: panel_rows(args, 10); break;
    case 11: panel_rows(args, 11); break;
    case 12: panel_rows(args, 12); break;
    case 13: panel_rows(args, 13); break;
    case 14: panel_rows(args, 14); break;
#endif
    default: break;
    }
}

/* Converts a strip of a row, then scatters its pairs: 32 rows of a strip fill whole lines while they are in the cache. */
static void pack_panel(uint32_t *panel_at, int first, int n, const float *src, int64_t k)
{
    enum { STRIP = 64 };
    uint32_t strip[STRIP];
    int64_t pairs = (k + 1) / 2;

    for (int64_t at = 0; at < pairs; at += STRIP) {
        int64_t whole = k / 2 - at < STRIP ? k / 2 - at : STRIP;
        int64_t count = pairs - at < STRIP ? pairs - at : STRIP;
        for (int r = 0; r < n; r++) {
            const float *row = src + r * k + 2 * at;
            pack_pairs(strip, row, whole);
            if (count > whole) strip[whole] = bf16_from_f32(row[2 * whole]);
            uint32_t *out = panel_at + at * PANEL_COLS + first + r;
            for (int64_t i = 0; i < count; i++) out[i * PANEL_COLS] = strip[i];
        }
    }
}

#include "kernels_blocks.h"

/* ---- attention ---- */

struct attend_state {
    float *q;                              /* [rows][D] times scale */
    float *acc;                            /* [rows][D] */
    float *scores;                         /* [rows][CHUNK] */
    uint32_t *k_chunk;                     /* [D/2][CHUNK], used when a chunk spans blocks */
    float *max, *sum;                      /* [rows] */
};

static struct attend_state attend_state_at(void *scratch, int head_dim)
{
    struct attend_state s;
    size_t d = ((size_t)head_dim + 15) & ~(size_t)15;
    s.q = scratch;
    s.acc = s.q + ATTEND_ROWS * d;
    s.scores = s.acc + ATTEND_ROWS * d;
    s.k_chunk = (uint32_t *)(s.scores + ATTEND_ROWS * ATTEND_CHUNK);
    s.max = (float *)(s.k_chunk + d / 2 * ATTEND_CHUNK);
    s.sum = s.max + ATTEND_ROWS;
    return s;
}

/* scores[r][0..CHUNK) = q[r] . k over d by rising d. ahead: memory wanted next, or NULL; with few rows, as in a decode, K and
 * V come from memory faster than the hardware's look-ahead asks for them, and two lines per round are asked for here. */
INLINE void score_tile(float *scores, const float *q, const uint32_t *k, int64_t k_stride, int head_dim,
                       const char *ahead, const int ROWS)
{
    enum { VECS = 2 };
    for (int first = 0; first < ATTEND_CHUNK; first += VECS * VL) {
        vf acc[SCORE_ROWS][VECS];
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = (vf){ 0 };
        for (int d = 0; d < head_dim / 2; d++) {
            vf even[VECS], odd[VECS];
            if (ROWS <= 4 && ahead) {
                __builtin_prefetch(ahead);
                __builtin_prefetch(ahead + 64);
                ahead += 128;
            }
            UNROLL for (int v = 0; v < VECS; v++) {
                vu pair = load_u(k + d * k_stride + first + v * VL);
                even[v] = half_even(pair);
                odd[v] = half_odd(pair);
            }
            UNROLL for (int r = 0; r < ROWS; r++) {
                vf q0 = splat(q[r * head_dim + 2 * d]), q1 = splat(q[r * head_dim + 2 * d + 1]);
                UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = fma_f(q0, even[v], acc[r][v]);
                UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = fma_f(q1, odd[v], acc[r][v]);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int v = 0; v < VECS; v++) store_f(scores + r * ATTEND_CHUNK + first + v * VL, acc[r][v]);
    }
}

static void score_rows(const struct attend_state *s, const uint32_t *k, int64_t k_stride, int rows, int head_dim,
                       const char *ahead)
{
    for (int r = 0; r < rows;) {
        float *scores = s->scores + r * ATTEND_CHUNK;
        const float *q = s->q + r * head_dim;
        int left = rows - r;
#if defined(__AVX512F__)
        if (left >= 8) { score_tile(scores, q, k, k_stride, head_dim, NULL, 8); r += 8; continue; }
#endif
        switch (left) {
        case 1: score_tile(scores, q, k, k_stride, head_dim, ahead, 1); r += 1; break;
        case 2: score_tile(scores, q, k, k_stride, head_dim, ahead, 2); r += 2; break;
        case 3: score_tile(scores, q, k, k_stride, head_dim, ahead, 3); r += 3; break;
        default: score_tile(scores, q, k, k_stride, head_dim, ahead, 4); r += 4; break;
        }
    }
}

/* One step of the online softmax of row r: scores become weights, max and sum move on, acc shrinks by exp(old - new). */
static void soften_row(const struct attend_state *s, int r, int head_dim, int32_t base, int32_t begin, int32_t end)
{
    float *scores = s->scores + r * ATTEND_CHUNK, *acc = s->acc + r * head_dim;
    int from = begin > base ? begin - base : 0, to = end - base < ATTEND_CHUNK ? end - base : ATTEND_CHUNK;
    vf top[LANES / VL], total[LANES / VL];
    vi lane;

    for (int i = 0; i < VL; i++) lane[i] = i;
    /* what the row does not see may hold anything, NaN included: replaced, not multiplied */
    UNROLL for (int v = 0; v < LANES / VL; v++) top[v] = splat(-INFINITY);
    for (int i = 0; i < ATTEND_CHUNK; i += LANES) {
        UNROLL for (int v = 0; v < LANES / VL; v++) {
            vi at = lane + (i + v * VL);
            vf score = select_f((at >= from) & (at < to), load_f(scores + i + v * VL), splat(-INFINITY));
            top[v] = select_f(score > top[v], score, top[v]);
            store_f(scores + i + v * VL, score);
        }
    }
    float chunk_max = max_lanes(top), old = s->max[r];
    float max = chunk_max > old ? chunk_max : old;
    vf shrink_v = exp_f(splat(old - max));
    float shrink = shrink_v[0];
    UNROLL for (int v = 0; v < LANES / VL; v++) total[v] = (vf){ 0 };
    for (int i = 0; i < ATTEND_CHUNK; i += LANES) {
        UNROLL for (int v = 0; v < LANES / VL; v++) {
            vf weight = exp_f(load_f(scores + i + v * VL) - max);
            store_f(scores + i + v * VL, weight);
            total[v] = total[v] + weight;
        }
    }
    s->max[r] = max;
    s->sum[r] = s->sum[r] * shrink + sum_lanes(total);
    int d = 0;
    for (; d + VL <= head_dim; d += VL) store_f(acc + d, load_f(acc + d) * shrink);
    for (; d < head_dim; d++) acc[d] *= shrink;
}

/* acc[r][first..] += weights[r][j] * v[j] for n positions by rising j. */
INLINE void mix_tile(float *acc, const float *weights, const uint16_t *v, int n, int head_dim, int first,
                     const char *ahead, const int ROWS, const int VECS)
{
    vf sum[MIX_ROWS][MIX_VECS];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int i = 0; i < VECS; i++) sum[r][i] = load_f(acc + r * head_dim + first + i * VL);
    for (int j = 0; j < n; j++) {
        vf value[MIX_VECS];
        if (ahead) {
            __builtin_prefetch(ahead + j * 128);
            __builtin_prefetch(ahead + j * 128 + 64);
        }
        UNROLL for (int i = 0; i < VECS; i++) value[i] = load_half(v + j * head_dim + first + i * VL);
        UNROLL for (int r = 0; r < ROWS; r++) {
            vf weight = splat(weights[r * ATTEND_CHUNK + j]);
            UNROLL for (int i = 0; i < VECS; i++) sum[r][i] = fma_f(weight, value[i], sum[r][i]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int i = 0; i < VECS; i++) store_f(acc + r * head_dim + first + i * VL, sum[r][i]);
}

INLINE void mix_group(float *acc, const float *weights, const uint16_t *v, int n, int head_dim, const char *ahead,
                      const int ROWS)
{
    int d = 0;
    for (; d + MIX_VECS * VL <= head_dim; d += MIX_VECS * VL) {
        mix_tile(acc, weights, v, n, head_dim, d, ahead, ROWS, MIX_VECS);
        if (ahead) ahead += n * 128;
    }
    for (; d + VL <= head_dim; d += VL) mix_tile(acc, weights, v, n, head_dim, d, NULL, ROWS, 1);
    for (int r = 0; r < ROWS; r++)
        for (int e = d; e < head_dim; e++)
            for (int j = 0; j < n; j++)
                acc[r * head_dim + e] += weights[r * ATTEND_CHUNK + j] * half_to_f32(v[j * head_dim + e]);
}

static void mix_rows(const struct attend_state *s, const uint16_t *v, int offset, int n, int rows, int head_dim,
                     const char *ahead)
{
    for (int r = 0; r < rows; r += MIX_ROWS) {
        float *acc = s->acc + r * head_dim;
        const float *weights = s->scores + r * ATTEND_CHUNK + offset;
        if (r > 0) ahead = NULL;
        switch (rows - r) {
        case 1: mix_group(acc, weights, v, n, head_dim, ahead, 1); break;
        case 2: mix_group(acc, weights, v, n, head_dim, ahead, 2); break;
        case 3: mix_group(acc, weights, v, n, head_dim, ahead, 3); break;
        default: mix_group(acc, weights, v, n, head_dim, ahead, 4); break;
        }
    }
}

/* The K pairs of positions base.. as rows of CHUNK lanes: in place when the chunk lies in one block, else gathered. */
static const uint32_t *chunk_of_k(const struct attend_args *args, const struct attend_state *s, int32_t base,
                                  int32_t from, int32_t to, int64_t *stride)
{
    int block_size = args->block_size, pairs = args->head_dim / 2;
    if (base % block_size + ATTEND_CHUNK <= block_size) {
        const uint32_t *block = (const uint32_t *)(args->k + args->blocks[base / block_size] * args->block_stride);
        *stride = block_size;
        return block + base % block_size;
    }
    for (int32_t at = from, next; at < to; at = next) {
        int offset = at % block_size;
        next = at - offset + block_size < to ? at - offset + block_size : to;
        const uint32_t *block = (const uint32_t *)(args->k + args->blocks[at / block_size] * args->block_stride);
        for (int d = 0; d < pairs; d++)
            memcpy(s->k_chunk + d * ATTEND_CHUNK + (at - base), block + d * block_size + offset,
                   (size_t)(next - at) * sizeof(uint32_t));
    }
    *stride = ATTEND_CHUNK;
    return s->k_chunk;
}

static void attend_chunk(const struct attend_args *args, const struct attend_state *s, int32_t base, int32_t from,
                         int32_t to, int32_t end)
{
    int64_t stride;
    const uint32_t *k = chunk_of_k(args, s, base, from, to, &stride);
    const char *next_v = NULL, *next_k = NULL;

    if (args->rows <= 4 && args->block_size == ATTEND_CHUNK) {
        next_v = (const char *)(args->v + args->blocks[base / ATTEND_CHUNK] * args->block_stride);
        if (to < end) next_k = (const char *)(args->k + args->blocks[to / ATTEND_CHUNK] * args->block_stride);
    }
    score_rows(s, k, stride, args->rows, args->head_dim, next_v);
    for (int r = 0; r < args->rows; r++)
        soften_row(s, r, args->head_dim, base, args->begin[r], args->end[r]);
    for (int32_t at = from, next; at < to; at = next) {
        int offset = at % args->block_size;
        next = at - offset + args->block_size < to ? at - offset + args->block_size : to;
        const uint16_t *v = args->v + args->blocks[at / args->block_size] * args->block_stride +
                            (int64_t)offset * args->head_dim;
        mix_rows(s, v, at - base, next - at, args->rows, args->head_dim, next_k);
    }
}

static void attend(const struct attend_args *args)
{
    struct attend_state s = attend_state_at(args->scratch, args->head_dim);
    int32_t from = args->begin[0], to = args->end[0];

    for (int r = 0; r < args->rows; r++) {
        for (int d = 0; d < args->head_dim; d++) s.q[r * args->head_dim + d] = args->q[r][d] * args->scale;
        memset(s.acc + r * args->head_dim, 0, (size_t)args->head_dim * sizeof(float));
        s.max[r] = -1e30f;                 /* finite: a chunk of which a row sees nothing must leave it as it is */
        s.sum[r] = 0;
        from = args->begin[r] < from ? args->begin[r] : from;
        to = args->end[r] > to ? args->end[r] : to;
    }
    for (int32_t base = from - from % ATTEND_CHUNK; base < to; base += ATTEND_CHUNK)
        attend_chunk(args, &s, base, base > from ? base : from, base + ATTEND_CHUNK < to ? base + ATTEND_CHUNK : to, to);
    for (int r = 0; r < args->rows; r++) {
        float inverse = 1.0f / s.sum[r];
        for (int d = 0; d < args->head_dim; d++) args->out[r][d] = s.acc[r * args->head_dim + d] * inverse;
    }
}

/* ---- elementwise ---- */

static void rmsnorm(const float *x, float *residual, const float *weight, float *out, int64_t n, float eps)
{
    vf acc[LANES / VL];
    int64_t i = 0;

    UNROLL for (int v = 0; v < LANES / VL; v++) acc[v] = (vf){ 0 };
    for (; i + LANES <= n; i += LANES) {
        UNROLL for (int v = 0; v < LANES / VL; v++) {
            float *at = residual + i + v * VL;
            vf value = load_f(at);
            if (x) {
                value = value + load_f(x + i + v * VL);
                store_f(at, value);
            }
            acc[v] = fma_f(value, value, acc[v]);
        }
    }
    float sum = sum_lanes(acc);
    for (; i < n; i++) {
        if (x) residual[i] += x[i];
        sum += residual[i] * residual[i];
    }
    float inverse = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i + VL <= n; i += VL) store_f(out + i, load_f(residual + i) * inverse * load_f(weight + i));
    for (; i < n; i++) out[i] = residual[i] * inverse * weight[i];
}

INLINE vf silu_mul_vec(vf gate, vf up) { return gate / (1.0f + exp_f(-gate)) * up; }

static void silu_mul(const float *gate, const float *up, float *out, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store_f(out + i, silu_mul_vec(load_f(gate + i), load_f(up + i)));
    if (i == n) return;
    float tail[3][VL] = { { 0 } };         /* the same vector code for the last few, so that all elements agree */
    memcpy(tail[0], gate + i, (size_t)(n - i) * sizeof(float));
    memcpy(tail[1], up + i, (size_t)(n - i) * sizeof(float));
    store_f(tail[2], silu_mul_vec(load_f(tail[0]), load_f(tail[1])));
    memcpy(out + i, tail[2], (size_t)(n - i) * sizeof(float));
}

static void rotate(float *head, const float *cos_sin, int head_dim)
{
    int half = head_dim / 2, i = 0;
    float *low = head, *high = head + half;
    const float *cosine = cos_sin, *sine = cos_sin + half;

    for (; i + VL <= half; i += VL) {
        vf a = load_f(low + i), b = load_f(high + i), c = load_f(cosine + i), s = load_f(sine + i);
        store_f(low + i, a * c - b * s);
        store_f(high + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = low[i], b = high[i];
        low[i] = a * cosine[i] - b * sine[i];
        high[i] = b * cosine[i] + a * sine[i];
    }
}

/* ---- sampler ---- */

static float max_of(const float *x, int64_t n, bool *has_nan)
{
    vf top[LANES / VL];
    vi nan = { 0 };
    int64_t i = 0;

    UNROLL for (int v = 0; v < LANES / VL; v++) top[v] = splat(-INFINITY);
    for (; i + LANES <= n; i += LANES) {
        UNROLL for (int v = 0; v < LANES / VL; v++) {
            vf value = load_f(x + i + v * VL);
            top[v] = select_f(value > top[v], value, top[v]);
            nan |= value != value;
        }
    }
    float best = max_lanes(top);
    bool bad = false;
    for (int lane = 0; lane < VL; lane++) bad = bad || nan[lane] != 0;
    for (; i < n; i++) {
        best = x[i] > best ? x[i] : best;
        bad = bad || isnan(x[i]);
    }
    if (bad) *has_nan = true;
    return best;
}

static float exp_sum(float *w, const float *x, int64_t n, float shift, float scale)
{
    vf total[LANES / VL];
    int64_t i = 0;
    float sum = 0, tail[VL];

    UNROLL for (int v = 0; v < LANES / VL; v++) total[v] = (vf){ 0 };
    for (; i + LANES <= n; i += LANES) {
        UNROLL for (int v = 0; v < LANES / VL; v++) {
            vf weight = exp_f((load_f(x + i + v * VL) - shift) * scale);
            if (w) store_f(w + i + v * VL, weight);
            total[v] = total[v] + weight;
        }
    }
    sum = sum_lanes(total);
    for (; i < n; i += VL) {
        int64_t left = n - i < VL ? n - i : VL;
        for (int j = 0; j < VL; j++) tail[j] = j < left ? x[i + j] : -INFINITY;
        store_f(tail, exp_f((load_f(tail) - shift) * scale));
        for (int64_t j = 0; j < left; j++) {
            if (w) w[i + j] = tail[j];
            sum += tail[j];
        }
    }
    return sum;
}

static int32_t at_least(int32_t *ids, const float *x, int32_t n, float threshold)
{
    int32_t count = 0, i = 0;
#if defined(__AVX512F__)
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + VL <= n; i += VL) {
        __mmask16 found = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_set1_ps(threshold), _CMP_GE_OQ);
        if (found) _mm512_mask_compressstoreu_epi32(ids + count, found, _mm512_add_epi32(at, _mm512_set1_epi32(i)));
        count += __builtin_popcount(found);
    }
#endif
    for (; i < n; i++) {
        ids[count] = i;                    /* count <= i < n: room */
        count += x[i] >= threshold;
    }
    return count;
}

const struct cpu_kernels KERNELS_TABLE = {
    .name = KERNELS_NAME,
    .tile_rows = TILE_ROWS,
    .pair_bytes = sizeof(packed_pair),
    .pack_rows = pack_rows,
    .panel = panel,
    .pack_panel = pack_panel,
    .blocks_pack = blocks_pack,
    .blocks_tile_rows = blocks_tile_rows,
    .blocks_panel = blocks_panel,
    .attend = attend,
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .rotate = rotate,
    .max = max_of,
    .exp_sum = exp_sum,
    .at_least = at_least,
};
