/* blocks.h - matrices kept in a GGUF block format (fast): a weight stays d * q + m, with q a small integer that bf16 holds
 * exactly, so nothing of the file is lost and a decode reads 4 to 8 bits per weight instead of 16.
 * A block panel is 32 outputs; per block of 32 inputs it holds the outputs' scales and their integers by pairs of inputs, in
 * the order in which the loop that multiplies reads them (kernels_blocks.h), all on 64 bytes:
 *   d [32] f16, m [32] f16 (q4_1, q5_1)
 *   4 bits: [4 groups][32 outputs][2] words of 16 bits; word of group g, parity c: inputs 8g + 2i + c, i = 0..3
 *   5 bits: [5][32][2] words; word of group g: inputs 6g + 2i + c, i = 0..2; the five top bits together: input 30 + c
 *   8 bits: [16 pairs][32][2] signed bytes
 * K is a multiple of 32. */
#ifndef SLUICE_BACKEND_CPU_BLOCKS_H
#define SLUICE_BACKEND_CPU_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include <sluice/types.h>

enum {
    BLOCK_INPUTS = 32, BLOCK_PAIRS = 16, BLOCK_OUTPUTS = 32,
    GROUP_BYTES = BLOCK_OUTPUTS * 4, PAIR_BYTES = BLOCK_OUTPUTS * 2,    /* of 4 and 5 bits; of 8 bits */
};

/* Bytes of one block of inputs of one panel; 0: not a format that is kept. */
static inline size_t block_panel_bytes(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_Q4_0: return 64 + 512;
    case DTYPE_Q4_1: return 128 + 512;
    case DTYPE_Q5_0: return 64 + 640;
    case DTYPE_Q5_1: return 128 + 640;
    case DTYPE_Q8_0: return 64 + 1024;
    default: return 0;
    }
}

/* One output's blocks, as in the file, into lane 0..31 of a panel. */
void blocks_store(void *panel, enum dtype dtype, int lane, const void *row, int64_t num_blocks);
/* One output of a panel as fp32: exactly what the file says. */
void blocks_load(float *row, const void *panel, enum dtype dtype, int lane, int64_t num_blocks);

#endif
