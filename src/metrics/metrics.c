#include <sluice/metrics.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bug.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"

enum kind { COUNTER, GAUGE, HISTOGRAM };
enum labels { L_NONE, L_REPLICA, L_REPLICA_CAUSE, L_REPLICA_PHASE, L_CONNECTION, L_FINISH, L_ABORT, L_ROUTE, L_ROUTE_STATUS, L_CODE, L_RELOAD };

/* api-contract 7.1: b1 short host work, b2 steps and token gaps, b3 = vLLM's time-to-first-token buckets, b5 token counts */
static const double b1[] = { .00001, .00005, .0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5 };
static const double b2[] = { .0005, .001, .002, .003, .004, .005, .0075, .01, .015, .02, .025, .03,
                             .04,   .05,  .075, .1,   .15,  .2,   .3,    .5,  1,    2.5,  5,    10 };
static const double b3[] = { .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560 };
static const double b5[] = { 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000 };
static const double b4[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384 };
/* vLLM's own, for its names */
static const double v_itl[] = { .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80 };
static const double v_e2e[] = { .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680 };
static const double v_n[] = { 1, 2, 5, 10, 20 };
static const double v_step[] = { 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384 };
static const double v_block[] = { .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800 };
enum { MAX_BUCKETS = 24 };

struct buckets { const double *bounds; int n; };
#define BUCKETS(b) { b, (int)(sizeof b / sizeof b[0]) }
static const struct buckets bucket_rows[] = { BUCKETS(b1), BUCKETS(b2), BUCKETS(b3), BUCKETS(b4), BUCKETS(b5),
                                             BUCKETS(v_itl), BUCKETS(v_e2e), BUCKETS(v_n), BUCKETS(v_step), BUCKETS(v_block) };
enum { B1, B2, B3, B4, B5, V_ITL, V_E2E, V_N, V_STEP, V_BLOCK };

struct family {
    const char *name, *help;       /* name NULL: known to vLLM's clients only */
    const char *extra;             /* literal label, or NULL */
    const char *vllm;              /* alias after "vllm:", or NULL */
    uint8_t kind, labels, buckets;
    uint8_t vllm_buckets;          /* of the alias; 0: those of buckets */
};

/* Rows of one name stand together: HELP and TYPE are printed when the name changes. docs/metrics.md says the same for readers. */
static const struct family families[METRIC_COUNT] = {
    [M_HTTP_REQUESTS] = { "sluice_http_requests_total", "Answers sent, by route and status.", .kind = COUNTER, .labels = L_ROUTE_STATUS },
    [M_HTTP_REJECTED] = { "sluice_http_rejected_total", "Requests refused before execution, by error code.", .kind = COUNTER, .labels = L_CODE },
    [M_HTTP_CONNECTIONS] = { "sluice_http_connections", "Open connections.", .kind = GAUGE, .labels = L_CONNECTION },
    [M_HTTP_BODY_BYTES] = { "sluice_http_body_bytes_in_flight", "Bytes of request bodies held.", .kind = GAUGE },
    [M_REQUESTS] = { "sluice_requests_total", "Generation requests admitted.", .kind = COUNTER, .labels = L_ROUTE },
    [M_REQUESTS_FINISHED] = { "sluice_requests_finished_total", "Choices ended, by reason.", .kind = COUNTER, .labels = L_FINISH },
    [M_REQUESTS_ABORTED] = { "sluice_requests_aborted_total", "Requests aborted, by cause.", .kind = COUNTER, .labels = L_ABORT },
    [M_PROMPT_TOKENS] = { "sluice_prompt_tokens_total", "Prompt tokens of admitted requests.", .vllm = "prompt_tokens_total", .kind = COUNTER },
    [M_GENERATION_TOKENS] = { "sluice_generation_tokens_total", "Tokens generated.", .vllm = "generation_tokens_total", .kind = COUNTER },
    [M_QUEUE_LIMIT] = { "sluice_queue_limit", "Requests that may wait before 429.", .kind = GAUGE },
    [M_RUNNING] = { "sluice_requests_running", "Sequences in the batch.", .vllm = "num_requests_running", .kind = GAUGE, .labels = L_REPLICA },
    [M_WAITING] = { "sluice_requests_waiting", "Sequences queued.", .vllm = "num_requests_waiting", .kind = GAUGE, .labels = L_REPLICA },
    [M_KV_FREE] = { "sluice_kv_blocks", "KV blocks; the sum over states is constant.", "state=\"free\"", .kind = GAUGE, .labels = L_REPLICA },
    [M_KV_USED] = { "sluice_kv_blocks", "", "state=\"used\"", .kind = GAUGE, .labels = L_REPLICA },
    [M_KV_CACHED] = { "sluice_kv_blocks", "", "state=\"cached\"", .kind = GAUGE, .labels = L_REPLICA },
    [M_KV_USAGE] = { "sluice_kv_usage_ratio", "Share of KV blocks in use.", .vllm = "kv_cache_usage_perc", .kind = GAUGE, .labels = L_REPLICA },
    [M_CACHE_HIT] = { "sluice_prefix_cache_hit_tokens_total", "Prompt tokens found in the prefix cache.", .vllm = "prefix_cache_hits_total", .kind = COUNTER, .labels = L_REPLICA },
    [M_CACHE_MISS] = { "sluice_prefix_cache_miss_tokens_total", "Prompt tokens computed.", .kind = COUNTER, .labels = L_REPLICA },
    [M_PREEMPTIONS] = { "sluice_preemptions_total", "Sequences pushed back for lack of KV blocks.", .vllm = "num_preemptions_total", .kind = COUNTER, .labels = L_REPLICA },
    [M_MEMORY_FREE] = { "sluice_memory_bytes", "Free memory of the replica's fullest GPU (CPU: of the host), and how far that is above the floor.", "kind=\"free\"", .kind = GAUGE, .labels = L_REPLICA },
    [M_MEMORY_HEADROOM] = { "sluice_memory_bytes", "", "kind=\"headroom\"", .kind = GAUGE, .labels = L_REPLICA },
    [M_THROTTLED] = { "sluice_admission_throttled", "1 while memory is short: nobody is admitted beside what runs.", .kind = GAUGE, .labels = L_REPLICA },
    [M_REPLICA_UP] = { "sluice_replica_up", "1 while the replica serves.", .kind = GAUGE, .labels = L_REPLICA },
    [M_REPLICA_LOAD_SECONDS] = { "sluice_replica_load_seconds", "From exec to ready.", .kind = GAUGE, .labels = L_REPLICA },
    [M_REPLICA_RESTARTS] = { "sluice_replica_restarts_total", "Replicas started again, by cause.", .kind = COUNTER, .labels = L_REPLICA_CAUSE },
    [M_CONFIG_RELOADS] = { "sluice_config_reloads_total", "Configurations read again, by result.", .kind = COUNTER, .labels = L_RELOAD },
    [M_STREAMS_RESUMED] = { "sluice_streams_resumed_total", "Sequences continued on another replica.", .kind = COUNTER },
    [M_TTFT] = { "sluice_ttft_seconds", "Request headers complete to first token.", .vllm = "time_to_first_token_seconds", .kind = HISTOGRAM, .buckets = B3 },
    [M_ITL] = { "sluice_itl_seconds", "Gap between tokens of a choice.", .vllm = "inter_token_latency_seconds", .kind = HISTOGRAM, .vllm_buckets = V_ITL, .buckets = B2 },
    [M_E2E] = { "sluice_e2e_seconds", "Request headers complete to last token.", .vllm = "e2e_request_latency_seconds", .kind = HISTOGRAM, .vllm_buckets = V_E2E, .buckets = B3 },
    [M_QUEUE] = { "sluice_queue_seconds", "Waiting for the first step.", .vllm = "request_queue_time_seconds", .kind = HISTOGRAM, .vllm_buckets = V_E2E, .buckets = B3 },
    [M_PREFILL] = { "sluice_prefill_seconds", "First step to first token.", .vllm = "request_prefill_time_seconds", .kind = HISTOGRAM, .vllm_buckets = V_E2E, .buckets = B3 },
    [M_DECODE] = { "sluice_decode_seconds", "First token to last.", .vllm = "request_decode_time_seconds", .kind = HISTOGRAM, .vllm_buckets = V_E2E, .buckets = B3 },
    [M_TOKENIZE] = { "sluice_tokenize_seconds", "Tokenizing the prompts of a request.", .kind = HISTOGRAM, .buckets = B1 },
    [M_TEMPLATE] = { "sluice_template_seconds", "Rendering the chat template.", .kind = HISTOGRAM, .buckets = B1 },
    [M_CANCEL_LATENCY] = { "sluice_cancel_latency_seconds", "Abort seen to sequence freed.", .kind = HISTOGRAM, .buckets = B1 },
    [M_REQ_PROMPT_TOKENS] = { "sluice_request_prompt_tokens", "Prompt tokens of a request.", .vllm = "request_prompt_tokens", .kind = HISTOGRAM, .buckets = B5 },
    [M_REQ_GENERATION_TOKENS] = { "sluice_request_generation_tokens", "Generated tokens of a choice.", .vllm = "request_generation_tokens", .kind = HISTOGRAM, .buckets = B5 },
    [M_TPOT] = { "sluice_tpot_seconds", "Mean gap between the tokens of a choice.", .vllm = "request_time_per_output_token_seconds", .kind = HISTOGRAM, .vllm_buckets = V_ITL, .buckets = B2 },
    [M_STEP] = { "sluice_step_seconds", "One step of an engine, by what it held.", .kind = HISTOGRAM, .labels = L_REPLICA_PHASE, .buckets = B2 },
    [M_STEP_HOST] = { "sluice_step_host_seconds", "Before a step: the device had nothing to do though there was work.", .kind = HISTOGRAM, .labels = L_REPLICA, .buckets = B1 },
    [M_STEP_TOKENS] = { "sluice_step_tokens", "Tokens that a step of an engine computed.", .vllm = "iteration_tokens_total", .kind = HISTOGRAM, .labels = L_REPLICA, .vllm_buckets = V_STEP, .buckets = B4 },
    [M_STEP_SEQUENCES] = { "sluice_step_sequences", "Sequences in a step of an engine.", .kind = HISTOGRAM, .labels = L_REPLICA, .buckets = B4 },
    [M_STEP_STALL] = { "sluice_step_stall_seconds", "Time since the last step while work is pending.", .kind = GAUGE, .labels = L_REPLICA },
    [M_QUEUE_OLDEST] = { "sluice_queue_oldest_seconds", "Age of the oldest request without a token.", .kind = GAUGE },
    [M_INFERENCE] = { NULL, "First step to last token.", .vllm = "request_inference_time_seconds", .kind = HISTOGRAM, .buckets = V_E2E },
    [M_PARAMS_N] = { NULL, "Choices asked for.", .vllm = "request_params_n", .kind = HISTOGRAM, .buckets = V_N },
    [M_PARAMS_MAX_TOKENS] = { NULL, "max_tokens after the context was applied.", .vllm = "request_params_max_tokens", .kind = HISTOGRAM, .buckets = B5 },
    [M_MAX_GENERATION] = { NULL, "Tokens of the longest choice of a request.", .vllm = "request_max_num_generation_tokens", .kind = HISTOGRAM, .buckets = B5 },
    [M_PREFILL_COMPUTED] = { NULL, "Prompt tokens computed for a choice, not found in the prefix cache.", .vllm = "request_prefill_kv_computed_tokens", .kind = HISTOGRAM, .buckets = B5 },
    [M_BLOCK_LIFETIME] = { NULL, "Age of a KV block when the prefix cache forgets it.", .vllm = "kv_block_lifetime_seconds", .kind = HISTOGRAM, .labels = L_REPLICA, .buckets = V_BLOCK },
    [M_BLOCK_IDLE] = { NULL, "Since a sequence last held a KV block that the prefix cache forgets.", .vllm = "kv_block_idle_before_evict_seconds", .kind = HISTOGRAM, .labels = L_REPLICA, .buckets = V_BLOCK },
    [M_BLOCK_REUSE] = { NULL, "Since a sequence last took or left a KV block that is found again.", .vllm = "kv_block_reuse_gap_seconds", .kind = HISTOGRAM, .labels = L_REPLICA, .buckets = V_BLOCK },
    [M_CORRUPTED] = { NULL, "Choices that ended because their logits were no numbers.", .vllm = "corrupted_requests_total", .kind = COUNTER, .labels = L_REPLICA },
    [M_KV_BLOCKS] = { NULL, "", .kind = GAUGE, .labels = L_REPLICA },
    [M_STREAM_RESUME] = { "sluice_stream_resume_seconds", "Pause of a stream whose replica was lost.", .kind = HISTOGRAM, .buckets = B3 },
};

static const char *const route_names[ROUTE_COUNT] = { "completions", "chat", "models", "health", "metrics", "other" };
static const char *const reload_names[RELOAD_COUNT] = { "ok", "rejected" };
static const char *const finish_names[FINISHED_COUNT] = { "stop", "length", "tool_calls", "abort", "error" };
static const char *const abort_names[ABORT_COUNT] = { "client_gone",  "slow_reader",   "killed", "queue_timeout",
                                                      "ttft_timeout", "total_timeout", "drain",  "replica_lost" };
static const char *const connection_names[CONN_STATE_COUNT] = { "active", "idle", "suspended" };
static const char *const restart_names[RESTART_COUNT] = { "signal", "cuda", "xid", "stall", "exit", "drain" };
static const char *const phase_names[PHASE_COUNT] = { "prefill", "decode", "mixed" };
static const int statuses[] = { 200, 204, 400, 401, 404, 405, 408, 411, 413, 414, 415, 429, 431, 500, 503, 505 };
enum { NUM_STATUSES = sizeof statuses / sizeof statuses[0] };

/* One or two of a family (its alias may have one of its own); of a replica its phases and six more. */
enum { MAX_HISTOGRAMS = METRIC_COUNT * 2 + METRICS_MAX_REPLICAS * (PHASE_COUNT + 2 * 6) };

struct histogram {
    uint64_t counts[MAX_BUCKETS + 1];
    uint64_t sum_bits;             /* double */
};

/* The one place of mutable process-wide state: written with relaxed atomics, set up before threads start. */
static struct {
    struct metrics_info info;
    int64_t start_s;
    uint64_t cells[METRIC_COUNT][METRICS_MAX_INDEX];    /* counters: int64; gauges: bits of a double */
    struct histogram histograms[MAX_HISTOGRAMS];        /* of a family by index; its alias with buckets of its own follows */
    int16_t first_histogram[METRIC_COUNT];
    struct buckets buckets[sizeof bucket_rows / sizeof bucket_rows[0]];    /* bucket_rows, those of token counts up to the context */
} metrics;

static double bits_to_double(uint64_t bits)
{
    double value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t double_to_bits(double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static int num_indexes(uint8_t labels)
{
    switch (labels) {
    case L_REPLICA: return metrics.info.num_replicas;
    case L_REPLICA_CAUSE: return metrics.info.num_replicas * RESTART_COUNT;
    case L_REPLICA_PHASE: return metrics.info.num_replicas * PHASE_COUNT;
    case L_CONNECTION: return CONN_STATE_COUNT;
    case L_FINISH: return FINISHED_COUNT;
    case L_ABORT: return ABORT_COUNT;
    case L_ROUTE: return ROUTE_COUNT;
    case L_ROUTE_STATUS: return ROUTE_COUNT * NUM_STATUSES;
    case L_CODE: return ERR_ORDINAL_END_;
    case L_RELOAD: return RELOAD_COUNT;
    default: return 1;
    }
}

void metrics_init(const struct metrics_info *info)
{
    memset(&metrics, 0, sizeof metrics);
    metrics.info = *info;
    metrics.start_s = clock_wall_s();
    memcpy(metrics.buckets, bucket_rows, sizeof bucket_rows);
    while (info->max_model_len && metrics.buckets[B5].n > 1 && b5[metrics.buckets[B5].n - 1] > (double)info->max_model_len) metrics.buckets[B5].n--;
    for (int m = 0, next = 0; m < METRIC_COUNT; m++) {
        if (families[m].kind != HISTOGRAM) continue;
        metrics.first_histogram[m] = (int16_t)next;
        next += num_indexes(families[m].labels) * (families[m].vllm_buckets ? 2 : 1);
        BUG_ON(next > MAX_HISTOGRAMS);
    }
}

static struct histogram *histogram_of(enum metric metric, int index, bool alias)
{
    int n = num_indexes(families[metric].labels);

    BUG_ON(families[metric].kind != HISTOGRAM || (unsigned)index >= (unsigned)n);
    return &metrics.histograms[metrics.first_histogram[metric] + index + (alias ? n : 0)];
}

static uint64_t *cell(enum metric metric, int index)
{
    BUG_ON((unsigned)metric >= METRIC_COUNT || (unsigned)index >= METRICS_MAX_INDEX);
    return &metrics.cells[metric][index];
}

static void add_double(uint64_t *bits, double delta)
{
    uint64_t old = __atomic_load_n(bits, __ATOMIC_RELAXED), fresh;

    do fresh = double_to_bits(bits_to_double(old) + delta);
    while (!__atomic_compare_exchange_n(bits, &old, fresh, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

void metric_add(enum metric metric, int index, int64_t delta)
{
    uint64_t *to = cell(metric, index);

    if (families[metric].kind == GAUGE) add_double(to, (double)delta);
    else __atomic_fetch_add(to, (uint64_t)delta, __ATOMIC_RELAXED);
}

void metric_set(enum metric metric, int index, double value)
{
    uint64_t bits = families[metric].kind == GAUGE ? double_to_bits(value) : (uint64_t)value;

    __atomic_store_n(cell(metric, index), bits, __ATOMIC_RELAXED);
}

static void observe(struct histogram *histogram, const struct buckets *buckets, double value)
{
    int i = 0;

    while (i < buckets->n && value > buckets->bounds[i]) i++;
    __atomic_fetch_add(&histogram->counts[i], 1, __ATOMIC_RELAXED);
    add_double(&histogram->sum_bits, value);
}

void metric_observe(enum metric metric, int index, double value)
{
    const struct family *f = &families[metric];

    if (!(value >= 0)) value = 0;
    observe(histogram_of(metric, index, false), &metrics.buckets[f->buckets], value);
    if (f->vllm_buckets) observe(histogram_of(metric, index, true), &metrics.buckets[f->vllm_buckets], value);
}

void metrics_http_request(enum metric_route route, int status)
{
    int s = 0;

    while (s < NUM_STATUSES - 1 && statuses[s] != status) s++;
    if (statuses[s] != status) return;
    metric_add(M_HTTP_REQUESTS, (int)route * NUM_STATUSES + s, 1);
}

void metrics_http_rejected(int err_code)
{
    /* codes that share a wire string share a series: count under the first of them */
    for (int i = 1; i < ERR_ORDINAL_END_; i++) {
        if (strcmp(err_wire_code(-i), err_wire_code(err_code))) continue;
        metric_add(M_HTTP_REJECTED, i, 1);
        return;
    }
}

/* ---- output ---- */

/* Label values are literals of this file but for the model's name, which is escaped. */
static void put_label_value(struct buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '\\' || *text == '"') buf_putc(out, '\\');
        if (*text == '\n') buf_puts(out, "\\n");
        else buf_putc(out, *text);
    }
}

static void put_index_labels(struct buf *out, uint8_t labels, int index, bool vllm)
{
    switch (labels) {
    case L_REPLICA: buf_printf(out, ",%s=\"%d\"", vllm ? "engine" : "replica", index); break;
    case L_REPLICA_CAUSE:
        buf_printf(out, ",replica=\"%d\",cause=\"%s\"", index / RESTART_COUNT, restart_names[index % RESTART_COUNT]);
        break;
    case L_REPLICA_PHASE:
        buf_printf(out, ",replica=\"%d\",phase=\"%s\"", index / PHASE_COUNT, phase_names[index % PHASE_COUNT]);
        break;
    case L_CONNECTION: buf_printf(out, ",state=\"%s\"", connection_names[index]); break;
    case L_FINISH: buf_printf(out, ",reason=\"%s\"", finish_names[index]); break;
    case L_ABORT: buf_printf(out, ",cause=\"%s\"", abort_names[index]); break;
    case L_ROUTE: buf_printf(out, ",route=\"%s\"", route_names[index]); break;
    case L_ROUTE_STATUS:
        buf_printf(out, ",route=\"%s\",status=\"%d\"", route_names[index / NUM_STATUSES], statuses[index % NUM_STATUSES]);
        break;
    case L_CODE: buf_printf(out, ",code=\"%s\"", err_wire_code(-index)); break;
    case L_RELOAD: buf_printf(out, ",result=\"%s\"", reload_names[index]); break;
    default:
        if (vllm) buf_puts(out, ",engine=\"0\"");
    }
}

static void put_series(struct buf *out, const char *prefix, const char *name, const char *suffix, const struct family *f,
                       int index, bool vllm)
{
    buf_printf(out, "%s%s%s{model_name=\"", prefix, name, suffix);
    put_label_value(out, metrics.info.model_name ? metrics.info.model_name : "");
    buf_putc(out, '"');
    put_index_labels(out, f->labels, index, vllm);
    if (f->extra) buf_printf(out, ",%s", f->extra);
}

static void put_histogram(struct buf *out, const char *prefix, const char *name, enum metric metric, int index, bool vllm)
{
    const struct family *f = &families[metric];
    bool own = vllm && f->vllm_buckets;
    const struct buckets *buckets = &metrics.buckets[own ? f->vllm_buckets : f->buckets];
    struct histogram *histogram = histogram_of(metric, index, own);
    uint64_t total = 0;

    for (int i = 0; i <= buckets->n; i++) {
        total += __atomic_load_n(&histogram->counts[i], __ATOMIC_RELAXED);
        put_series(out, prefix, name, "_bucket", f, index, vllm);
        if (i < buckets->n) buf_printf(out, ",le=\"%.10g\"} %llu\n", buckets->bounds[i], (unsigned long long)total);
        else buf_printf(out, ",le=\"+Inf\"} %llu\n", (unsigned long long)total);
    }
    put_series(out, prefix, name, "_sum", f, index, vllm);
    buf_printf(out, "} %.9g\n", bits_to_double(__atomic_load_n(&histogram->sum_bits, __ATOMIC_RELAXED)));
    put_series(out, prefix, name, "_count", f, index, vllm);
    buf_printf(out, "} %llu\n", (unsigned long long)total);
}

static void put_family(struct buf *out, const char *prefix, const char *name, enum metric metric, bool vllm)
{
    const struct family *f = &families[metric];
    /* series of these appear with their first count: the product of their labels is large and mostly zero */
    bool sparse = f->labels == L_ROUTE_STATUS || f->labels == L_CODE;

    for (int i = 0; i < num_indexes(f->labels); i++) {
        if (f->kind == HISTOGRAM) {
            put_histogram(out, prefix, name, metric, i, vllm);
            continue;
        }
        uint64_t bits = __atomic_load_n(cell(metric, i), __ATOMIC_RELAXED);
        if (sparse && !bits) continue;
        put_series(out, prefix, name, "", f, i, vllm);
        if (f->kind == GAUGE) buf_printf(out, "} %.10g\n", bits_to_double(bits));
        else buf_printf(out, "} %lld\n", (long long)bits);
    }
}

static int64_t counted(enum metric metric, int index) { return (int64_t)__atomic_load_n(cell(metric, index), __ATOMIC_RELAXED); }

static double gauge(enum metric metric, int index) { return bits_to_double(__atomic_load_n(cell(metric, index), __ATOMIC_RELAXED)); }

static void open_vllm(struct buf *out, const char *name, const char *kind, const char *help)
{
    buf_printf(out, "# HELP vllm:%s %s\n# TYPE vllm:%s %s\n", name, help, name, kind);
}

static void put_vllm(struct buf *out, const char *name, int engine, const char *more, int64_t value)
{
    buf_printf(out, "vllm:%s{model_name=\"", name);
    put_label_value(out, metrics.info.model_name ? metrics.info.model_name : "");
    buf_printf(out, "\",engine=\"%d\"%s} %lld\n", engine, more, (long long)value);
}

/* Of the prefix caches: what was looked for and what was found, in tokens, under the names that say it. */
static void put_vllm_caches(struct buf *out)
{
    int n = metrics.info.num_replicas;

    open_vllm(out, "prefix_cache_queries_total", "counter", "Prompt tokens looked for in the prefix cache.");
    for (int i = 0; i < n; i++) put_vllm(out, "prefix_cache_queries_total", i, "", counted(M_CACHE_HIT, i) + counted(M_CACHE_MISS, i));
    open_vllm(out, "prompt_tokens_cached_total", "counter", "Prompt tokens found in the prefix cache.");
    for (int i = 0; i < n; i++) put_vllm(out, "prompt_tokens_cached_total", i, "", counted(M_CACHE_HIT, i));
    open_vllm(out, "prompt_tokens_by_source_total", "counter", "Prompt tokens by where their keys and values came from.");
    for (int i = 0; i < n; i++) {
        put_vllm(out, "prompt_tokens_by_source_total", i, ",source=\"local_compute\"", counted(M_CACHE_MISS, i));
        put_vllm(out, "prompt_tokens_by_source_total", i, ",source=\"local_cache_hit\"", counted(M_CACHE_HIT, i));
        put_vllm(out, "prompt_tokens_by_source_total", i, ",source=\"external_kv_transfer\"", 0);
    }
    open_vllm(out, "external_prefix_cache_queries_total", "counter", "There is no external cache.");
    for (int i = 0; i < n; i++) put_vllm(out, "external_prefix_cache_queries_total", i, "", 0);
    open_vllm(out, "external_prefix_cache_hits_total", "counter", "There is no external cache.");
    for (int i = 0; i < n; i++) put_vllm(out, "external_prefix_cache_hits_total", i, "", 0);
}

/* Names without a row in the table. */
static void put_vllm_only(struct buf *out)
{
    int n = metrics.info.num_replicas;

    put_vllm_caches(out);
    open_vllm(out, "request_success_total", "counter", "Choices ended, by reason.");
    put_vllm(out, "request_success_total", 0, ",finished_reason=\"stop\"",
             counted(M_REQUESTS_FINISHED, FINISHED_STOP) + counted(M_REQUESTS_FINISHED, FINISHED_TOOL_CALLS));
    put_vllm(out, "request_success_total", 0, ",finished_reason=\"length\"", counted(M_REQUESTS_FINISHED, FINISHED_LENGTH));
    put_vllm(out, "request_success_total", 0, ",finished_reason=\"abort\"", counted(M_REQUESTS_FINISHED, FINISHED_ABORT));
    put_vllm(out, "request_success_total", 0, ",finished_reason=\"error\"", counted(M_REQUESTS_FINISHED, FINISHED_ERROR));
    put_vllm(out, "request_success_total", 0, ",finished_reason=\"repetition\"", 0);
    open_vllm(out, "num_requests_waiting_by_reason", "gauge", "Sequences queued, by what they wait for.");
    for (int i = 0; i < n; i++) {
        int64_t waiting = (int64_t)gauge(M_WAITING, i);
        put_vllm(out, "num_requests_waiting_by_reason", i, ",reason=\"capacity\"", waiting);
        put_vllm(out, "num_requests_waiting_by_reason", i, ",reason=\"deferred\"", 0);
    }
    open_vllm(out, "cache_config_info", "gauge", "Shape of the KV cache.");
    for (int i = 0; i < n; i++) {
        char more[256];
        snprintf(more, sizeof more, ",block_size=\"%lld\",num_gpu_blocks=\"%.0f\",cache_dtype=\"%s\",enable_prefix_caching=\"%s\","
                 "gpu_memory_utilization=\"%.6g\"", (long long)metrics.info.block_size, gauge(M_KV_BLOCKS, i),
                 metrics.info.kv_cache_dtype ? metrics.info.kv_cache_dtype : "auto",
                 metrics.info.enable_prefix_caching ? "True" : "False", 1 - metrics.info.headroom);
        put_vllm(out, "cache_config_info", i, more, 1);
    }
    open_vllm(out, "engine_sleep_state", "gauge", "Engines never sleep.");
    for (int i = 0; i < n; i++) {
        put_vllm(out, "engine_sleep_state", i, ",sleep_state=\"awake\"", 1);
        put_vllm(out, "engine_sleep_state", i, ",sleep_state=\"weights_offloaded\"", 0);
        put_vllm(out, "engine_sleep_state", i, ",sleep_state=\"discard_all\"", 0);
    }
}

void metrics_write(struct buf *out)
{
    static const char *const kinds[] = { "counter", "gauge", "histogram" };
    const char *last = "";

    for (int m = 0; m < METRIC_COUNT; m++) {
        const struct family *f = &families[m];
        if (!f->name) continue;
        if (strcmp(last, f->name)) buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", f->name, f->help, f->name, kinds[f->kind]);
        last = f->name;
        put_family(out, "", f->name, (enum metric)m, false);
    }
    buf_printf(out, "# HELP sluice_log_dropped_total Log lines dropped rather than blocking.\n"
                    "# TYPE sluice_log_dropped_total counter\nsluice_log_dropped_total %llu\n", (unsigned long long)log_dropped());
    buf_printf(out, "# HELP sluice_start_time_seconds Unix time of the start.\n"
                    "# TYPE sluice_start_time_seconds gauge\nsluice_start_time_seconds %lld\n", (long long)metrics.start_s);
    buf_printf(out, "# HELP sluice_build_info Version of this build.\n# TYPE sluice_build_info gauge\n"
                    "sluice_build_info{version=\"%s\",commit=\"%s\",cuda=\"%s\"} 1\n", metrics.info.version, metrics.info.commit,
               metrics.info.cuda ? metrics.info.cuda : "");
    if (!metrics.info.vllm_aliases) return;
    for (int m = 0; m < METRIC_COUNT; m++) {
        const struct family *f = &families[m];
        if (!f->vllm || (f->buckets == V_BLOCK && !metrics.info.kv_cache_metrics)) continue;
        buf_printf(out, "# HELP vllm:%s %s\n# TYPE vllm:%s %s\n", f->vllm, f->help, f->vllm, kinds[f->kind]);
        put_family(out, "vllm:", f->vllm, (enum metric)m, true);
    }
    put_vllm_only(out);
}
