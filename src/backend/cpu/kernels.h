/* kernels.h - the inner loops of the CPU backend, compiled once per instruction set from kernels_body.h.
 * A table is complete: every set computes everything. Which one runs is chosen once, when the backend opens.
 * Within one table the result of a row is a function of that row alone: each output is accumulated in one fixed order,
 * whatever the number of rows in the call (batch invariance). Between tables results differ in the last bits.
 *
 * Weight panel: 32 outputs x K inputs as uint32 pairs [K/2][32]: lower half = bf16 of the even input, upper = of the odd.
 * Packed activations: blocks of at most tile_rows rows, [K/2][rows] pairs: two bf16 or two f32, by table.
 * KV block of one head: K as pairs [D/2][block_size] (so that lanes are positions), V [block_size][D];
 * both binary16 (base/half.h). */
#ifndef SLUICE_BACKEND_CPU_KERNELS_H
#define SLUICE_BACKEND_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/types.h>

enum {
    PANEL_COLS = 32,
    SCALE_ROWS = 3,                        /* numbers per row and block of inputs (blocks_pack) */
    ATTEND_CHUNK = 64,                     /* positions per online-softmax step, counted from position 0 */
    ATTEND_ROWS = 32,                      /* most query rows (tokens x heads of one KV group) in a tile */
};

enum cpu_isa { CPU_ISA_PORTABLE, CPU_ISA_AVX2, CPU_ISA_AVX512, CPU_ISA_AVX512_BF16, CPU_ISA_COUNT };

/* One panel times one block of packed rows: out[r][0..cols) = sum over k (+ bias). */
struct panel_args {
    const void *packed;
    const uint32_t *panel;
    const float *bias;                     /* of this panel's outputs, or NULL */
    float *out;                            /* out of row 0, output 0 of the panel */
    int64_t out_stride;                    /* floats between rows */
    int64_t k_pairs;
    int rows, cols;                        /* rows <= tile_rows, cols <= PANEL_COLS */
};

/* The same for a matrix kept in blocks (blocks.h). */
struct blocks_args {
    const void *packed;
    const float *scales;                   /* from blocks_pack */
    const uint8_t *panel;
    const float *bias;
    float *out;
    int64_t out_stride, num_blocks;
    int rows, cols;
    enum dtype dtype;
};

/* Attention of up to ATTEND_ROWS query rows that share one KV head of one sequence. */
struct attend_args {
    const float *const *q;                 /* [rows] -> [D] */
    float *const *out;                     /* [rows] -> [D] */
    const int32_t *begin, *end;            /* [rows] visible positions [begin, end) */
    const uint16_t *k, *v;                 /* of this KV head in block 0 */
    int64_t block_stride;                  /* elements from block to block */
    const block_id *blocks;
    void *scratch;                         /* attend_scratch_bytes(head_dim), 64-byte aligned */
    int rows, head_dim, block_size;
    float scale;
};

struct cpu_kernels {
    const char *name;
    int tile_rows;
    int pair_bytes;                        /* of a packed activation pair: 4 (bf16) or 8 (f32) */
    /* x [rows, K] -> packed; an odd K is padded with a zero. */
    void (*pack_rows)(void *packed, const float *x, int rows, int64_t k);
    void (*panel)(const struct panel_args *args);
    /* n outputs of src [n, K] f32 into outputs first.. of one panel. */
    void (*pack_panel)(uint32_t *panel, int first, int n, const float *src, int64_t k);
    /* x [rows, K] -> packed pairs, and SCALE_ROWS * rows numbers per block of 32 inputs. */
    void (*blocks_pack)(void *packed, float *scales, const float *x, int rows, int64_t k);
    int  (*blocks_tile_rows)(int64_t left);          /* rows of the next block of packed rows when so many are left */
    void (*blocks_panel)(const struct blocks_args *args);
    void (*attend)(const struct attend_args *args);
    /* residual += x (x may be NULL); out = residual / rms(residual) * weight */
    void (*rmsnorm)(const float *x, float *residual, const float *weight, float *out, int64_t n, float eps);
    void (*silu_mul)(const float *gate, const float *up, float *out, int64_t n);
    /* q or k head in place: (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of the head */
    void (*rotate)(float *head, const float *cos_sin, int head_dim);
    /* Sampler: largest element (-inf for none); *has_nan is set, never cleared. */
    float (*max)(const float *x, int64_t n, bool *has_nan);
    /* w[i] = exp((x[i] - shift) * scale), w may be NULL; returns the sum in a fixed order. */
    float (*exp_sum)(float *w, const float *x, int64_t n, float shift, float scale);
    /* The indices of the elements >= threshold, rising; ids has room for n. */
    int32_t (*at_least)(int32_t *ids, const float *x, int32_t n, float threshold);
};

/* NULL: not compiled in or not on this machine. PORTABLE is always there. */
const struct cpu_kernels *cpu_kernels_for(enum cpu_isa isa);
enum cpu_isa cpu_isa_best(void);

size_t attend_scratch_bytes(int head_dim);

extern const struct cpu_kernels cpu_kernels_portable;
#if defined(__x86_64__)
extern const struct cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512, cpu_kernels_avx512_bf16;
#endif

#endif
