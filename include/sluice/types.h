/* types.h - the few types that every module shares. */
#ifndef SLUICE_TYPES_H
#define SLUICE_TYPES_H

#include <stddef.h>
#include <stdint.h>

typedef int32_t token_id;    /* 0 <= id < vocab_size; < 0: the names below */
typedef int32_t block_id;    /* a KV block, 0 <= id < num_blocks; -1 = none */

#define TOKEN_NONE ((token_id)-1)
#define TOKEN_FEEDBACK ((token_id)-2)    /* in a plan: what was drawn last in this slot, known to the device only */
#define BLOCK_NONE ((block_id)-1)

/* Element types. The block types are GGUF's: `block_elems` weights share a scale, stored in `block_bytes`. */
/*  enum         name     block_elems block_bytes */
#define DTYPE_MAP(X)               \
    X(DTYPE_F32,  "f32",    1,   4) \
    X(DTYPE_F16,  "f16",    1,   2) \
    X(DTYPE_BF16, "bf16",   1,   2) \
    X(DTYPE_I32,  "i32",    1,   4) \
    X(DTYPE_I8,   "i8",     1,   1) \
    X(DTYPE_U8,   "u8",     1,   1) \
    X(DTYPE_Q4_0, "q4_0",  32,  18) \
    X(DTYPE_Q4_1, "q4_1",  32,  20) \
    X(DTYPE_Q5_0, "q5_0",  32,  22) \
    X(DTYPE_Q5_1, "q5_1",  32,  24) \
    X(DTYPE_Q8_0, "q8_0",  32,  34) \
    X(DTYPE_Q2_K, "q2_k", 256,  84) \
    X(DTYPE_Q3_K, "q3_k", 256, 110) \
    X(DTYPE_Q4_K, "q4_k", 256, 144) \
    X(DTYPE_Q5_K, "q5_k", 256, 176) \
    X(DTYPE_Q6_K, "q6_k", 256, 210)

enum dtype {
#define DTYPE_X(name, text, elems, bytes) name,
    DTYPE_MAP(DTYPE_X)
#undef DTYPE_X
    DTYPE_COUNT
};

const char *dtype_name(enum dtype dtype);
int dtype_block_elems(enum dtype dtype);
int dtype_block_bytes(enum dtype dtype);

/* Bytes of n elements in one row; n must be a multiple of block_elems. Returns -1 on overflow or a broken multiple. */
int64_t dtype_row_bytes(enum dtype dtype, int64_t n);

/* A view of row-major memory; owns nothing. A matrix is [rows, cols]: shape[0] = rows (outputs), shape[1] = cols (inputs). */
struct tensor {
    void *data;
    enum dtype dtype;
    int ndim;            /* 1 or 2 */
    int64_t shape[2];
};

#endif
