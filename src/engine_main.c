/* engine_main.c - program sluice-engine: one replica. Started by sluiced with a socket at descriptor 3 (and the
 * heartbeat page at 4); loads the model, builds the ranks, says READY, runs until it is stopped or the socket closes.
 * Exit: 0 asked to, 70 internal fault, 78 bad configuration or model (the reason is on stderr and in MSG_FAILED). */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <sluice/config.h>
#include <sluice/loader.h>
#include <sluice/rank.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/engine.h"

static void leave(int exit_code) { _exit(exit_code); }

static int exit_code_of(int code) { return code == ERR_CONFIG || code == ERR_MODEL_FILE ? EXIT_CONFIG : EXIT_FAULT; }

static int cores(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static enum scheduler_policy policy_of(const char *name)
{
    return !strcmp(name, "fcfs") ? POLICY_FCFS : !strcmp(name, "priority") ? POLICY_PRIORITY : POLICY_FAIR;
}

/* The configured context, at most what the model was made for. */
static int context_of(const struct config *config, const struct model_config *model, int32_t *max_model_len,
                      struct err *err)
{
    if (config->max_model_len > model->max_position_embeddings)
        return err_set(err, ERR_CONFIG, "--max-model-len: %lld is above the model's %d",
                       (long long)config->max_model_len, model->max_position_embeddings);
    *max_model_len = config->max_model_len ? (int32_t)config->max_model_len : model->max_position_embeddings;
    return 0;
}

static int ranks_options_of(struct ranks_options *o, const struct config *config, int32_t max_model_len,
                            int layers[MAX_PP], struct err *err)
{
    int64_t num_ranks = config->tensor_parallel_size * config->pipeline_parallel_size * config->data_parallel_size;
    bool fast = strcmp(config->cpu_kernels, "ref") != 0;

    if (!strcmp(config->device, "cuda"))
        return err_set(err, ERR_CONFIG, "--device: this sluice-engine was built without CUDA");
    for (size_t i = 0; i < config->pp_layer_partition.n && i < MAX_PP; i++)
        layers[i] = (int)strtol(config->pp_layer_partition.items[i], NULL, 10);
    *o = (struct ranks_options){
        .ops = fast ? &backend_cpu_fast : &backend_cpu_ref,
        .tp_size = (int)config->tensor_parallel_size,
        .pp_size = (int)config->pipeline_parallel_size,
        .layer_partition = config->pp_layer_partition.n ? layers : NULL,
        .threads = (int32_t)config->cpu_threads,
        .kv_dtype = !strcmp(config->kv_cache_dtype, "auto")  ? (fast ? DTYPE_BF16 : DTYPE_F32)
                    : !strcmp(config->kv_cache_dtype, "f32") ? DTYPE_F32
                                                             : DTYPE_BF16,
        .max_num_seqs = (int32_t)config->max_num_seqs,
        .max_num_batched_tokens = (int32_t)config->max_num_batched_tokens,
        .max_model_len = max_model_len,
        .block_size = (int32_t)config->block_size,
        .headroom = config->headroom,
        .kv_cache_bytes = (uint64_t)config->kv_cache_memory_bytes,
        .num_blocks_override = (int32_t)config->num_gpu_blocks_override,
        .seed = (uint64_t)config->seed,
    };
    if (!o->threads) o->threads = (int32_t)(cores() / num_ranks);
    if (o->threads < 1) o->threads = 1;
    return 0;
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
        .policy = policy_of(config->scheduling_policy),
        .enable_prefix_caching = config->enable_prefix_caching,
        .eos.num = model->num_eos_token_ids,
    };
    memcpy(setup->scheduler.eos.ids, model->eos_token_ids, sizeof setup->scheduler.eos.ids);
    model_source_digest(src, setup->model_digest);
}

/* Loads what config says. src and ranks are the caller's to close. */
static int load(struct engine *engine, const struct config *config, struct model_source **src,
                struct engine_setup *setup, struct err *err)
{
    struct ranks_options options;
    int32_t max_model_len = 0;
    int layers[MAX_PP] = { 0 };
    int rc;

    if (!config->model || !config->model[0]) return err_set(err, ERR_CONFIG, "--model: no model given");
    if ((rc = model_source_open(src, config->model, load_format_from_name(config->load_format), err)) < 0) return rc;
    if ((rc = context_of(config, model_source_config(*src), &max_model_len, err)) < 0) return rc;
    if ((rc = ranks_options_of(&options, config, max_model_len, layers, err)) < 0) return rc;
    setup_of(setup, config, *src, max_model_len);
    return ranks_start(&setup->ranks, *src, &options, engine_progress, engine, err);
}

static int serve(struct engine *engine, const struct config *config, struct err *err)
{
    struct model_source *src = NULL;
    struct engine_setup setup = { 0 };
    int64_t began_ms = clock_now_ms();
    int rc;

    if ((rc = load(engine, config, &src, &setup, err)) < 0) goto out;
    model_source_close(src);               /* descriptors and tables of the files are no longer needed */
    src = NULL;
    setup.load_ms = clock_now_ms() - began_ms;
    if ((rc = engine_start(engine, &setup, err)) < 0) goto out;
    if ((rc = engine_run(engine)) < 0) err_set(err, rc, "the ranks failed: %s", err_name(rc));
out:
    if (src) model_source_close(src);
    if (setup.ranks) ranks_stop(setup.ranks);
    return rc;
}

static void keep_to_the_gateway(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* Ctrl-C and systemd's stop reach the whole group: the gateway decides when engines end */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
    struct config config = { 0 };
    struct engine *engine = NULL;
    struct err err = { 0 };
    bool help = false;

    log_set_program("sluice-engine");
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        puts("sluice-engine 0.1.0");
        return 0;
    }
    int rc = config_load(&config, argc - 1, argv + 1, &help, &err);
    if (help) {
        config_release(&config);
        return 0;
    }
    if (fcntl(IPC_FD, F_GETFD) < 0) {
        fprintf(stderr, "sluice-engine: %s\n",
                rc < 0 ? err.message : "started by sluiced, which gives it a socket at descriptor 3");
        return EXIT_CONFIG;
    }
    keep_to_the_gateway();
    struct err channel_err = { 0 };
    if (engine_open(&engine, IPC_FD, IPC_PAGE_FD, leave, &channel_err) < 0) {
        fprintf(stderr, "sluice-engine: %s\n", channel_err.message);
        return EXIT_FAULT;
    }
    if (!rc) {
        log_set_level((enum log_level)log_level_from_name(config.log_level));
        rc = serve(engine, &config, &err);
    }
    if (rc < 0) {
        fprintf(stderr, "sluice-engine: %s\n", err.message);
        engine_fail(engine, exit_code_of(rc), err.message);
    }
    engine_close(engine);
    config_release(&config);
    return rc < 0 ? exit_code_of(rc) : 0;
}
