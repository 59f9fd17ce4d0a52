/* config.h - every option of sluice, filled from one table (src/config/options.c).
 * Precedence: flag > SLUICE_* environment > file > preset > default. `sluice check` prints each value with its origin.
 * A row of the table feeds YAML, --flag, SLUICE_KEY, --help, `sluice check`, configs/sluice.yaml and docs/options.md.
 * After start a config is const; a reload builds a second one aside. Thread: built on one thread, then read by all. */
#ifndef SLUICE_CONFIG_H
#define SLUICE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <sluice/err.h>

struct str_list { char **items; size_t n; };     /* owned strings */

struct config {
    /* model */
    char *model;                          /* path of a .gguf file or a model directory; required */
    struct str_list served_model_name;    /* default: basename of the model path without .gguf */
    char *load_format;                    /* auto gguf safetensors dummy */
    char *chat_template;                  /* file that replaces the model's own, or "" */
    char *generation_config;              /* auto: sampling defaults of the model's files; none: sluice's own */
    int64_t max_model_len;                /* tokens; 0 = the model's */
    int64_t seed;                         /* of dummy weights */

    /* engine */
    char *device;                         /* auto cpu cuda */
    char *cpu_kernels;                    /* fast ref */
    char *dtype;                          /* auto bfloat16 float16 float32 */
    int64_t cpu_threads;                  /* per rank; 0 = cores / ranks */
    int64_t tensor_parallel_size, pipeline_parallel_size, data_parallel_size;
    struct str_list pp_layer_partition;   /* layers per stage; empty = by cost */
    int64_t block_size;                   /* tokens per KV block, 16..256, power of two */
    char *kv_cache_dtype;                 /* auto f32 f16 bf16 */
    double headroom;                      /* share of memory kept free */
    int64_t kv_cache_memory_bytes;        /* 0 = what headroom leaves (CPU: what is needed, at most 1 GiB) */
    int64_t num_gpu_blocks_override;      /* 0 = off; KV blocks whatever the memory */
    int64_t max_num_seqs;                 /* sequences in one step */
    int64_t max_num_batched_tokens;       /* tokens in one step */
    char *scheduling_policy;              /* fair fcfs priority */
    char *async_scheduling;               /* auto true false */
    bool enforce_eager;                   /* no captured steps */
    char *tuning;                         /* idle start off */
    int64_t long_prefill_chunk;           /* tokens of one prompt per step while others wait; 0 = off */
    int64_t itl_target_ms;                /* 0 = off; time between two tokens that prompts may not push a step over */
    char *trace;                          /* file of the step trace, or "" */
    int64_t trace_bytes;
    bool enable_prefix_caching;
    char *cache_isolation;                /* key none */

    /* gateway */
    char *host; int64_t port;             /* 127.0.0.1 8000; port 0 = any free, printed */
    struct str_list api_keys;             /* "key" or "name:key" */
    char *api_keys_file;
    char *admin_api_key, *admin_socket;
    char *metrics_auth;                   /* key none */
    char *metrics_compat;                 /* vllm none */
    bool kv_cache_metrics;
    struct str_list cors_allow_origins, allowed_hosts;
    int64_t http_threads, worker_threads; /* 0 = by cores */
    int64_t max_connections, max_connections_per_address;
    int64_t max_body_bytes, max_body_bytes_in_flight, max_response_bytes;
    int64_t header_timeout_ms, body_timeout_ms, keep_alive_timeout_ms;
    int64_t max_queue_requests, max_queue_tokens;
    int64_t timeout_queue_ms, timeout_ttft_ms, timeout_total_ms;   /* 0 = none */
    int64_t slow_client_timeout_ms, drain_timeout_ms;
    int64_t sse_keep_alive_interval;      /* s; 0 = off, else >= 15 */
    int64_t max_logprobs;
    bool prompt_special_tokens;           /* parse special tokens in string prompts of /v1/completions */
    char *engine_path;                    /* sluice-engine; "" = beside the running program */
    int64_t engine_start_timeout_ms, replica_stall_timeout_ms;
    char *log_level;                      /* debug info warning error */
    char *config_file;                    /* --config */
    char *preset;                         /* configs/NAME.yaml that was loaded first, or "" */

    struct config_origin *origins;        /* private: one per option */
};

enum config_when { CONFIG_START, CONFIG_RELOAD };   /* RELOAD: may change while running */

/* argv: program arguments after the program's (and subcommand's) name. A positional argument is --model when none is
 * given (as `vllm serve MODEL`). --help prints the table to stdout, sets *help and leaves config empty.
 * environ is read for SLUICE_*. An empty model is accepted: each program knows whether it needs one. api_keys holds the
 * keys of api_keys_file too; served_model_name is filled when there is a model.
 * Errors: ERR_CONFIG with "file:line:column: ..." or "--flag: ..." and the nearest known name; exit 78. Nothing is left
 * to release then. */
int  config_load(struct config *config, int argc, char *const *argv, bool *help, struct err *err);
/* The same for a reload: env (NAME=value, NULL-terminated) is read instead of environ, --help means nothing. */
int  config_load_again(struct config *config, int argc, char *const *argv, char *const *env, struct err *err);
void config_release(struct config *config);

/* Logs what is allowed but unwise: keys on the command line or short, no key beyond loopback, odd SLUICE_* names. */
void config_warn(const struct config *config);

/* usage: first line of the help, such as "usage: sluiced [MODEL] [options]". */
void config_print_help(FILE *out, const char *usage);
/* Each option: name, value, origin ("flag", "env SLUICE_PORT", "file s.yaml:12", "preset 1x:3", "default"); no keys. */
void config_print(const struct config *config, FILE *out);
void config_print_markdown(FILE *out);               /* docs/options.md */
void config_print_yaml(FILE *out);                   /* configs/sluice.yaml: every key, default, unit, help */

/* What an engine process needs, as "--name=value" strings (never a key), NULL-terminated; for config_args_free. */
char **config_engine_args(const struct config *config);
void   config_args_free(char **args);

/* The name requests use first: served_model_name[0]. */
const char *config_model_name(const struct config *config);

#endif
