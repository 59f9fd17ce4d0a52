#include "exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "routes.h"
#include "server.h"
#include "stream.h"

static void make_request_id(char id[REQUEST_ID_MAX + 1])
{
    uint8_t random[16] = { 0 };

    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) log_warn("no_randomness", "getrandom failed");
    size_t len = (size_t)snprintf(id, REQUEST_ID_MAX + 1, "req_");
    for (size_t i = 0; i < sizeof random; i++)
        len += (size_t)snprintf(id + len, REQUEST_ID_MAX + 1 - len, "%02x", random[i]);
}

struct exchange *exchange_new(struct http_server *server, struct MHD_Connection *connection, struct conn *conn,
                              const char *raw_url)
{
    struct exchange *ex = calloc(1, sizeof *ex);

    if (!ex) return NULL;
    ex->raw_url = strdup(raw_url);
    if (!ex->raw_url) { free(ex); return NULL; }
    ex->line_version = raw_url + strlen(raw_url) + 1;
    ex->refs = 1;
    ex->server = server;
    ex->connection = connection;
    ex->conn = conn;
    make_request_id(ex->request_id);
    pthread_mutex_init(&ex->lock, NULL);
    __atomic_fetch_add(&server->num_exchanges, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&server->num_unanswered, 1, __ATOMIC_RELAXED);
    return ex;
}

void exchange_ref(struct exchange *ex) { __atomic_fetch_add(&ex->refs, 1, __ATOMIC_RELAXED); }

void exchange_free_body(struct exchange *ex)
{
    buf_release(&ex->body);
    if (!ex->budget_bytes) return;
    int64_t left = __atomic_sub_fetch(&ex->server->body_bytes, ex->budget_bytes, __ATOMIC_RELAXED);
    metric_set(M_HTTP_BODY_BYTES, 0, (double)left);
    ex->budget_bytes = 0;
}

void exchange_unref(struct exchange *ex)
{
    if (__atomic_sub_fetch(&ex->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    struct http_server *server = ex->server;
    exchange_free_body(ex);
    outbox_release(&ex->outbox);
    answer_free(ex->answer);
    api_request_free(ex->request);
    buf_release(&ex->wire);
    buf_release(&ex->reply);
    free(ex->raw_url);
    free(ex->path);
    free(ex->cors_origin);
    free(ex->cors_headers);
    pthread_mutex_destroy(&ex->lock);
    free(ex);
    __atomic_fetch_sub(&server->num_exchanges, 1, __ATOMIC_RELEASE);    /* the last touch of the server */
}

/* ---- waiting ---- */

bool exchange_suspend(struct exchange *ex)
{
    if (ex->gone || __atomic_load_n(&ex->server->stopping, __ATOMIC_ACQUIRE)) return false;
    ex->suspended = true;
    MHD_suspend_connection(ex->connection);
    return true;
}

void exchange_wake(struct exchange *ex)
{
    if (!ex->suspended) return;
    ex->suspended = false;
    MHD_resume_connection(ex->connection);
}

void exchange_finish(struct exchange *ex, struct buf *reply, const struct err *error)
{
    pthread_mutex_lock(&ex->lock);
    if (reply) ex->reply = *reply;
    if (error) ex->error = *error;
    ex->ready = true;
    exchange_wake(ex);
    pthread_mutex_unlock(&ex->lock);
}

void exchange_abort(struct exchange *ex, enum cancel_cause cause)
{
    pthread_mutex_lock(&ex->lock);
    uint64_t id = ex->gone ? 0 : ex->router_id;
    if (ex->stalled) cause = CANCEL_SLOW_READER;      /* what follows from the cut is not another cause */
    ex->gone = true;
    outbox_release(&ex->outbox);
    exchange_wake(ex);
    pthread_mutex_unlock(&ex->lock);
    if (id) router_cancel(ex->server->gateway->router, id, cause);     /* never under a lock: the ring may be full */
}

bool exchange_tick(struct exchange *ex, int64_t now_ms)
{
    const struct config *config = ex->server->gateway->config;
    int64_t interval_ms = config->sse_keep_alive_interval * 1000;
    bool cut = false;

    pthread_mutex_lock(&ex->lock);
    bool stream = ex->request && !ex->ready && api_request_params(ex->request)->stream;
    int64_t since = ex->last_write_ms ? ex->last_write_ms : ex->arrival_ms;
    if (stream && ex->suspended && interval_ms > 0 && now_ms - since >= interval_ms) {
        ex->keepalive_due = true;
        exchange_wake(ex);
    } else if (ex->streaming && !ex->suspended && !ex->stalled && now_ms - since >= config->slow_client_timeout_ms) {
        ex->stalled = cut = true;
    }
    pthread_mutex_unlock(&ex->lock);
    return cut;
}

/* ---- answers ---- */

static void add_load_report(const struct exchange *ex, struct MHD_Response *response)
{
    struct router_load load = { 0 };
    char text[160];

    router_load(ex->server->gateway->router, &load);
    snprintf(text, sizeof text, "TEXT named_metrics.kv_cache_usage_perc=%.4f, named_metrics.num_requests_waiting=%u",
             load.kv_usage,
             load.waiting);
    MHD_add_response_header(response, "endpoint-load-metrics", text);
}

static void add_error_headers(const struct exchange *ex, struct MHD_Response *response, int err_code)
{
    int retry_after_s = reply_retry_after_s(ex->server->gateway, err_code);
    char text[16];

    if (retry_after_s > 0) {
        snprintf(text, sizeof text, "%d", retry_after_s);
        MHD_add_response_header(response, "Retry-After", text);
    }
    if (reply_should_not_retry(err_code)) MHD_add_response_header(response, "x-should-retry", "false");
    if (err_code == ERR_API_KEY) MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (err_code == ERR_METHOD && ex->allow) MHD_add_response_header(response, "Allow", ex->allow);
}

/* Only for browsers that name an origin of cors_allow_origins. */
static void add_cors_headers(const struct exchange *ex, struct MHD_Response *response)
{
    MHD_add_response_header(response, "Access-Control-Allow-Origin", ex->cors_origin);
    MHD_add_response_header(response, "Vary", "Origin");
    if (!ex->cors_headers) {
        MHD_add_response_header(response, "Access-Control-Expose-Headers", "x-request-id, Retry-After, x-should-retry");
        return;
    }
    MHD_add_response_header(response, "Access-Control-Allow-Methods", "GET, HEAD, POST");
    if (ex->cors_headers[0]) MHD_add_response_header(response, "Access-Control-Allow-Headers", ex->cors_headers);
    MHD_add_response_header(response, "Access-Control-Max-Age", "600");
}

enum MHD_Result exchange_queue(struct exchange *ex, int status, struct MHD_Response *response, int err_code)
{
    bool close = ex->close_after || __atomic_load_n(&ex->server->draining, __ATOMIC_RELAXED);

    MHD_add_response_header(response, "x-request-id", ex->request_id);
    if (close) MHD_add_response_header(response, "Connection", "close");
    if (ex->load_report) add_load_report(ex, response);
    if (ex->cors_origin) add_cors_headers(ex, response);
    if (err_code) add_error_headers(ex, response, err_code);
    metrics_http_request(ex->route ? ex->route->metric : ROUTE_OTHER, status);
    log_debug("http_request", "request_id=%s trace_id=%s key=%s status=%d ms=%lld", ex->request_id, ex->trace_id, ex->key_name, status,
              (long long)(clock_now_ms() - ex->arrival_ms));
    ex->answered = true;
    enum MHD_Result result = MHD_queue_response(ex->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

enum MHD_Result exchange_send(struct exchange *ex, int status, struct buf *body, const char *content_type, int err_code)
{
    size_t len = body->len;
    char *text = buf_detach(body);

    if (!text) return MHD_NO;
    struct MHD_Response *response = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    if (!response) { free(text); return MHD_NO; }
    MHD_add_response_header(response, "Content-Type", content_type);
    return exchange_queue(ex, status, response, err_code);
}

enum MHD_Result exchange_send_error(struct exchange *ex, const struct err *err)
{
    struct buf body = BUF_INIT;

    if (err_http_status(err->code) >= 500 && err->code != ERR_NO_REPLICA && err->code != ERR_DRAINING)
        log_warn("request_failed", "request_id=%s trace_id=%s %s: %s", ex->request_id, ex->trace_id, err_name(err->code), err->message);
    metrics_http_rejected(err->code);
    reply_error(err, &body);
    return exchange_send(ex, err_http_status(err->code), &body, "application/json", err->code);
}

static const char *reason_of(int status)
{
    switch (status) {
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 505: return "HTTP Version Not Supported";
    default: return "Service Unavailable";
    }
}

static void raw_send(int fd, const char *request_id, const struct err *err, const char *extra)
{
    struct buf body = BUF_INIT, text = BUF_INIT;
    int status = err_http_status(err->code);

    reply_error(err, &body);
    buf_printf(&text,
               "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nx-request-id: %s\r\n%s"
               "Connection: close\r\n\r\n", status, reason_of(status), body.len, request_id, extra);
    buf_append(&text, body.data, body.len);
    /* one try: a peer whose window is shut gets the close alone */
    if (!text.failed && send(fd, text.data, text.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        log_debug("raw_error_lost", "request_id=%s", request_id);
    buf_release(&text);
    buf_release(&body);
}

void raw_error(int fd, const char *request_id, const struct err *err)
{
    char fresh[REQUEST_ID_MAX + 1];

    if (!request_id) make_request_id(fresh);
    metrics_http_rejected(err->code);
    raw_send(fd, request_id ? request_id : fresh, err, "");
}

enum MHD_Result exchange_refuse(struct exchange *ex, const struct err *err)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(ex->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    int retry_after_s = reply_retry_after_s(ex->server->gateway, err->code);
    char extra[256] = "";
    size_t len = 0;

    if (retry_after_s > 0) len = (size_t)snprintf(extra, sizeof extra, "Retry-After: %d\r\n", retry_after_s);
    if (err->code == ERR_API_KEY) snprintf(extra + len, sizeof extra - len, "WWW-Authenticate: Bearer\r\n");
    if (err->code == ERR_METHOD && ex->allow) snprintf(extra + len, sizeof extra - len, "Allow: %s\r\n", ex->allow);
    if (err->code == ERR_HTTP || err->code == ERR_HTTP_VERSION) server_note_noise(ex->server);
    metrics_http_rejected(err->code);
    metrics_http_request(ex->route ? ex->route->metric : ROUTE_OTHER, err_http_status(err->code));
    ex->answered = true;
    if (!info) return MHD_NO;
    raw_send(info->connect_fd, ex->request_id, err, extra);
    conn_watch_linger(&ex->server->watch, info->connect_fd);
    return MHD_NO;
}
