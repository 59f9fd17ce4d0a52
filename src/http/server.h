/* server.h - the HTTP server's own state: the daemon, its guards, its helpers. Built by http_server_start, const
 * afterwards but for the atomics and the keys. Lock order of the module: conn_watch.lock, exchange.lock. */
#ifndef SLUICE_HTTP_SERVER_H
#define SLUICE_HTTP_SERVER_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <sluice/gateway.h>

#include "auth.h"
#include "conn_watch.h"
#include "workers.h"

struct http_server {
    const struct gateway *gateway;
    struct MHD_Daemon *daemon;
    int listen_fd;
    pthread_rwlock_t keys_lock;  /* nothing is called under it but the comparison */
    struct key_ring keys;
    struct conn_watch watch;
    struct workers workers;
    uint8_t cache_secret[32];
    int64_t body_bytes;          /* atomic: of all bodies in memory, against max_body_bytes_in_flight */
    int32_t num_exchanges;       /* atomic: alive */
    int32_t num_unanswered;      /* atomic: requests whose answer is not out yet */
    int64_t noise_ms;            /* atomic: when connections that speak no HTTP were last told of */
    uint32_t num_noise;          /* atomic: since then */
    bool draining;               /* atomic: answers close their connection */
    bool stopping;               /* atomic: nothing waits any more */
};

/* key_ring_allows with the keys in force. Any thread. */
bool server_allows(struct http_server *server, const char *value, size_t len, char name[AUTH_NAME_MAX]);
/* A connection brought no request that could be read: one log line a minute says how many did. Any thread. */
void server_note_noise(struct http_server *server);

#endif
