#include "options.h"

#include <string.h>

/* Short columns keep a row on one line; the field has the option's name unless the macro takes it apart. */
#define ROW(group, name, field, type, def, min, max, unit, choices, when, flags, help) \
    { #name, group, type, def, min, max, unit, choices, CONFIG_##when, flags, offsetof(struct config, field), help }
#define STRING(group, name, def, when, flags, help) \
    ROW(group, name, name, OPT_STRING, def, 0, 0, "", NULL, when, flags, help)
#define ENUM(group, name, def, choices, when, flags, help) \
    ROW(group, name, name, OPT_ENUM, def, 0, 0, "", choices, when, flags, help)
#define INT(group, name, def, min, max, unit, when, flags, help) \
    ROW(group, name, name, OPT_INT, def, min, max, unit, NULL, when, flags, help)
#define REAL(group, name, def, min, max, unit, when, flags, help) \
    ROW(group, name, name, OPT_REAL, def, min, max, unit, NULL, when, flags, help)
#define BOOL(group, name, def, when, flags, help) \
    ROW(group, name, name, OPT_BOOL, def, 0, 0, "", NULL, when, flags, help)
#define BYTES(group, name, def, min, max, when, flags, help) \
    ROW(group, name, name, OPT_BYTES, def, min, max, "bytes", NULL, when, flags, help)
#define LIST(group, name, when, flags, help) \
    ROW(group, name, name, OPT_LIST, "", 0, OPTION_MAX_ITEMS, "", NULL, when, flags, help)
#define MS(group, name, def, min, max, when, flags, help) \
    ROW(group, name, name, OPT_MS, def, min, max, "ms", NULL, when, flags, help)
#define SECONDS(group, name, def, min, max, when, flags, help) \
    ROW(group, name, name##_ms, OPT_SECONDS, def, min, max, "s", NULL, when, flags, help)

#define KIB 1024.0
#define MIB (1024.0 * KIB)
#define GIB (1024.0 * MIB)
#define TIB (1024.0 * GIB)
#define DAY_MS 86400000.0
#define DAY_S 86400.0
#define MAX_EXACT 9007199254740991.0   /* 2^53 - 1 */
#define ENGINE OPTION_ENGINE

const struct option option_table[] = {
    ROW("configuration", config, config_file, OPT_STRING, "", 0, 0, "", NULL, START, OPTION_NO_FILE,
        "YAML file with options of this table"),
    STRING("configuration", preset, "", START, 0,
        "shipped file configs/NAME.yaml that fills what nothing else sets: 1x, 2x, cpu-dev, ..."),

    STRING("model", model, "", START, ENGINE,
        "path of a .gguf file or of a model directory; also the first plain argument"),
    LIST("model", served_model_name, START, 0, "names that requests may use; default: file name without .gguf"),
    ENUM("model", load_format, "auto", "auto gguf safetensors dummy", START, ENGINE,
        "kind of weight files; dummy: config.json only, random weights"),
    STRING("model", chat_template, "", START, 0, "file that replaces the model's own chat template"),
    ENUM("model", generation_config, "auto", "auto none", START, 0,
        "sampling defaults: auto from the model's files, none from sluice's table"),
    INT("model", max_model_len, "0", 0, 1 << 24, "tokens", START, ENGINE,
        "longest prompt plus answer; 0 = what the model was made for"),
    INT("model", seed, "0", 0, MAX_EXACT, "", START, ENGINE, "of the weights of load_format dummy"),

    ENUM("engine", device, "auto", "auto cpu cuda", START, ENGINE,
        "where the model runs; auto: cuda if there is a GPU"),
    ENUM("engine", cpu_kernels, "fast", "fast ref", START, ENGINE,
        "fast: vector code chosen at run time; ref: plain fp32, slow, the oracle of tests"),
    ENUM("engine", dtype, "auto", "auto bfloat16 float16 float32", START, ENGINE,
        "GPU: bfloat16 or float16, auto by the model's files; CPU: fast has bfloat16 matrices, ref float32"),
    INT("engine", cpu_threads, "0", 0, 1024, "threads", START, ENGINE, "per rank; 0 = cores / ranks"),
    INT("engine", tensor_parallel_size, "1", 1, 64, "ranks", START, ENGINE, "ranks that share each layer (-tp)"),
    INT("engine", pipeline_parallel_size, "1", 1, 64, "stages", START, ENGINE,
        "stages that the layers are split into (-pp)"),
    INT("engine", data_parallel_size, "1", 1, 64, "replicas", START, ENGINE,
        "engine processes, each with its own copy of the model (-dp)"),
    LIST("engine", pp_layer_partition, START, ENGINE,
        "layers of each pipeline stage, such as 16,14; empty = split by cost"),
    INT("engine", block_size, "64", 16, 256, "tokens", START, ENGINE, "tokens in a KV block; a power of two"),
    ENUM("engine", kv_cache_dtype, "auto", "auto f32 f16 bf16", START, ENGINE, "element type of the KV cache"),
    REAL("engine", headroom, "0.10", 0.01, 0.9, "share", START, ENGINE,
        "of the memory kept free; --gpu-memory-utilization U = 1 - U"),
    BYTES("engine", kv_cache_memory_bytes, "0", 0, 64 * TIB, START, ENGINE,
        "KV cache of a rank; 0 = what headroom leaves (on a CPU what is needed, at most 1 GiB)"),
    INT("engine", num_gpu_blocks_override, "0", 0, 1 << 30, "blocks", START, ENGINE,
        "KV blocks whatever the memory; 0 = off"),
    INT("engine", max_num_seqs, "256", 1, 4096, "seqs", START, ENGINE, "sequences in one step"),
    INT("engine", max_num_batched_tokens, "2048", 16, 1 << 20, "tokens", START, ENGINE, "tokens in one step"),
    ENUM("engine", scheduling_policy, "fair", "fair fcfs priority", START, ENGINE, "who goes first when many wait"),
    ENUM("engine", async_scheduling, "auto", "auto true false", START, ENGINE,
        "plan the next step while one runs; auto: on a GPU, without pipeline stages"),
    BOOL("engine", enforce_eager, "false", START, ENGINE,
        "GPU: launch every kernel of a step, replay no captured ones (to look for faults)"),
    ENUM("engine", tuning, "idle", "idle start off", START, ENGINE,
        "GPU: when the ways of doing matrix products are timed; idle: some at start, the rest while nothing runs"),
    INT("engine", long_prefill_chunk, "512", 0, 1 << 20, "tokens", START, ENGINE,
        "tokens of one prompt per step while others wait; 0 = no limit"),
    MS("engine", itl_target_ms, "0", 0, 60000, START, ENGINE,
        "prompts get only so much of a step that running answers see a token in this time; 0 = off"),
    STRING("engine", trace, "", START, ENGINE,
        "file of the last steps (with the prompts' token ids), for sluice-engine replay; empty = off"),
    BYTES("engine", trace_bytes, "64MiB", MIB, TIB, START, ENGINE, "size of the trace file: older steps are overwritten"),
    BOOL("engine", enable_prefix_caching, "true", START, ENGINE,
        "keep the KV blocks of prompts for later ones that begin alike"),
    ENUM("engine", cache_isolation, "key", "key none", START, ENGINE,
        "share prefixes within one API key only (key) or among all (none)"),
    STRING("engine", engine_path, "", START, 0, "the sluice-engine program; empty = beside the running program"),
    SECONDS("engine", engine_start_timeout, "600", 1, DAY_S, START, 0,
        "an engine not ready by then is killed and started again"),
    SECONDS("engine", replica_stall_timeout, "10", 0.5, DAY_S, START, 0,
        "an engine with work and no finished step for so long (and 20 times its longest) is killed"),

    STRING("server", host, "127.0.0.1", START, 0, "address to listen on"),
    INT("server", port, "8000", 0, 65535, "", START, 0, "0 = any free port, printed at start"),
    INT("server", http_threads, "0", 0, 256, "threads", START, 0, "that speak HTTP; 0 = by cores"),
    INT("server", worker_threads, "0", 0, 256, "threads", START, 0, "that parse and tokenize; 0 = by cores"),
    INT("server", max_connections, "16384", 1, 1 << 20, "connections", START, 0, "open at once"),
    INT("server", max_connections_per_address, "0", 0, 1 << 20, "connections", START, 0,
        "of one client address; 0 = no limit"),
    LIST("server", cors_allow_origins, RELOAD, 0, "web origins that browsers may call from; empty = CORS off"),
    LIST("server", allowed_hosts, RELOAD, 0, "Host headers that are answered; empty = all"),
    STRING("server", admin_socket, "", START, 0,
        "Unix socket of the admin routes; empty = $RUNTIME_DIRECTORY/admin.sock, if set"),
    ENUM("server", log_level, "info", "debug info warning error", RELOAD, ENGINE, "least level that is logged"),

    LIST("keys", api_keys, RELOAD, OPTION_SECRET | OPTION_VERBATIM,
        "\"key\" or \"name:key\", one per --api-key (or SLUICE_API_KEY); none = open server"),
    STRING("keys", api_keys_file, "", RELOAD, 0, "one name:key per line, readable by its owner only"),
    STRING("keys", admin_api_key, "", RELOAD, OPTION_SECRET, "opens the admin routes on the public port"),
    ENUM("keys", metrics_auth, "key", "key none", RELOAD, 0, "does /metrics need an API key"),

    BYTES("limits", max_body_bytes, "32MiB", KIB, 4 * GIB, RELOAD, 0, "of one request body"),
    BYTES("limits", max_body_bytes_in_flight, "1GiB", KIB, TIB, RELOAD, 0, "of all request bodies being read"),
    BYTES("limits", max_response_bytes, "256MiB", KIB, 64 * GIB, RELOAD, 0, "of one answer that is not a stream"),
    INT("limits", max_queue_requests, "2048", 1, 1 << 20, "requests", RELOAD, ENGINE, "requests waiting before 429"),
    INT("limits", max_queue_tokens, "4194304", 1, MAX_EXACT, "tokens", RELOAD, 0, "prompt tokens waiting before 429"),
    INT("limits", max_logprobs, "20", 0, 20, "", START, ENGINE, "most alternatives a request may ask for"),
    BOOL("limits", prompt_special_tokens, "true", RELOAD, 0,
        "special-token text in string prompts of /v1/completions becomes special ids"),

    SECONDS("timeouts", header_timeout, "10", 0.1, DAY_S, RELOAD, 0, "for all request headers to arrive"),
    SECONDS("timeouts", body_timeout, "60", 0.1, DAY_S, RELOAD, 0, "for the request body to arrive"),
    SECONDS("timeouts", keep_alive_timeout, "75", 0.1, DAY_S, RELOAD, 0, "idle time before a connection is closed"),
    MS("timeouts", timeout_queue_ms, "0", 0, DAY_MS, RELOAD, 0,
        "for a request to wait before it is scheduled; 0 = none"),
    MS("timeouts", timeout_ttft_ms, "0", 0, DAY_MS, RELOAD, 0, "to the first token; 0 = none"),
    MS("timeouts", timeout_total_ms, "0", 0, DAY_MS, RELOAD, 0, "to the end of the answer; 0 = none"),
    SECONDS("timeouts", slow_client_timeout, "60", 0.1, DAY_S, RELOAD, 0,
        "a stream whose client reads nothing is cut after this"),
    SECONDS("timeouts", drain_timeout, "60", 0, DAY_S, RELOAD, 0, "for running streams to finish after SIGTERM"),
    INT("timeouts", sse_keep_alive_interval, "15", 0, 3600, "s", RELOAD, 0,
        "silence on a stream before a keepalive comment; 0 = off, else 15 or more"),

    ENUM("metrics", metrics_compat, "vllm", "vllm none", START, 0, "also publish vLLM's metric names"),
    BOOL("metrics", kv_cache_metrics, "false", START, ENGINE, "ages of the prefix cache's blocks, under vLLM's names"),
};
const size_t option_count = sizeof option_table / sizeof option_table[0];

const struct option_alias option_aliases[] = {
    { "gpu_memory_utilization", "headroom", true },
    { "max_num_queued_reqs", "max_queue_requests", false },
    { "shutdown_timeout", "drain_timeout", false },
    { "timeout_ms", "timeout_total_ms", false },
    { "long_prefill_token_threshold", "long_prefill_chunk", false },
    { "allowed_origins", "cors_allow_origins", false },
    { "api_key", "api_keys", false },
    { "tp", "tensor_parallel_size", false },
    { "pp", "pipeline_parallel_size", false },
    { "dp", "data_parallel_size", false },
};
const size_t option_alias_count = sizeof option_aliases / sizeof option_aliases[0];

static const struct option *find_row(const char *name)
{
    for (size_t i = 0; i < option_count; i++)
        if (strcmp(option_table[i].name, name) == 0) return &option_table[i];
    return NULL;
}

bool option_is_switch(const struct option *option)
{
    return option->type == OPT_BOOL || (option->type == OPT_ENUM && strcmp(option->choices, "auto true false") == 0);
}

struct option_ref option_find(const char *name)
{
    struct option_ref ref = { .option = find_row(name) };

    for (size_t i = 0; !ref.option && i < option_alias_count; i++) {
        if (strcmp(option_aliases[i].name, name) != 0) continue;
        ref.option = find_row(option_aliases[i].target);
        ref.complement = option_aliases[i].complement;
    }
    return ref;
}

enum { NAME_MAX_LEN = 48 };   /* longer names are not compared: nothing in the table is near them */

static size_t min3(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;

    return least < c ? least : c;
}

/* Insertions, deletions, replacements and swaps of neighbours (optimal string alignment). */
static size_t edit_distance(const char *a, const char *b)
{
    size_t rows[3][NAME_MAX_LEN + 1];
    size_t len_a = strlen(a), len_b = strlen(b);
    size_t *before = rows[0], *last = rows[1], *row = rows[2];

    for (size_t j = 0; j <= len_b; j++) last[j] = before[j] = j;
    for (size_t i = 1; i <= len_a; i++) {
        row[0] = i;
        for (size_t j = 1; j <= len_b; j++) {
            row[j] = min3(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && before[j - 2] + 1 < row[j]) row[j] = before[j - 2] + 1;
        }
        size_t *free_row = before;
        before = last;
        last = row;
        row = free_row;
    }
    return last[len_b];
}

static void keep_nearer(const char *name, const char *candidate, size_t *best, const char **nearest)
{
    size_t distance = edit_distance(name, candidate);

    if (distance >= *best) return;
    *best = distance;
    *nearest = candidate;
}

const char *option_nearest(const char *name)
{
    size_t len = strlen(name);
    size_t best = len / 2 + 2;   /* at half the letters wrong a hint only confuses */
    const char *nearest = NULL;

    if (len > NAME_MAX_LEN) return NULL;
    for (size_t i = 0; i < option_count; i++) keep_nearer(name, option_table[i].name, &best, &nearest);
    for (size_t i = 0; i < option_alias_count; i++) {
        if (strlen(option_aliases[i].name) > 2) keep_nearer(name, option_aliases[i].name, &best, &nearest);
    }
    return nearest;
}

const char *option_type_name(enum option_type type)
{
    switch (type) {
    case OPT_STRING: return "string";
    case OPT_ENUM: return "choice";
    case OPT_INT: return "integer";
    case OPT_REAL: return "number";
    case OPT_BOOL: return "boolean";
    case OPT_BYTES: return "bytes";
    case OPT_MS:
    case OPT_SECONDS: return "duration";
    case OPT_LIST: return "list";
    }
    return "?";
}
