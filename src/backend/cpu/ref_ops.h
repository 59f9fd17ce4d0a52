/* ref_ops.h - the ops of backend_cpu_ref: fp32 weights [N, K] as they come, KV in the natural order [.., block_size, D]
 * (f32 or bf16). Written to be read beside the formula; every other kernel is tested against these. */
#ifndef SLUICE_BACKEND_CPU_REF_OPS_H
#define SLUICE_BACKEND_CPU_REF_OPS_H

#include "cpu_backend.h"

void ref_embed(struct backend *b, const struct embed_args *args);
void ref_rmsnorm(struct backend *b, const struct rmsnorm_args *args);
void ref_matmul(struct backend *b, const struct matmul_args *args);
void ref_rope_store(struct backend *b, const struct rope_store_args *args);
void ref_attention(struct backend *b, const struct attention_args *args);
void ref_silu_mul(struct backend *b, const struct silu_mul_args *args);
void ref_gate_up(struct backend *b, const struct gate_up_args *args);
void ref_matmul_norm(struct backend *b, const struct matmul_norm_args *args);
void ref_matmul_rope(struct backend *b, const struct matmul_rope_args *args);
void ref_norm_rows(struct backend *b, const struct norm_rows_args *args);

/* sum of a[i] * b[i]: 16 partial sums of every 16th product, then those from the first to the last. */
float ref_dot(const float *a, const float *b, int64_t n);

#endif
