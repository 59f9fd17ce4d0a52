/* kernels_blocks.h - products with matrices kept in blocks (blocks.h); part of kernels_body.h, whose names it uses.
 * Per block of 32 inputs: q . x over the 16 pairs by the order they are stored in; then total += d * (q . x) and
 * total += m * (sum of x). Rows and outputs share the q vectors, never a sum.
 * AVX-512 BF16: the 32 inputs of a block become integers of 16 bits with one scale, 128 times finer at the block's largest
 * than bf16 would be, and meet the q by vpdpwssd, as fast as bf16 pairs; the sums of a block are exact.
 * Elsewhere q becomes a float and x stays one. */

enum { BLOCK_VECS = BLOCK_OUTPUTS / VL, BLOCKS_AHEAD = 4096 };

INLINE bool blocks_have_min(const enum dtype TYPE) { return TYPE == DTYPE_Q4_1 || TYPE == DTYPE_Q5_1; }
INLINE bool blocks_have_fifth(const enum dtype TYPE) { return TYPE == DTYPE_Q5_0 || TYPE == DTYPE_Q5_1; }
/* Groups of pairs: 4 in a word of 4 bits each, 3 of 5 bits each (and group 5: the pair of the top bits). */
INLINE int group_pairs(const enum dtype TYPE) { return blocks_have_fifth(TYPE) ? 3 : 4; }
INLINE int group_count(const enum dtype TYPE) { return blocks_have_fifth(TYPE) ? 5 : 4; }
INLINE int group_bits(const enum dtype TYPE) { return blocks_have_fifth(TYPE) ? 5 : 4; }
INLINE int blocks_offset(const enum dtype TYPE) { return TYPE == DTYPE_Q4_0 ? 8 : TYPE == DTYPE_Q5_0 ? 16 : 0; }

/* Outputs v * VL .. of one block: the bytes of group 0 (of pair 0 for q8_0). */
INLINE const uint8_t *block_vec_at(const uint8_t *block, const enum dtype TYPE, int v)
{
    return block + (blocks_have_min(TYPE) ? 128 : 64) + v * VL * (TYPE == DTYPE_Q8_0 ? 2 : 4);
}

#if defined(__AVX512BF16__)

typedef __m512i qvec;                      /* 16 outputs x 2 inputs, 16 bits each; without the offset */
typedef __m512i bsum;                      /* 16 exact sums: at most 32 * 128 * 32767 */
typedef uint32_t block_input;              /* two inputs, 16 bits each */

INLINE qvec block_pair(const uint8_t *at, const enum dtype TYPE, int group, const int I)
{
    if (TYPE == DTYPE_Q8_0) return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(at + (4 * group + I) * PAIR_BYTES)));
    if (group < 5) {
        __m512i words = _mm512_srli_epi16(_mm512_loadu_si512(at + group * GROUP_BYTES), group_bits(TYPE) * I);
        return _mm512_and_si512(words, _mm512_set1_epi16((1 << group_bits(TYPE)) - 1));
    }
    __m512i q = _mm512_setzero_si512();
    UNROLL for (int g = 0; g < 5; g++)
        q = _mm512_or_si512(q, _mm512_slli_epi16(_mm512_srli_epi16(_mm512_loadu_si512(at + g * GROUP_BYTES), 15), g));
    return q;
}

/* One instruction with x repeated from memory: the compilers load x first and then copy sums around for want of registers.
 * VNNI is not among this file's flags: every machine with AVX-512 BF16 has it (kernels.c asks). */
INLINE bsum block_dot(bsum acc, qvec q, const block_input *x)
{
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(q), "m"(*x));
    return acc;
}

enum { BLOCK_SPLIT = 2 };
INLINE bsum block_join(bsum a, bsum b) { return _mm512_add_epi32(a, b); }
INLINE bsum block_start(const enum dtype TYPE, int32_t whole) { return _mm512_set1_epi32(-blocks_offset(TYPE) * whole); }
INLINE vf block_value(bsum acc, vf d, float scale) { return (vf)_mm512_cvtepi32_ps(acc) * (d * scale); }

#else

typedef struct { vf even, odd; } qvec;
typedef vf bsum;
typedef packed_pair block_input;

INLINE qvec block_pair(const uint8_t *at, const enum dtype TYPE, int group, const int I)
{
    vu even, odd, words;
    int offset = blocks_offset(TYPE);
    if (TYPE == DTYPE_Q8_0) {
        vh bytes;
        memcpy(&bytes, at + (4 * group + I) * PAIR_BYTES, sizeof bytes);
        words = __builtin_convertvector(bytes, vu);
        even = (vu)((vi)(words << 24) >> 24), odd = (vu)((vi)(words << 16) >> 24);
    } else if (group < 5) {
        memcpy(&words, at + group * GROUP_BYTES, sizeof words);
        words = words >> group_bits(TYPE) * I;
        even = words & ((1u << group_bits(TYPE)) - 1), odd = words >> 16 & ((1u << group_bits(TYPE)) - 1);
    } else {
        even = odd = (vu){ 0 };
        for (int g = 0; g < 5; g++) {
            memcpy(&words, at + g * GROUP_BYTES, sizeof words);
            even |= (words >> 15 & 1) << g, odd |= (words >> 31) << g;
        }
    }
    return (qvec){ __builtin_convertvector((vi)even - offset, vf), __builtin_convertvector((vi)odd - offset, vf) };
}

INLINE bsum block_dot(bsum acc, qvec q, const block_input *x)
{
    return fma_f(splat(x->odd), q.odd, fma_f(splat(x->even), q.even, acc));
}

enum { BLOCK_SPLIT = 1 };
INLINE bsum block_join(bsum a, bsum b) { return a + b; }
INLINE bsum block_start(const enum dtype TYPE, int32_t whole)
{
    (void)TYPE, (void)whole;
    return (vf){ 0 };
}
INLINE vf block_value(bsum acc, vf d, float scale)
{
    (void)scale;
    return acc * d;
}

#endif


/* One group of pairs. SPLIT sums take turns: integers may, floats would show it. */
INLINE void block_group(bsum acc[2][TILE_ROWS][BLOCK_VECS], const uint8_t *at[BLOCK_VECS], const block_input *x, int group,
                        const enum dtype TYPE, const int PAIRS, const int ROWS, const int VECS, const int SPLIT)
{
    UNROLL for (int i = 0; i < PAIRS; i++)
        UNROLL for (int v = 0; v < VECS; v++) {
            qvec q = block_pair(at[v], TYPE, group, i);
            UNROLL for (int r = 0; r < ROWS; r++) acc[i % SPLIT][r][v] = block_dot(acc[i % SPLIT][r][v], q, &x[i * ROWS + r]);
        }
}

/* total[..][first..] grows by one block. */
INLINE void block_step(vf total[TILE_ROWS][BLOCK_VECS], const uint8_t *block, const block_input *x, const float *scales,
                       int first, const enum dtype TYPE, const int ROWS, const int VECS, const int SPLIT)
{
    bsum acc[2][TILE_ROWS][BLOCK_VECS];
    const uint8_t *at[BLOCK_VECS];

    UNROLL for (int v = 0; v < VECS; v++) {
        at[v] = block_vec_at(block, TYPE, first + v);
        UNROLL for (int r = 0; r < ROWS; r++) {
            int32_t whole;
            memcpy(&whole, scales + 2 * ROWS + r, sizeof whole);
            acc[0][r][v] = block_start(TYPE, whole);
            if (SPLIT > 1) acc[1][r][v] = block_start(TYPE, 0);
        }
    }
    ROLLED for (int g = 0; g < group_count(TYPE); g++, x += group_pairs(TYPE) * ROWS)
        block_group(acc, at, x, g, TYPE, group_pairs(TYPE), ROWS, VECS, SPLIT);
    if (blocks_have_fifth(TYPE)) block_group(acc, at, x, 5, TYPE, 1, ROWS, VECS, SPLIT);
    UNROLL for (int v = 0; v < VECS; v++) {
        const uint8_t *scale = block + (size_t)(first + v) * VL * 2;
        vf d = load_half(scale), m = blocks_have_min(TYPE) ? load_half(scale + 64) : (vf){ 0 };
        UNROLL for (int r = 0; r < ROWS; r++) {
            bsum whole = SPLIT > 1 ? block_join(acc[0][r][v], acc[1][r][v]) : acc[0][r][v];
            vf sum = total[r][first + v] + block_value(whole, d, scales[r]);
            total[r][first + v] = blocks_have_min(TYPE) ? fma_f(m, splat(scales[ROWS + r]), sum) : sum;
        }
    }
}

INLINE void blocks_tile(const struct blocks_args *args, const enum dtype TYPE, const int ROWS, const int VECS, const int SPLIT)
{
    vf total[TILE_ROWS][BLOCK_VECS];
    const block_input *x = args->packed;
    const float *scales = args->scales;
    const uint8_t *block = args->panel;
    size_t bytes = block_panel_bytes(TYPE);

    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < BLOCK_VECS; v++) total[r][v] = (vf){ 0 };
    ROLLED for (int64_t k = 0; k < args->num_blocks; k++, block += bytes) {
        UNROLL for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(block + BLOCKS_AHEAD + line);
        ROLLED for (int first = 0; first < BLOCK_VECS; first += VECS)
            block_step(total, block, x, scales, first, TYPE, ROWS, VECS, SPLIT);
        x += BLOCK_PAIRS * ROWS;
        scales += SCALE_ROWS * ROWS;
    }
    ROLLED for (int r = 0; r < ROWS; r++) {
        float line[BLOCK_OUTPUTS], *out = args->out + r * args->out_stride;
        if (args->cols == BLOCK_OUTPUTS) {
            UNROLL for (int v = 0; v < BLOCK_VECS; v++)
                store_f(out + v * VL, args->bias ? total[r][v] + load_f(args->bias + v * VL) : total[r][v]);
            continue;
        }
        UNROLL for (int v = 0; v < BLOCK_VECS; v++) store_f(line + v * VL, total[r][v]);
        for (int c = 0; c < args->cols; c++) out[c] = args->bias ? line[c] + args->bias[c] : line[c];
    }
}

/* Few rows: more outputs side by side, so that enough sums are under way to hide their latency. */
INLINE void blocks_rows(const struct blocks_args *args, const enum dtype TYPE)
{
    switch (args->rows) {
    case 1: blocks_tile(args, TYPE, 1, BLOCK_VECS < 4 ? BLOCK_VECS : 4, BLOCK_SPLIT); break;
    case 2: blocks_tile(args, TYPE, 2, 2, BLOCK_SPLIT); break;
    case 3: blocks_tile(args, TYPE, 3, VL == 16 ? 2 : 1, 1); break;
    case 4: blocks_tile(args, TYPE, 4, VL == 16 ? 2 : 1, 1); break;
#if defined(__AVX512F__)
    case 6: blocks_tile(args, TYPE, 6, 2, 1); break;
    case 8: blocks_tile(args, TYPE, 8, 1, 1); break;
    case 14: blocks_tile(args, TYPE, 14, 1, 1); break;
#endif
    default: break;
    }
}

/* Not every number of rows has its own loop: five formats times fourteen would be half a megabyte of code. */
static int blocks_tile_rows(int64_t left)
{
    if (VL == 16 && left > 4) return left >= 14 ? 14 : left >= 8 ? 8 : left >= 6 ? 6 : 4;
    return left < 4 ? (int)left : 4;
}

static void blocks_panel(const struct blocks_args *args)
{
    switch (args->dtype) {
    case DTYPE_Q4_0: blocks_rows(args, DTYPE_Q4_0); break;
    case DTYPE_Q4_1: blocks_rows(args, DTYPE_Q4_1); break;
    case DTYPE_Q5_0: blocks_rows(args, DTYPE_Q5_0); break;
    case DTYPE_Q5_1: blocks_rows(args, DTYPE_Q5_1); break;
    case DTYPE_Q8_0: blocks_rows(args, DTYPE_Q8_0); break;
    default: break;
    }
}

/* x [rows, K] -> packed [K / 2][rows] and per block of 32 inputs scales [SCALE_ROWS][rows]: what an integer counts for, the
 * sum of the inputs, and the sum of the integers. Of one row at a time: nothing depends on its neighbours. */
static void blocks_pack(void *packed, float *scales, const float *x, int rows, int64_t k)
{
    block_input *out = packed;
    for (int64_t b = 0; b < k / BLOCK_INPUTS; b++, out += BLOCK_PAIRS * rows, scales += SCALE_ROWS * rows) {
        for (int r = 0; r < rows; r++) {
            const float *in = x + r * k + b * BLOCK_INPUTS;
#if defined(__AVX512BF16__)
            __m512 low = _mm512_loadu_ps(in), high = _mm512_loadu_ps(in + 16);
            __m512 size = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
            float most = _mm512_reduce_max_ps(size), scale = most * (1.0f / 32767.0f);
            __m512 inverse = _mm512_set1_ps(most > 1e-30f ? 32767.0f / most : 0.0f);
            __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)), c = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
            uint32_t pairs[BLOCK_PAIRS];
            int32_t whole = _mm512_reduce_add_epi32(_mm512_add_epi32(a, c));
            _mm256_storeu_si256((__m256i *)pairs, _mm512_cvtsepi32_epi16(a));
            _mm256_storeu_si256((__m256i *)(pairs + BLOCK_PAIRS / 2), _mm512_cvtsepi32_epi16(c));
            for (int p = 0; p < BLOCK_PAIRS; p++) out[p * rows + r] = pairs[p];
            /* a maximum passes over a NaN: it must reach the output */
            bool bad = _mm512_cmp_ps_mask(low, high, _CMP_UNORD_Q) != 0;
            scales[r] = bad ? NAN : scale;
            scales[rows + r] = scales[r] * (float)whole;
            memcpy(scales + 2 * rows + r, &whole, sizeof whole);
#else
            float lane[BLOCK_PAIRS];
            for (int p = 0; p < BLOCK_PAIRS; p++) {
                out[p * rows + r] = make_pair(in[2 * p], in[2 * p + 1]);
                lane[p] = in[2 * p] + in[2 * p + 1];
            }
            for (int half = BLOCK_PAIRS / 2; half > 0; half /= 2)
                for (int p = 0; p < half; p++) lane[p] += lane[p + half];
            scales[r] = 1.0f;
            scales[rows + r] = lane[0];
            scales[2 * rows + r] = 0.0f;
#endif
        }
    }
}
