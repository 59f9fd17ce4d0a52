/* backend.h - the only door from a model to a device.
 * A backend is one rank's device: its memory and the operations a forward pass is made of. Ops tables are complete at
 * start-up. Ops are issued in order by the rank's one thread and return at once on a GPU (stream-ordered); on the CPU they
 * have finished on return. They cannot fail: shapes were checked when the model was built; a device fault ends the process
 * (a GPU reports the first one from step_end or collect).
 *
 * A step: upload(plan) -> step_begin -> the model's ops and sample -> step_end -> ... -> collect(result). Up to steps_in_flight
 * steps may be between step_end and collect; collect takes the oldest.
 *
 * Letters: T tokens, B sequences, R rows, H heads, Hk KV heads, D head_dim, C hidden, F ffn, V vocab, K inputs, N outputs.
 * Activations have ops->act_dtype (cpu ref and fast: f32; cuda: bf16 or f16), row-major, contiguous unless a stride says otherwise;
 * the residual stream is f32 everywhere.
 * Batch invariance: on the CPU backends a row's result never depends on T, B or the neighbours. */
#ifndef SLUICE_BACKEND_H
#define SLUICE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/step_plan.h>
#include <sluice/types.h>

struct backend;                    /* opaque, per rank */

/* A weight in the backend's own layout (packed panels on the fast CPU path). rows = outputs N, cols = inputs K. */
struct weight {
    int64_t rows, cols;            /* a vector has rows = 1 */
    void *data;                    /* device memory of weight_bytes() or kept_bytes() bytes; NULL = absent */
    enum dtype kept;               /* the block format of the file it is kept in; DTYPE_F32 (0): the backend's own form */
};
enum weight_kind { WEIGHT_MATRIX, WEIGHT_VECTOR };   /* WEIGHT_MATRIX serves matmul and embed alike (tied head) */

/* When a backend measures which way of doing a product is fastest, where it has a choice. */
enum tuning {
    TUNE_START,                    /* all of it in loaded() */
    TUNE_IDLE,                     /* what comes first in loaded(), for less than a second; the rest by idle() */
    TUNE_OFF,                      /* what was found at an earlier start, else a rule */
};

struct backend_options {
    int32_t threads;               /* CPU: threads of this rank, >= 1 */
    int32_t device;                /* GPU index */
    enum dtype kv_dtype;           /* cpu-ref F32 or BF16, cpu-fast F16, cuda its act_dtype */
    int32_t max_tokens, max_seqs, max_rows, vocab_size;    /* largest step, for workspace and sampler state */
    int32_t max_model_len, block_size;     /* of the block tables */
    int32_t num_heads, num_kv_heads, head_dim;             /* of this shard */
    int32_t sliding_window;        /* 0 = none */
    bool is_last;                  /* the shard draws tokens */
    bool eager;                    /* no captured steps */
    enum tuning tuning;
};

/* KV cache of one layer: k and v are [num_blocks, Hk, block_size, D] of kv_dtype. The order inside one head of one block is the
 * backend's own (cpu-fast keeps K as [D/2, block_size, 2]); whole blocks may be copied. */
struct kv_layer { void *k, *v; int64_t num_blocks; };

/* Weights that will be multiplied. w: some of this shape, of different layers. x [max_tokens, cols], out [max_tokens, rows] and spare are
 * activations of a step, for measurements: overwritten by loaded() and idle(). */
enum { MATMUL_SAME = 32 };
struct matmul_shape {
    int64_t rows, cols; bool out_f32, silu_mul, beside_norm;       /* beside_norm: one of the two products of a matmul_norm */
    bool behind_large;                                             /* what comes before it fills the device: attention, gate_up */
    int32_t rope_head; bool norms_heads;                           /* the product of a matmul_rope: its head_dim, with q_norm and k_norm; else 0 */
    int32_t max_tokens, num_w;
    const struct weight *w[MATMUL_SAME];
    void *x, *out, *spare; size_t spare_bytes;
};

/* The first layers of a step on a plan of the backend's own making, behind the embedding, for measurements: plan is as upload() returns
 * one, and slots below 0 store nothing. run NULL: this rank cannot do it alone. */
struct rehearsal {
    void (*run)(void *arg, const struct step_plan *plan, int64_t num_layers);
    void *arg;                     /* as long as the backend */
    int64_t num_layers, num_blocks;    /* that there are; blocks of KV */
};

struct embed_args { const token_id *ids; int32_t num_tokens; const struct weight *table; token_id first_row; void *out;
                    const int32_t *seq_slots; };
    /* out [T, C] = table[ids - first_row]; rows outside this shard of the vocabulary give zeros. ids[t] == TOKEN_FEEDBACK: what
     * sample drew last for slot seq_slots[t] (token t is then of sequence t); zeros when it drew nothing */
struct rmsnorm_args {
    const void *x;                 /* [T, C] added to residual first, or NULL: no add */
    void *residual;                /* [T, C] f32 in: running sum; out: the sum incl. x */
    const struct weight *weight;   /* [C] */
    void *out;                     /* [T, C] = norm(residual) * weight */
    int32_t num_tokens, hidden; float eps;
};
struct matmul_args {
    const void *x;                 /* [T, K] */
    const struct weight *w;        /* [N, K] */
    const struct weight *bias;     /* [N] or NULL */
    void *out;                     /* [T, N], or f32 [T, N] when out_f32 (logits) */
    int32_t num_tokens;
    bool out_f32;
};
/* residual += x * w^T, normed = norm(residual) * norm. The next op that reads normed, and the only one, is the product with `next`: gate_up
 * where next_gate_up, else matmul. A backend may leave the rows' scales to it. out [T, C] is scratch. */
struct matmul_norm_args {
    const void *x;                 /* [T, K] */
    const struct weight *w;        /* [C, K] */
    void *out;                     /* [T, C] */
    void *residual;                /* [T, C] f32 */
    const struct weight *norm;     /* [C] */
    void *normed;                  /* [T, C] */
    const struct weight *next;     /* [N, C] */
    bool next_gate_up;
    int32_t num_tokens; float eps;
};
struct rope_store_args {
    void *qkv;                     /* [T, (H + 2 Hk) * D]: q is rotated in place; k is rotated and stored; v stored */
    const struct weight *bias;     /* [(H + 2 Hk) * D], added first, or NULL */
    const struct weight *q_norm, *k_norm;    /* [D] or NULL (Qwen3: RMS norm of each head before the rotation) */
    const float *cos_sin;          /* [max_position, D]: D/2 cosines then D/2 sines, attention factor applied */
    const int32_t *positions;      /* [T] */
    const int64_t *slot_mapping;   /* [T] */
    struct kv_layer kv;
    int32_t num_tokens, num_heads, num_kv_heads, head_dim, block_size; float eps;
};
/* rope.qkv = x * w^T, then rope_store of it. A backend that does both at once leaves k and v out of qkv. */
struct matmul_rope_args { const void *x; const struct weight *w; struct rope_store_args rope; };
struct attention_args {
    const void *qkv;               /* [T, (H + 2 Hk) * D], only q is read */
    void *out;                     /* [T, H * D] */
    struct kv_layer kv;
    const int32_t *cu_seqlens_q, *context_lens;      /* [B+1], [B] */
    const block_id *block_tables;  /* [B, max_blocks_per_seq] */
    int32_t num_tokens, num_seqs, num_decode_seqs, max_blocks_per_seq, max_q_len, max_context_len;
    int32_t num_heads, num_kv_heads, head_dim, block_size;
    int32_t sliding_window;        /* 0 = none; else a query sees its last `sliding_window` positions */
    float scale;                   /* 1 / sqrt(D) */
};
struct silu_mul_args { const void *gate_up; /* [T, 2F]: gate then up */ void *out; /* [T, F] */ int32_t num_tokens, ffn; };
/* gate_up = x * w^T, then as silu_mul; wide [T, 2F] is scratch, which a backend that does both at once leaves alone. */
struct gate_up_args { const void *x; /* [T, C] */ const struct weight *w; /* [2F, C] */ void *wide, *out; int32_t num_tokens, ffn; };
/* out [R, C]: row r = norm(residual[t] + x[t]) * weight with t = rows[r].token; residual is left as it is. */
struct norm_rows_args { const void *x, *residual; const struct weight *weight; const struct step_plan *plan; void *out;
                        int32_t hidden; float eps; };
/* gathered [tp_size, R, widest] -> logits [R, V]; a shard's rows lie [R, its own width] at the start of its part. */
struct join_shards_args { const float *gathered; float *logits; int32_t num_rows, vocab_size, tp_size; int64_t widest; };
struct sample_args {
    const float *logits;           /* [R, V] f32; the op may overwrite it */
    const struct step_plan *plan;  /* rows, bias, history */
    struct step_result *result;    /* rows filled; on a GPU by collect */
    int32_t vocab_size;
};

struct backend_ops {
    const char *name;              /* "cpu-ref", "cpu-fast", "cuda" */
    enum dtype act_dtype;
    const struct backend_ops *f16; /* the same device with f16 in the place of bf16; NULL: there is none */
    int  (*open)(struct backend **out, const struct backend_options *options, struct err *err);
    void (*close)(struct backend *b);
    const char *(*describe)(const struct backend *b);       /* "AVX-512 BF16, 2 threads" */
    /* Device memory: one arena per rank. reserve once, then carve (64-byte aligned, never fails within the reserve). */
    int   (*reserve)(struct backend *b, size_t bytes, struct err *err);
    void *(*carve)(struct backend *b, size_t bytes);
    size_t (*workspace_bytes)(const struct backend_options *options);    /* what open itself needs; part of the memory plan */
    /* All of a device's memory and what is free, in bytes, with the driver's own share already taken; NULL: it is the host's.
     * Also the memory of captured steps and of the libraries' modules, which no arena holds. Any thread. */
    int (*device_memory)(int32_t device, uint64_t *total, uint64_t *free, struct err *err);
    uint64_t (*library_bytes)(const struct backend_options *options);
    /* Weights: bytes in the backend's layout; store converts n_rows rows of fp32 starting at row (any order, any thread). */
    size_t (*weight_bytes)(enum weight_kind kind, int64_t rows, int64_t cols);
    void   (*weight_store)(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows, const float *src);
    /* Matrices kept as the file has them, nothing lost and fewer bytes read. kept_bytes: 0 = not this format or width: store
     * fp32 instead. store_kept: n_rows rows of blocks into w (w->kept = dtype), as weight_store. NULL: keeps nothing. */
    size_t (*kept_bytes)(enum dtype dtype, int64_t rows, int64_t cols);
    void   (*store_kept)(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, const void *src);
    /* A random matrix as dummy_row (model/weights.h) makes it: rows row.. of w, n_rows of them, from file row first_row on, columns
     * from first_col on; key: of the tensor's name. NULL: made on the host. */
    void   (*store_dummy)(struct backend *b, struct weight *w, int64_t row, int64_t n_rows, uint64_t key, int64_t first_row,
                          int64_t first_col);
    int32_t (*load_chunk)(void);   /* elements that are loaded at a time; NULL: the loader's own choice */
    /* Host memory to a carved place (tables made at start). */
    void   (*write)(struct backend *b, void *dst, const void *src, size_t bytes);
    /* All weights, tables and KV are there: waits for copies, may measure (matmul algorithms for these shapes). */
    int    (*loaded)(struct backend *b, const struct matmul_shape *shapes, int num_shapes, const struct rehearsal *rehearsal, struct err *err);
    /* A slice of what is better done while there is nothing to do, some 5 to 100 ms; no step may be in flight, the next one may run
     * another way (other last bits). 1: there is more, 0: there is not, negative: the device failed. NULL: nothing ever. */
    int    (*idle)(struct backend *b);
    /* Plan to device. On the CPU the plan itself; on a GPU a plan whose counts may be padded (kernels.h) and whose arrays lie in
     * device memory: plan_*() addresses may only be handed on to ops. Valid until the next upload. */
    const struct step_plan *(*upload)(struct backend *b, const struct step_plan *plan);
    /* False: the whole step was launched as one captured graph; the caller skips the ops and calls step_end. */
    bool  (*step_begin)(struct backend *b, const struct step_plan *uploaded);
    int   (*step_end)(struct backend *b, const struct step_plan *uploaded);
    bool  (*done)(struct backend *b);      /* the oldest step in flight has finished (or failed): collect will not wait */
    /* Waits for the oldest step in flight; result as given to its sample, or NULL on a rank that does not report. */
    int   (*collect)(struct backend *b, struct step_result *result);
    /* Time that the device worked on the step collected last; NULL: as long as its ops took. */
    int64_t (*busy_ns)(const struct backend *b);
    int32_t steps_in_flight;       /* 1 on the CPU; 2: a step may be launched while the one before runs */
    void  *(*stream)(struct backend *b);   /* what a communicator orders its work by (cudaStream_t), NULL on the CPU */
    /* Runs fn(arg, begin, end) over 0..n on the rank's threads (weight loading); fn must be pure per index. */
    void  (*parallel_for)(struct backend *b, int64_t n, int64_t grain, void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);

    void (*embed)(struct backend *b, const struct embed_args *args);
    void (*rmsnorm)(struct backend *b, const struct rmsnorm_args *args);
    void (*matmul)(struct backend *b, const struct matmul_args *args);
    void (*matmul_norm)(struct backend *b, const struct matmul_norm_args *args);
    void (*rope_store)(struct backend *b, const struct rope_store_args *args);
    void (*matmul_rope)(struct backend *b, const struct matmul_rope_args *args);
    void (*attention)(struct backend *b, const struct attention_args *args);
    void (*silu_mul)(struct backend *b, const struct silu_mul_args *args);
    void (*gate_up)(struct backend *b, const struct gate_up_args *args);
    void (*norm_rows)(struct backend *b, const struct norm_rows_args *args);
    void (*join_shards)(struct backend *b, const struct join_shards_args *args);
    /* Also notes what each row with target < 0 drew as its slot's last token, for embed. */
    void (*sample)(struct backend *b, const struct sample_args *args);
};

extern const struct backend_ops backend_cpu_ref;     /* plain fp32, reads like the formula: the oracle */
extern const struct backend_ops backend_cpu_fast;    /* bf16 weights and KV, vector code chosen at run time */
extern const struct backend_ops backend_cuda, backend_cuda_f16;      /* in builds with CUDA: matrices, activations and KV in bf16 or in f16 */

#endif
