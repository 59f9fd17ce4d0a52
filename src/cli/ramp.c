/* ramp.c - sluice ramp: how many streams a server holds until the time to first token crosses its target, and what it is
 * that gives way. Each level runs a closed loop; the first wave of a level, which starts all at once, is not judged.
 * After the crossing the levels between are halved. What the server's own /metrics say of a level decides on the reason:
 * the parts of the time to first token (queue, prompt, the rest), KV memory in use, who ran and who waited. */
#include <sluice/cli.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sluice/bench.h>

#include "base/program.h"
#include "load.h"
#include "say.h"
#include "serve_report.h"

enum { METRICS_BYTES = 1 << 20, METRICS_MS = 2000, SAMPLE_MS = 100, MAX_LEVELS = 32, HALVINGS = 3 };

struct ramp_args {
    const char *base_url, *model, *api_key;
    struct bench_range input_len, output_len;
    int64_t start, max_concurrency, waves, seed, vocab_size, threads;
    double ttft_target_ms;
};

/* ---- what the server says ---- */

struct counters { double queue_s, queue_n, prefill_s, prefill_n, ttft_s, ttft_n, preemptions; };
struct peaks { double kv_usage, running, waiting; int samples, waiting_samples; };

struct watch {
    struct target metrics;
    char *text;                        /* [METRICS_BYTES] of the last look */
    bool known;                        /* a sluice with open metrics */
    struct peaks peaks;
    _Atomic bool ending;
    pthread_t thread;
    bool started;
};

/* Sum of the series of this name; NAN when there is none. */
static double metric_sum(const char *text, const char *name)
{
    size_t len = strlen(name);
    double sum = NAN;

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, len) != 0 || (line[len] != ' ' && line[len] != '{')) continue;
        const char *value = line[len] == '{' ? strchr(line, '}') : line + len - 1;
        if (value) sum = (isnan(sum) ? 0 : sum) + strtod(value + 1, NULL);
    }
    return sum;
}

static bool look(struct watch *watch)
{
    int status = url_get(&watch->metrics, watch->text, METRICS_BYTES, METRICS_MS, NULL);

    return status == 200 && !isnan(metric_sum(watch->text, "sluice_requests_running"));
}

static struct counters read_counters(struct watch *watch)
{
    if (!watch->known || !look(watch)) return (struct counters){ 0 };
    const char *text = watch->text;
    return (struct counters){ metric_sum(text, "sluice_queue_seconds_sum"), metric_sum(text, "sluice_queue_seconds_count"),
                              metric_sum(text, "sluice_prefill_seconds_sum"), metric_sum(text, "sluice_prefill_seconds_count"),
                              metric_sum(text, "sluice_ttft_seconds_sum"), metric_sum(text, "sluice_ttft_seconds_count"),
                              metric_sum(text, "sluice_preemptions_total") };
}

static void raise_to(double *peak, double value)
{
    if (value > *peak) *peak = value;
}

static void *sample(void *arg)
{
    struct watch *watch = arg;
    struct timespec pause = { .tv_nsec = SAMPLE_MS * 1000000L };

    while (!atomic_load(&watch->ending)) {
        if (look(watch)) {
            double waiting = metric_sum(watch->text, "sluice_requests_waiting");
            raise_to(&watch->peaks.running, metric_sum(watch->text, "sluice_requests_running"));
            raise_to(&watch->peaks.waiting, waiting);
            raise_to(&watch->peaks.kv_usage, metric_sum(watch->text, "sluice_kv_usage_ratio") /
                                                 fmax(1, metric_sum(watch->text, "sluice_replica_up")));
            watch->peaks.samples++;
            watch->peaks.waiting_samples += waiting > 0;
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void watch_begin(struct watch *watch)
{
    watch->peaks = (struct peaks){ 0 };
    atomic_store(&watch->ending, false);
    watch->started = watch->known && pthread_create(&watch->thread, NULL, sample, watch) == 0;
}

static void watch_end(struct watch *watch)
{
    atomic_store(&watch->ending, true);
    if (watch->started) pthread_join(watch->thread, NULL);
    watch->started = false;
}

/* ---- one level ---- */

struct level {
    int64_t concurrency;
    struct serve_report report;        /* ttft: without the first wave */
    double queue_ms, prefill_ms, rest_ms;      /* means; NAN when the server does not say */
    double preemptions;
    struct peaks peaks;
    char first_error[LOAD_ERROR_SIZE];
};

static double mean_ms(double seconds, double n) { return n > 0 ? 1e3 * seconds / n : NAN; }

static void explain_parts(struct level *level, const struct counters *before, const struct counters *after, double client_ttft_ms)
{
    double server = mean_ms(after->ttft_s - before->ttft_s, after->ttft_n - before->ttft_n);

    level->queue_ms = mean_ms(after->queue_s - before->queue_s, after->queue_n - before->queue_n);
    level->prefill_ms = mean_ms(after->prefill_s - before->prefill_s, after->prefill_n - before->prefill_n);
    level->rest_ms = fmax(0, server - level->queue_ms - level->prefill_ms) + fmax(0, client_ttft_ms - server);
    level->preemptions = after->preemptions - before->preemptions;
}

/* Of the requests that began when others ran already. */
static int judge_ttft(struct level *level, const struct load_outcome *outcome, size_t num, struct err *err)
{
    double *ms = calloc(num, sizeof *ms);
    size_t n = 0;

    if (!ms) return err_set(err, ERR_NO_MEMORY, "out of memory");
    for (size_t i = (size_t)level->concurrency; i < num; i++) {
        const struct load_result *result = &outcome->results[i];
        if (result->ok) ms[n++] = (double)(result->first_ns - result->start_ns) / 1e6;
    }
    bench_stats_of(&level->report.ttft, ms, n);
    free(ms);
    return 0;
}

static int run_level(struct level *level, const struct ramp_args *args, struct load_spec *spec, struct watch *watch,
                     struct err *err)
{
    size_t num = (size_t)(level->concurrency * args->waves < 16 ? 16 : level->concurrency * args->waves);
    struct load_request *requests = calloc(num, sizeof *requests);
    struct bench_random random = { (uint64_t)args->seed + (uint64_t)level->concurrency };
    struct load_outcome outcome = { 0 };
    struct goodput none = { 0 };

    if (!requests) return err_set(err, ERR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < num; i++) {
        requests[i].input_len = bench_random_between(&random, args->input_len.low, args->input_len.high);
        requests[i].output_len = bench_random_between(&random, args->output_len.low, args->output_len.high);
    }
    spec->concurrency = level->concurrency;
    spec->seed = random.state;
    struct counters before = read_counters(watch);
    watch_begin(watch);
    int rc = load_run(spec, requests, num, &outcome, err);
    watch_end(watch);
    struct counters after = read_counters(watch);
    level->peaks = watch->peaks;
    memcpy(level->first_error, outcome.first_error, sizeof level->first_error);
    if (rc == 0) rc = serve_report_of(&level->report, &outcome, requests, num, &none, err);
    if (rc == 0) explain_parts(level, &before, &after, level->report.ttft.mean);
    if (rc == 0) rc = judge_ttft(level, &outcome, num, err);
    load_outcome_release(&outcome);
    free(requests);
    return rc;
}

static bool holds(const struct level *level, const struct ramp_args *args)
{
    return !level->report.failed && level->report.ttft.p95 <= args->ttft_target_ms;
}

/* ---- the reason ---- */

static const struct { const char *name, *advice; } bounds[] = {
    { "failures", "requests failed: the first error says why" },
    { "kv_memory", "KV memory is full: more GPU memory or GPUs per replica, fewer bits per weight, shorter contexts" },
    { "max_num_seqs", "requests wait while the batch is full: raise max_num_seqs, or add replicas" },
    { "prefill", "prompts are computed too slowly for their rate: add replicas or GPUs per replica, share prefixes" },
    { "front_end", "the time is lost outside of the engine: gateway threads, network, or this client" },
    { "unknown", "the server has no sluice metrics (or asks for a key): the reason is not known" },
};
enum { BOUND_FAILURES, BOUND_KV, BOUND_BATCH, BOUND_PREFILL, BOUND_FRONT_END, BOUND_UNKNOWN };

static int bound_of(const struct level *level, bool known)
{
    const struct peaks *peaks = &level->peaks;

    if (level->report.failed) return BOUND_FAILURES;
    if (!known || isnan(level->queue_ms) || isnan(level->prefill_ms)) return BOUND_UNKNOWN;
    if (level->preemptions > 0 || peaks->kv_usage > 0.95) return BOUND_KV;
    if (level->rest_ms > level->queue_ms && level->rest_ms > level->prefill_ms) return BOUND_FRONT_END;
    /* a batch that is full keeps some waiting all the time; prompts that arrive in waves do not */
    bool always_waiting = 2 * peaks->waiting_samples > peaks->samples;
    if (level->queue_ms > level->prefill_ms && always_waiting) return BOUND_BATCH;
    return BOUND_PREFILL;
}

/* ---- the ramp ---- */

static int print_level(const struct bench_about *about, const struct ramp_args *args, const struct level *level, struct err *err)
{
    const struct serve_report *report = &level->report;
    struct bench_line line;

    fprintf(stderr, "%5lld streams: time to first token p95 %8.1f ms (queue %.1f, prompt %.1f, rest %.1f), per token %6.2f ms, "
            "output %8.0f tok/s%s\n", (long long)level->concurrency, report->ttft.p95, level->queue_ms, level->prefill_ms,
            level->rest_ms, report->tpot.median, report->output_throughput, holds(level, args) ? "" : "  over");
    bench_line_begin(&line, about);
    bench_line_int(&line, "concurrency", level->concurrency);
    bench_line_int(&line, "completed", (int64_t)report->completed);
    bench_line_int(&line, "failed", (int64_t)report->failed);
    bench_line_real(&line, "p95_ttft_ms", report->ttft.p95);
    bench_line_real(&line, "median_ttft_ms", report->ttft.median);
    bench_line_real(&line, "median_tpot_ms", report->tpot.median);
    bench_line_real(&line, "output_throughput", report->output_throughput);
    bench_line_real(&line, "mean_queue_ms", level->queue_ms);
    bench_line_real(&line, "mean_prefill_ms", level->prefill_ms);
    bench_line_real(&line, "mean_rest_ms", level->rest_ms);
    bench_line_real(&line, "max_kv_usage", level->peaks.kv_usage);
    bench_line_real(&line, "max_running", level->peaks.running);
    bench_line_real(&line, "max_waiting", level->peaks.waiting);
    bench_line_real(&line, "preemptions", level->preemptions);
    bench_line_text(&line, "first_error", level->first_error[0] ? level->first_error : NULL);
    return bench_line_end(&line, stdout, err);
}

static int print_end(const struct bench_about *about, const struct ramp_args *args, const struct level *best,
                     const struct level *worst, bool known, struct err *err)
{
    int bound = worst->concurrency ? bound_of(worst, known) : BOUND_UNKNOWN;
    struct bench_line line;

    bench_line_begin(&line, about);
    bench_line_real(&line, "ttft_target_ms", args->ttft_target_ms);
    bench_line_int(&line, "max_streams", best->concurrency);
    bench_line_real(&line, "p95_ttft_ms", best->concurrency ? best->report.ttft.p95 : NAN);
    bench_line_real(&line, "output_throughput", best->concurrency ? best->report.output_throughput : NAN);
    bench_line_text(&line, "bound", worst->concurrency ? bounds[bound].name : NULL);
    if (worst->concurrency)
        fprintf(stderr, "%lld streams hold %.0f ms; at %lld: %s - %s\n", (long long)best->concurrency, args->ttft_target_ms,
                (long long)worst->concurrency, bounds[bound].name, bounds[bound].advice);
    else fprintf(stderr, "%lld streams hold %.0f ms, the most that was asked for\n", (long long)best->concurrency,
                 args->ttft_target_ms);
    return bench_line_end(&line, stdout, err);
}

/* The next level: twice the best, or between the best and the worst; 0 when that is close enough. */
static int64_t next_level(const struct ramp_args *args, int64_t best, int64_t worst, int *halvings)
{
    if (!worst && !best) return args->start;
    if (!worst) return best >= args->max_concurrency ? 0 : best * 2 < args->max_concurrency ? best * 2 : args->max_concurrency;
    if (!best || worst - best <= best / 8 + 1 || ++*halvings > HALVINGS) return 0;
    return best + (worst - best) / 2;
}

static int run_ramp(const struct bench_about *about, const struct ramp_args *args, struct load_spec *spec, struct watch *watch,
                    struct err *err)
{
    struct level level, best = { 0 }, worst = { 0 };
    int halvings = 0, rc = 0;

    for (int i = 0; i < MAX_LEVELS; i++) {
        level = (struct level){ .concurrency = next_level(args, best.concurrency, worst.concurrency, &halvings) };
        if (!level.concurrency) break;
        if ((rc = run_level(&level, args, spec, watch, err)) < 0) return rc;
        if ((rc = print_level(about, args, &level, err)) < 0) return rc;
        if (!level.report.completed) return err_set(err, ERR_IO, "no request was answered: %s", level.first_error);
        *(holds(&level, args) ? &best : &worst) = level;
    }
    return print_end(about, args, &best, &worst, watch->known, err);
}

static int ramp(const struct bench_about *about, const struct ramp_args *args, struct err *err)
{
    struct watch watch = { 0 };
    struct load_spec spec = { .model = args->model, .api_key = args->api_key, .ignore_eos = true, .vocab_size = args->vocab_size,
                              .threads = args->threads, .timeout_ms = 600000 };
    int rc = 0;

    if (!args->model) return err_set(err, ERR_CONFIG, "--model: the name that the server has for it is needed");
    if (args->start > args->max_concurrency) return err_set(err, ERR_CONFIG, "--start: is above --max-concurrency");
    if (!url_read(args->base_url, &spec.target) || spec.target.path[0])
        return err_set(err, ERR_CONFIG, "--base-url: '%.200s' is not http://HOST[:PORT]", args->base_url);
    watch.metrics = spec.target;
    snprintf(watch.metrics.path, sizeof watch.metrics.path, "/metrics");
    snprintf(spec.target.path, sizeof spec.target.path, "/v1/completions");
    if (!(watch.text = malloc(METRICS_BYTES))) return err_set(err, ERR_NO_MEMORY, "out of memory");
    watch.known = look(&watch);
    rc = run_ramp(about, args, &spec, &watch, err);
    free(watch.text);
    return rc;
}

int cli_ramp(int argc, char **argv)
{
    struct ramp_args args = { .base_url = "http://127.0.0.1:8000", .input_len = { 128, 1024 }, .output_len = { 128, 384 },
        .start = 1, .max_concurrency = 1024, .waves = 4, .vocab_size = 32000, .threads = 1, .ttft_target_ms = 500,
        .api_key = getenv("OPENAI_API_KEY") };
    const struct bench_option options[] = {
        { "--base-url", BENCH_TEXT, &args.base_url, 0, 0, "the server (http://127.0.0.1:8000)" },
        { "--model", BENCH_TEXT, &args.model, 0, 0, "name of the model there" },
        { "--ttft-target-ms", BENCH_REAL, &args.ttft_target_ms, 0.001, 1e7, "that the p95 of the time to first token may have (500)" },
        { "--input-len", BENCH_RANGE, &args.input_len, 1, 1 << 24, "random tokens of each prompt, N or LOW-HIGH (128-1024)" },
        { "--output-len", BENCH_RANGE, &args.output_len, 1, 1 << 24, "tokens of each answer, N or LOW-HIGH (128-384)" },
        { "--start", BENCH_INT, &args.start, 1, 1 << 20, "first level (1)" },
        { "--max-concurrency", BENCH_INT, &args.max_concurrency, 1, 1 << 20, "last level (1024)" },
        { "--waves", BENCH_INT, &args.waves, 2, 1000, "requests of a level, times its streams (4)" },
        { "--vocab-size", BENCH_INT, &args.vocab_size, 1, 1 << 22, "prompt ids are below this (32000)" },
        { "--seed", BENCH_INT, &args.seed, 0, 9e15, "of prompts and lengths (0)" },
        { "--threads", BENCH_INT, &args.threads, 1, 64, "of this client (1)" },
        { "--api-key", BENCH_TEXT, &args.api_key, 0, 0, "or $OPENAI_API_KEY" },
    };
    enum { NUM = sizeof options / sizeof options[0] };
    struct bench_about about = { "ramp", "sluice ramp", argc, argv };
    struct err err = { 0 };

    if (wants_help(argc, argv)) {
        puts("usage: sluice ramp --model NAME [options]\n\nRaises the number of streams until the time to first token crosses its\n"
             "target, then says how many the server holds, what gave way, and what to change.\n");
        bench_options_help(options, NUM, stdout);
        return say_done("ramp");
    }
    int rc = bench_options_take(options, NUM, argc, argv, NULL, NULL, &err);
    if (rc == 0) rc = ramp(&about, &args, &err);
    return rc < 0 ? say_error("ramp", &err) : say_done("ramp");
}
