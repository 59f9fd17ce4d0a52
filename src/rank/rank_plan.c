/* rank_plan.c - the ranks of one replica on paper: shard and memory of each, as a table; and from the configuration to
 * what the ranks are asked for. Arithmetic only. */
#include <sluice/rank.h>

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/config.h>

#include "memory_plan.h"

int ranks_plan(struct rank_plan *plans, const struct model_config *config, const struct ranks_options *options,
               uint64_t host_bytes, const uint64_t *device_free, struct err *err)
{
    int32_t num_blocks = INT32_MAX;
    int num_ranks = options->tp_size * options->pp_size;
    for (int i = 0; i < num_ranks; i++) {
        int tp_rank, pp_stage, rc;
        rank_place(i, options->tp_size, &tp_rank, &pp_stage);
        rc = shard_of(&plans[i].shard, config, options->tp_size, options->pp_size, tp_rank, pp_stage,
                      options->layer_partition, err);
        if (rc == 0) {
            uint64_t bytes = device_free ? host_bytes : host_bytes / (uint64_t)num_ranks;
            rc = memory_plan_make(&plans[i].memory, config, &plans[i].shard, options, bytes,
                                  device_free ? host_bytes - device_free[i] : 0, err);
        }
        if (rc < 0) return rc;
        if (plans[i].memory.num_blocks < num_blocks) num_blocks = plans[i].memory.num_blocks;
    }
    for (int i = 0; i < num_ranks; i++) memory_plan_set_blocks(&plans[i].memory, num_blocks);
    return 0;
}

/* ---- the table ---- */

static const char *range_text(char text[32], struct range range)
{
    snprintf(text, 32, "%d-%d", (int)range.begin, (int)range.end - 1);
    return text;
}

/* MiB with one decimal. */
static const char *size_text(char text[32], uint64_t bytes)
{
    uint64_t tenths = (bytes * 10 + (1 << 19)) >> 20;
    snprintf(text, 32, "%" PRIu64 ".%d", tenths / 10, (int)(tenths % 10));
    return text;
}

static void add_sizes(char line[RANK_LINE_MAX], const struct memory_plan *memory)
{
    size_t len = strlen(line);
    char weights[32], kv[32], activations[32], total[32];
    snprintf(line + len, RANK_LINE_MAX - len, " %10s %10s %10s %10s", size_text(weights, memory->weights),
             size_text(kv, memory->kv), size_text(activations, memory->activations), size_text(total, memory->total));
}

static void add_memory(struct memory_plan *sum, const struct memory_plan *memory)
{
    sum->weights += memory->weights;
    sum->kv += memory->kv;
    sum->activations += memory->activations;
    sum->total += memory->total;
}

void ranks_plan_line(char line[RANK_LINE_MAX], const struct rank_plan *plans, int num_ranks, int i)
{
    struct memory_plan sum = { 0 };
    char layers[32], heads[32], kv_heads[32];
    if (i < 0) {
        snprintf(line, RANK_LINE_MAX, "%5s %4s %8s %7s %8s %9s %10s %10s %10s %10s", "stage", "rank", "layers", "heads",
                 "KV heads", "KV blocks", "weights", "KV", "activat.", "total MiB");
        return;
    }
    if (i >= num_ranks) {
        for (int rank = 0; rank < num_ranks; rank++) add_memory(&sum, &plans[rank].memory);
        snprintf(line, RANK_LINE_MAX, "%5s %40s", "all", "");
        add_sizes(line, &sum);
        return;
    }
    const struct shard *shard = &plans[i].shard;
    snprintf(line, RANK_LINE_MAX, "%5d %4d %8s %7s %8s %9d", shard->pp_stage, i, range_text(layers, shard->layers),
             range_text(heads, shard->heads), range_text(kv_heads, shard->kv_heads), (int)plans[i].memory.num_blocks);
    add_sizes(line, &plans[i].memory);
}

/* ---- from the configuration ---- */

static int cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

static bool asks_f16(const struct config *config, const struct model_config *model)
{
    if (strcmp(config->dtype, "auto") != 0) return strcmp(config->dtype, "float16") == 0;
    return model->dtype == DTYPE_F16 && strcmp(config->load_format, "dummy") != 0;
}

/* What the device cannot compute in is refused, not replaced. */
static int dtype_check(const struct config *config, bool cuda, bool fast, struct err *err)
{
    const char *dtype = config->dtype, *only = fast ? "bfloat16" : "float32";
    if (strcmp(dtype, "auto") == 0) return 0;
    if (cuda && strcmp(dtype, "float32") == 0) return err_set(err, ERR_CONFIG, "dtype float32: a GPU computes in bfloat16 or float16");
    if (!cuda && strcmp(dtype, only) != 0)
        return err_set(err, ERR_CONFIG, "dtype %s: on a CPU, cpu_kernels %s knows auto and %s", dtype, config->cpu_kernels, only);
    return 0;
}

static enum dtype kv_dtype_of(const struct config *config, const struct backend_ops *cuda, bool fast)
{
    if (cuda && strcmp(config->kv_cache_dtype, "auto") == 0) return cuda->act_dtype;
    if (strcmp(config->kv_cache_dtype, "auto") == 0) return fast ? DTYPE_F16 : DTYPE_F32;
    if (strcmp(config->kv_cache_dtype, "f16") == 0) return DTYPE_F16;
    return strcmp(config->kv_cache_dtype, "f32") == 0 ? DTYPE_F32 : DTYPE_BF16;
}

/* A step on a CPU is long beside the host's share of it: overlap gains nothing there and a new prompt waits a step longer. */
static bool overlap_of(const struct config *config, bool cuda)
{
    return strcmp(config->async_scheduling, "auto") == 0 ? cuda : strcmp(config->async_scheduling, "true") == 0;
}

static enum tuning tuning_of(const char *name)
{
    return strcmp(name, "start") == 0 ? TUNE_START : strcmp(name, "off") == 0 ? TUNE_OFF : TUNE_IDLE;
}

int ranks_options_of(struct ranks_options *options, int layers[MAX_PP], const struct config *config,
                     const struct model_config *model, const struct backend_ops *cuda, struct err *err)
{
    bool fast = strcmp(config->cpu_kernels, "ref") != 0;
    struct layout layout, own;
    int rc;

    if (config->max_model_len > model->max_position_embeddings) {
        return err_set(err, ERR_CONFIG, "max_model_len: %lld is above the model's %d", (long long)config->max_model_len,
                       (int)model->max_position_embeddings);
    }
    if (!layout_on_gpus(config)) cuda = NULL;
    if ((rc = dtype_check(config, cuda || strcmp(config->device, "cuda") == 0, fast, err)) < 0) return rc;
    if (cuda && cuda->f16 && asks_f16(config, model)) cuda = cuda->f16;
    layout_of_config(&layout, config);
    /* This process is one replica. Who starts several has counted the GPUs of all, and shows each only its own. */
    own = layout;
    own.dp_size = 1;
    if ((rc = layout_check(&own, model, err)) < 0) return rc;
    memcpy(layers, layout.layers, sizeof(layout.layers));
    int num_ranks = layout.tp_size * layout.pp_size * layout.dp_size, per_rank = cores() / num_ranks;
    *options = (struct ranks_options){
        .ops = cuda ? cuda : fast ? &backend_cpu_fast : &backend_cpu_ref,
        .tp_size = layout.tp_size, .pp_size = layout.pp_size, .layer_partition = layout.told ? layers : NULL,
        .threads = config->cpu_threads ? (int32_t)config->cpu_threads : per_rank > 1 ? per_rank : 1,
        .kv_dtype = kv_dtype_of(config, cuda, fast),
        .overlap = overlap_of(config, cuda != NULL), .eager = config->enforce_eager, .tuning = tuning_of(config->tuning),
        .max_num_seqs = (int32_t)config->max_num_seqs,
        .max_num_batched_tokens = (int32_t)config->max_num_batched_tokens,
        .max_model_len = config->max_model_len ? (int32_t)config->max_model_len : model->max_position_embeddings,
        .block_size = (int32_t)config->block_size,
        .headroom = config->headroom,
        .kv_cache_bytes = (uint64_t)config->kv_cache_memory_bytes,
        .num_blocks_override = (int32_t)config->num_gpu_blocks_override,
        .seed = (uint64_t)config->seed,
        .stall_timeout_ms = config->replica_stall_timeout_ms * 9 / 10,   /* before the supervisor's: it knows no rank */
    };
    return 0;
}
