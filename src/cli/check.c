/* check.c - sluice check: would this configuration start, and what is in effect? Needs no GPU and loads no weights. */
#include <sluice/cli.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <sluice/config.h>
#include <sluice/loader.h>
#include <sluice/parallel.h>
#include <sluice/rank.h>

#include "base/program.h"
#include "say.h"

static const char *format_name(enum load_format format)
{
    switch (format) {
    case LOAD_GGUF: return "gguf";
    case LOAD_SAFETENSORS: return "safetensors";
    case LOAD_DUMMY: return "dummy";
    case LOAD_AUTO: break;
    }
    return "auto";
}

/* key and value of one token in every layer */
static int64_t kv_bytes_per_token(const struct model_config *model, enum dtype dtype)
{
    return dtype_row_bytes(dtype, 2 * (int64_t)model->num_hidden_layers * model->num_key_value_heads * model->head_dim);
}

static void print_model(const struct config *config, const struct model_source *source)
{
    const struct model_config *model = model_source_config(source);
    bool f32 = strcmp(config->kv_cache_dtype, "bf16") != 0, f16 = strcmp(config->kv_cache_dtype, "f32") != 0;

    printf("\nmodel %s\n", config_model_name(config));
    printf("  %-26s %s\n", "format", format_name(model_source_format(source)));
    printf("  %-26s %s\n", "architecture", model->model_type);
    printf("  %-26s %d\n", "layers", model->num_hidden_layers);
    printf("  %-26s %d, %d for keys and values, head_dim %d\n", "heads", model->num_attention_heads,
           model->num_key_value_heads,
           model->head_dim);
    printf("  %-26s %d, %d in the MLP\n", "hidden size", model->hidden_size, model->intermediate_size);
    printf("  %-26s %d\n", "vocabulary", model->vocab_size);
    printf("  %-26s %d tokens\n", "context", model->max_position_embeddings);
    printf("  %-26s %zu tensors, %" PRIu64 " bytes\n", "weights", model_source_num_tensors(source),
           model_source_bytes(source));
    printf("  %-26s %s\n", "computed in (GPU, auto)", model->dtype == DTYPE_F16 && model_source_format(source) != LOAD_DUMMY ? "float16" : "bfloat16");
    if (f32) printf("  %-26s %" PRId64 " bytes (f32)\n", "KV cache per token", kv_bytes_per_token(model, DTYPE_F32));
    if (f16) printf("  %-26s %" PRId64 " bytes (f16)\n", "KV cache per token", kv_bytes_per_token(model, DTYPE_F16));
}

/* What a GPU holds is known to its backend, which this program lacks: the column shows what one full context takes, and nothing is
 * refused for want of the host's memory. */
static bool size_unknown_room(const struct config *config, struct ranks_options *options, uint64_t *host_bytes)
{
    if (!layout_on_gpus(config)) return false;
    *host_bytes = UINT64_MAX / 4;
    if (options->kv_cache_bytes || options->num_blocks_override > 0) return true;
    options->num_blocks_override = (options->max_model_len + options->block_size - 1) / options->block_size;
    return true;
}

static int print_ranks(const struct config *config, const struct model_config *model, struct err *err)
{
    struct rank_plan plans[MAX_RANKS];
    struct ranks_options options;
    uint64_t host_bytes = host_memory_bytes();
    char line[RANK_LINE_MAX];
    int layers[MAX_PP] = { 0 };
    struct layout all;                                     /* of every replica; ranks_options_of looks at one */
    layout_of_config(&all, config);
    int rc = layout_check(&all, model, err);
    if (rc == 0) rc = ranks_options_of(&options, layers, config, model, NULL, err);

    if (rc < 0) return rc;
    int num_ranks = options.tp_size * options.pp_size;
    bool on_gpu = size_unknown_room(config, &options, &host_bytes);
    if ((rc = ranks_plan(plans, model, &options, host_bytes, NULL, err)) < 0) return rc;
    printf("\nlayout: %d replica%s of %d rank%s, tp %d x pp %d, %s%s\n", (int)config->data_parallel_size,
           config->data_parallel_size > 1 ? "s" : "", num_ranks, num_ranks > 1 ? "s" : "", options.tp_size,
           options.pp_size, on_gpu ? "cuda" : options.ops->name, on_gpu ? "; sizes as on a CPU with KV of one full context: sluice plan has the GPU's" : "");
    for (int i = -1; i <= num_ranks; i++) {
        ranks_plan_line(line, plans, num_ranks, i);
        printf("  %s\n", line);
    }
    return 0;
}

int cli_check(int argc, char **argv)
{
    struct config config = { 0 };
    struct model_source *source = NULL;
    struct err err = { 0 };
    int rc = 0;

    if (wants_help(argc, argv)) {
        config_print_help(stdout, "usage: sluice check [MODEL] [options]\n\n"
                          "Prints every option with its value and origin; with a model also what its files\n"
                          "hold and what each rank of the layout would take.\n"
                          "Exit code 78 and one line on stderr when sluiced would refuse to start.");
        return say_done("check");
    }
    rc = config_load(&config, argc, argv, NULL, &err);
    if (rc < 0) return say_error("check", &err);
    config_print(&config, stdout);
    config_warn(&config);
    if (config.model[0]) rc = model_source_open(&source, config.model, load_format_from_name(config.load_format), &err);
    if (source) {
        print_model(&config, source);
        rc = print_ranks(&config, model_source_config(source), &err);
    }
    model_source_close(source);
    config_release(&config);
    fflush(stdout);   /* the report before the verdict */
    return rc < 0 ? say_error("check", &err) : say_done("check");
}
