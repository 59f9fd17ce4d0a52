/* fast_ops.h - the ops of backend_cpu_fast: weights in panels of bf16 or of the file's blocks, bf16 KV, f32 activations; inner loops from kernels.h.
 * The drivers here split the work over threads and tiles; the result of a row does not depend on how. */
#ifndef SLUICE_BACKEND_CPU_FAST_OPS_H
#define SLUICE_BACKEND_CPU_FAST_OPS_H

#include "cpu_backend.h"

size_t fast_weight_bytes(enum weight_kind kind, int64_t rows, int64_t cols);
void fast_weight_store(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows,
                       const float *src);
size_t fast_kept_bytes(enum dtype dtype, int64_t rows, int64_t cols);
void fast_store_kept(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, const void *src);
void fast_embed(struct backend *b, const struct embed_args *args);
void fast_rmsnorm(struct backend *b, const struct rmsnorm_args *args);
void fast_matmul(struct backend *b, const struct matmul_args *args);
void fast_rope_store(struct backend *b, const struct rope_store_args *args);
void fast_attention(struct backend *b, const struct attention_args *args);
void fast_silu_mul(struct backend *b, const struct silu_mul_args *args);
void fast_gate_up(struct backend *b, const struct gate_up_args *args);
void fast_matmul_norm(struct backend *b, const struct matmul_norm_args *args);
void fast_matmul_rope(struct backend *b, const struct matmul_rope_args *args);
void fast_norm_rows(struct backend *b, const struct norm_rows_args *args);

/* For tests: another instruction set for this backend. Weights and KV keep their layout. ERR_UNSUPPORTED: not here. */
int backend_cpu_fast_force_isa(struct backend *b, enum cpu_isa isa);

#endif
