/* ref_backend.c - the table of backend_cpu_ref. Weights stay fp32, row-major. */
#include <string.h>

#include "ref_ops.h"

static int ref_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    if (options->kv_dtype != DTYPE_F32 && options->kv_dtype != DTYPE_BF16)
        return err_set(err, ERR_CONFIG, "cpu-ref: KV cache in %s, must be f32 or bf16", dtype_name(options->kv_dtype));
    return cpu_backend_new(out, options, cpu_kernels_for(CPU_ISA_PORTABLE), "plain fp32", err);
}

static size_t ref_weight_bytes(enum weight_kind kind, int64_t rows, int64_t cols)
{
    (void)kind;
    return (size_t)rows * (size_t)cols * sizeof(float);
}

static void ref_weight_store(struct backend *b, struct weight *w, enum weight_kind kind, int64_t row, int64_t n_rows,
                             const float *src)
{
    (void)b;
    (void)kind;
    memcpy((float *)w->data + row * w->cols, src, (size_t)n_rows * (size_t)w->cols * sizeof(float));
}

const struct backend_ops backend_cpu_ref = {
    .name = "cpu-ref",
    .act_dtype = DTYPE_F32,
    .open = ref_open,
    .close = cpu_backend_free,
    .describe = cpu_backend_describe,
    .reserve = cpu_backend_reserve,
    .carve = cpu_backend_carve,
    .workspace_bytes = cpu_backend_workspace_bytes,
    .weight_bytes = ref_weight_bytes,
    .weight_store = ref_weight_store,
    .write = cpu_backend_write,
    .loaded = cpu_backend_loaded,
    .upload = cpu_backend_upload,
    .step_begin = cpu_backend_step_begin,
    .step_end = cpu_backend_step_end,
    .done = cpu_backend_done,
    .collect = cpu_backend_collect,
    .steps_in_flight = 1,
    .stream = cpu_backend_stream,
    .parallel_for = cpu_backend_parallel_for,
    .embed = ref_embed,
    .rmsnorm = ref_rmsnorm,
    .matmul = ref_matmul,
    .matmul_norm = ref_matmul_norm,
    .rope_store = ref_rope_store,
    .matmul_rope = ref_matmul_rope,
    .attention = ref_attention,
    .silu_mul = ref_silu_mul,
    .gate_up = ref_gate_up,
    .norm_rows = ref_norm_rows,
    .join_shards = cpu_backend_join_shards,
    .sample = cpu_backend_sample,
};
