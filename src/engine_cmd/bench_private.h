/* bench_private.h - what the commands of `sluice-engine bench` share. argv[0] of each is its name. */
#ifndef SLUICE_ENGINE_CMD_BENCH_PRIVATE_H
#define SLUICE_ENGINE_CMD_BENCH_PRIVATE_H

#include <sluice/bench.h>
#include <sluice/offline.h>

int bench_step(int argc, char **argv);
int bench_ttft(int argc, char **argv);
int bench_throughput(int argc, char **argv);
int bench_kernels(int argc, char **argv);

/* One run of one command. */
struct bench_run {
    const char *name, *summary, *usage;    /* "step", one line for the list, the arguments */
    const struct bench_option *options;
    size_t num_options;
    int argc; char **argv;
    struct config config;
    struct offline *replica;
    const struct offline_info *info;
    double bandwidth_gbs;                  /* 0 = not known */
    struct bench_random random;
};
/* Options of the command, then of the configuration (prefix caching off unless asked for), then the model. 1: the help
 * was printed, all is done. *max_sequences: alive at once; read after the options. */
int  bench_run_open(struct bench_run *run, const int64_t *max_sequences, struct err *err);
void bench_run_find_bandwidth(struct bench_run *run);
/* Says err and gives the exit code; closes. */
int  bench_run_close(struct bench_run *run, int rc, const struct err *err);
/* Head of a line: bench_line_begin, then device, model, dtypes, layout, limits. */
void bench_run_line(const struct bench_run *run, struct bench_line *line);
/* n random ids of the vocabulary. */
void bench_run_prompt(struct bench_run *run, token_id *ids, int64_t n);

#endif
