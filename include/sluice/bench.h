/* bench.h - what every benchmark command shares: its options, its statistics, its line of JSON.
 * A figure counts only with device, clocks, driver, commit and command: bench_line_begin puts them in front of it.
 * Thread: one owner each. */
#ifndef SLUICE_BENCH_H
#define SLUICE_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <sluice/err.h>

/* ---- statistics ---- */
struct bench_stats { size_t n; double mean, std, min, max, median, p10, p90, p95, p99; };
/* Sorts values. All zeros when n is 0. std: of the population. */
void bench_stats_of(struct bench_stats *stats, double *values, size_t n);
/* Linear between the two nearest (as numpy.percentile); sorted[n], n > 0, percent 0..100. */
double bench_percentile(const double *sorted, size_t n, double percent);

/* ---- randomness: splitmix64, the same on every machine ---- */
struct bench_random { uint64_t state; };
uint64_t bench_random_next(struct bench_random *random);
int64_t  bench_random_between(struct bench_random *random, int64_t low, int64_t high);   /* both included; low <= high */
double   bench_random_unit(struct bench_random *random);                                 /* (0, 1) */
/* Of the gamma distribution with this shape and a mean of 1 (shape 1: exponential). */
double   bench_random_gamma(struct bench_random *random, double shape);

/* ---- options of one command: "--name value" or "--name=value", flags "--name" ---- */
enum bench_type { BENCH_FLAG, BENCH_INT, BENCH_REAL, BENCH_TEXT, BENCH_INTS, BENCH_RANGE };
enum { BENCH_MAX_INTS = 64 };
struct bench_ints { int n; int64_t items[BENCH_MAX_INTS]; };       /* "1,8,64" */
struct bench_range { int64_t low, high; };                         /* "128-384", or "256" for both */

struct bench_option {
    const char *name;              /* "--batch" */
    enum bench_type type;
    void *target;                  /* bool, int64_t, double, const char * (borrowed), bench_ints, bench_range */
    double min, max;               /* of every number */
    const char *help;
};
/* Takes the options of the table out of argv; what is left, in order, goes to rest[*n_rest] (room for argc), or, with
 * rest NULL, is refused. Anything after "--" is left. ERR_CONFIG names the option and what it accepts. */
int  bench_options_take(const struct bench_option *options, size_t num, int argc, char **argv, char **rest, int *n_rest,
                        struct err *err);
void bench_options_help(const struct bench_option *options, size_t num, FILE *out);

/* ---- one line of JSON ---- */
struct bench_line { char *text; size_t len, cap; bool failed; };
struct bench_about {
    const char *bench;             /* "step" */
    const char *program;           /* "sluice-engine bench" */
    int argc; char **argv;         /* as the command got them, its name included */
};
/* {"bench": ..., "commit": ..., "command": ..., "cpu": ..., "gpu": name or null, "num_gpus", "driver", "sm_clock_mhz",
 * "mem_clock_mhz" (of now: begin the line when the measured work has just ended). */
void bench_line_begin(struct bench_line *line, const struct bench_about *about);
void bench_line_text(struct bench_line *line, const char *key, const char *value);     /* NULL: null */
void bench_line_int(struct bench_line *line, const char *key, int64_t value);
void bench_line_real(struct bench_line *line, const char *key, double value);           /* NAN: null */
/* Closes it, writes it to out and frees it. ERR_IO or ERR_NO_MEMORY. */
int  bench_line_end(struct bench_line *line, FILE *out, struct err *err);

/* ---- the machine ---- */
/* What is known of the first GPU; name "" when there is none or no NVML. */
struct bench_gpu { char name[96], driver[96]; int count, sm_clock_mhz, mem_clock_mhz; };
void bench_gpu_look(struct bench_gpu *gpu);
/* Measured read bandwidth of this device in GB/s, by its name; 0 = unknown. */
double bench_known_bandwidth_gbs(const char *gpu_name);
/* Measures what this many threads read from the host's memory (a few 100 ms, 128 MiB each); 0 = no memory to try. */
double bench_host_bandwidth_gbs(int threads);

#endif
