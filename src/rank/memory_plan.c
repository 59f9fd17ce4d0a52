/* memory_plan.c - what one rank's memory holds, by arithmetic alone. Terms:
 *   weights      every weight slot of the shard in the backend's layout
 *   activations  the largest step: max_num_batched_tokens tokens, max_rows rows of logits
 *   workspace    what the backend itself needs for such a step
 *   rope_table   max_model_len x head_dim x 4
 *   comm         GPU, several ranks: buffers of the communicators, COMM_MIB; 0 on the CPU: ranks read each other's memory
 *   context      GPU: what is taken before the arena (driver, modules, other processes), as the device reports it
 *   library      GPU: captured steps and library handles, taken outside the arena
 *   kv           num_blocks x (layers x 2 x KV heads x head_dim x block_size x bytes) */
#include <sluice/rank.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "memory_plan.h"

enum { COMM_MIB = 768 };
static const uint64_t KV_DEFAULT_CAP = (uint64_t)1 << 30;      /* all ranks together, host memory */

/* ---- arithmetic ---- */

int32_t plan_max_rows(const struct ranks_options *options)
{
    return options->max_rows > 0 ? options->max_rows : options->max_num_seqs;
}

struct model_limits plan_limits(const struct ranks_options *options)
{
    return (struct model_limits){ .max_tokens = options->max_num_batched_tokens, .max_rows = plan_max_rows(options),
                                  .max_model_len = options->max_model_len, .block_size = options->block_size };
}

struct backend_options plan_backend_options(const struct ranks_options *options, const struct model_config *config,
                                            const struct shard *shard, int device)
{
    return (struct backend_options){ .threads = options->threads, .device = device, .kv_dtype = options->kv_dtype,
                                     .max_tokens = options->max_num_batched_tokens, .max_seqs = options->max_num_seqs,
                                     .max_rows = plan_max_rows(options), .vocab_size = config->vocab_size,
                                     .max_model_len = options->max_model_len, .block_size = options->block_size,
                                     .num_heads = (int32_t)range_len(shard->heads),
                                     .num_kv_heads = (int32_t)range_len(shard->kv_heads), .head_dim = config->head_dim,
                                     .sliding_window = config->sliding_window,
                                     .is_last = shard->has_head, .eager = options->eager,
                                     .tuning = options->tuning == TUNE_IDLE && options->tp_size * options->pp_size > 1
                                                   ? TUNE_START : options->tuning };
}

static int check_options(const struct ranks_options *options, struct err *err)
{
    if (options->block_size < 1 || options->max_model_len < 1 || options->max_num_seqs < 1 ||
        options->max_num_batched_tokens < 1 || options->threads < 1 || options->max_rows < 0) {
        return err_set(err, ERR_CONFIG,
                       "ranks: block_size %d, max_model_len %d, max_num_seqs %d, max_num_batched_tokens %d, "
                       "threads %d must be 1 or more", (int)options->block_size, (int)options->max_model_len,
                       (int)options->max_num_seqs, (int)options->max_num_batched_tokens, (int)options->threads);
    }
    if (options->kv_dtype != DTYPE_F32 && options->kv_dtype != DTYPE_BF16 && options->kv_dtype != DTYPE_F16) {
        return err_set(err, ERR_CONFIG, "kv_cache_dtype %s: expected f32, f16 or bf16", dtype_name(options->kv_dtype));
    }
    if (!(options->headroom >= 0 && options->headroom < 1)) {
        return err_set(err, ERR_CONFIG, "headroom %g: expected 0 up to 1", options->headroom);
    }
    return 0;
}

static uint64_t blocks_of(int32_t tokens, int32_t block_size)
{
    return ((uint64_t)tokens + (uint64_t)block_size - 1) / (uint64_t)block_size;
}

/* KV bytes of one block on all ranks together: kv_cache_bytes is shared out so that each gets as many blocks. */
static int kv_per_block_of_all(uint64_t *bytes, const struct model_config *config, const struct ranks_options *options,
                               struct err *err)
{
    struct model_limits limits = plan_limits(options);
    *bytes = 0;
    for (int rank = 0; rank < options->tp_size * options->pp_size; rank++) {
        struct shard shard;
        struct model_bytes model;
        int tp_rank, pp_stage, rc;
        rank_place(rank, options->tp_size, &tp_rank, &pp_stage);
        rc = shard_of(&shard, config, options->tp_size, options->pp_size, tp_rank, pp_stage, options->layer_partition,
                      err);
        if (rc == 0) rc = model_bytes(&model, config, &shard, options->ops, options->kv_dtype, &limits, NULL, err);
        if (rc < 0) return rc;
        *bytes += model.kv_per_block;
    }
    return 0;
}

static uint64_t fixed_bytes(const struct memory_plan *plan)
{
    return plan->weights + plan->activations + plan->workspace + plan->rope_table + plan->comm + plan->context +
           plan->library;
}

static const char *largest_fixed_term(const struct memory_plan *plan)
{
    if (plan->weights >= plan->activations && plan->weights >= plan->workspace) return "weights";
    return plan->activations >= plan->workspace ? "activations" : "workspace";
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* Blocks when no option fixes them. */
static uint64_t blocks_by_default(const struct memory_plan *plan, const struct ranks_options *options, uint64_t usable,
                                  uint64_t kv_all)
{
    uint64_t one_seq = blocks_of(options->max_model_len, options->block_size);
    uint64_t all_seqs = one_seq * (uint64_t)options->max_num_seqs;
    uint64_t fits = (usable - fixed_bytes(plan)) / plan->kv_per_block;
    uint64_t cap = options->ops->device_memory ? all_seqs : KV_DEFAULT_CAP / kv_all;     /* a GPU is there to be filled */
    if (cap < one_seq) cap = one_seq;
    if (cap > all_seqs) cap = all_seqs;
    return fits < cap ? fits : cap;
}

static int choose_blocks(struct memory_plan *plan, const struct model_config *config,
                         const struct ranks_options *options, struct err *err)
{
    uint64_t usable = plan->device_bytes - plan->headroom_bytes, fixed = fixed_bytes(plan), kv_all = 0, blocks = 0;
    uint64_t one_seq = blocks_of(options->max_model_len, options->block_size);
    int rc = kv_per_block_of_all(&kv_all, config, options, err);
    if (rc < 0) return rc;
    if (fixed > usable) {
        const char *term = largest_fixed_term(plan);
        return err_set(err, ERR_CONFIG,
                       "memory plan: weights %.0f MiB + activations %.0f + workspace %.0f + rope table %.0f + "
                       "driver and libraries %.0f do not fit into %.0f MiB (%.0f less headroom %.0f); the largest term is %s" MEMORY_PLAN_WAYS_OUT "a "
                       "smaller max_num_batched_tokens or max_num_seqs, a smaller model, more memory or ranks",
                       mib(plan->weights), mib(plan->activations), mib(plan->workspace), mib(plan->rope_table),
                       mib(plan->context + plan->library), mib(usable), mib(plan->device_bytes), mib(plan->headroom_bytes), term);
    }
    if (options->kv_cache_bytes > 0) blocks = options->kv_cache_bytes / kv_all;
    else if (options->num_blocks_override > 0) blocks = (uint64_t)options->num_blocks_override;
    else blocks = blocks_by_default(plan, options, usable, kv_all);
    if (options->num_blocks_override <= 0 || options->kv_cache_bytes > 0) {
        if (blocks < one_seq) {
            return err_set(err, ERR_CONFIG,
                           "memory plan: kv has room for %" PRIu64 " blocks of %d tokens (%.2f MiB each), one "
                           "sequence of max_model_len %d needs %" PRIu64 MEMORY_PLAN_WAYS_OUT "a smaller max_model_len, a "
                           "larger kv_cache_memory_bytes or smaller headroom, kv_cache_dtype bf16 or more ranks",
                           blocks, (int)options->block_size, mib(plan->kv_per_block), (int)options->max_model_len,
                           one_seq);
        }
    }
    if (blocks > INT32_MAX || blocks > (usable - fixed) / plan->kv_per_block) {
        return err_set(err, ERR_CONFIG,
                       "memory plan: kv of %" PRIu64 " blocks (%.2f MiB each) does not fit into the %.0f MiB "
                       "that weights, activations and workspace leave" MEMORY_PLAN_WAYS_OUT "fewer blocks (kv_cache_memory_bytes, "
                       "num_gpu_blocks_override), smaller headroom, kv_cache_dtype bf16 or more ranks",
                       blocks, mib(plan->kv_per_block), mib(usable - fixed));
    }
    plan->num_blocks = (int32_t)blocks;
    return 0;
}

int memory_plan_make(struct memory_plan *plan, const struct model_config *config, const struct shard *shard,
                     const struct ranks_options *options, uint64_t device_bytes, uint64_t context_bytes, struct err *err)
{
    struct model_limits limits = plan_limits(options);
    struct backend_options backend_options = plan_backend_options(options, config, shard, 0);
    struct model_bytes model;
    int rc = check_options(options, err);
    if (rc < 0) return rc;
    rc = model_bytes(&model, config, shard, options->ops, options->kv_dtype, &limits, options->src, err);
    if (rc < 0) return rc;
    *plan = (struct memory_plan){
        .device_bytes = device_bytes,
        .headroom_bytes = (uint64_t)((double)device_bytes * options->headroom),
        .weights = model.weights, .activations = model.activations, .rope_table = model.rope_table,
        .workspace = options->ops->workspace_bytes(&backend_options), .context = context_bytes,
        .library = options->ops->library_bytes ? options->ops->library_bytes(&backend_options) : 0,
        .comm = options->ops->device_memory && options->tp_size * options->pp_size > 1 ? (uint64_t)COMM_MIB << 20 : 0,
        .kv_per_block = model.kv_per_block,
        .block_size = options->block_size, .max_model_len = options->max_model_len,
    };
    if ((rc = choose_blocks(plan, config, options, err)) < 0) return rc;
    memory_plan_set_blocks(plan, plan->num_blocks);
    return 0;
}

void memory_plan_set_blocks(struct memory_plan *plan, int32_t num_blocks)
{
    plan->num_blocks = num_blocks;
    plan->kv = (uint64_t)num_blocks * plan->kv_per_block;
    plan->total = fixed_bytes(plan) + plan->kv;
}

void memory_plan_print(const struct memory_plan *plan, FILE *out)
{
    fprintf(out, "memory         %10.1f MiB\n", mib(plan->device_bytes));
    fprintf(out, "  headroom     %10.1f MiB  kept free\n", mib(plan->headroom_bytes));
    fprintf(out, "  weights      %10.1f MiB\n", mib(plan->weights));
    fprintf(out, "  activations  %10.1f MiB  largest step\n", mib(plan->activations));
    fprintf(out, "  workspace    %10.1f MiB\n", mib(plan->workspace));
    fprintf(out, "  rope table   %10.1f MiB  max_model_len %d\n", mib(plan->rope_table), (int)plan->max_model_len);
    fprintf(out, "  comm         %10.1f MiB\n", mib(plan->comm));
    if (plan->context || plan->library) {
        fprintf(out, "  context      %10.1f MiB  taken before: driver, modules, other processes\n", mib(plan->context));
        fprintf(out, "  library      %10.1f MiB  captured steps, library handles\n", mib(plan->library));
    }
    fprintf(out, "  kv           %10.1f MiB  %d blocks of %d tokens, %.3f MiB each\n", mib(plan->kv),
            (int)plan->num_blocks, (int)plan->block_size, mib(plan->kv_per_block));
    fprintf(out, "  total        %10.1f MiB\n", mib(plan->total));
}

/* ---- what the host has ---- */

/* First number behind `key` in a small text file, or the first number at all for key "". 0 when there is none. */
static uint64_t number_in_file(const char *path, const char *key)
{
    char text[4096];
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    size_t len = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[len] = '\0';
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;     /* "max" reads as 0: no limit */
}

/* What the limit of one cgroup leaves; UINT64_MAX without one. Cached file pages count as used but go when needed. */
static uint64_t cgroup_left(const char *dir, const char *limit_name, const char *used_name)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", dir, limit_name);
    uint64_t limit = number_in_file(path, "");
    snprintf(path, sizeof(path), "%s/%s", dir, used_name);
    uint64_t used = number_in_file(path, "");
    snprintf(path, sizeof(path), "%s/memory.stat", dir);
    uint64_t cached = number_in_file(path, "inactive_file ");
    if (limit == 0) return UINT64_MAX;
    used = used > cached ? used - cached : 0;
    return limit > used ? limit - used : 0;
}

/* The least that this process' cgroup and its parents leave (version 2: "0::/path" in /proc/self/cgroup). */
static uint64_t cgroup2_left(void)
{
    char line[256] = "", dir[300];
    uint64_t least = UINT64_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return least;
    while (fgets(line, sizeof(line), file) && strncmp(line, "0::/", 4) != 0) line[0] = '\0';
    fclose(file);
    if (line[0] == '\0') return least;
    line[strcspn(line, "\n")] = '\0';
    snprintf(dir, sizeof(dir), "/sys/fs/cgroup%s", line + 3);
    for (char *end = dir + strlen(dir); end; end = strrchr(dir + strlen("/sys/fs/cgroup"), '/')) {
        *end = '\0';
        uint64_t left = cgroup_left(dir, "memory.max", "memory.current");
        if (left < least) least = left;
    }
    return least;
}

uint64_t host_memory_bytes(void)
{
    uint64_t bytes = number_in_file("/proc/meminfo", "MemAvailable:") * 1024;
    uint64_t v2 = cgroup2_left();
    uint64_t v1 = cgroup_left("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes");
    if (v2 < bytes) bytes = v2;
    if (v1 < bytes) bytes = v1;
    return bytes;
}
