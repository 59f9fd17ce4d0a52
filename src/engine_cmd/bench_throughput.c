/* bench_throughput.c - sluice-engine bench throughput: all requests are there at once, the scheduler does the rest.
 * Time runs from the first request handed over to the last token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench_private.h"

enum { PROGRESS_S = 5 };

struct throughput_args {
    struct bench_range input_len, output_len;
    int64_t num_prompts;
    const char *dataset;
};

struct job { int32_t input_len, output_len; };

/* Lengths as of people talking to an assistant: log-normal, medians near 120 and 170 tokens, long tails cut. */
static int32_t lognormal(struct bench_random *random, double median, double sigma, int32_t low, int32_t high)
{
    double u = bench_random_unit(random), v = bench_random_unit(random);
    double drawn = median * exp(sigma * sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v));

    return drawn < low ? low : drawn > high ? high : (int32_t)drawn;
}

static int take_dataset(struct throughput_args *args, bool *sharegpt, struct err *err)
{
    static const char uniform[] = "uniform:";
    struct bench_range range;
    char *texts[2] = { "--range", NULL };
    char text[64];
    const struct bench_option option = { "--range", BENCH_RANGE, &range, 1, 1 << 24, "" };

    *sharegpt = false;
    if (!args->dataset) return 0;
    *sharegpt = !strcmp(args->dataset, "sharegpt-like");
    if (*sharegpt) return 0;
    snprintf(text, sizeof text, "%s", args->dataset);
    texts[1] = text + sizeof uniform - 1;
    bool known = !strncmp(args->dataset, uniform, sizeof uniform - 1);
    if (!known || bench_options_take(&option, 1, 2, texts, NULL, NULL, NULL) < 0)
        return err_set(err, ERR_CONFIG, "--dataset: '%.60s' is not uniform:LOW-HIGH or sharegpt-like", args->dataset);
    args->input_len = args->output_len = range;
    return 0;
}

static struct job draw_job(struct bench_random *random, const struct throughput_args *args, bool sharegpt)
{
    if (sharegpt) return (struct job){ lognormal(random, 120, 1.2, 4, 1024), lognormal(random, 170, 0.9, 4, 1024) };
    return (struct job){ (int32_t)bench_random_between(random, args->input_len.low, args->input_len.high),
                         (int32_t)bench_random_between(random, args->output_len.low, args->output_len.high) };
}

static int add_job(struct bench_run *run, const struct job *job, uint64_t id, struct err *err)
{
    token_id *ids = malloc((size_t)job->input_len * sizeof *ids);
    int rc = ERR_NO_MEMORY;

    if (ids) {
        bench_run_prompt(run, ids, job->input_len);
        struct offline_request request = { .id = id, .prompt = ids, .num_prompt = job->input_len, .max_tokens = job->output_len };
        rc = offline_add(run->replica, &request);
    }
    free(ids);
    if (rc < 0) err_set(err, rc, "request of %d + %d tokens: %s (max_model_len %d)", job->input_len, job->output_len,
                        err_name(rc), run->info->max_model_len);
    return rc;
}

struct totals { int64_t input, output, finished, steps, seqs, tokens; double host_ns; };

static void count_step(struct bench_run *run, const struct offline_step *step, struct totals *totals)
{
    totals->steps++;
    totals->seqs += step->num_seqs;
    totals->tokens += step->num_tokens;
    totals->host_ns += (double)step->host_ns;
    for (int32_t i = 0; i < step->num_events; i++) {
        const struct token_event *event = offline_event(run->replica, i);
        totals->output += event->token != TOKEN_NONE;
        totals->finished += event->finish != FINISH_NONE;
    }
}

static int run_all(struct bench_run *run, const struct job *jobs, int64_t num, struct totals *totals, double *seconds,
                   struct err *err)
{
    int64_t began_ns = clock_now_ns(), told_ns = began_ns;
    struct offline_step step;
    int rc = 0;

    for (int64_t i = 0; i < num && rc == 0; i++) {
        rc = add_job(run, &jobs[i], (uint64_t)i + 1, err);
        totals->input += jobs[i].input_len;
    }
    if (rc < 0) return rc;
    while ((rc = offline_step(run->replica, &step, err)) == 1) {
        count_step(run, &step, totals);
        if (step.landed_ns - told_ns < PROGRESS_S * 1000000000LL) continue;
        told_ns = step.landed_ns;
        fprintf(stderr, "%.0f s: %lld of %lld requests, %.0f output tok/s\n", (double)(told_ns - began_ns) / 1e9,
                (long long)totals->finished, (long long)num, (double)totals->output / ((double)(told_ns - began_ns) / 1e9));
    }
    *seconds = (double)(clock_now_ns() - began_ns) / 1e9;
    if (rc == 0 && totals->finished < num)
        return err_set(err, ERR_INTERNAL, "only %lld of %lld requests ended", (long long)totals->finished, (long long)num);
    return rc;
}

static int print_totals(struct bench_run *run, const struct totals *totals, int64_t num, double seconds, struct err *err)
{
    struct bench_line line;
    double steps = (double)totals->steps;

    bench_run_line(run, &line);
    bench_line_int(&line, "num_prompts", num);
    bench_line_int(&line, "total_input_tokens", totals->input);
    bench_line_int(&line, "total_output_tokens", totals->output);
    bench_line_real(&line, "duration", seconds);
    bench_line_real(&line, "request_throughput", (double)num / seconds);
    bench_line_real(&line, "output_throughput", (double)totals->output / seconds);
    bench_line_real(&line, "total_token_throughput", (double)(totals->input + totals->output) / seconds);
    bench_line_int(&line, "steps", totals->steps);
    bench_line_real(&line, "mean_batch", (double)totals->seqs / steps);
    bench_line_real(&line, "mean_step_tokens", (double)totals->tokens / steps);
    bench_line_real(&line, "mean_host_us", totals->host_ns / steps / 1e3);
    bench_line_int(&line, "preemptions", (int64_t)offline_preemptions(run->replica));
    fprintf(stderr, "%lld requests in %.2f s: output %.0f tok/s, total %.0f tok/s; %lld steps of %.1f sequences\n",
            (long long)num, seconds, (double)totals->output / seconds, (double)(totals->input + totals->output) / seconds,
            (long long)totals->steps, (double)totals->seqs / steps);
    return bench_line_end(&line, stdout, err);
}

int bench_throughput(int argc, char **argv)
{
    struct bench_run run = { .name = "throughput", .argc = argc, .argv = argv,
        .usage = "All requests at once: random prompts, greedy, end ids ignored. One line of JSON." };
    struct throughput_args args = { .input_len = { 1000, 1000 }, .output_len = { 1000, 1000 }, .num_prompts = 512 };
    const struct bench_option options[] = {
        { "--input-len", BENCH_RANGE, &args.input_len, 1, 1 << 24, "tokens of each prompt, N or LOW-HIGH (1000)" },
        { "--output-len", BENCH_RANGE, &args.output_len, 1, 1 << 24, "tokens of each answer, N or LOW-HIGH (1000)" },
        { "--num-prompts", BENCH_INT, &args.num_prompts, 1, 1 << 20, "requests (512)" },
        { "--dataset", BENCH_TEXT, &args.dataset, 0, 0, "lengths: uniform:LOW-HIGH (of both), or sharegpt-like" },
    };
    struct totals totals = { 0 };
    struct job *jobs = NULL;
    struct err err = { 0 };
    double seconds = 0;
    bool sharegpt;

    run.options = options;
    run.num_options = sizeof options / sizeof options[0];
    int rc = bench_run_open(&run, &args.num_prompts, &err);
    if (rc == 0) rc = take_dataset(&args, &sharegpt, &err);
    if (rc == 0 && !(jobs = calloc((size_t)args.num_prompts, sizeof *jobs))) rc = err_set(&err, ERR_NO_MEMORY, "out of memory");
    for (int64_t i = 0; i < args.num_prompts && rc == 0; i++) jobs[i] = draw_job(&run.random, &args, sharegpt);
    if (rc == 0) rc = run_all(&run, jobs, args.num_prompts, &totals, &seconds, &err);
    if (rc == 0) rc = print_totals(&run, &totals, args.num_prompts, seconds, &err);
    free(jobs);
    return bench_run_close(&run, rc, &err);
}
