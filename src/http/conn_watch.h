/* conn_watch.h - one thread that knows every connection: absolute deadlines, hang-ups, stalled readers, graceful
 * closes.
 * Why: while a connection is suspended libmicrohttpd sees neither disconnect nor time-out, and its own timer is one of
 * inactivity, which a slow sender never meets.
 * Each descriptor is also in an epoll set of ours for EPOLLRDHUP. A peer that shuts down its sending side counts as
 * gone, even if it still reads: its generation is cancelled. HTTP clients do not half-close while they wait for an
 * answer.
 * Lock order: conn_watch.lock before exchange.lock, never the other way round.
 * Thread: functions from any thread unless said otherwise; conn structs are touched under conn_watch.lock only. */
#ifndef SLUICE_HTTP_CONN_WATCH_H
#define SLUICE_HTTP_CONN_WATCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <sluice/config.h>
#include <sluice/err.h>

#include "base/list.h"

struct exchange;

/*                   waits for                       ends it */
enum conn_phase {
    CONN_NEW,        /* the first request's headers   header_timeout, 408 */
    CONN_WAITING,    /* the next request              keep_alive_timeout */
    CONN_HEADERS,    /* the rest of the headers       header_timeout, 408 */
    CONN_BODY,       /* the body                      body_timeout or below 1 KiB/s, 408 */
    CONN_SERVED,     /* us, or the reader             streams: slow_client_timeout */
};

struct conn {
    struct list link;              /* conn_watch.conns */
    int fd;
    uint32_t slot, serial;
    enum conn_phase phase;
    int64_t since_ms, deadline_ms; /* of the phase; 0 = none */
    uint64_t body_bytes;
    bool peer_gone;
    bool cut;                      /* shut down by us; waits for libmicrohttpd to notice */
    struct exchange *exchange;     /* NULL between requests; alive while set */
};

struct conn_watch {
    const struct config *config;
    pthread_mutex_t lock;
    pthread_t thread;
    int epoll_fd, stop_fd;
    struct list conns, lingering;
    struct conn **slots; uint32_t num_slots, next_serial;
    uint32_t num_conns;
    bool running;
};

int  conn_watch_start(struct conn_watch *watch, const struct config *config, struct err *err);
void conn_watch_stop(struct conn_watch *watch);            /* after the daemon stopped: no connection is left */

/* NULL: no memory; the connection then lives unwatched */
struct conn *conn_watch_add(struct conn_watch *watch, int fd);
/* before the descriptor is closed; conn is freed. True when it never brought a request line. */
bool conn_watch_remove(struct conn_watch *watch, struct conn *conn);
void conn_watch_phase(struct conn_watch *watch, struct conn *conn, enum conn_phase phase);
/* exchange NULL: the request is over. Returns whether the peer has hung up already. */
bool conn_watch_attach(struct conn_watch *watch, struct conn *conn, struct exchange *exchange);
void conn_watch_body(struct conn_watch *watch, struct conn *conn, uint64_t bytes);    /* received so far */
/* Ends a connection after an error: what was written goes out, then the peer may send at most 1 MiB for 2 s, then it
 * closes.
 * Works on a duplicate; the caller's descriptor stays its own. */
void conn_watch_linger(struct conn_watch *watch, int fd);
/* Calls exchange_abort for every exchange. */
void conn_watch_abort_all(struct conn_watch *watch);

#endif
