#include "server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "exchange.h"
#include "routes.h"

enum {
    CONNECTION_MEMORY = 48 << 10,    /* a header block of 32 KiB, its field records, and a frame on the way out */
    BACKLOG = 4096,
    WORKER_QUEUE_SLACK = 1024,
    STOP_GRACE_MS = 5000,            /* for the router's last callbacks */
    TIMEOUT_SLACK_S = 30,            /* the library's own timer is the second line */
    SPARE_FDS = 512,
    NOISE_INTERVAL_MS = 60000,
};

void server_note_noise(struct http_server *server)
{
    int64_t now_ms = clock_now_ms(), last_ms = __atomic_load_n(&server->noise_ms, __ATOMIC_RELAXED);

    __atomic_fetch_add(&server->num_noise, 1, __ATOMIC_RELAXED);
    if (last_ms && now_ms - last_ms < NOISE_INTERVAL_MS) return;
    if (!__atomic_compare_exchange_n(&server->noise_ms, &last_ms, now_ms, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
    log_info("http_noise", "connections that spoke no HTTP since the last such line: %u",
             __atomic_exchange_n(&server->num_noise, 0, __ATOMIC_RELAXED));
}

/* ---- callbacks of the library ---- */

static void on_connection(void *arg, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *server = arg;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = info ? conn_watch_add(&server->watch, info->connect_fd) : NULL;
    } else if (*context) {
        if (conn_watch_remove(&server->watch, *context)) server_note_noise(server);
        *context = NULL;
    }
}

/* Called with the raw request line's target, before it is decoded: the birth of an exchange. */
static void *on_request_line(void *arg, const char *uri, struct MHD_Connection *connection)
{
    struct http_server *server = arg;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *conn = info ? info->socket_context : NULL;
    struct exchange *ex = exchange_new(server, connection, conn, uri);

    if (ex && conn && conn_watch_attach(&server->watch, conn, ex)) {
        pthread_mutex_lock(&ex->lock);
        ex->gone = true;
        pthread_mutex_unlock(&ex->lock);
    }
    return ex;
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code)
{
    struct http_server *server = arg;
    struct exchange *ex = *state;

    if (!ex) return;
    *state = NULL;
    if (ex->conn) conn_watch_attach(&server->watch, ex->conn, NULL);
    exchange_abort(ex, code == MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN ? CANCEL_DRAIN : CANCEL_CLIENT_GONE);
    if (ex->close_after && code == MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        /* a stream that failed: its Connection header went out long ago */
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (info) shutdown(info->connect_fd, SHUT_RDWR);
    }
    __atomic_fetch_sub(&server->num_unanswered, 1, __ATOMIC_RELAXED);
    exchange_unref(ex);
}

/* The library's texts about broken requests: for debugging only, one line each. */
static void on_log(void *arg, const char *fmt, va_list args)
{
    char text[256];

    (void)arg;
    vsnprintf(text, sizeof text, fmt, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http_library", "%s", text);
}

/* ---- start ---- */

/* Every connection is a descriptor; engines and files need some too. */
static void raise_fd_limit(const struct config *config)
{
    struct rlimit limit;
    rlim_t want = (rlim_t)config->max_connections + SPARE_FDS;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= want) return;
    limit.rlim_cur = want < limit.rlim_max ? want : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur < want)
        log_warn("few_descriptors", "max_connections is %lld but only %llu files may be open",
                 (long long)config->max_connections,
                 (unsigned long long)limit.rlim_cur);
}

static int bind_address(const struct addrinfo *address)
{
    int one = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static int bound_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;

    if (getsockname(fd, (struct sockaddr *)&address, &len) < 0) return -1;
    if (address.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

static int listen_on(struct http_server *server, int *port, struct err *err)
{
    const struct config *config = server->gateway->config;
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_PASSIVE }, *found = NULL;
    char service[16];

    snprintf(service, sizeof service, "%lld", (long long)config->port);
    if (getaddrinfo(config->host, service, &hints, &found) != 0 || !found)
        return err_set(err, ERR_CONFIG, "host %s: not an address of this machine", config->host);
    server->listen_fd = bind_address(found);
    if (server->listen_fd < 0) err_sys(err, ERR_CONFIG, "cannot listen on %s port %s", config->host, service);
    freeaddrinfo(found);
    if (server->listen_fd < 0) return ERR_CONFIG;
    *port = bound_port(server->listen_fd);
    return 0;
}

static unsigned thread_count(int64_t configured, unsigned most)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = cores > 0 ? (unsigned)cores : 1;

    if (configured > 0) return (unsigned)configured;
    return n < most ? n : most;
}

static int start_daemon(struct http_server *server, struct err *err)
{
    const struct config *config = server->gateway->config;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    unsigned threads = thread_count(config->http_threads, 4);
    int64_t idle_ms = config->keep_alive_timeout_ms > config->slow_client_timeout_ms ? config->keep_alive_timeout_ms
                                                                                     : config->slow_client_timeout_ms;
    struct MHD_OptionItem options[] = {
        { MHD_OPTION_LISTEN_SOCKET, server->listen_fd, NULL },
        { MHD_OPTION_THREAD_POOL_SIZE, threads > 1 ? (intptr_t)threads : 0, NULL },
        { MHD_OPTION_CONNECTION_LIMIT, (intptr_t)config->max_connections, NULL },
        { MHD_OPTION_PER_IP_CONNECTION_LIMIT, (intptr_t)config->max_connections_per_address, NULL },
        { MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY, NULL },
        { MHD_OPTION_CONNECTION_TIMEOUT, (intptr_t)(idle_ms / 1000 + TIMEOUT_SLACK_S), NULL },
        { MHD_OPTION_STRICT_FOR_CLIENT, 1, NULL },
        { MHD_OPTION_END, 0, NULL },
    };

    server->daemon = MHD_start_daemon(flags, 0, NULL, NULL, routes_handle, server,
                                      /* first, so that it sees all messages */
                                      MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
                                      MHD_OPTION_NOTIFY_CONNECTION, on_connection, server,
                                      MHD_OPTION_URI_LOG_CALLBACK, on_request_line, server,
                                      MHD_OPTION_NOTIFY_COMPLETED, on_completed, server,
                                      MHD_OPTION_ARRAY, options, MHD_OPTION_END);
    return server->daemon ? 0 : err_set(err, ERR_INTERNAL, "the HTTP library did not start");
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0;
}

static void server_free(struct http_server *server)
{
    workers_stop(&server->workers);
    conn_watch_stop(&server->watch);
    key_ring_release(&server->keys);
    pthread_rwlock_destroy(&server->keys_lock);
    if (server->listen_fd >= 0) close(server->listen_fd);
    free(server);
}

int http_server_start(struct http_server **out, const struct gateway *gateway, int *port, struct err *err)
{
    const struct config *config = gateway->config;
    struct http_server *server = calloc(1, sizeof *server);
    int rc = 0;

    if (!server) return err_set(err, ERR_NO_MEMORY, "out of memory");
    server->gateway = gateway;
    server->listen_fd = -1;
    pthread_rwlock_init(&server->keys_lock, NULL);
    if (getrandom(server->cache_secret, sizeof server->cache_secret, 0) != (ssize_t)sizeof server->cache_secret) {
        rc = err_sys(err, ERR_INTERNAL, "getrandom");
        goto out;
    }
    raise_fd_limit(config);
    if ((rc = key_ring_init(&server->keys, config, err)) < 0) goto out;
    if ((rc = listen_on(server, port, err)) < 0) goto out;
    if ((rc = conn_watch_start(&server->watch, config, err)) < 0) goto out;
    rc = workers_start(&server->workers, thread_count(config->worker_threads, 8),
                       (size_t)config->max_queue_requests + WORKER_QUEUE_SLACK, routes_work, err);
    if (rc < 0 || (rc = start_daemon(server, err)) < 0) goto out;
    if (server->keys.n == 0 && !is_loopback(config->host))
        log_warn("open_server", "listening on %s without an API key: anybody who reaches it may use it", config->host);
    *out = server;
    server = NULL;
out:
    if (server) server_free(server);
    return rc;
}

/* ---- keys ---- */

bool server_allows(struct http_server *server, const char *value, size_t len, char name[AUTH_NAME_MAX])
{
    pthread_rwlock_rdlock(&server->keys_lock);
    bool allowed = key_ring_allows(&server->keys, value, len, name);
    pthread_rwlock_unlock(&server->keys_lock);
    return allowed;
}

int http_server_set_keys(struct http_server *server, const struct config *config, struct err *err)
{
    struct key_ring fresh, old;
    int rc = key_ring_init(&fresh, config, err);

    if (rc < 0) return rc;
    if (fresh.n == 0 && server->keys.n > 0) {        /* an emptied file must not open the server to everybody */
        key_ring_release(&fresh);
        return err_set(err, ERR_CONFIG, "api_keys: none are left; a server with keys is opened by a restart only");
    }
    pthread_rwlock_wrlock(&server->keys_lock);
    old = server->keys;
    server->keys = fresh;
    pthread_rwlock_unlock(&server->keys_lock);
    key_ring_release(&old);
    return 0;
}

/* ---- stop ---- */

static void wait_until_zero(const int32_t *count, int64_t timeout_ms)
{
    int64_t end_ms = clock_now_ms() + timeout_ms;
    struct timespec pause = { .tv_nsec = 5000000 };

    while (__atomic_load_n(count, __ATOMIC_ACQUIRE) > 0 && clock_now_ms() < end_ms) nanosleep(&pause, NULL);
}

void http_server_stop(struct http_server *server, int64_t timeout_ms)
{
    if (!server) return;
    __atomic_store_n(&server->draining, true, __ATOMIC_RELAXED);
    MHD_quiesce_daemon(server->daemon);
    wait_until_zero(&server->num_unanswered, timeout_ms);
    /* From here nothing suspends any more, and what is suspended is woken: the library must not stop over a sleeper. */
    __atomic_store_n(&server->stopping, true, __ATOMIC_RELEASE);
    conn_watch_abort_all(&server->watch);
    workers_stop(&server->workers);
    conn_watch_abort_all(&server->watch);
    MHD_stop_daemon(server->daemon);
    wait_until_zero(&server->num_exchanges, STOP_GRACE_MS);
    if (__atomic_load_n(&server->num_exchanges, __ATOMIC_ACQUIRE) > 0) {
        /* the router still holds some: their memory must outlive this */
        log_warn("http_stop", "%d requests are still held by the router",
                 __atomic_load_n(&server->num_exchanges, __ATOMIC_ACQUIRE));
        return;
    }
    server_free(server);
}
