/* metrics.h - counters, gauges and histograms for GET /metrics. One static table of families (src/metrics/metrics.c);
 * storage is fixed at start, updates are relaxed atomics from any thread, no locks.
 * Labels: every family may have up to two enumerated labels whose values are known at start. */
#ifndef SLUICE_METRICS_H
#define SLUICE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>

struct buf;

enum metric_route { ROUTE_COMPLETIONS, ROUTE_CHAT, ROUTE_MODELS, ROUTE_HEALTH, ROUTE_METRICS, ROUTE_OTHER, ROUTE_COUNT };
enum abort_cause { ABORT_CLIENT_GONE, ABORT_SLOW_READER, ABORT_KILLED, ABORT_QUEUE_TIMEOUT, ABORT_TTFT_TIMEOUT,
                   ABORT_TOTAL_TIMEOUT, ABORT_DRAIN, ABORT_REPLICA_LOST, ABORT_COUNT };
enum finish_label { FINISHED_STOP, FINISHED_LENGTH, FINISHED_TOOL_CALLS, FINISHED_ABORT, FINISHED_ERROR, FINISHED_COUNT };
enum connection_state { CONN_ACTIVE, CONN_IDLE, CONN_SUSPENDED, CONN_STATE_COUNT };
enum restart_cause { RESTART_SIGNAL, RESTART_CUDA, RESTART_XID, RESTART_STALL, RESTART_EXIT, RESTART_DRAIN, RESTART_COUNT };
enum step_phase { PHASE_PREFILL, PHASE_DECODE, PHASE_MIXED, PHASE_COUNT };
enum reload_result { RELOAD_OK, RELOAD_REJECTED, RELOAD_COUNT };

/*  id                        kind       name */
enum metric {
    M_HTTP_REQUESTS,          /* counter sluice_http_requests_total           route x status class slot (metrics_http_request) */
    M_HTTP_REJECTED,          /* counter sluice_http_rejected_total           code */
    M_HTTP_CONNECTIONS,       /* gauge   sluice_http_connections              enum connection_state */
    M_HTTP_BODY_BYTES,        /* gauge   sluice_http_body_bytes_in_flight */
    M_REQUESTS,               /* counter sluice_requests_total                enum metric_route */
    M_REQUESTS_FINISHED,      /* counter sluice_requests_finished_total       enum finish_label */
    M_REQUESTS_ABORTED,       /* counter sluice_requests_aborted_total        enum abort_cause */
    M_PROMPT_TOKENS,          /* counter sluice_prompt_tokens_total */
    M_GENERATION_TOKENS,      /* counter sluice_generation_tokens_total */
    M_QUEUE_LIMIT,            /* gauge   sluice_queue_limit */
    M_RUNNING, M_WAITING,     /* gauge   sluice_requests_running, _waiting    replica */
    M_KV_FREE, M_KV_USED, M_KV_CACHED,   /* gauge sluice_kv_blocks            replica, state */
    M_KV_USAGE,               /* gauge   sluice_kv_usage_ratio                replica */
    M_CACHE_HIT, M_CACHE_MISS,/* counter sluice_prefix_cache_{hit,miss}_tokens_total   replica (set from engine totals) */
    M_PREEMPTIONS,            /* counter sluice_preemptions_total             replica */
    M_MEMORY_FREE, M_MEMORY_HEADROOM,    /* gauge sluice_memory_bytes         replica, kind */
    M_THROTTLED,              /* gauge   sluice_admission_throttled           replica */
    M_REPLICA_UP,             /* gauge   sluice_replica_up                    replica */
    M_REPLICA_LOAD_SECONDS,   /* gauge   sluice_replica_load_seconds          replica */
    M_REPLICA_RESTARTS,       /* counter sluice_replica_restarts_total        replica x enum restart_cause: index = replica * RESTART_COUNT + cause */
    M_CONFIG_RELOADS,         /* counter sluice_config_reloads_total          enum reload_result */
    M_STREAMS_RESUMED,        /* counter sluice_streams_resumed_total */
    M_TTFT, M_ITL, M_E2E, M_QUEUE, M_PREFILL, M_DECODE,   /* histograms sluice_{ttft,itl,e2e,queue,prefill,decode}_seconds */
    M_TOKENIZE, M_TEMPLATE,   /* histograms sluice_{tokenize,template}_seconds */
    M_CANCEL_LATENCY,         /* histogram sluice_cancel_latency_seconds */
    M_REQ_PROMPT_TOKENS, M_REQ_GENERATION_TOKENS,         /* histograms sluice_request_{prompt,generation}_tokens */
    M_STREAM_RESUME,          /* histogram sluice_stream_resume_seconds */
    M_TPOT,                   /* histogram sluice_tpot_seconds: mean gap of a choice's tokens */
    M_STEP,                   /* histogram sluice_step_seconds                replica x enum step_phase: index = replica * PHASE_COUNT + phase */
    M_STEP_HOST,              /* histogram sluice_step_host_seconds           replica */
    M_STEP_TOKENS, M_STEP_SEQUENCES,     /* histograms sluice_step_{tokens,sequences}   replica */
    M_STEP_STALL,             /* gauge   sluice_step_stall_seconds            replica */
    M_QUEUE_OLDEST,           /* gauge   sluice_queue_oldest_seconds */
    M_INFERENCE, M_PARAMS_N, M_PARAMS_MAX_TOKENS, M_MAX_GENERATION, M_PREFILL_COMPUTED,      /* histograms of vllm: names only */
    M_BLOCK_LIFETIME, M_BLOCK_IDLE, M_BLOCK_REUSE,        /* these too, with kv_cache_metrics; replica */
    M_CORRUPTED,              /* counter of a vllm: name only                 replica */
    M_KV_BLOCKS,              /* gauge   label num_gpu_blocks of vllm:cache_config_info    replica */
    METRIC_COUNT
};

enum { METRICS_MAX_REPLICAS = 8, METRICS_MAX_INDEX = 128 };

struct metrics_info {
    const char *model_name;
    int num_replicas, vllm_aliases;
    const char *version, *commit, *cuda;                  /* cuda: "" without */
    int64_t max_model_len;                                /* largest bucket of token counts; 0 = the largest there is */
    /* of vllm:cache_config_info */
    const char *kv_cache_dtype;
    int64_t block_size;
    int enable_prefix_caching, kv_cache_metrics;
    double headroom;
};
void metrics_init(const struct metrics_info *info);      /* strings borrowed; once, before threads */

/* index: the label value's number; 0 where the family has none. Out-of-range is a bug. */
void metric_add(enum metric metric, int index, int64_t delta);
void metric_set(enum metric metric, int index, double value);          /* gauges, and counters mirrored from engine totals */
void metric_observe(enum metric metric, int index, double value);      /* histograms */
void metrics_http_request(enum metric_route route, int status);        /* M_HTTP_REQUESTS */
void metrics_http_rejected(int err_code);                              /* M_HTTP_REJECTED by wire code */
void metrics_write(struct buf *out);                                   /* Prometheus text 0.0.4, native and vllm: names */

#endif
