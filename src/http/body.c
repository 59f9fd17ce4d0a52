#include "body.h"

#include "conn_watch.h"
#include "server.h"

enum { RESERVE_MAX = 1 << 20 };      /* a length is believed this far; beyond it memory grows with the bytes */

static int fail_large(const struct exchange *ex, struct err *err)
{
    return err_set(err, ERR_TOO_LARGE, "The request body is larger than %lld bytes.",
                   (long long)ex->server->gateway->config->max_body_bytes);
}

/* The body may grow to total bytes: takes the difference from the budget. */
static int take_budget(struct exchange *ex, int64_t total, struct err *err)
{
    struct http_server *server = ex->server;
    int64_t more = total - ex->budget_bytes;

    if (more <= 0) return 0;
    int64_t used = __atomic_add_fetch(&server->body_bytes, more, __ATOMIC_RELAXED);
    if (used > server->gateway->config->max_body_bytes_in_flight) {
        __atomic_fetch_sub(&server->body_bytes, more, __ATOMIC_RELAXED);
        return err_set(err, ERR_QUEUE_FULL, "Too many request bodies are being read.");
    }
    ex->budget_bytes = total;
    metric_set(M_HTTP_BODY_BYTES, 0, (double)used);
    return 0;
}

int body_expect(struct exchange *ex, const struct guard_result *headers, struct err *err)
{
    uint64_t limit = (uint64_t)ex->server->gateway->config->max_body_bytes;
    uint64_t length = headers->content_length;

    if (headers->has_length && length > limit) return fail_large(ex, err);
    if (!headers->has_body || ex->early.code) return 0;
    int rc = take_budget(ex, (int64_t)length, err);
    if (rc < 0) return rc;
    if (!buf_reserve(&ex->body, length < RESERVE_MAX ? length : RESERVE_MAX))
        return err_set(err, ERR_NO_MEMORY, "out of memory");
    return 0;
}

enum MHD_Result body_take(struct exchange *ex, const char *data, size_t *len)
{
    struct err err = { 0 };
    size_t piece = *len;

    *len = 0;
    ex->body_seen += piece;
    if (ex->conn) conn_watch_body(&ex->server->watch, ex->conn, ex->body_seen);
    if (ex->body_seen > (uint64_t)ex->server->gateway->config->max_body_bytes) {
        fail_large(ex, &err);
        return exchange_refuse(ex, &err);
    }
    if (ex->early.code) return MHD_YES;                   /* read past, answered at its end */
    if (take_budget(ex, (int64_t)ex->body_seen, &err) < 0) return exchange_refuse(ex, &err);
    buf_append(&ex->body, data, piece);
    if (!ex->body.failed) return MHD_YES;
    err_set(&err, ERR_NO_MEMORY, "out of memory");
    return exchange_refuse(ex, &err);
}
