/* plan.c - sluice-engine plan: the layouts of a host's GPUs side by side, which one to take and what its memory holds. It computes
 * what a start would compute and loads nothing, so it needs no GPU: what one has may be told. */
#include "plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/bench.h>
#include <sluice/config.h>
#include <sluice/loader.h>
#include <sluice/offline.h>
#include <sluice/rank.h>

#include "base/program.h"

enum { CONTEXT_MIB = 1024 };       /* what a driver takes of a GPU before anybody else, where none is there to say */
static const double GIB = 1073741824.0;

static const char usage[] =
    "usage: sluice plan MODEL [options]\n\n"
    "Prints what each layout of the GPUs (tensor parallel x pipeline parallel x replicas) would hold, the one to take, and\n"
    "the terms of its memory. Nothing is loaded; of a model with --load-format dummy config.json alone is read. Without a GPU\n"
    "here, tell what there is:\n\n"
    "  sluice plan MODEL --gpus 8 --gpu-memory 79.6\n\n";

struct plan_args { int64_t gpus; double gpu_memory; };

/* The machine that is planned for. */
struct place {
    int num_gpus;                  /* 0: this host's CPU */
    uint64_t device_bytes, context_bytes;
    bool told;
};

/* ---- what there is ---- */

static int load_config(struct config *config, const struct bench_option *options, size_t num, const struct plan_args *args, int argc,
                       char **argv, struct err *err)
{
    char on_gpu[] = "--device=cuda";
    char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int n_rest = 0;

    if (!rest) return err_set(err, ERR_NO_MEMORY, "out of memory");
    int rc = bench_options_take(options, num, argc, argv, rest + 1, &n_rest, err);
    bool gpu = args->gpus > 0 || args->gpu_memory > 0;
    if (rc == 0 && gpu) rest[0] = on_gpu;                 /* a later --device wins */
    if (rc == 0) rc = config_load(config, n_rest + gpu, gpu ? rest : rest + 1, NULL, err);
    free(rest);
    return rc;
}

static int find_gpus(struct place *place, const struct plan_args *args, const struct ranks_options *options, struct err *err)
{
    uint64_t available = 0;
    int visible = gpus_visible();

    place->told = args->gpu_memory > 0;
    place->num_gpus = args->gpus > 0 ? (int)args->gpus : visible < 1 ? 1 : visible < MAX_HOST_GPUS ? visible : MAX_HOST_GPUS;
    if (place->told) {
        place->device_bytes = (uint64_t)(args->gpu_memory * GIB);
        place->context_bytes = (uint64_t)CONTEXT_MIB << 20;
        return 0;
    }
    if (visible == 0) return err_set(err, ERR_CONFIG, "no GPU is visible here: --gpu-memory GIB says what one has");
    if (options->ops->device_memory(0, &place->device_bytes, &available, err) < 0) return err->code;
    place->context_bytes = place->device_bytes - available;
    return 0;
}

static int find_place(struct place *place, const struct plan_args *args, const struct ranks_options *options, struct err *err)
{
    if (options->ops->device_memory) return find_gpus(place, args, options, err);
    if (args->gpus > 0 || args->gpu_memory > 0)
        return err_set(err, ERR_CONFIG, "--gpus and --gpu-memory: what is planned for is the CPU (--device)");
    place->device_bytes = host_memory_bytes();
    return 0;
}

/* ---- the answer ---- */

static void print_place(const struct place *place, const struct config *config, const struct ranks_options *options)
{
    double gib = (double)place->device_bytes / GIB;

    if (!place->num_gpus) printf("%s on this host's CPU, %.1f GiB free", config_model_name(config), gib);
    else printf("%s on %d GPU%s of %.1f GiB%s", config_model_name(config), place->num_gpus, place->num_gpus > 1 ? "s" : "", gib, place->told ? " (as told)" : "");
    printf(", %g %% of it kept free; max_model_len %d, max_num_seqs %d, max_num_batched_tokens %d, KV in %s\n\n", 100 * options->headroom,
           (int)options->max_model_len, (int)options->max_num_seqs, (int)options->max_num_batched_tokens, dtype_name(options->kv_dtype));
}

static void print_offers(const struct layout_offer *offers, int n, int best)
{
    printf("   %3s %3s %9s %12s %10s %20s %14s\n", "tp", "pp", "replicas", "weights GiB", "KV GiB", "KV tokens, a replica", "full contexts");
    for (int i = 0; i < n; i++) {
        const struct layout_offer *offer = &offers[i];
        const struct memory_plan *memory = &offer->memory;
        printf("%c  %3d %3d %9d ", i == best ? '*' : ' ', offer->tp_size, offer->pp_size, offer->dp_size);
        if (!offer->fits) {
            const char *why = offer->why.message, *ways = strstr(why, MEMORY_PLAN_WAYS_OUT);
            printf("%12s  %.*s\n", "no:", (int)(ways ? (size_t)(ways - why) : strlen(why)), why);
            continue;
        }
        int64_t tokens = (int64_t)memory->num_blocks * memory->block_size;
        printf("%12.1f %10.1f %20" PRId64 " %14.1f\n", (double)memory->weights / GIB, (double)memory->kv / GIB, tokens,
               (double)tokens / memory->max_model_len);
    }
}

static void print_choice(const struct place *place, const struct layout_offer *offer, const struct config *config)
{
    if (place->num_gpus) {
        printf("\n* sluiced %s --tensor-parallel-size %d --pipeline-parallel-size %d --data-parallel-size %d\n", config->model, offer->tp_size,
               offer->pp_size, offer->dp_size);
        if (layout_is_roomy(offer)) printf("  The smallest replica that leaves a fifth of a GPU to the KV cache: most replicas, and the least traffic between GPUs.\n");
        else printf("  No layout leaves a fifth of a GPU to the KV cache: this one leaves the most.\n");
    }
    printf("\n%s:\n", place->num_gpus > 1 ? "the fullest of its GPUs" : place->num_gpus ? "the GPU" : "the host's memory");
    memory_plan_print(&offer->memory, stdout);
    if (place->told) printf("(context: assumed; on the GPU itself its driver says)\n");
}

static int plan(const struct config *config, const struct plan_args *args, const struct model_source *src, struct err *err)
{
    const struct model_config *model = model_source_config(src);
    struct layout_offer offers[MAX_LAYOUTS];
    struct ranks_options options;
    struct config one = *config;                          /* any layout: those that there are follow */
    struct place place = { 0 };
    int layers[MAX_PP] = { 0 };
    int rc;

    one.tensor_parallel_size = one.pipeline_parallel_size = one.data_parallel_size = 1;
    one.pp_layer_partition.n = 0;
    if ((rc = offline_ranks_options(&options, layers, &one, model, err)) < 0) return rc;
    if ((rc = find_place(&place, args, &options, err)) < 0) return rc;
    options.src = src;
    int n = layouts_offered(offers, model, &options, place.num_gpus ? place.num_gpus : 1, place.device_bytes, place.context_bytes);
    int best = layouts_best(offers, n);
    print_place(&place, config, &options);
    print_offers(offers, n, best);
    if (best < 0) {
        const char *ways = strstr(offers[n - 1].why.message, MEMORY_PLAN_WAYS_OUT);
        return err_set(err, ERR_CONFIG, "no layout holds this model at these options%s", ways ? ways : "");
    }
    print_choice(&place, &offers[best], config);
    return 0;
}

int plan_main(int argc, char **argv)
{
    struct plan_args args = { 0 };
    const struct bench_option options[] = {
        { "--gpus", BENCH_INT, &args.gpus, 1, MAX_HOST_GPUS, "GPUs of the host; default: those that are visible, else 1" },
        { "--gpu-memory", BENCH_REAL, &args.gpu_memory, 1, 4096, "GiB of one GPU, as its driver reports them (80 GB: 79.6; H200: 140.4); default: asked of the first" },
    };
    enum { NUM_OPTIONS = sizeof options / sizeof options[0] };
    struct config config = { 0 };
    struct model_source *src = NULL;
    struct err err = { 0 };

    if (wants_help(argc, argv)) {
        fputs(usage, stdout);
        bench_options_help(options, NUM_OPTIONS, stdout);
        puts("\nAll engine options of sluiced --help are accepted too: what is planned is what would start.");
        return 0;
    }
    int rc = load_config(&config, options, NUM_OPTIONS, &args, argc, argv, &err);
    if (rc == 0 && !config.model[0]) rc = err_set(&err, ERR_CONFIG, "no model given; --help");
    if (rc == 0) rc = model_source_open(&src, config.model, load_format_from_name(config.load_format), &err);
    if (rc == 0) rc = plan(&config, &args, src, &err);
    if (src) model_source_close(src);
    config_release(&config);
    if (rc == 0 && (fflush(stdout) != 0 || ferror(stdout))) rc = err_sys(&err, ERR_IO, "writing");
    if (rc < 0) fprintf(stderr, "sluice plan: %s\n", err.message);
    return rc < 0 ? offline_exit_code(rc) : 0;
}
