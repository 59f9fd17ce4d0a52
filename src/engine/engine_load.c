#include "engine_load.h"

#include <string.h>

#include <sluice/comm.h>

#ifdef SLUICE_HAVE_CUDA
static const struct backend_ops *const cuda = &backend_cuda;
static const struct comm_ops *const cuda_comm = &comm_nccl_ops;
#else
static const struct backend_ops *const cuda = NULL;
static const struct comm_ops *const cuda_comm = NULL;
#endif

int engine_exit_code(int code) { return code == ERR_CONFIG || code == ERR_MODEL_FILE ? EXIT_CONFIG : EXIT_FAULT; }

static enum scheduler_policy policy_of(const char *name)
{
    return !strcmp(name, "fcfs") ? POLICY_FCFS : !strcmp(name, "priority") ? POLICY_PRIORITY : POLICY_FAIR;
}

static void setup_of(struct engine_setup *setup, const struct config *config, const struct model_source *src,
                     int32_t max_model_len)
{
    const struct model_config *model = model_source_config(src);

    setup->scheduler = (struct scheduler_options){
        .max_num_seqs = (int32_t)config->max_num_seqs,
        .max_num_batched_tokens = (int32_t)config->max_num_batched_tokens,
        .max_model_len = max_model_len,
        .block_size = (int32_t)config->block_size,
        .vocab_size = model->vocab_size,
        /* the gateway counts requests, each of up to MAX_PROMPTS sequences; it stays below this by far more than one */
        .max_sequences = (int32_t)(config->max_num_seqs + config->max_queue_requests + MAX_PROMPTS),
        .long_prefill_chunk = (int32_t)config->long_prefill_chunk,
        .itl_target_ms = (int32_t)config->itl_target_ms,
        .policy = policy_of(config->scheduling_policy),
        .enable_prefix_caching = config->enable_prefix_caching,
        .eos.num = model->num_eos_token_ids,
    };
    setup->sample_blocks = config->kv_cache_metrics;
    memcpy(setup->scheduler.eos.ids, model->eos_token_ids, sizeof setup->scheduler.eos.ids);
    model_source_digest(src, setup->model_digest);
}

int engine_ranks_options(struct ranks_options *options, int layers[MAX_PP], const struct config *config, const struct model_config *model,
                         struct err *err)
{
    if (!cuda && !strcmp(config->device, "cuda"))
        return err_set(err, ERR_CONFIG, "--device: this sluice-engine was built without CUDA");
    return ranks_options_of(options, layers, config, model, cuda, err);
}

static uint64_t free_memory(void *ranks) { return ranks_free_memory(ranks); }

int engine_load(struct engine_setup *setup, struct model_source **src, const struct config *config,
                void (*progress)(void *arg, double share), void *progress_arg, struct err *err)
{
    struct ranks_options options;
    int layers[MAX_PP] = { 0 };
    int rc;

    if (!config->model || !config->model[0]) return err_set(err, ERR_CONFIG, "--model: no model given");
    if ((rc = model_source_open(src, config->model, load_format_from_name(config->load_format), err)) < 0) return rc;
    if ((rc = engine_ranks_options(&options, layers, config, model_source_config(*src), err)) < 0) return rc;
    setup_of(setup, config, *src, options.max_model_len);
    bool on_gpu = cuda && (options.ops == cuda || options.ops == cuda->f16);
    if (on_gpu) options.comm_ops = cuda_comm;
    options.layers_begun = setup->layers_begun;
    if ((rc = ranks_start(&setup->ranks, *src, &options, progress, progress_arg, err)) < 0) return rc;
    setup->free_memory = free_memory;
    setup->free_memory_arg = setup->ranks;
    uint64_t num_ranks = on_gpu ? 1 : (uint64_t)(options.tp_size * options.pp_size);
    setup->headroom_bytes = ranks_memory_plan(setup->ranks, 0)->headroom_bytes * num_ranks;
    return 0;
}
