/* bench.c - sluice-engine bench: the table of its commands, and what they share: options, model, line of results. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/program.h"
#include "bench_private.h"

static const struct {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
    { "step",       "time of a decode step at given batch sizes, against the floor",     bench_step },
    { "ttft",       "time to the first token of a single prompt, by its length",         bench_ttft },
    { "throughput", "many requests at once, offline: tokens per second",                 bench_throughput },
    { "kernels",    "every GPU kernel at the shapes of the models, against the ceiling", bench_kernels },
};
enum { NUM_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_usage(FILE *out)
{
    fprintf(out, "usage: sluice-engine bench COMMAND [arguments]\n\n");
    for (int i = 0; i < NUM_COMMANDS; i++) fprintf(out, "  %-11s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nEvery command has --help. Results are JSON lines on stdout. Over HTTP: sluice bench serve.\n");
}

int bench_main(int argc, char **argv)
{
    const char *name = argc > 0 ? argv[0] : "";

    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        print_usage(stdout);
        return 0;
    }
    for (int i = 0; i < NUM_COMMANDS; i++)
        if (!strcmp(name, commands[i].name)) return commands[i].run(argc, argv);
    if (*name) fprintf(stderr, "sluice-engine bench: no command '%.40s'\n", name);
    print_usage(stderr);
    return EXIT_CONFIG;
}

/* ---- one run ---- */

static void print_help(const struct bench_run *run)
{
    printf("usage: sluice-engine bench %s --model PATH [options]\n\n%s\n\n", run->name, run->usage);
    bench_options_help(run->options, run->num_options, stdout);
    printf("\nAll engine options of sluiced --help are accepted too; prefix caching is off unless asked for.\n");
}

static int load_config(struct bench_run *run, struct err *err)
{
    char no_caching[] = "--no-enable-prefix-caching", tuning[] = "--tuning=start";     /* what is measured stays as it is */
    char **rest = calloc((size_t)run->argc + 2, sizeof *rest);
    int n_rest = 0;

    if (!rest) return err_set(err, ERR_NO_MEMORY, "out of memory");
    rest[0] = no_caching;
    rest[1] = tuning;
    int rc = bench_options_take(run->options, run->num_options, run->argc - 1, run->argv + 1, rest + 2, &n_rest, err);
    if (rc == 0) rc = config_load(&run->config, n_rest + 2, rest, NULL, err);
    free(rest);
    return rc;
}

/* Of all ranks: of GPUs by name, of the host's memory measured. */
void bench_run_find_bandwidth(struct bench_run *run)
{
    struct bench_gpu gpu;
    int threads = run->config.cpu_threads ? (int)run->config.cpu_threads * run->info->num_ranks : (int)sysconf(_SC_NPROCESSORS_ONLN);

    if (run->bandwidth_gbs > 0) return;
    if (!strncmp(run->info->describe, "cpu", 3)) {
        run->bandwidth_gbs = bench_host_bandwidth_gbs(threads);
        return;
    }
    bench_gpu_look(&gpu);
    run->bandwidth_gbs = bench_known_bandwidth_gbs(gpu.name) * run->info->num_ranks;
}

int bench_run_open(struct bench_run *run, const int64_t *max_sequences, struct err *err)
{
    int rc;

    if (wants_help(run->argc - 1, run->argv + 1)) {
        print_help(run);
        return 1;
    }
    if ((rc = load_config(run, err)) < 0) return rc;
    log_set_level((enum log_level)log_level_from_name(run->config.log_level));
    if ((rc = offline_open(&run->replica, &run->config, (int32_t)*max_sequences, err)) < 0) return rc;
    run->info = offline_info(run->replica);
    run->random.state = (uint64_t)run->config.seed + 1;
    fprintf(stderr, "%s: %s, ready after %.1f s; %d KV blocks of %d tokens\n", config_model_name(&run->config),
            run->info->describe, run->info->load_s, run->info->num_blocks, run->info->block_size);
    return 0;
}

int bench_run_close(struct bench_run *run, int rc, const struct err *err)
{
    offline_close(run->replica);
    config_release(&run->config);
    if (rc >= 0) return 0;
    fprintf(stderr, "sluice-engine bench %s: %s\n", run->name, err->message);
    return offline_exit_code(rc);
}

static double num_elements(const struct model_config *model)
{
    double q = (double)model->num_attention_heads * model->head_dim;
    double kv = (double)model->num_key_value_heads * model->head_dim;
    double layer = model->hidden_size * (2 * q + 2 * kv + 3.0 * model->intermediate_size);
    double table = (double)model->vocab_size * model->hidden_size;

    return table * (model->tie_word_embeddings ? 1 : 2) + layer * model->num_hidden_layers;
}

void bench_run_line(const struct bench_run *run, struct bench_line *line)
{
    struct bench_about about = { run->name, "sluice-engine bench", run->argc, run->argv };
    const struct offline_info *info = run->info;

    bench_line_begin(line, &about);
    bench_line_text(line, "device", info->describe);
    bench_line_text(line, "model", config_model_name(&run->config));
    bench_line_text(line, "load_format", run->config.load_format);
    bench_line_real(line, "weight_bits", 8 * (double)info->weights_bytes / num_elements(info->model));
    bench_line_text(line, "dtype", run->config.dtype);
    bench_line_text(line, "kv_cache_dtype", run->config.kv_cache_dtype);
    bench_line_int(line, "tensor_parallel_size", run->config.tensor_parallel_size);
    bench_line_int(line, "pipeline_parallel_size", run->config.pipeline_parallel_size);
    bench_line_int(line, "plans_in_flight", info->num_slots);
    bench_line_int(line, "max_num_batched_tokens", info->max_num_batched_tokens);
}

void bench_run_prompt(struct bench_run *run, token_id *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++) ids[i] = (token_id)bench_random_between(&run->random, 0, run->info->model->vocab_size - 1);
}
