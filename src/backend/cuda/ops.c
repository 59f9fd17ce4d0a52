/* ops.c - the tables of backend_cuda and backend_cuda_f16: every op is one launch (attention: one for the decodes, one for the
 * prompts). */
#include "cuda_backend.h"

#include <sluice/parallel.h>

#include "base/bug.h"

static void cuda_embed(struct backend *b, const struct embed_args *args)
{
    cuda_check(b, launch_embed(&(struct embed_kernel){ .ids = args->ids, .table = args->table->data, .out = args->out,
                                                       .num_tokens = args->num_tokens, .hidden = (int32_t)args->table->cols,
                                                       .first_row = args->first_row, .num_rows = (int32_t)args->table->rows },
                               &b->launch), "embed");
}

/* A norm of a few rows waits its turn: started early it takes room from the product behind it (H200, 0.6B, 8 sequences: 1.23 instead of
 * 1.05 ms a step). One row gains 2 %, from 32 rows on 0 to 6 %. */
static struct launch launch_of_norm(const struct backend *b, int32_t num_rows)
{
    enum { FEW_ROWS = 8 };
    struct launch launch = b->launch;
    launch.pdl = launch.pdl && (num_rows == 1 || num_rows > FEW_ROWS);
    return launch;
}

/* The same behind a product [n, k], where layers were found to be faster with the other. */
static struct launch launch_behind(const struct backend *b, struct launch launch, int32_t num_tokens, int32_t n, int32_t k)
{
    if (b->launch.pdl && gemm_flips_behind(b->gemm, num_tokens, n, k)) launch.pdl = !launch.pdl;
    return launch;
}

static void rmsnorm(struct backend *b, const struct rmsnorm_args *args, const struct launch *launch)
{
    cuda_check(b, launch_rmsnorm(&(struct rmsnorm_kernel){ .x = args->x, .residual = args->residual, .weight = args->weight->data,
                                                           .out = args->out, .num_tokens = args->num_tokens,
                                                           .hidden = args->hidden, .eps = args->eps },
                                 launch), "rmsnorm");
}

static void cuda_rmsnorm(struct backend *b, const struct rmsnorm_args *args)
{
    struct launch launch = launch_of_norm(b, args->num_tokens);
    rmsnorm(b, args, &launch);
}

static void cuda_norm_rows(struct backend *b, const struct norm_rows_args *args)
{
    struct launch launch = launch_of_norm(b, args->plan->num_rows);
    cuda_check(b, launch_rmsnorm(&(struct rmsnorm_kernel){ .x = args->x, .residual = (float *)(uintptr_t)args->residual,
                                                           .weight = args->weight->data, .out = args->out,
                                                           .rows = plan_rows(args->plan), .num_tokens = args->plan->num_rows,
                                                           .hidden = args->hidden, .eps = args->eps },
                                 &launch), "norm_rows");
}

static void product(struct backend *b, const struct gemm_args *args, const char *op)
{
    struct err err = { 0 };
    cuda_check(b, gemm_run(b->gemm, args, &b->launch, &err), op);
}

/* What the norm before the product with x left to it. */
static struct norm_scale scale_left(struct backend *b, const void *x)
{
    if (x != b->unscaled) return (struct norm_scale){ 0 };
    b->unscaled = NULL;
    return b->scale;
}

static void cuda_matmul(struct backend *b, const struct matmul_args *args)
{
    BUG_ON(args->bias);                                    /* rope_store adds the only biases there are */
    product(b, &(struct gemm_args){ .x = args->x, .w = args->w->data, .out = args->out, .num_tokens = args->num_tokens,
                                    .n = (int32_t)args->w->rows, .k = (int32_t)args->w->cols, .out_f32 = args->out_f32,
                                    .scale = scale_left(b, args->x) }, "matmul");
}

static void cuda_matmul_norm(struct backend *b, const struct matmul_norm_args *args)
{
    int32_t n = (int32_t)args->w->rows, k = (int32_t)args->w->cols, next_n = (int32_t)args->next->rows;

    if (!gemm_fuses_norm(b->gemm, args->num_tokens, n, k, next_n, args->next_gate_up)) {
        cuda_matmul(b, &(struct matmul_args){ .x = args->x, .w = args->w, .out = args->out, .num_tokens = args->num_tokens });
        struct launch launch = launch_behind(b, launch_of_norm(b, args->num_tokens), args->num_tokens, n, k);
        rmsnorm(b, &(struct rmsnorm_args){ .x = args->out, .residual = args->residual, .weight = args->norm, .out = args->normed,
                                           .num_tokens = args->num_tokens, .hidden = n, .eps = args->eps }, &launch);
        return;
    }
    b->scale = (struct norm_scale){ .squares = b->squares, .eps = args->eps };
    product(b, &(struct gemm_args){ .x = args->x, .w = args->w->data, .out = args->normed, .num_tokens = args->num_tokens, .n = n, .k = k,
                                    .add = { args->residual, args->norm->data, b->squares, &b->scale.num_pieces } }, "matmul_norm");
    b->unscaled = args->normed;
}

static void silu_mul(struct backend *b, const struct silu_mul_args *args, const struct launch *launch)
{
    cuda_check(b, launch_silu_mul(&(struct silu_mul_kernel){ args->gate_up, args->out, args->num_tokens, args->ffn }, launch), "silu_mul");
}
static void cuda_silu_mul(struct backend *b, const struct silu_mul_args *args) { silu_mul(b, args, &b->launch); }

static void cuda_gate_up(struct backend *b, const struct gate_up_args *args)
{
    int32_t n = (int32_t)args->w->rows, k = (int32_t)args->w->cols;
    bool fused = gemm_fuses_silu(b->gemm, args->num_tokens, n, k);
    product(b, &(struct gemm_args){ .x = args->x, .w = args->w->data, .out = fused ? args->out : args->wide,
                                    .num_tokens = args->num_tokens, .n = n, .k = k, .silu_mul = fused,
                                    .scale = scale_left(b, args->x) }, "gate_up");
    if (fused) return;
    struct launch launch = launch_behind(b, b->launch, args->num_tokens, n, k);
    silu_mul(b, &(struct silu_mul_args){ args->wide, args->out, args->num_tokens, args->ffn }, &launch);
}

static struct rope_store_kernel rope_kernel(const struct rope_store_args *args)
{
    return (struct rope_store_kernel){
        .qkv = args->qkv, .bias = args->bias ? args->bias->data : NULL, .q_norm = args->q_norm ? args->q_norm->data : NULL,
        .k_norm = args->k_norm ? args->k_norm->data : NULL, .cos_sin = args->cos_sin, .positions = args->positions,
        .slot_mapping = args->slot_mapping, .k = args->kv.k, .v = args->kv.v, .num_tokens = args->num_tokens,
        .num_heads = args->num_heads, .num_kv_heads = args->num_kv_heads, .head_dim = args->head_dim,
        .block_size = args->block_size, .eps = args->eps };
}

static void rope_store(struct backend *b, const struct rope_store_args *args, const struct launch *launch)
{
    struct rope_store_kernel rope = rope_kernel(args);
    cuda_check(b, launch_rope_store(&rope, launch), "rope_store");
}
static void cuda_rope_store(struct backend *b, const struct rope_store_args *args) { rope_store(b, args, &b->launch); }

static void cuda_matmul_rope(struct backend *b, const struct matmul_rope_args *args)
{
    int32_t n = (int32_t)args->w->rows, k = (int32_t)args->w->cols;

    if (gemm_fuses_rope(b->gemm, args->rope.num_tokens, n, k, args->rope.head_dim, args->rope.q_norm != NULL)) {
        product(b, &(struct gemm_args){ .x = args->x, .w = args->w->data, .num_tokens = args->rope.num_tokens, .n = n, .k = k,
                                        .scale = scale_left(b, args->x), .rope = rope_kernel(&args->rope) }, "matmul_rope");
        return;
    }
    cuda_matmul(b, &(struct matmul_args){ .x = args->x, .w = args->w, .out = args->rope.qkv, .num_tokens = args->rope.num_tokens });
    struct launch launch = launch_behind(b, b->launch, args->rope.num_tokens, n, k);
    rope_store(b, &args->rope, &launch);
}

static void cuda_attention(struct backend *b, const struct attention_args *args)
{
    int64_t q_stride = (int64_t)(args->num_heads + 2 * args->num_kv_heads) * args->head_dim;
    struct paged_kv kv = { .k = args->kv.k, .v = args->kv.v, .block_tables = args->block_tables,
                           .max_blocks_per_seq = args->max_blocks_per_seq, .block_size = args->block_size,
                           .num_blocks = args->kv.num_blocks };

    if (args->num_decode_seqs > 0) {
        cuda_check(b, launch_attn_decode(&(struct attn_decode_kernel){
            .q = args->qkv, .q_stride = q_stride, .out = args->out, .kv = kv, .context_lens = args->context_lens,
            .plan = b->arrays.attn_plan, .workspace = b->attn_workspace, .num_seqs = args->num_decode_seqs,
            .num_heads = args->num_heads, .num_kv_heads = args->num_kv_heads, .head_dim = args->head_dim,
            .sliding_window = args->sliding_window, .scale = args->scale }, &b->launch), "attn_decode");
    }
    if (args->num_seqs > args->num_decode_seqs) {
        cuda_check(b, launch_attn_prefill(&(struct attn_prefill_kernel){
            .q = args->qkv, .q_stride = q_stride, .out = args->out, .kv = kv, .cu_seqlens_q = args->cu_seqlens_q,
            .context_lens = args->context_lens, .first_seq = args->num_decode_seqs, .num_seqs = args->num_seqs,
            .max_q_len = args->max_q_len, .num_heads = args->num_heads, .num_kv_heads = args->num_kv_heads,
            .head_dim = args->head_dim, .sliding_window = args->sliding_window, .scale = args->scale,
            .num_tokens = args->num_tokens }, &b->launch), "attn_prefill");
    }
}

static void cuda_join_shards(struct backend *b, const struct join_shards_args *args)
{
    struct join_shards_kernel join = { .gathered = args->gathered, .logits = args->logits, .num_rows = args->num_rows,
                                       .vocab_size = args->vocab_size, .tp_size = args->tp_size, .widest = args->widest };
    BUG_ON(args->tp_size > JOIN_MAX_SHARDS);
    for (int t = 0; t < args->tp_size; t++) {
        struct range range = vocab_range(args->vocab_size, args->tp_size, t);
        join.begins[t] = (int32_t)range.begin;
        join.begins[t + 1] = (int32_t)range.end;
    }
    cuda_check(b, launch_join_shards(&join, &b->launch), "join_shards");
}

static void cuda_sample(struct backend *b, const struct sample_args *args)
{
    struct sample_kernel sample = b->sampler;
    sample.logits = args->logits;
    sample.num_rows = args->plan->num_rows;
    sample.vocab_size = args->vocab_size;
    cuda_check(b, launch_sample(&sample, &b->launch), "sample");
}

/* ---- the tables: what depends on the element type, then what does not ---- */

static int open_bf16(struct backend **out, const struct backend_options *options, struct err *err) { return cuda_open(out, options, DTYPE_BF16, err); }
static int open_f16(struct backend **out, const struct backend_options *options, struct err *err) { return cuda_open(out, options, DTYPE_F16, err); }

/* Matrices whose file has them as the device wants them are copied as they are. */
static size_t kept_bf16(enum dtype dtype, int64_t rows, int64_t cols) { return dtype == DTYPE_BF16 ? cuda_weight_bytes(WEIGHT_MATRIX, rows, cols) : 0; }
static size_t kept_f16(enum dtype dtype, int64_t rows, int64_t cols) { return dtype == DTYPE_F16 ? cuda_weight_bytes(WEIGHT_MATRIX, rows, cols) : 0; }

#define CUDA_OPS \
    .close = cuda_close, \
    .describe = cuda_describe, \
    .reserve = cuda_reserve, \
    .carve = cuda_carve, \
    .workspace_bytes = cuda_workspace_bytes, \
    .device_memory = cuda_device_memory, \
    .library_bytes = cuda_library_bytes, \
    .weight_bytes = cuda_weight_bytes, \
    .weight_store = cuda_weight_store, \
    .store_kept = cuda_store_kept, \
    .store_dummy = cuda_store_dummy, \
    .load_chunk = cuda_load_chunk, \
    .write = cuda_write, \
    .loaded = cuda_loaded, \
    .idle = cuda_idle, \
    .upload = cuda_upload, \
    .step_begin = cuda_step_begin, \
    .step_end = cuda_step_end, \
    .done = cuda_done, \
    .collect = cuda_collect, \
    .busy_ns = cuda_busy_ns, \
    .steps_in_flight = CUDA_STEPS, \
    .stream = cuda_stream, \
    .parallel_for = cuda_parallel_for, \
    .embed = cuda_embed, \
    .rmsnorm = cuda_rmsnorm, \
    .matmul = cuda_matmul, \
    .matmul_norm = cuda_matmul_norm, \
    .rope_store = cuda_rope_store, \
    .matmul_rope = cuda_matmul_rope, \
    .attention = cuda_attention, \
    .silu_mul = cuda_silu_mul, \
    .gate_up = cuda_gate_up, \
    .norm_rows = cuda_norm_rows, \
    .join_shards = cuda_join_shards, \
    .sample = cuda_sample

const struct backend_ops backend_cuda_f16 = { .name = "cuda", .act_dtype = DTYPE_F16, .open = open_f16, .kept_bytes = kept_f16, CUDA_OPS };
const struct backend_ops backend_cuda = { .name = "cuda", .act_dtype = DTYPE_BF16, .f16 = &backend_cuda_f16, .open = open_bf16, .kept_bytes = kept_bf16,
                                          CUDA_OPS };
