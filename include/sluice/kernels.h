/* kernels.h - the door to kernels/: one launch_*() per op with its arguments; nothing else of CUDA shows here.
 * A launch puts work on the stream and returns at once: 0, ERR_UNSUPPORTED (a shape the kernel does not do; nothing was
 * launched) or ERR_INTERNAL (the launch itself failed; the process has to end). All pointers are device memory unless said,
 * 16-byte aligned. Safe inside a stream capture: no allocation, no synchronisation, sizes only from the arguments.
 *
 * Letters as in backend.h: T tokens, B sequences, R rows, H heads, Hk KV heads, D head_dim, C hidden, F ffn, V vocab.
 * Elements are bf16, or f16 with launch.f16; one launch has one kind. Activations are elements, row-major, contiguous; the residual
 * stream is f32; vectors (norm weights, biases) are f32; matrices are elements [N, K], K contiguous. Values that leave the range of
 * f16 (+-65504) are stored as its largest, so that no infinity arises.
 *
 * Padding: a captured step runs with T, B, R rounded up to a bucket. Padded entries: input id 0, position 0, slot -1 (its K
 * and V are not stored), context_len 0 (attention writes zeros), row.slot -1 (the sampler skips it). Kernels need nothing else.
 *
 * Programmatic dependent launch: with launch.pdl every kernel starts while its predecessor may still run. Each kernel calls
 * pdl_trigger() first and pdl_wait() before it reads anything a predecessor wrote and before it writes anything at all;
 * weights and tables that no kernel writes may be read before the wait. Every block waits, also one with nothing to do:
 * the order of three kernels in a row rests on it. */
#ifndef SLUICE_KERNELS_H
#define SLUICE_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/step_plan.h>
#include <sluice/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;                /* cudaStream_t is a pointer to it */

struct launch {
    struct CUstream_st *stream;
    int sm;                        /* compute capability x 10: 80, 86, 89, 90 */
    int num_sms;
    bool pdl;                      /* launch with the programmatic-serialization attribute */
    bool f16;                      /* elements are f16, not bf16 */
};

/* ---- rows and norms ---- */

/* out[t, :] = table[ids[t] - first_row], zeros when that row is not in 0..num_rows-1. */
struct embed_kernel { const token_id *ids; const void *table; float *out; int32_t num_tokens, hidden; token_id first_row; int32_t num_rows; };
int launch_embed(const struct embed_kernel *a, const struct launch *l);

/* residual[t, :] += x[t, :] (x may be NULL); out[t, :] = residual[t, :] * rsqrt(mean(residual[t, :]^2) + eps) * weight.
 * With rows: out[r, :] is that of token rows[r].token and the residual is left as it is (num_tokens = R). C % 8 == 0,
 * C <= 16384. */
struct rmsnorm_kernel { const void *x; float *residual; const float *weight; void *out; const struct sampling_row *rows;
                        int32_t num_tokens, hidden; float eps; };
int launch_rmsnorm(const struct rmsnorm_kernel *a, const struct launch *l);

/* qkv [T, (H + 2 Hk) D] += bias (may be NULL), then q and k heads are normed (q_norm, k_norm [D], both or neither), rotated
 * by cos_sin[positions[t]] (half-split rotation: D/2 cosines, then D/2 sines), q written back in place, k and v stored at
 * slot_mapping[t] = block * block_size + offset in kv [num_blocks, Hk, block_size, D]; slot < 0: not stored. */
struct rope_store_kernel { void *qkv; const float *bias, *q_norm, *k_norm, *cos_sin; const int32_t *positions; const int64_t *slot_mapping;
                           void *k, *v; int32_t num_tokens, num_heads, num_kv_heads, head_dim, block_size; float eps; };
int launch_rope_store(const struct rope_store_kernel *a, const struct launch *l);

/* out[t, f] = silu(gate_up[t, f]) * gate_up[t, F + f]. F % 8 == 0. */
struct silu_mul_kernel { const void *gate_up; void *out; int32_t num_tokens, ffn; };
int launch_silu_mul(const struct silu_mul_kernel *a, const struct launch *l);

/* ---- attention over paged KV ---- */

/* Shared by both kernels. k, v: [num_blocks, Hk, block_size, D]. q: rows of qkv, row stride q_stride elements.
 * Query head h reads KV head h / (H / Hk). Position p of sequence b lives in block block_tables[b * max_blocks_per_seq + p /
 * block_size]. D in {64, 80, 96, 128, 256}; block_size a multiple of 16, 16..256; H % Hk == 0.
 * sliding_window w > 0: the query at position p sees p-w+1 .. p. */
struct paged_kv { const void *k, *v; const block_id *block_tables; int32_t max_blocks_per_seq, block_size; int64_t num_blocks; };

/* One query per sequence (q row b, out row b): the first num_seqs rows. Work is cut into pieces of KV by a plan made on the
 * host (attn_decode_plan.h) that lies in device memory; the grid is fixed, so a captured launch serves any lengths.
 * Rows behind the plan's sequences become zeros too. Reads KV of earlier steps, plan, lengths and tables before pdl_wait(): who writes
 * these triggers its dependents only when it is done. */
struct attn_decode_kernel {
    const void *q; int64_t q_stride; void *out;          /* out [B, H, D] */
    struct paged_kv kv; const int32_t *context_lens;     /* [B], 0 = padding: out row is zeros */
    const void *plan;                                    /* attn_decode_plan_bytes(): device copy of what the host planned */
    void *workspace;                                     /* attn_decode_workspace_bytes(); zeroed once at start, left zeroed */
    int32_t num_seqs, num_heads, num_kv_heads, head_dim, sliding_window; float scale;
};
int launch_attn_decode(const struct attn_decode_kernel *a, const struct launch *l);

/* Several queries per sequence, causal: sequence b has queries cu_seqlens_q[b] .. cu_seqlens_q[b+1]-1 (rows of q and out),
 * the last of them at position context_lens[b]-1. Serves first_seq .. num_seqs-1. max_q_len: the longest of them. */
struct attn_prefill_kernel {
    const void *q; int64_t q_stride; void *out;          /* out [T, H, D] */
    struct paged_kv kv; const int32_t *cu_seqlens_q, *context_lens;
    int32_t first_seq, num_seqs, max_q_len, num_heads, num_kv_heads, head_dim, sliding_window; float scale;
    int32_t num_tokens;                                  /* rows of q: bounds of tensor maps */
};
int launch_attn_prefill(const struct attn_prefill_kernel *a, const struct launch *l);

/* ---- the norm between two products, without a kernel of its own ---- */

/* The product before it takes norm_add: residual[t, n] += its sum, out[t, n] = residual[t, n] * weight[n] as an element, and each row
 * leaves the sums of squares of its pieces in squares[t * NORM_PIECES ..]; the launch sets *num_pieces (host memory), the same for
 * every row. The product behind takes norm_scale: its sums times rsqrt(sum of the row's squares / K + eps), before silu.
 * Both by value in gemv_kernel; residual, squares NULL: no norm. Not in f16, where residual * weight could leave the range. */
enum { NORM_PIECES = 1024 };       /* stride of squares [T, NORM_PIECES]: pieces of 16 columns or more, C <= 16384 */
struct norm_add { float *residual; const float *weight; float *squares; int32_t *num_pieces; };
struct norm_scale { const float *squares; int32_t num_pieces; float eps; };

/* ---- matrix products of few rows ---- */

enum { GEMV_MAX_ROWS = 16 };
/* out [T, N] = x [T, K] * w [N, K]^T, T <= GEMV_MAX_ROWS, fp32 sums; out elements, or f32 when out_f32. silu_mul: w is [2F, K], gate
 * rows then up rows, and out is [T, F] = silu(gate) * up. K % 8 == 0. A row's sum has one order, whatever T.
 * rope (launch_gemm_skinny; rope.qkv NULL: none): the product of q, k and v, N = (H + 2 Hk) D, does to its sums what launch_rope_store does
 * to qkv, for D of 64 and 128: q goes to rope.qkv, k and v to the cache, out is not used. Reads positions and slots before pdl_wait(): who
 * writes these triggers its dependents only when it is done.
 * counters: MATMUL_COUNTER_BYTES of device memory, zeroed once at start, left zeroed, of one stream: with it the ctas deal the rows of
 * w among themselves as they get on; NULL: in equal shares. workspace: only launch_gemm_skinny wants it, contents free. */
enum { MATMUL_COUNTER_BYTES = 4096 };
struct gemv_kernel { const void *x, *w; void *out; int32_t num_tokens, n, k; bool out_f32, silu_mul; void *counters, *workspace; int32_t cut;
                     struct norm_add add; struct norm_scale scale; struct rope_store_kernel rope; };
int launch_gemv(const struct gemv_kernel *a, const struct launch *l);
/* The same for T <= GEMM_SKINNY_MAX_ROWS through the warpgroup matrix units: sm_90 only, F % 8 == 0 with silu_mul; needs counters and a
 * workspace of GEMM_SKINNY_WORKSPACE_BYTES. cut: how the work is cut over the device, 1..GEMM_SKINNY_CUTS (ERR_UNSUPPORTED where one
 * does not suit); 0: its own choice. A sum's order is fixed by N, K, the bucket of T, the cut and the device. Ctas that share a tile
 * wait for each other: on one device only one stream may launch it. */
enum { GEMM_SKINNY_MAX_ROWS = 128, GEMM_SKINNY_WORKSPACE_BYTES = 10 << 20, GEMM_SKINNY_CUTS = 14 };
int launch_gemm_skinny(const struct gemv_kernel *a, const struct launch *l);

/* ---- matrix products of many rows ---- */

/* out [T, N] = x [T, K] * w [N, K]^T for T from about 96 up, sm_90 only: fp32 sums; out elements, or f32 when out_f32. silu_mul: w is
 * [2F, K], gate rows then up rows, n = 2F, and out is [T, F] = silu(gate) * up, elements. N % 8 == 0 (silu_mul: F % 8), K % 8 == 0.
 * A sum's order depends on the shape alone. */
struct gemm_kernel { const void *x, *w; void *out; int32_t num_tokens, n, k; bool out_f32, silu_mul; };
int launch_gemm(const struct gemm_kernel *a, const struct launch *l);

/* ---- sampling ---- */

/* What a row drew, for the host: written to host memory that the device can write (mapped, pinned). */
struct sample_head { token_id token; float logprob; int32_t rank; int32_t num_top; uint32_t bad; uint32_t reserved_[3]; };

/* Draws every row with slot >= 0: the same rule and the same uniform number as the CPU sampler (sampling.h), up to the rounding
 * of fp32 sums in another order. tops [R, MAX_TOP_LOGPROBS] is written only where row.params.num_logprobs > 0. */
struct sample_kernel {
    const float *logits;                                 /* [R, V], raw; not changed */
    const struct sampling_row *rows;                     /* [R] */
    const token_id *bias_ids; const float *bias_values;  /* what rows point into */
    const struct history_entry *history; const token_id *history_tokens; int32_t num_history;    /* applied before the rows; a captured
                                                            launch has 0 here and launch_sample_history runs before it */
    uint16_t *counts;                                    /* [max_seqs, V] times each token was generated */
    uint32_t *seen;                                      /* [max_seqs, (V + 31) / 32] prompt or generated */
    token_id *last_tokens;                               /* [max_seqs]: the token drawn for each slot feeds the next step; rows with
                                                            row.target >= 0 leave it */
    struct sample_head *heads; struct token_logprob *tops;       /* [R], [R, MAX_TOP_LOGPROBS] */
    void *workspace;                                     /* sample_workspace_bytes(max_rows, V) */
    int32_t num_rows, vocab_size;
};
size_t sample_workspace_bytes(int32_t max_rows, int32_t vocab_size);
int launch_sample_history(const struct sample_kernel *a, const struct launch *l);   /* rebuilds counts and seen of history's slots */
int launch_sample(const struct sample_kernel *a, const struct launch *l);

/* ---- a step's begin and end ---- */

/* A step as it is uploaded: this head, then packed arrays at byte offsets from it (each 16-byte aligned). Only used parts travel;
 * step_begin spreads them over arrays at fixed addresses, so that a captured step can be replayed. */
struct step_image {
    uint64_t step;
    int32_t num_tokens, num_seqs, num_rows;
    int32_t pad_tokens, pad_seqs, pad_rows;              /* >= those: entries behind are neutral (see Padding above) */
    int32_t num_bias, num_history, num_history_tokens, attn_plan_words;
    uint32_t off_input_ids, off_positions, off_slot_mapping, off_cu_seqlens_q, off_context_lens, off_seq_slots;
    uint32_t off_table_begin, off_tables;                /* [B+1] and the used entries of every block table row */
    uint32_t off_rows, off_bias_ids, off_bias_values, off_history, off_history_tokens, off_attn_plan;
};
struct step_arrays {
    token_id *input_ids; int32_t *positions; int64_t *slot_mapping;
    int32_t *cu_seqlens_q, *context_lens, *seq_slots; block_id *block_tables;
    struct sampling_row *rows; token_id *bias_ids; float *bias_values;
    struct history_entry *history; token_id *history_tokens;
    int32_t *attn_plan;
    /* [max_seqs] of the sampler: an input id < 0 at token t means that of slot seq_slots[t] (sequences of one token come first) */
    const token_id *last_tokens;
    uint64_t *step;                                      /* [3] the image's step, the device's clock (ns), the step that ended last */
    int32_t max_blocks_per_seq;
};
/* head: the image's, on the host; image: the whole on the device. Arrays start at multiples of 16 bytes. */
int launch_step_begin(const struct step_image *head, const struct step_image *image, const struct step_arrays *arrays, const struct launch *l);
/* The same for a captured step, whose arguments stay: step N finds its image in images[(N - 1) % 2]. */
int launch_step_begin_captured(const struct step_image *const images[2], const struct step_arrays *arrays, const struct launch *l);

/* Copies the rows' heads (and the tops of rows that ask) to host memory, then sets *done = step, in that order as the host sees
 * it. host pointers are mapped, pinned; which half is chosen on the device by step & 1. host_done[half] is [2]: the number, and the
 * nanoseconds of the device's clock since step_begin (written first). */
struct step_end_kernel {
    const struct sampling_row *rows; const struct sample_head *heads; const struct token_logprob *tops;
    struct sample_head *host_heads[2]; struct token_logprob *host_tops[2]; volatile uint64_t *host_done[2];
    uint64_t *step;                                      /* [3] device: as step_begin left it; the last is set to the step that ended */
    int32_t num_rows;
};
int launch_step_end(const struct step_end_kernel *a, const struct launch *l);

/* gathered [tp_size, R, widest] -> logits [R, V]: shard t holds rows of widths[t] values one behind the other. */
enum { JOIN_MAX_SHARDS = 8 };
struct join_shards_kernel { const float *gathered; float *logits; int32_t num_rows, vocab_size, tp_size; int64_t widest; int32_t begins[JOIN_MAX_SHARDS + 1]; };
int launch_join_shards(const struct join_shards_kernel *a, const struct launch *l);

/* Random weights, bit for bit those of dummy_row (model/weights.h) rounded to an element. */
struct dummy_kernel { void *out; int64_t num_rows, num_cols; uint64_t key; int64_t first_row, first_col; };
int launch_dummy(const struct dummy_kernel *a, const struct launch *l);

#ifdef __cplusplus
}
#endif
#endif
