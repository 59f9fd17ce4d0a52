/* fast_backend.c - the table of backend_cpu_fast and the choice of the instruction set. */
#include "fast_ops.h"

static int fast_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    const struct cpu_kernels *kernels = cpu_kernels_for(cpu_isa_best());
    if (options->kv_dtype != DTYPE_F16)
        return err_set(err, ERR_CONFIG, "cpu-fast: KV cache in %s, must be f16", dtype_name(options->kv_dtype));
    return cpu_backend_new(out, options, kernels, kernels->name, err);
}

int backend_cpu_fast_force_isa(struct backend *b, enum cpu_isa isa)
{
    const struct cpu_kernels *kernels = cpu_kernels_for(isa);
    if (!kernels) return ERR_UNSUPPORTED;
    b->kernels = kernels;
    return 0;
}

const struct backend_ops backend_cpu_fast = {
    .name = "cpu-fast",
    .act_dtype = DTYPE_F32,
    .open = fast_open,
    .close = cpu_backend_free,
    .describe = cpu_backend_describe,
    .reserve = cpu_backend_reserve,
    .carve = cpu_backend_carve,
    .workspace_bytes = cpu_backend_workspace_bytes,
    .weight_bytes = fast_weight_bytes,
    .weight_store = fast_weight_store,
    .kept_bytes = fast_kept_bytes,
    .store_kept = fast_store_kept,
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
    .embed = fast_embed,
    .rmsnorm = fast_rmsnorm,
    .matmul = fast_matmul,
    .matmul_norm = fast_matmul_norm,
    .rope_store = fast_rope_store,
    .matmul_rope = fast_matmul_rope,
    .attention = fast_attention,
    .silu_mul = fast_silu_mul,
    .gate_up = fast_gate_up,
    .norm_rows = fast_norm_rows,
    .join_shards = cpu_backend_join_shards,
    .sample = cpu_backend_sample,
};
