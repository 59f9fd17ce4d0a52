/* exchange.h - one request and its answer on a connection: born when the request line is read, freed when
 * libmicrohttpd, the worker and the router have all let go (refs).
 * Threads: fields up to `lock` belong to the connection's HTTP thread until the job is given to a worker, and are
 * const from then on, until it is answered; fields after `lock` are guarded by it. While the connection is suspended
 * only `lock` holders act.
 * One flag says whether libmicrohttpd has the connection suspended; it changes under the lock, together with the
 * call. */
#ifndef SLUICE_HTTP_EXCHANGE_H
#define SLUICE_HTTP_EXCHANGE_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <sluice/api.h>
#include <sluice/metrics.h>

#include "auth.h"
#include "base/buf.h"
#include "guard.h"

struct http_server;
struct route;
struct conn;
struct delta_record;

/* Deltas on their way from the loop to the HTTP thread. */
struct outbox { struct delta_record *head, **tail; };

struct exchange {
    int32_t refs;                        /* atomic: MHD, worker or router */
    struct http_server *server;
    struct MHD_Connection *connection;   /* valid while MHD holds its reference */
    struct conn *conn;                   /* NULL: unwatched */
    char *raw_url;
    const char *line_version;            /* where the request line's version begins unless a NUL hides in the target */
    int64_t arrival_ms;                  /* end of the headers */
    const struct route *route;           /* NULL: unknown path */
    char key_name[AUTH_NAME_MAX];        /* "": an open server */
    char request_id[REQUEST_ID_MAX + 1];
    char trace_id[GUARD_TRACE_ID + 1];   /* "": none */
    char *path;                          /* decoded; for routes with a tail */
    size_t path_tail;                    /* where the tail begins */
    bool started, complete, answered;    /* handler calls seen; a response was queued */
    bool close_after;                    /* the connection ends with this answer */
    bool load_report;
    char *cors_origin;                   /* an allowed Origin, to be named in the answer; NULL: none */
    char *cors_headers;                  /* of a preflight: what it asked for; NULL: not a preflight */
    struct err early;                    /* known before the body; answered after it */
    struct buf body;
    int64_t budget_bytes;                /* taken from the server's body budget */
    uint64_t body_seen;
    const char *allow;                   /* 405: the Allow header */
    struct answer *answer;               /* made by the worker, then HTTP thread */
    struct buf wire;                     /* frames on their way into MHD's buffer */
    size_t wire_sent;
    bool end_written;

    pthread_mutex_t lock;
    bool suspended;                      /* MHD has it suspended */
    bool gone;                           /* the peer hung up, or the server ends: no answer any more */
    bool ready;                          /* error, or reply, is the answer */
    bool streaming;                      /* status 200 and headers are out */
    bool stalled;                        /* the reader read nothing for too long */
    bool keepalive_due;
    int status;
    struct buf reply;
    struct err error;
    struct api_request *request;         /* set by the worker */
    uint64_t router_id;                  /* 0 = not submitted, or done */
    struct outbox outbox;
    bool done;                           /* the router's last word */
    struct err done_err;
    struct generation_usage usage;
    int64_t last_write_ms;               /* the reader gave bytes, or was asked for some */
};

struct exchange *exchange_new(struct http_server *server, struct MHD_Connection *connection, struct conn *conn,
                              const char *raw_url);
void exchange_ref(struct exchange *ex);
void exchange_unref(struct exchange *ex);

/* HTTP thread, from handler or reader, lock held. False: must not wait any more (gone, or the server stops). */
bool exchange_suspend(struct exchange *ex);
void exchange_wake(struct exchange *ex);              /* lock held, any thread; no effect unless suspended */
/* Any thread, lock not held. The worker's answer; takes reply's memory. error NULL: status 200. */
void exchange_finish(struct exchange *ex, struct buf *reply, const struct err *error);
/* Any thread, lock not held, idempotent: nobody waits for the answer any more. Cancels what the router runs. */
void exchange_abort(struct exchange *ex, enum cancel_cause cause);
/* conn_watch, with its lock held: keepalives and stalled readers. True when the connection is to be cut. */
bool exchange_tick(struct exchange *ex, int64_t now_ms);

/* HTTP thread: adds the headers that every answer has (x-request-id, and what err_code asks for), queues, drops
 * response. */
enum MHD_Result exchange_queue(struct exchange *ex, int status, struct MHD_Response *response, int err_code);
/* gives its bytes back to the budget; whoever owns the body now */
void exchange_free_body(struct exchange *ex);
/* HTTP thread: queues a JSON answer; the body's memory is taken. */
enum MHD_Result exchange_send(struct exchange *ex, int status, struct buf *body, const char *content_type,
                              int err_code);
enum MHD_Result exchange_send_error(struct exchange *ex, const struct err *err);
/* HTTP thread: writes the error on the descriptor at once, without the library, and returns MHD_NO so that it closes:
 * for errors after which not one more byte of the connection may be read as a request. */
enum MHD_Result exchange_refuse(struct exchange *ex, const struct err *err);
/* The same bytes for a connection without exchange (408). */
void raw_error(int fd, const char *request_id, const struct err *err);

#endif
