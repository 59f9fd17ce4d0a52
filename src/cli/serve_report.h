/* serve_report.h - what a run against a server comes to, in the words and keys of `vllm bench serve`. */
#ifndef SLUICE_CLI_SERVE_REPORT_H
#define SLUICE_CLI_SERVE_REPORT_H

#include <stdio.h>

#include <sluice/bench.h>

#include "load.h"

/* Targets in ms that make a request a good one; 0 = none. */
struct goodput { double ttft, tpot, e2el; };

struct serve_report {
    size_t num, completed, failed;
    int64_t input_tokens, output_tokens;
    double duration_s;
    struct bench_stats ttft, tpot, itl, e2el;      /* ms */
    double request_throughput, output_throughput, total_token_throughput, request_goodput;
};

/* Sorts outcome's gaps. tpot: of requests with more than one token. ERR_NO_MEMORY. */
int  serve_report_of(struct serve_report *report, struct load_outcome *outcome, const struct load_request *requests, size_t num,
                     const struct goodput *goodput, struct err *err);
void serve_report_table(const struct serve_report *report, const struct load_outcome *outcome, const struct goodput *goodput,
                        FILE *out);
void serve_report_line(const struct serve_report *report, const struct load_outcome *outcome, const struct goodput *goodput,
                       struct bench_line *line);
/* "ttft:200", "tpot:20,e2el:3000". ERR_CONFIG. */
int  goodput_read(struct goodput *goodput, const char *text, struct err *err);
static inline bool goodput_asked(const struct goodput *goodput) { return goodput->ttft > 0 || goodput->tpot > 0 || goodput->e2el > 0; }

#endif
