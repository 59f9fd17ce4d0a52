/* sluiced_main.c - the gateway daemon: configuration, the model's text side, router with its engines, HTTP, signals.
 * Order: everything that can be refused is read first (exit 78), then the socket is bound, then the engines load.
 * Main thread: waits for signals. SIGTERM or SIGINT drains and exits 0; a second one ends at once. SIGHUP reads the
 * configuration again: keys and log level are taken over, all other options keep their values until a restart. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <sluice/config.h>
#include <sluice/gateway.h>
#include <sluice/loader.h>
#include <sluice/metrics.h>
#include <sluice/parallel.h>
#include <sluice/router.h>
#include <sluice/text.h>
#include <sluice/version.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/sha256.h"

#ifndef SLUICE_COMMIT
#define SLUICE_COMMIT "unknown"
#endif

struct daemon {
    struct config config;
    int argc;
    char *const *argv;            /* without the program's name */
    char **first_env;             /* as it was at start, keys included: a reload reads it again */
    struct model_source *source;
    struct tokenizer *tokenizer;
    struct chat_template *chat_template;
    char *chat_template_text;
    struct gateway gateway;
    struct router *router;
    struct http_server *http;
    int port;
};

static int refuse(const struct err *err)
{
    fprintf(stderr, "sluiced: %s\n", err->message);
    return err->code == ERR_NO_MEMORY || err->code == ERR_INTERNAL ? EXIT_FAULT : EXIT_CONFIG;
}

static int read_template_file(const char *path, char **text, size_t *len, struct err *err)
{
    enum { MAX_TEMPLATE_BYTES = 1 << 20 };
    FILE *file = fopen(path, "rb");

    if (!file) return err_sys(err, ERR_CONFIG, "chat_template %s", path);
    *text = malloc(MAX_TEMPLATE_BYTES + 1);
    *len = *text ? fread(*text, 1, MAX_TEMPLATE_BYTES + 1, file) : 0;
    fclose(file);
    if (!*text) return err_set(err, ERR_NO_MEMORY, "chat_template: out of memory");
    if (*len > MAX_TEMPLATE_BYTES) return err_set(err, ERR_CONFIG, "chat_template %s: larger than 1 MiB", path);
    (*text)[*len] = '\0';
    return 0;
}

/* Dummy weights need no tokenizer either: prompts are ids then. */
static int load_tokenizer(struct daemon *d, struct err *err)
{
    const struct model_config *model = model_source_config(d->source);
    const struct gguf_file *gguf = model_source_gguf(d->source);
    int dir_fd = model_source_dir_fd(d->source);

    if (gguf) return tokenizer_load_gguf(&d->tokenizer, gguf, err);
    if (model_source_format(d->source) != LOAD_DUMMY || faccessat(dir_fd, "tokenizer.json", F_OK, 0) == 0)
        return tokenizer_load_dir(&d->tokenizer, dir_fd, err);
    log_info("no_tokenizer", "dummy weights without tokenizer.json: prompts must be token ids");
    return tokenizer_new_ids(&d->tokenizer, model->vocab_size, model->bos_token_id, model->eos_token_ids,
                             model->num_eos_token_ids, err);
}

/* What the gateway needs of the model: configuration, tokenizer, template. No weights. */
static int load_text_side(struct daemon *d, struct err *err)
{
    size_t len = 0;
    int rc = model_source_open(&d->source, d->config.model, load_format_from_name(d->config.load_format), err);

    if (rc < 0) return rc;
    if ((rc = load_tokenizer(d, err)) < 0) return rc;
    if (d->config.chat_template && d->config.chat_template[0]) rc = read_template_file(d->config.chat_template, &d->chat_template_text, &len, err);
    else rc = model_source_chat_template(d->source, &d->chat_template_text, &len, err);
    if (rc < 0 || !d->chat_template_text) return rc;
    rc = chat_template_compile(&d->chat_template, d->chat_template_text, len, err);
    return rc < 0 ? err_prefix(err, "chat template") : 0;
}

/* The engines would refuse it too, but only after they were spawned. */
static int check_layout(const struct daemon *d, struct err *err)
{
    struct layout layout;

    layout_of_config(&layout, &d->config);
    return layout_check(&layout, model_source_config(d->source), err);
}

static void make_fingerprint(struct daemon *d)
{
    uint8_t digest[32];
    char hex[65], layout[160];

    model_source_digest(d->source, digest);
    int len = snprintf(layout, sizeof layout, "%s %s %s tp%lld pp%lld", SLUICE_VERSION, d->config.device, d->config.cpu_kernels,
                       (long long)d->config.tensor_parallel_size, (long long)d->config.pipeline_parallel_size);
    struct sha256_piece pieces[] = { { digest, sizeof digest }, { layout, (size_t)len } };
    struct sha256 hash = sha256_of(pieces, 2);
    sha256_hex(&hash, hex);
    snprintf(d->gateway.fingerprint, sizeof d->gateway.fingerprint, "fp_%.12s", hex);
}

static int32_t context_length(const struct daemon *d)
{
    int64_t trained = model_source_config(d->source)->max_position_embeddings;
    int64_t asked = d->config.max_model_len;

    return (int32_t)(asked > 0 && asked < trained ? asked : trained);
}

/* One descriptor per stream: take what the hard limit gives. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* Signals are taken by sigtimedwait on the main thread only: blocked before any thread exists. */
static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int wait_signal(const sigset_t *set, int timeout_ms)
{
    struct timespec timeout = { .tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L };
    int sig = sigtimedwait(set, NULL, &timeout);

    return sig > 0 ? sig : 0;
}

/* Until the first engine is ready: 0, or the exit code of the programme. A signal ends the wait. */
static int wait_ready(struct daemon *d, const sigset_t *set, bool *signalled)
{
    int64_t until = clock_now_ms() + d->config.engine_start_timeout_ms;
    struct err err = { 0 };

    for (;;) {
        err_clear(&err);
        int rc = router_wait_ready(d->router, 20, &err);
        if (rc == 0) return 0;
        if (rc > 0 || clock_now_ms() > until) {
            fprintf(stderr, "sluiced: %s\n", err.message);
            return rc > 0 ? rc : EXIT_FAULT;
        }
        int sig = wait_signal(set, 0);
        if (sig == SIGTERM || sig == SIGINT) {
            *signalled = true;
            return 0;
        }
    }
}

static void *end_on_second_signal(void *arg)
{
    sigset_t set;

    (void)arg;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    while (!wait_signal(&set, 3600000)) continue;
    _exit(0);                     /* the engines go with their parent */
}

static void drain(struct daemon *d)
{
    pthread_t watcher;

    log_info("drain", "not ready from now on; running streams have %lld ms", (long long)d->config.drain_timeout_ms);
    if (pthread_create(&watcher, NULL, end_on_second_signal, NULL) == 0) pthread_detach(watcher);
    router_drain(d->router, d->config.drain_timeout_ms);
}

/* With an error nothing changes. What runs goes on under the key that it came with. */
static void reload(struct daemon *d)
{
    struct config fresh = { 0 };
    struct err err = { 0 };
    int rc = config_load_again(&fresh, d->argc, d->argv, d->first_env, &err);

    if (rc == 0) rc = http_server_set_keys(d->http, &fresh, &err);
    if (rc == 0) {
        log_set_level((enum log_level)log_level_from_name(fresh.log_level));
        log_info("reloaded", "%zu API keys, log level %s", fresh.api_keys.n, fresh.log_level);
    } else {
        log_error("reload_rejected", "%s; the configuration in force stays", err.message);
    }
    metric_add(M_CONFIG_RELOADS, rc == 0 ? RELOAD_OK : RELOAD_REJECTED, 1);
    config_release(&fresh);
}

static int serve(struct daemon *d)
{
    struct err err = { 0 };
    sigset_t set;
    bool signalled = false;

    block_signals(&set);
    raise_descriptor_limit();
    struct router_options options = { .config = &d->config, .tokenizer = d->tokenizer, .max_model_len = d->gateway.max_model_len };
    if (router_start(&d->router, &options, &err) < 0) return refuse(&err);
    d->gateway.router = d->router;
    if (http_server_start(&d->http, &d->gateway, &d->port, &err) < 0) return refuse(&err);
    log_info("listening", "http://%s:%d, loading %s", d->config.host, d->port, d->config.model);

    int rc = wait_ready(d, &set, &signalled);
    if (rc) return rc;
    if (!signalled) {
        printf("sluice serves %s on http://%s:%d\n", config_model_name(&d->config), d->config.host, d->port);
        fflush(stdout);
    }
    while (!signalled) {
        int sig = wait_signal(&set, 3600000);
        signalled = sig == SIGTERM || sig == SIGINT;
        if (sig == SIGHUP) reload(d);
    }
    drain(d);
    http_server_stop(d->http, 2000);
    d->http = NULL;
    return 0;
}

static void free_env(char **env)
{
    for (size_t i = 0; env && env[i]; i++) {
        explicit_bzero(env[i], strlen(env[i]));
        free(env[i]);
    }
    free(env);
}

static void release(struct daemon *d)
{
    if (d->http) http_server_stop(d->http, 0);
    router_stop(d->router);
    chat_template_free(d->chat_template);
    free(d->chat_template_text);
    tokenizer_free(d->tokenizer);
    if (d->source) model_source_close(d->source);
    config_release(&d->config);
    free_env(d->first_env);
}

static char **copy_env(char *const *env)
{
    size_t n = 0;

    while (env[n]) n++;
    char **copy = calloc(n + 1, sizeof *copy);
    for (size_t i = 0; copy && i < n; i++) {
        if (!(copy[i] = strdup(env[i]))) { free_env(copy); return NULL; }
    }
    return copy;
}

/* Keys that came by the environment are in the configuration and in first_env now: an engine has no use for them. */
static void forget_keys(void)
{
    unsetenv("SLUICE_API_KEY");
    unsetenv("SLUICE_API_KEYS");
    unsetenv("SLUICE_ADMIN_API_KEY");
}

int main(int argc, char **argv)
{
    struct daemon d = { 0 };
    struct err err = { 0 };
    bool help = false;
    int rc;

    log_set_program("sluiced");
    d.argc = argc - 1;
    d.argv = argv + 1;
    d.first_env = copy_env(environ);
    if (!d.first_env) {
        err_set(&err, ERR_NO_MEMORY, "out of memory");
        rc = refuse(&err);
        goto out;
    }
    if (config_load(&d.config, argc - 1, argv + 1, &help, &err) < 0) {
        rc = refuse(&err);
        goto out;
    }
    if (help) {
        rc = 0;
        goto out;
    }
    log_set_level((enum log_level)log_level_from_name(d.config.log_level));
    config_warn(&d.config);
    forget_keys();
    if (!d.config.model || !d.config.model[0]) {
        fprintf(stderr, "sluiced: no model given: sluiced --model PATH (a .gguf file or a model directory)\n");
        rc = EXIT_CONFIG;
        goto out;
    }
    if (load_text_side(&d, &err) < 0 || check_layout(&d, &err) < 0) {
        rc = refuse(&err);
        goto out;
    }
    d.gateway = (struct gateway){ .config = &d.config, .model = model_source_config(d.source), .tokenizer = d.tokenizer,
                                  .chat_template = d.chat_template, .chat_template_text = d.chat_template_text,
                                  .max_model_len = context_length(&d), .created_s = clock_wall_s(), .version = SLUICE_VERSION };
    make_fingerprint(&d);
    struct metrics_info info = { .model_name = config_model_name(&d.config), .num_replicas = (int)d.config.data_parallel_size,
                                 .vllm_aliases = !strcmp(d.config.metrics_compat, "vllm"), .version = SLUICE_VERSION,
                                 .commit = SLUICE_COMMIT, .cuda = SLUICE_CUDA_VERSION,
                                 .kv_cache_dtype = d.config.kv_cache_dtype, .block_size = d.config.block_size,
                                 .enable_prefix_caching = d.config.enable_prefix_caching,
                                 .kv_cache_metrics = d.config.kv_cache_metrics, .headroom = d.config.headroom };
    metrics_init(&info);
    rc = serve(&d);
out:
    release(&d);
    return rc;
}
