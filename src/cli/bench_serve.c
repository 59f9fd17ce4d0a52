/* bench_serve.c - sluice bench serve: load on a running server, of any kind that has OpenAI's streamed completions.
 * Closed loop with --concurrency: as many requests run at any time; open with --request-rate: they arrive when they
 * arrive, at gamma-distributed distances (burstiness 1: a Poisson process). Both together: arrivals wait for room. */
#include <sluice/cli.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sluice/bench.h>

#include "base/program.h"
#include "load.h"
#include "say.h"
#include "serve_report.h"

enum { MAX_PROMPTS_HERE = 1 << 20 };

#define BENCH_USAGE "usage: sluice bench serve --model NAME [options]"

struct serve_args {
    const char *base_url, *endpoint, *model, *goodput, *api_key;
    struct bench_range input_len, output_len;
    int64_t num_prompts, concurrency, threads, seed, vocab_size, num_warmups, timeout_s;
    double request_rate, burstiness;
    bool ignore_eos;
};

static void draw_requests(struct load_request *requests, int64_t num, const struct serve_args *args)
{
    struct bench_random random = { (uint64_t)args->seed };
    double at_s = 0;

    for (int64_t i = 0; i < num; i++) {
        requests[i].input_len = bench_random_between(&random, args->input_len.low, args->input_len.high);
        requests[i].output_len = bench_random_between(&random, args->output_len.low, args->output_len.high);
        requests[i].at_ns = (int64_t)(at_s * 1e9);
        if (args->request_rate > 0) at_s += bench_random_gamma(&random, args->burstiness) / args->request_rate;
    }
}

static int read_target(struct load_spec *spec, const struct serve_args *args, struct err *err)
{
    char base[PATH_SIZE];

    spec->target.path[0] = '\0';
    if (!url_read(args->base_url, &spec->target))
        return err_set(err, ERR_CONFIG, "--base-url: '%.200s' is not http://HOST[:PORT][/PATH]", args->base_url);
    memcpy(base, spec->target.path, sizeof base);
    size_t len = strlen(base);
    if (len && base[len - 1] == '/') base[len - 1] = '\0';
    int n = snprintf(spec->target.path, sizeof spec->target.path, "%s%s", base, args->endpoint);
    if (args->endpoint[0] != '/' || n >= (int)sizeof spec->target.path || strpbrk(args->endpoint, " \r\n"))
        return err_set(err, ERR_CONFIG, "--endpoint: '%.80s' is not a path", args->endpoint);
    return 0;
}

static int make_spec(struct load_spec *spec, const struct serve_args *args, struct err *err)
{
    if (!args->model) return err_set(err, ERR_CONFIG, "--model: the name that the server has for it is needed");
    *spec = (struct load_spec){ .model = args->model, .api_key = args->api_key, .ignore_eos = args->ignore_eos,
                                .vocab_size = args->vocab_size, .seed = (uint64_t)args->seed, .concurrency = args->concurrency,
                                .threads = args->threads, .timeout_ms = args->timeout_s * 1000 };
    return read_target(spec, args, err);
}

/* The first answer says whether the rest makes sense: it is not counted. */
static int warm_up(const struct load_spec *spec, const struct serve_args *args, struct err *err)
{
    struct load_request *requests = calloc((size_t)args->num_warmups, sizeof *requests);
    struct load_spec other = *spec;
    struct load_outcome outcome;
    int rc;

    if (!requests) return err_set(err, ERR_NO_MEMORY, "out of memory");
    draw_requests(requests, args->num_warmups, args);
    for (int64_t i = 0; i < args->num_warmups; i++) requests[i].at_ns = 0;
    other.seed = ~spec->seed;              /* other prompts: nothing of these is in a prefix cache afterwards */
    rc = load_run(&other, requests, (size_t)args->num_warmups, &outcome, err);
    if (rc == 0 && !outcome.num_ok) rc = err_set(err, ERR_IO, "the first request failed: %s", outcome.first_error);
    load_outcome_release(&outcome);
    free(requests);
    return rc;
}

static int print(const struct bench_about *about, const struct serve_args *args, const struct serve_report *report,
                 const struct load_outcome *outcome, const struct goodput *goodput, struct err *err)
{
    struct bench_line line;

    serve_report_table(report, outcome, goodput, stderr);
    bench_line_begin(&line, about);
    bench_line_text(&line, "base_url", args->base_url);
    bench_line_text(&line, "model_id", args->model);
    bench_line_int(&line, "num_prompts", args->num_prompts);
    bench_line_int(&line, "input_len", args->input_len.high);
    bench_line_int(&line, "output_len", args->output_len.high);
    if (args->request_rate > 0) bench_line_real(&line, "request_rate", args->request_rate);
    else bench_line_text(&line, "request_rate", "inf");
    bench_line_real(&line, "burstiness", args->burstiness);
    bench_line_real(&line, "max_concurrency", args->concurrency ? (double)args->concurrency : NAN);
    serve_report_line(report, outcome, goodput, &line);
    return bench_line_end(&line, stdout, err);
}

static int measure(const struct bench_about *about, const struct serve_args *args, struct err *err)
{
    struct load_request *requests = NULL;
    struct goodput goodput = { 0 };
    struct serve_report report;
    struct load_outcome outcome = { 0 };
    struct load_spec spec;
    int rc;

    if ((rc = make_spec(&spec, args, err)) < 0) return rc;
    if (args->goodput && (rc = goodput_read(&goodput, args->goodput, err)) < 0) return rc;
    if (args->num_warmups && (rc = warm_up(&spec, args, err)) < 0) return rc;
    requests = calloc((size_t)args->num_prompts, sizeof *requests);
    if (!requests) return err_set(err, ERR_NO_MEMORY, "out of memory");
    draw_requests(requests, args->num_prompts, args);
    rc = load_run(&spec, requests, (size_t)args->num_prompts, &outcome, err);
    if (rc == 0) rc = serve_report_of(&report, &outcome, requests, (size_t)args->num_prompts, &goodput, err);
    if (rc == 0) rc = print(about, args, &report, &outcome, &goodput, err);
    if (rc == 0 && !report.completed) rc = err_set(err, ERR_IO, "no request was answered: %s", outcome.first_error);
    load_outcome_release(&outcome);
    free(requests);
    return rc;
}

static int serve(int argc, char **argv)
{
    struct serve_args args = { .base_url = "http://127.0.0.1:8000", .endpoint = "/v1/completions", .input_len = { 128, 128 },
        .output_len = { 256, 256 }, .num_prompts = 256, .threads = 1, .vocab_size = 32000, .num_warmups = 1, .timeout_s = 600,
        .burstiness = 1, .api_key = getenv("OPENAI_API_KEY") };
    const struct bench_option options[] = {
        { "--base-url", BENCH_TEXT, &args.base_url, 0, 0, "the server (http://127.0.0.1:8000)" },
        { "--endpoint", BENCH_TEXT, &args.endpoint, 0, 0, "its streamed completions (/v1/completions)" },
        { "--model", BENCH_TEXT, &args.model, 0, 0, "name of the model there" },
        { "--num-prompts", BENCH_INT, &args.num_prompts, 1, MAX_PROMPTS_HERE, "requests (256)" },
        { "--input-len", BENCH_RANGE, &args.input_len, 1, 1 << 24, "random tokens of each prompt, N or LOW-HIGH (128)" },
        { "--output-len", BENCH_RANGE, &args.output_len, 1, 1 << 24, "tokens of each answer, N or LOW-HIGH (256)" },
        { "--output-len-range", BENCH_RANGE, &args.output_len, 1, 1 << 24, "the same" },
        { "--concurrency", BENCH_INT, &args.concurrency, 1, 1 << 20, "requests that run at once (no limit)" },
        { "--max-concurrency", BENCH_INT, &args.concurrency, 1, 1 << 20, "the same" },
        { "--request-rate", BENCH_REAL, &args.request_rate, 1e-6, 1e9, "arrivals per second (all at once)" },
        { "--burstiness", BENCH_REAL, &args.burstiness, 1e-3, 1e6, "1: Poisson; below: bursts; above: even (1)" },
        { "--ignore-eos", BENCH_FLAG, &args.ignore_eos, 0, 0, "every answer has its full length" },
        { "--goodput", BENCH_TEXT, &args.goodput, 0, 0, "targets in ms that make a request good: ttft:200,tpot:20,e2el:3000" },
        { "--vocab-size", BENCH_INT, &args.vocab_size, 1, 1 << 22, "prompt ids are below this (32000)" },
        { "--seed", BENCH_INT, &args.seed, 0, 9e15, "of prompts, lengths, arrivals (0)" },
        { "--num-warmups", BENCH_INT, &args.num_warmups, 0, MAX_PROMPTS_HERE, "requests before, not counted (1)" },
        { "--threads", BENCH_INT, &args.threads, 1, 64, "of this client (1)" },
        { "--timeout-s", BENCH_INT, &args.timeout_s, 1, 86400, "give up when nothing comes for so long (600)" },
        { "--api-key", BENCH_TEXT, &args.api_key, 0, 0, "or $OPENAI_API_KEY" },
    };
    enum { NUM = sizeof options / sizeof options[0] };
    struct bench_about about = { "serve", "sluice bench", argc, argv };
    struct err err = { 0 };

    if (wants_help(argc, argv)) {
        puts(BENCH_USAGE "\n\nStreams completions of random prompts from a running server, greedy, and prints what\n"
             "`vllm bench serve` prints: a table on stderr, one line of JSON on stdout.\n");
        bench_options_help(options, NUM, stdout);
        return say_done("bench serve");
    }
    int rc = bench_options_take(options, NUM, argc - 1, argv + 1, NULL, NULL, &err);
    if (rc == 0) rc = measure(&about, &args, &err);
    return rc < 0 ? say_error("bench serve", &err) : say_done("bench serve");
}

int cli_bench(int argc, char **argv)
{
    if (argc > 0 && !strcmp(argv[0], "serve")) return serve(argc, argv);
    if (argc > 0 && strcmp(argv[0], "--help") != 0 && strcmp(argv[0], "-h") != 0)
        return say_refused("bench", "no command '%.40s': serve (of one replica without HTTP: sluice-engine bench)", argv[0]);
    puts(BENCH_USAGE "\n\nWithout HTTP, of one replica: sluice-engine bench step | ttft | throughput | kernels.");
    return say_done("bench");
}
