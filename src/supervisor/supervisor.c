#include <sluice/supervisor.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include <sluice/channel.h>
#include <sluice/metrics.h>
#include <sluice/parallel.h>

#include "base/bug.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"

enum {
    BACKOFF_FIRST_MS = 1000,
    BACKOFF_MAX_MS = 60000,
    BACKOFF_SERVED = 3,            /* a replica that served this many times its last backoff starts over */
    BACKOFF_LIVES = 4,             /* short lives with work done that double the backoff once, as one without any does */
    STALL_FACTOR = 20,             /* x the longest step seen */
    LONGEST_STEP_MS = 3600000,     /* the page is the engine's: more is not believed */
    HEARTBEAT_MS = 250,
    LATE_HEARTBEAT_MS = 1000,      /* this process itself stood still: frames and steps are unseen yet */
    STOP_GRACE_MS = 2000,
};

struct replica {
    struct supervisor *sup;
    int index;
    enum replica_state state;
    uv_process_t process;
    bool process_alive;            /* handle initialised and not yet closed */
    bool running;                  /* spawned and not yet reaped: its pid is its own */
    struct channel *channel;       /* NULL once broken or closed */
    struct engine_page *page;      /* mapped read-only; NULL before the first spawn */
    uv_timer_t restart_timer;
    int64_t backoff_ms;            /* before its last start; 0 = none */
    int short_lives;               /* with work done, since the backoff changed */
    int64_t started_ms, ready_ms;
    int64_t stall_since_ms;        /* 0 = steps move or nothing pending */
    uint64_t stall_moves;          /* steps and layers then */
    enum restart_cause cause;      /* why it went down last */
    bool stalled, failed, killed;  /* killed for a stall; MSG_FAILED seen; killed from here */
    bool killed_outside;           /* SIGKILL, and not from here */
    char why[160];                 /* first reason of its end, "" while none is known */
    struct msg_failed failure;
};

struct supervisor {
    uv_loop_t *loop;
    const struct config *config;
    const struct supervisor_events *events;
    void *arg;
    char *engine_path;
    char **engine_args;            /* from config */
    int num_replicas;
    struct replica replicas[METRICS_MAX_REPLICAS];
    uv_timer_t heartbeat, stop_timer;
    int64_t beat_ms;               /* last heartbeat */
    bool stopping, stopped_told;
};

static void replica_spawn(struct replica *replica);

int supervisor_num_replicas(const struct supervisor *sup) { return sup->num_replicas; }

enum replica_state supervisor_state(const struct supervisor *sup, int replica)
{
    BUG_ON(replica < 0 || replica >= sup->num_replicas);
    return sup->replicas[replica].state;
}

static void close_channel(struct replica *replica)
{
    if (replica->channel) channel_close(replica->channel);
    replica->channel = NULL;
}

static void kill_process(struct replica *replica)
{
    if (replica->running) uv_process_kill(&replica->process, SIGKILL);
}

/* The replica serves no more; its process is dead or dying. The restart waits for the exit callback. */
static void replica_down(struct replica *replica, const char *why, bool crashed)
{
    struct err err = { 0 };
    bool was_ready = replica->state == REPLICA_READY;

    if (!replica->why[0]) snprintf(replica->why, sizeof replica->why, "%s", why);
    close_channel(replica);
    if (replica->state == REPLICA_DOWN || replica->state == REPLICA_STOPPED) return;
    replica->state = REPLICA_DOWN;
    metric_set(M_REPLICA_UP, replica->index, 0);
    metric_set(M_STEP_STALL, replica->index, 0);
    if (!was_ready || replica->sup->stopping) return;
    err_set(&err, ERR_REPLICA_LOST, "%s", why);
    log_warn("replica_lost", "replica %d: %s", replica->index, why);
    replica->sup->events->lost(replica->sup->arg, replica->index, &err, crashed);
}

static void tell_when_stopped(struct supervisor *sup)
{
    if (!sup->stopping || sup->stopped_told) return;
    for (int i = 0; i < sup->num_replicas; i++) {
        if (sup->replicas[i].process_alive) return;
    }
    sup->stopped_told = true;
    uv_close((uv_handle_t *)&sup->heartbeat, NULL);
    uv_close((uv_handle_t *)&sup->stop_timer, NULL);
    for (int i = 0; i < sup->num_replicas; i++) uv_close((uv_handle_t *)&sup->replicas[i].restart_timer, NULL);
    sup->events->stopped(sup->arg);
}

/* ---- frames ---- */

static void on_ready_frame(struct replica *replica, const struct frame_head *head, const void *payload)
{
    struct supervisor *sup = replica->sup;
    struct msg_ready info;

    memcpy(&info, payload, sizeof info);
    info.describe[sizeof info.describe - 1] = '\0';
    bool sane = head->len == sizeof info && info.version == IPC_VERSION && info.num_blocks > 0 && info.block_size > 0 &&
                info.max_model_len > 0 && info.max_num_seqs > 0 && info.vocab_size > 0;

    for (size_t i = 0; info.describe[i]; i++) {
        if ((unsigned char)info.describe[i] < ' ') info.describe[i] = '?';
    }
    if (!sane || replica->state != REPLICA_STARTING) {
        supervisor_kill(sup, replica->index, "bad READY frame (gateway and engine of different builds?)");
        return;
    }
    replica->state = REPLICA_READY;
    replica->ready_ms = clock_now_ms();
    metric_set(M_REPLICA_UP, replica->index, 1);
    metric_set(M_REPLICA_LOAD_SECONDS, replica->index, (double)(replica->ready_ms - replica->started_ms) / 1e3);
    log_info("replica_ready", "replica %d: %s, %d KV blocks of %d tokens, ready %lld ms after exec", replica->index, info.describe,
             info.num_blocks, info.block_size, (long long)(replica->ready_ms - replica->started_ms));
    sup->events->ready(sup->arg, replica->index, &info);
}

static void on_frame(void *arg, const struct frame_head *head, const void *payload)
{
    struct replica *replica = arg;
    struct supervisor *sup = replica->sup;
    struct msg_progress progress;

    switch (head->type) {
    case MSG_PROGRESS:
        if (head->len != sizeof progress) break;
        memcpy(&progress, payload, sizeof progress);
        if (progress.share >= 0 && progress.share <= 1) sup->events->progress(sup->arg, replica->index, progress.share);
        return;
    case MSG_READY:
        if (head->len == sizeof(struct msg_ready)) {
            on_ready_frame(replica, head, payload);
            return;
        }
        break;
    case MSG_FAILED:
        if (head->len != sizeof replica->failure) break;
        memcpy(&replica->failure, payload, sizeof replica->failure);
        replica->failure.message[sizeof replica->failure.message - 1] = '\0';
        replica->failed = true;
        return;
    default:
        if (replica->state != REPLICA_READY) break;
        sup->events->frame(sup->arg, replica->index, head, payload);
        return;
    }
    supervisor_kill(sup, replica->index, "frame that does not belong here");
}

static void on_broken(void *arg, const struct err *why)
{
    struct replica *replica = arg;

    /* its exit follows, and tells more; one that only lost its socket is of no use either */
    if (why->code != ERR_ENDED || !replica->running) replica_down(replica, why->message, true);
    close_channel(replica);
    if (!replica->sup->stopping) kill_process(replica);
}

static const struct channel_events channel_callbacks = { .frame = on_frame, .broken = on_broken };

/* ---- processes ---- */

static void on_restart(uv_timer_t *timer)
{
    struct replica *replica = timer->data;

    if (!replica->sup->stopping) replica_spawn(replica);
}

/* Streams wait for it: a replica that did some work, or that somebody killed, is soon tried again. One that dies of its own before
 * its first step is not. */
static void grow_backoff(struct replica *replica)
{
    bool worked = replica->killed_outside || (replica->ready_ms && __atomic_load_n(&replica->page->steps, __ATOMIC_RELAXED));
    bool served = replica->ready_ms && clock_now_ms() - replica->ready_ms >= replica->backoff_ms * BACKOFF_SERVED;

    if (served || !replica->backoff_ms) {
        replica->backoff_ms = BACKOFF_FIRST_MS;
        replica->short_lives = 0;
    } else if (!worked || ++replica->short_lives == BACKOFF_LIVES) {
        replica->backoff_ms = replica->backoff_ms * 2 < BACKOFF_MAX_MS ? replica->backoff_ms * 2 : BACKOFF_MAX_MS;
        replica->short_lives = 0;
    }
}

static void schedule_restart(struct replica *replica)
{
    if (replica->sup->stopping) return;
    grow_backoff(replica);
    metric_add(M_REPLICA_RESTARTS, replica->index * RESTART_COUNT + (int)replica->cause, 1);
    if (replica->backoff_ms == BACKOFF_MAX_MS)
        log_error("replica_parked", "replica %d keeps failing (%s): next start in %d s", replica->index, replica->why, BACKOFF_MAX_MS / 1000);
    else
        log_info("replica_restart", "replica %d starts again in %lld ms", replica->index, (long long)replica->backoff_ms);
    uv_timer_start(&replica->restart_timer, on_restart, (uint64_t)replica->backoff_ms, 0);
}

static void on_process_closed(uv_handle_t *handle)
{
    struct replica *replica = handle->data;

    replica->process_alive = false;
    if (replica->sup->stopping) {
        replica->state = REPLICA_STOPPED;
        tell_when_stopped(replica->sup);
    } else {
        schedule_restart(replica);
    }
}

static void on_process_exit(uv_process_t *process, int64_t exit_status, int term_signal)
{
    struct replica *replica = process->data;
    struct supervisor *sup = replica->sup;
    char why[sizeof replica->why];

    replica->running = false;
    if (replica->channel) channel_drain(replica->channel);     /* MSG_FAILED, the tokens of its last step */
    if (term_signal) snprintf(why, sizeof why, "engine killed by signal %d (%s)", term_signal, strsignal(term_signal));
    else if (replica->failed) snprintf(why, sizeof why, "engine exited with %d: %.100s", (int)exit_status, replica->failure.message);
    else snprintf(why, sizeof why, "engine exited with %d", (int)exit_status);
    replica->cause = replica->stalled ? RESTART_STALL : term_signal ? RESTART_SIGNAL : RESTART_EXIT;
    bool never_ready = !replica->ready_ms;     /* its socket may have broken first: the state says DOWN already */
    replica->killed_outside = term_signal == SIGKILL && !replica->killed;
    replica_down(replica, why, !replica->killed_outside);
    if (never_ready && !sup->stopping) {
        bool told = replica->failed && replica->failure.message[0];
        const char *message = told ? replica->failure.message : replica->killed ? replica->why : why;
        int code = !term_signal && exit_status == EXIT_CONFIG ? EXIT_CONFIG : EXIT_FAULT;
        log_error("replica_refused", "replica %d did not start: %s", replica->index, message);
        sup->events->refused(sup->arg, replica->index, code, message);
    }
    uv_close((uv_handle_t *)process, on_process_closed);
}

/* A fresh heartbeat page for each process: what a dead one left behind means nothing. */
static int page_new(struct replica *replica, struct err *err)
{
    int fd = memfd_create("sluice-engine-page", MFD_CLOEXEC);

    if (replica->page) munmap(replica->page, sizeof *replica->page);
    replica->page = NULL;
    if (fd < 0) return err_sys(err, ERR_IO, "memfd_create");
    if (ftruncate(fd, sizeof *replica->page) < 0) goto fail;
    void *page = mmap(NULL, sizeof *replica->page, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) goto fail;
    replica->page = page;
    return fd;
fail:
    err_sys(err, ERR_IO, "engine page");
    close(fd);
    return ERR_IO;
}

enum { GPU_LIST_BYTES = 1024 };

/* Several replicas: each sees the GPUs of its own only. NULL: the environment as it is (one replica, no GPU, no memory). The array is
 * the caller's to free, its strings are not; own: storage of the entry that differs. */
static char **environment_of(const struct replica *replica, char own[GPU_LIST_BYTES])
{
    static const char name[] = "CUDA_VISIBLE_DEVICES=";
    const struct config *config = replica->sup->config;
    int per_replica = (int)(config->tensor_parallel_size * config->pipeline_parallel_size), n = 0, kept = 0;

    if (replica->sup->num_replicas == 1 || !strcmp(config->device, "cpu")) return NULL;
    memcpy(own, name, sizeof name);
    if (replica_gpus(own + sizeof name - 1, GPU_LIST_BYTES - sizeof name + 1, replica->index, per_replica) < 0) return NULL;
    while (environ[n]) n++;
    char **env = calloc((size_t)n + 2, sizeof *env);
    if (!env) return NULL;
    for (int i = 0; i < n; i++)
        if (strncmp(environ[i], name, sizeof name - 1) != 0) env[kept++] = environ[i];
    env[kept] = own;
    return env;
}

static int spawn_process(struct replica *replica, struct err *err)
{
    struct supervisor *sup = replica->sup;
    char gpus[GPU_LIST_BYTES];
    uv_stdio_container_t stdio[IPC_PAGE_FD + 1] = { 0 };
    uv_process_options_t options = { 0 };
    int pair[2] = { -1, -1 }, page_fd = -1, rc = ERR_IO;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
        err_sys(err, ERR_IO, "socketpair");
        goto out;
    }
    page_fd = page_new(replica, err);
    if (page_fd < 0) goto out;

    stdio[0].flags = UV_IGNORE;
    stdio[1] = stdio[2] = (uv_stdio_container_t){ .flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO };
    stdio[IPC_FD] = (uv_stdio_container_t){ .flags = UV_INHERIT_FD, .data.fd = pair[1] };
    stdio[IPC_PAGE_FD] = (uv_stdio_container_t){ .flags = UV_INHERIT_FD, .data.fd = page_fd };
    options.file = sup->engine_path;
    options.args = sup->engine_args;
    options.stdio = stdio;
    options.stdio_count = IPC_PAGE_FD + 1;
    options.exit_cb = on_process_exit;
    options.env = environment_of(replica, gpus);
    replica->process.data = replica;
    int uv_rc = uv_spawn(sup->loop, &replica->process, &options);
    replica->process_alive = true;     /* even a failed spawn leaves a handle to close */
    if (uv_rc < 0) {
        err_set(err, ERR_IO, "%s: %s", sup->engine_path, uv_strerror(uv_rc));
        goto out;
    }
    replica->running = true;
    rc = channel_open(&replica->channel, sup->loop, pair[0], &channel_callbacks, replica, err);
    if (rc == 0) pair[0] = -1;
out:
    free(options.env);
    if (pair[0] >= 0) close(pair[0]);
    if (pair[1] >= 0) close(pair[1]);
    if (page_fd >= 0) close(page_fd);
    return rc;
}

static void replica_spawn(struct replica *replica)
{
    struct err err = { 0 };

    replica->state = REPLICA_STARTING;
    replica->started_ms = clock_now_ms();
    replica->ready_ms = replica->stall_since_ms = 0;
    replica->stalled = replica->failed = replica->killed = replica->killed_outside = false;
    replica->why[0] = '\0';
    replica->cause = RESTART_EXIT;
    if (spawn_process(replica, &err) == 0) return;
    log_error("replica_spawn", "replica %d: %s", replica->index, err.message);
    replica_down(replica, err.message, true);
    replica->sup->events->refused(replica->sup->arg, replica->index, EXIT_FAULT, err.message);
    if (replica->running) kill_process(replica);          /* its exit goes on from here */
    else if (replica->process_alive) uv_close((uv_handle_t *)&replica->process, on_process_closed);
    else schedule_restart(replica);
}

/* ---- heartbeat ---- */

/* An engine that was stopped while idle says "nothing pending" for ever: what the router has sent counts as well. */
static bool stalled(struct replica *replica, int64_t now_ms)
{
    const struct engine_page *page = replica->page;
    const struct supervisor *sup = replica->sup;
    uint64_t moves = __atomic_load_n(&page->steps, __ATOMIC_RELAXED) + __atomic_load_n(&page->layers, __ATOMIC_RELAXED);
    uint64_t longest_ms = __atomic_load_n(&page->longest_step_ns, __ATOMIC_RELAXED) / 1000000;
    bool pending = __atomic_load_n(&page->pending, __ATOMIC_RELAXED) || sup->events->busy(sup->arg, replica->index);

    if (!pending || moves != replica->stall_moves || !replica->stall_since_ms) {
        replica->stall_moves = moves;
        replica->stall_since_ms = now_ms;
        metric_set(M_STEP_STALL, replica->index, 0);
        return false;
    }
    metric_set(M_STEP_STALL, replica->index, (double)(now_ms - replica->stall_since_ms) / 1e3);
    int64_t limit = (int64_t)(longest_ms < LONGEST_STEP_MS ? longest_ms : LONGEST_STEP_MS) * STALL_FACTOR;
    int64_t least = sup->config->replica_stall_timeout_ms;
    return now_ms - replica->stall_since_ms > (limit > least ? limit : least);
}

static void on_heartbeat(uv_timer_t *timer)
{
    struct supervisor *sup = timer->data;
    int64_t now_ms = clock_now_ms();
    bool late = now_ms - sup->beat_ms > LATE_HEARTBEAT_MS;

    sup->beat_ms = now_ms;
    for (int i = 0; i < sup->num_replicas; i++) {
        struct replica *replica = &sup->replicas[i];
        if (late) replica->stall_since_ms = 0;
        if (replica->state == REPLICA_READY && !replica->channel) {
            replica_down(replica, "engine socket closed", true);        /* and its process takes its time to die */
        } else if (replica->state == REPLICA_READY && stalled(replica, now_ms)) {
            replica->stalled = true;
            supervisor_kill(sup, i, "no step moved in time with work pending");
        } else if (replica->state == REPLICA_STARTING && !replica->killed &&
                   now_ms - replica->started_ms > sup->config->engine_start_timeout_ms) {
            supervisor_kill(sup, i, "not ready within engine_start_timeout");
        }
    }
}

/* ---- door ---- */

/* sluice-engine beside the running program unless the configuration names one. */
static char *find_engine(const struct config *config)
{
    char beside[PATH_MAX];

    if (config->engine_path && config->engine_path[0]) return strdup(config->engine_path);
    return strdup(program_beside(beside, sizeof beside, "sluice-engine") ? beside : "sluice-engine");
}

/* argv[0] and the options; config_engine_args gives the options alone. */
static char **build_args(const char *path, const struct config *config)
{
    char **options = config_engine_args(config);
    size_t n = 0;

    if (!options) return NULL;
    while (options[n]) n++;
    char **args = calloc(n + 2, sizeof *args);
    if (args) {
        args[0] = strdup(path);
        for (size_t i = 0; i < n && args[i]; i++) args[i + 1] = strdup(options[i]);
    }
    config_args_free(options);
    return args;
}

int supervisor_start(struct supervisor **out, struct uv_loop_s *loop, const struct config *config,
                     const struct supervisor_events *events, void *arg, struct err *err)
{
    struct supervisor *sup = calloc(1, sizeof *sup);

    if (!sup) return err_set(err, ERR_NO_MEMORY, "supervisor: out of memory");
    sup->loop = loop;
    sup->config = config;
    sup->events = events;
    sup->arg = arg;
    sup->num_replicas = (int)config->data_parallel_size;
    BUG_ON(sup->num_replicas < 1 || sup->num_replicas > METRICS_MAX_REPLICAS);
    sup->engine_path = find_engine(config);
    sup->engine_args = sup->engine_path ? build_args(sup->engine_path, config) : NULL;
    if (!sup->engine_args) {
        supervisor_free(sup);
        return err_set(err, ERR_NO_MEMORY, "supervisor: out of memory");
    }
    if (access(sup->engine_path, X_OK) < 0) {
        err_sys(err, ERR_CONFIG, "engine_path %s", sup->engine_path);
        supervisor_free(sup);
        return ERR_CONFIG;
    }
    uv_timer_init(loop, &sup->heartbeat);
    uv_timer_init(loop, &sup->stop_timer);
    sup->heartbeat.data = sup->stop_timer.data = sup;
    sup->beat_ms = clock_now_ms();
    uv_timer_start(&sup->heartbeat, on_heartbeat, HEARTBEAT_MS, HEARTBEAT_MS);
    *out = sup;
    for (int i = 0; i < sup->num_replicas; i++) {
        struct replica *replica = &sup->replicas[i];
        *replica = (struct replica){ .sup = sup, .index = i };
        uv_timer_init(loop, &replica->restart_timer);
        replica->restart_timer.data = replica;
        replica_spawn(replica);
    }
    return 0;
}

int supervisor_send(struct supervisor *sup, int replica, struct buf *frames)
{
    struct replica *r = &sup->replicas[replica];

    BUG_ON(replica < 0 || replica >= sup->num_replicas);
    if (r->state != REPLICA_READY || !r->channel) return ERR_ENDED;
    return channel_send(r->channel, frames);
}

size_t supervisor_backlog(const struct supervisor *sup, int replica)
{
    const struct replica *r = &sup->replicas[replica];

    return r->channel ? channel_backlog(r->channel) : 0;
}

void supervisor_kill(struct supervisor *sup, int replica, const char *why)
{
    struct replica *r = &sup->replicas[replica];

    if (!r->killed) log_error("replica_kill", "replica %d: %s", replica, why);
    if (!r->why[0]) snprintf(r->why, sizeof r->why, "%s", why);
    r->killed = true;
    kill_process(r);
    /* while STARTING the exit callback tells `refused`; a READY one is lost from here on */
    if (r->state == REPLICA_READY) replica_down(r, why, true);
    else close_channel(r);
}

static void on_stop_grace_over(uv_timer_t *timer)
{
    struct supervisor *sup = timer->data;

    for (int i = 0; i < sup->num_replicas; i++) kill_process(&sup->replicas[i]);
}

void supervisor_stop(struct supervisor *sup)
{
    struct buf stop = BUF_INIT;

    if (sup->stopping) return;
    sup->stopping = true;
    uv_timer_stop(&sup->heartbeat);
    for (int i = 0; i < sup->num_replicas; i++) {
        struct replica *replica = &sup->replicas[i];
        uv_timer_stop(&replica->restart_timer);
        if (replica->state == REPLICA_READY && replica->channel) {
            ipc_put(&stop, MSG_STOP, NULL, 0);
            if (channel_send(replica->channel, &stop) == 0) continue;
        }
        kill_process(replica);
    }
    buf_release(&stop);
    uv_timer_start(&sup->stop_timer, on_stop_grace_over, STOP_GRACE_MS, 0);
    tell_when_stopped(sup);
}

void supervisor_free(struct supervisor *sup)
{
    if (!sup) return;
    for (int i = 0; i < sup->num_replicas; i++) {
        close_channel(&sup->replicas[i]);
        if (sup->replicas[i].page) munmap(sup->replicas[i].page, sizeof *sup->replicas[i].page);
    }
    for (char **arg = sup->engine_args; arg && *arg; arg++) free(*arg);
    free(sup->engine_args);
    free(sup->engine_path);
    free(sup);
}
