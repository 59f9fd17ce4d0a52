#include "serve_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct columns { double *ttft, *tpot, *e2el; size_t num_tpot; };

static double ms_between(int64_t from_ns, int64_t to_ns) { return (double)(to_ns - from_ns) / 1e6; }

static bool within(double ms, double target) { return target <= 0 || ms <= target; }

static void add_request(struct serve_report *report, struct columns *columns, const struct load_result *result,
                        int64_t input_len, const struct goodput *goodput, size_t *num_good)
{
    double ttft = ms_between(result->start_ns, result->first_ns), e2el = ms_between(result->start_ns, result->last_ns);
    double tpot = result->completion_tokens > 1 ? (e2el - ttft) / (double)(result->completion_tokens - 1) : 0;
    size_t i = report->completed++;

    columns->ttft[i] = ttft;
    columns->e2el[i] = e2el;
    if (result->completion_tokens > 1) columns->tpot[columns->num_tpot++] = tpot;
    report->input_tokens += result->prompt_tokens >= 0 ? result->prompt_tokens : input_len;
    report->output_tokens += result->completion_tokens;
    *num_good += within(ttft, goodput->ttft) && within(tpot, goodput->tpot) && within(e2el, goodput->e2el);
}

int serve_report_of(struct serve_report *report, struct load_outcome *outcome, const struct load_request *requests, size_t num,
                    const struct goodput *goodput, struct err *err)
{
    struct columns columns = { calloc(num, sizeof(double)), calloc(num, sizeof(double)), calloc(num, sizeof(double)), 0 };
    size_t num_good = 0;
    int rc = 0;

    *report = (struct serve_report){ .num = num, .failed = outcome->num_failed };
    if (!columns.ttft || !columns.tpot || !columns.e2el) {
        rc = err_set(err, ERR_NO_MEMORY, "out of memory");
        goto out;
    }
    for (size_t i = 0; i < num; i++)
        if (outcome->results[i].ok) add_request(report, &columns, &outcome->results[i], requests[i].input_len, goodput, &num_good);
    report->duration_s = (double)(outcome->ended_ns - outcome->began_ns) / 1e9;
    report->request_throughput = (double)report->completed / report->duration_s;
    report->output_throughput = (double)report->output_tokens / report->duration_s;
    report->total_token_throughput = (double)(report->input_tokens + report->output_tokens) / report->duration_s;
    report->request_goodput = goodput_asked(goodput) ? (double)num_good / report->duration_s : NAN;
    bench_stats_of(&report->ttft, columns.ttft, report->completed);
    bench_stats_of(&report->tpot, columns.tpot, columns.num_tpot);
    bench_stats_of(&report->itl, outcome->gaps.ms, outcome->gaps.n);
    bench_stats_of(&report->e2el, columns.e2el, report->completed);
out:
    free(columns.ttft);
    free(columns.tpot);
    free(columns.e2el);
    return rc;
}

/* ---- table ---- */

static void table_row(FILE *out, const char *name, const struct bench_stats *stats)
{
    fprintf(out, "  %-22s %10.2f %10.2f %10.2f %10.2f\n", name, stats->mean, stats->median, stats->p90, stats->p99);
}

void serve_report_table(const struct serve_report *report, const struct load_outcome *outcome, const struct goodput *goodput,
                        FILE *out)
{
    fprintf(out, "%zu of %zu requests in %.2f s, at most %lld at once; %lld prompt and %lld output tokens\n", report->completed,
            report->num, report->duration_s, (long long)outcome->max_in_flight, (long long)report->input_tokens,
            (long long)report->output_tokens);
    fprintf(out, "  requests/s %.2f, output tok/s %.1f, total tok/s %.1f", report->request_throughput,
            report->output_throughput, report->total_token_throughput);
    if (goodput_asked(goodput)) fprintf(out, ", good requests/s %.2f", report->request_goodput);
    fprintf(out, "\n  %-22s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99");
    table_row(out, "time to first token", &report->ttft);
    table_row(out, "time per output token", &report->tpot);
    table_row(out, "between tokens", &report->itl);
    table_row(out, "end to end", &report->e2el);
    if (outcome->num_uneven)
        fprintf(out, "  %zu answers had another number of frames than of tokens: the server joins tokens\n", outcome->num_uneven);
    if (report->failed) fprintf(out, "  %zu failed; the first: %s\n", report->failed, outcome->first_error);
}

/* ---- line ---- */

static void line_stats(struct bench_line *line, const char *name, const struct bench_stats *stats)
{
    const struct { const char *prefix; double value; } columns[] = {
        { "mean", stats->mean }, { "median", stats->median }, { "std", stats->std },
        { "p90", stats->p90 },   { "p95", stats->p95 },       { "p99", stats->p99 },
    };
    char key[48];

    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        snprintf(key, sizeof key, "%s_%s_ms", columns[i].prefix, name);
        bench_line_real(line, key, columns[i].value);
    }
}

void serve_report_line(const struct serve_report *report, const struct load_outcome *outcome, const struct goodput *goodput,
                       struct bench_line *line)
{
    bench_line_real(line, "duration", report->duration_s);
    bench_line_int(line, "completed", (int64_t)report->completed);
    bench_line_int(line, "failed", (int64_t)report->failed);
    bench_line_int(line, "total_input_tokens", report->input_tokens);
    bench_line_int(line, "total_output_tokens", report->output_tokens);
    bench_line_real(line, "request_throughput", report->request_throughput);
    bench_line_real(line, "request_goodput", goodput_asked(goodput) ? report->request_goodput : NAN);
    bench_line_real(line, "output_throughput", report->output_throughput);
    bench_line_real(line, "total_token_throughput", report->total_token_throughput);
    bench_line_int(line, "max_concurrent_requests", outcome->max_in_flight);
    bench_line_int(line, "uneven", (int64_t)outcome->num_uneven);
    line_stats(line, "ttft", &report->ttft);
    line_stats(line, "tpot", &report->tpot);
    line_stats(line, "itl", &report->itl);
    line_stats(line, "e2el", &report->e2el);
    bench_line_text(line, "first_error", outcome->first_error[0] ? outcome->first_error : NULL);
}

/* ---- goodput ---- */

int goodput_read(struct goodput *goodput, const char *text, struct err *err)
{
    struct { const char *name; double *target; } words[] = {
        { "ttft:", &goodput->ttft }, { "tpot:", &goodput->tpot }, { "e2el:", &goodput->e2el } };

    for (const char *at = text;; at++) {
        char *end = NULL;
        double *target = NULL;
        for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
            if (!strncmp(at, words[i].name, 5)) target = words[i].target;
        if (target) *target = strtod(at + 5, &end);
        if (!target || end == at + 5 || !isfinite(*target) || *target <= 0 || (*end && *end != ','))
            return err_set(err, ERR_CONFIG, "--goodput: '%.60s' is not like ttft:200,tpot:20 (ttft, tpot, e2el, in ms)", text);
        at = end;
        if (!*at) return 0;
    }
}
