/* routes.h - the static route table and the request handler behind it.
 * Order (api-contract 1.1): guard -> API key -> route and method -> length, encoding, expectation -> body budget ->
 * body -> job. */
#ifndef SLUICE_HTTP_ROUTES_H
#define SLUICE_HTTP_ROUTES_H

#include <microhttpd.h>

#include <sluice/metrics.h>

#include "exchange.h"

enum route_auth { AUTH_NONE, AUTH_KEY, AUTH_METRICS };       /* AUTH_METRICS: a key, or none with metrics_auth: none */

struct route {
    const char *method;                 /* GET rows answer HEAD too */
    const char *path;                   /* one ending in '/' takes any non-empty tail */
    enum route_auth auth;
    enum metric_route metric;
    /* Exactly one of the two. reply: HTTP thread, short; status to answer with, or a negative error. */
    int (*reply)(struct exchange *ex, struct buf *out, struct err *err);
    void (*work)(struct exchange *ex);  /* worker: ends in exchange_finish, or leaves the rest to the router */
    const char *content_type;           /* of reply; NULL = application/json */
};

/* MHD's callbacks. */
enum MHD_Result routes_handle(void *server, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *data, size_t *data_len, void **state);
void routes_work(struct exchange *ex);  /* what a worker does */

#endif
