#include "conn_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sluice/metrics.h>

#include "base/clock.h"
#include "exchange.h"

enum {
    TICK_MS = 100,
    EVENTS = 64,
    LINGER_MS = 2000, LINGER_BYTES = 1 << 20, LINGER_MAX = 256,
    GONE_GRACE_MS = 1000,            /* what was sent before the hang-up is still worth reading */
    BODY_GRACE_MS = 10000, BODY_BYTES_PER_S = 1024,
    NO_SLOT = UINT32_MAX,
};

/* A refused connection that may still say a little, so that its client reads our answer and not a reset. */
struct lingering { struct list link; int fd; int64_t until_ms; size_t bytes; };

static void *watch_main(void *arg);

int conn_watch_start(struct conn_watch *watch, const struct config *config, struct err *err)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)NO_SLOT };

    *watch = (struct conn_watch){ .config = config, .epoll_fd = -1, .stop_fd = -1 };
    pthread_mutex_init(&watch->lock, NULL);
    list_init(&watch->conns);
    list_init(&watch->lingering);
    watch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool open = watch->epoll_fd >= 0 && watch->stop_fd >= 0;
    if (!open || epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, watch->stop_fd, &event) < 0) {
        err_sys(err, ERR_INTERNAL, "conn_watch");
        conn_watch_stop(watch);
        return ERR_INTERNAL;
    }
    if (pthread_create(&watch->thread, NULL, watch_main, watch) != 0) {
        conn_watch_stop(watch);
        return err_set(err, ERR_INTERNAL, "cannot start the connection watch thread");
    }
    watch->running = true;
    return 0;
}

static void linger_end(struct lingering *linger)
{
    list_remove(&linger->link);
    close(linger->fd);
    free(linger);
}

void conn_watch_stop(struct conn_watch *watch)
{
    uint64_t one = 1;

    if (!watch->config) return;
    if (watch->running && write(watch->stop_fd, &one, sizeof one) == (ssize_t)sizeof one)
        pthread_join(watch->thread, NULL);
    list_for_each_safe(node, next, &watch->lingering) linger_end(list_entry(node, struct lingering, link));
    if (watch->epoll_fd >= 0) close(watch->epoll_fd);
    if (watch->stop_fd >= 0) close(watch->stop_fd);
    free(watch->slots);
    pthread_mutex_destroy(&watch->lock);
    *watch = (struct conn_watch){ 0 };
}

/* ---- connections ---- */

/* Lock held. The first free slot, growing the table; NO_SLOT without memory. */
static uint32_t take_slot(struct conn_watch *watch)
{
    uint32_t n = watch->num_slots;

    for (uint32_t i = 0; watch->num_conns < n && i < n; i++) {
        if (!watch->slots[i]) return i;
    }
    uint32_t grown = n ? n * 2 : 64;
    struct conn **slots = realloc(watch->slots, grown * sizeof *slots);
    if (!slots) return NO_SLOT;
    memset(slots + n, 0, (grown - n) * sizeof *slots);
    watch->slots = slots;
    watch->num_slots = grown;
    return n;
}

/* Lock held. */
static void set_phase(struct conn_watch *watch, struct conn *conn, enum conn_phase phase)
{
    const struct config *config = watch->config;
    int64_t now_ms = clock_now_ms();

    conn->phase = phase;
    conn->since_ms = now_ms;
    switch (phase) {
    case CONN_NEW:
    case CONN_HEADERS: conn->deadline_ms = now_ms + config->header_timeout_ms; break;
    case CONN_WAITING: conn->deadline_ms = now_ms + config->keep_alive_timeout_ms; break;
    case CONN_BODY: conn->deadline_ms = now_ms + config->body_timeout_ms; conn->body_bytes = 0; break;
    case CONN_SERVED: conn->deadline_ms = 0; break;
    }
}

struct conn *conn_watch_add(struct conn_watch *watch, int fd)
{
    struct conn *conn = calloc(1, sizeof *conn);
    int one = 1;

    if (!conn) return NULL;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conn->fd = fd;
    pthread_mutex_lock(&watch->lock);
    conn->slot = take_slot(watch);
    conn->serial = ++watch->next_serial;
    struct epoll_event event = { .events = EPOLLRDHUP | EPOLLET,
        .data.u64 = (uint64_t)conn->serial << 32 | conn->slot };
    if (conn->slot == NO_SLOT || epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        free(conn);
        conn = NULL;
    } else {
        watch->slots[conn->slot] = conn;
        watch->num_conns++;
        list_push_back(&watch->conns, &conn->link);
        set_phase(watch, conn, CONN_NEW);
    }
    pthread_mutex_unlock(&watch->lock);
    return conn;
}

bool conn_watch_remove(struct conn_watch *watch, struct conn *conn)
{
    pthread_mutex_lock(&watch->lock);
    epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);   /* a lingering duplicate would keep it registered */
    watch->slots[conn->slot] = NULL;
    watch->num_conns--;
    list_remove(&conn->link);
    bool silent = conn->phase == CONN_NEW;
    pthread_mutex_unlock(&watch->lock);
    free(conn);
    return silent;
}

void conn_watch_phase(struct conn_watch *watch, struct conn *conn, enum conn_phase phase)
{
    pthread_mutex_lock(&watch->lock);
    set_phase(watch, conn, phase);
    pthread_mutex_unlock(&watch->lock);
}

bool conn_watch_attach(struct conn_watch *watch, struct conn *conn, struct exchange *exchange)
{
    pthread_mutex_lock(&watch->lock);
    /* the first request's clock runs since accept */
    if (exchange && conn->phase == CONN_WAITING) set_phase(watch, conn, CONN_HEADERS);
    else if (!exchange) set_phase(watch, conn, CONN_WAITING);
    conn->exchange = exchange;
    bool gone = conn->peer_gone;
    pthread_mutex_unlock(&watch->lock);
    return gone;
}

void conn_watch_body(struct conn_watch *watch, struct conn *conn, uint64_t bytes)
{
    pthread_mutex_lock(&watch->lock);
    conn->body_bytes = bytes;
    pthread_mutex_unlock(&watch->lock);
}

void conn_watch_linger(struct conn_watch *watch, int fd)
{
    struct lingering *linger = malloc(sizeof *linger);
    int copy = linger ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;

    shutdown(fd, SHUT_WR);                 /* the answer is whole */
    if (copy < 0) { free(linger); return; }
    *linger = (struct lingering){ .fd = copy, .until_ms = clock_now_ms() + LINGER_MS };
    pthread_mutex_lock(&watch->lock);
    list_push_back(&watch->lingering, &linger->link);
    pthread_mutex_unlock(&watch->lock);
}

void conn_watch_abort_all(struct conn_watch *watch)
{
    struct exchange **all = NULL;
    size_t n = 0;

    pthread_mutex_lock(&watch->lock);
    all = calloc(watch->num_conns + 1, sizeof *all);
    list_for_each(node, &watch->conns) {
        struct conn *conn = list_entry(node, struct conn, link);
        if (!all || !conn->exchange) continue;
        exchange_ref(conn->exchange);
        all[n++] = conn->exchange;
    }
    pthread_mutex_unlock(&watch->lock);
    for (size_t i = 0; i < n; i++) {
        exchange_abort(all[i], CANCEL_DRAIN);
        exchange_unref(all[i]);
    }
    free(all);
}

/* ---- the thread ---- */

/* The peer has reset the connection: there is nothing to shut down, and the one event of it may be lost on a library that had the
 * connection suspended. Dissolving the association reports an error on the socket again, which the library then sees. */
static void tell_of_reset(int fd)
{
    struct sockaddr none = { .sa_family = AF_UNSPEC };
    (void)!connect(fd, &none, sizeof none);
}

/* Lock held. libmicrohttpd sees the shutdown and closes; reset: what is unsent is dropped. */
static void cut(struct conn *conn, bool reset)
{
    struct linger now = { .l_onoff = 1, .l_linger = 0 };

    if (reset) setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    if (shutdown(conn->fd, SHUT_RDWR) < 0) tell_of_reset(conn->fd);
    conn->cut = true;
}

/* Lock held. */
static void time_out(struct conn *conn)
{
    struct err err = { 0 };

    if (conn->phase != CONN_WAITING) {
        err_set(&err, ERR_REQUEST_TIMEOUT, "The request was not sent in time.");
        raw_error(conn->fd, NULL, &err);
    }
    cut(conn, false);
}

static bool body_too_slow(const struct conn *conn, int64_t now_ms)
{
    int64_t age_ms = now_ms - conn->since_ms;
    return conn->phase == CONN_BODY && age_ms > BODY_GRACE_MS &&
        (int64_t)conn->body_bytes * 1000 < age_ms * BODY_BYTES_PER_S;
}

/* Lock held. Fills stalled with a reference when the exchange is to be cancelled too. */
static void tick_conn(struct conn *conn, int64_t now_ms, struct exchange **stalled)
{
    if (conn->cut) return;
    /* The library misses a hang-up that arrives together with data (one edge, and a short read ends it): nothing else
     * would close the connection before its deadline. */
    bool late = conn->phase == CONN_WAITING || (conn->phase != CONN_SERVED && now_ms - conn->since_ms > GONE_GRACE_MS);
    bool left = conn->peer_gone && late;
    if (left) { cut(conn, false); return; }
    if ((conn->deadline_ms && now_ms >= conn->deadline_ms) || body_too_slow(conn, now_ms)) {
        time_out(conn);
    } else if (conn->phase == CONN_SERVED && conn->exchange && exchange_tick(conn->exchange, now_ms)) {
        cut(conn, true);
        if (!*stalled) {
            exchange_ref(conn->exchange);
            *stalled = conn->exchange;
        }
    }
}

/* Lock held. */
static void tick_lingering(struct conn_watch *watch, int64_t now_ms)
{
    char scratch[16384];
    size_t count = 0;

    list_for_each_safe(node, next, &watch->lingering) {
        struct lingering *linger = list_entry(node, struct lingering, link);
        ssize_t got = 1;
        while (linger->bytes < LINGER_BYTES && (got = recv(linger->fd, scratch, sizeof scratch, MSG_DONTWAIT)) > 0)
            linger->bytes += (size_t)got;
        bool waits = got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
        if (!waits || now_ms >= linger->until_ms || ++count > LINGER_MAX) linger_end(linger);
    }
}

/* Lock held. Over the cap the one that has been idle longest makes room. */
static void shed_idle(struct conn_watch *watch)
{
    struct conn *oldest = NULL;

    if (watch->num_conns < (uint64_t)watch->config->max_connections) return;
    list_for_each(node, &watch->conns) {
        struct conn *conn = list_entry(node, struct conn, link);
        if (conn->phase == CONN_WAITING && !conn->cut && (!oldest || conn->since_ms < oldest->since_ms)) oldest = conn;
    }
    if (oldest) cut(oldest, false);
}

static void tick(struct conn_watch *watch)
{
    int64_t now_ms = clock_now_ms();
    int64_t idle = 0, served = 0;
    struct exchange *stalled = NULL;

    pthread_mutex_lock(&watch->lock);
    list_for_each(node, &watch->conns) {
        struct conn *conn = list_entry(node, struct conn, link);
        tick_conn(conn, now_ms, &stalled);
        idle += conn->phase == CONN_WAITING || conn->phase == CONN_NEW;
        served += conn->phase == CONN_SERVED;
    }
    shed_idle(watch);
    tick_lingering(watch, now_ms);
    int64_t all = watch->num_conns;
    pthread_mutex_unlock(&watch->lock);
    metric_set(M_HTTP_CONNECTIONS, CONN_IDLE, (double)idle);
    metric_set(M_HTTP_CONNECTIONS, CONN_SUSPENDED, (double)served);
    metric_set(M_HTTP_CONNECTIONS, CONN_ACTIVE, (double)(all - idle - served));
    if (stalled) {
        exchange_abort(stalled, CANCEL_SLOW_READER);
        exchange_unref(stalled);
    }
}

/* The peer shut down its side, or the connection broke. */
static void on_hang_up(struct conn_watch *watch, uint64_t tag)
{
    uint32_t slot = (uint32_t)tag, serial = (uint32_t)(tag >> 32);
    struct exchange *ex = NULL;

    pthread_mutex_lock(&watch->lock);
    struct conn *conn = slot < watch->num_slots ? watch->slots[slot] : NULL;
    if (conn && conn->serial == serial) {
        conn->peer_gone = true;
        ex = conn->exchange;
        if (ex) exchange_ref(ex);
    }
    pthread_mutex_unlock(&watch->lock);
    if (!ex) return;
    exchange_abort(ex, CANCEL_CLIENT_GONE);
    exchange_unref(ex);
}

static void *watch_main(void *arg)
{
    struct conn_watch *watch = arg;
    struct epoll_event events[EVENTS];
    int64_t next_tick_ms = clock_now_ms() + TICK_MS;

    for (;;) {
        int64_t left_ms = next_tick_ms - clock_now_ms();
        int n = epoll_wait(watch->epoll_fd, events, EVENTS, left_ms > 0 ? (int)left_ms : 0);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == (uint64_t)NO_SLOT) return NULL;
            on_hang_up(watch, events[i].data.u64);
        }
        if (clock_now_ms() < next_tick_ms) continue;
        tick(watch);
        next_tick_ms = clock_now_ms() + TICK_MS;
    }
}
