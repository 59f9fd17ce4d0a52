#include "routes.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/api.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "body.h"
#include "conn_watch.h"
#include "server.h"
#include "stream.h"

/* ---- handlers ---- */

static const struct gateway *gateway_of(const struct exchange *ex) { return ex->server->gateway; }

static int get_models(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)err;
    reply_models(gateway_of(ex), out);
    return 200;
}

static int get_model(struct exchange *ex, struct buf *out, struct err *err)
{
    const char *id = ex->path + ex->path_tail;
    size_t len = strlen(id);

    if (!utf8_valid(id, len)) id = "", len = 0;
    int rc = reply_model(gateway_of(ex), id, len, out, err);
    return rc < 0 ? rc : 200;
}

static int get_live(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)ex; (void)err;
    buf_puts(out, "{\"status\":\"ok\"}");
    return 200;
}

static int get_health(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)err;
    return reply_health(gateway_of(ex), out) ? 200 : 503;
}

static int get_version(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)err;
    reply_version(gateway_of(ex), out);
    return 200;
}

static int get_load(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)err;
    reply_load(gateway_of(ex), out);
    return 200;
}

static int get_tokenizer_info(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)err;
    reply_tokenizer_info(gateway_of(ex), out);
    return 200;
}

static int get_openapi(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)err;
    reply_openapi(gateway_of(ex), out);
    return 200;
}

static int get_metrics(struct exchange *ex, struct buf *out, struct err *err)
{
    (void)ex; (void)err;
    metrics_write(out);
    return 200;
}

static void post_completions(struct exchange *ex) { stream_begin(ex, GENERATE_COMPLETION); }
static void post_chat(struct exchange *ex) { stream_begin(ex, GENERATE_CHAT); }

static void finish_text(struct exchange *ex, int (*make)(const struct gateway *gateway, const char *body, size_t len,
                                                         struct buf *out, struct err *err))
{
    struct buf out = BUF_INIT;
    struct err err = { 0 };
    int rc = make(gateway_of(ex), ex->body.data ? ex->body.data : "", ex->body.len, &out, &err);

    exchange_free_body(ex);
    if (rc < 0) buf_release(&out);
    exchange_finish(ex, rc < 0 ? NULL : &out, rc < 0 ? &err : NULL);
}

static void post_tokenize(struct exchange *ex) { finish_text(ex, tokenize_reply); }
static void post_detokenize(struct exchange *ex) { finish_text(ex, detokenize_reply); }

#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

static const struct route route_table[] = {
    /* method path                    auth          metric             reply               work              type */
    { "POST", "/v1/chat/completions", AUTH_KEY,     ROUTE_CHAT,        NULL,               post_chat,        NULL },
    { "POST", "/v1/completions",      AUTH_KEY,     ROUTE_COMPLETIONS, NULL,               post_completions, NULL },
    { "GET",  "/v1/models",           AUTH_KEY,     ROUTE_MODELS,      get_models,         NULL,             NULL },
    { "GET",  "/v1/models/",          AUTH_KEY,     ROUTE_MODELS,      get_model,          NULL,             NULL },
    { "GET",  "/health",              AUTH_NONE,    ROUTE_HEALTH,      get_health,         NULL,             NULL },
    { "GET",  "/health/ready",        AUTH_NONE,    ROUTE_HEALTH,      get_health,         NULL,             NULL },
    { "GET",  "/health/live",         AUTH_NONE,    ROUTE_HEALTH,      get_live,           NULL,             NULL },
    { "GET",  "/ping",                AUTH_NONE,    ROUTE_HEALTH,      get_health,         NULL,             NULL },
    { "POST", "/ping",                AUTH_NONE,    ROUTE_HEALTH,      get_health,         NULL,             NULL },
    { "GET",  "/metrics",             AUTH_METRICS, ROUTE_METRICS,     get_metrics,        NULL,
        METRICS_TYPE },
    { "POST", "/tokenize",            AUTH_KEY,     ROUTE_OTHER,       NULL,               post_tokenize,    NULL },
    { "POST", "/detokenize",          AUTH_KEY,     ROUTE_OTHER,       NULL,               post_detokenize,  NULL },
    { "GET",  "/tokenizer_info",      AUTH_KEY,     ROUTE_OTHER,       get_tokenizer_info, NULL,             NULL },
    { "GET",  "/version",             AUTH_KEY,     ROUTE_OTHER,       get_version,        NULL,             NULL },
    { "GET",  "/openapi.json",        AUTH_NONE,    ROUTE_OTHER,       get_openapi,        NULL,             NULL },
    { "GET",  "/load",                AUTH_KEY,     ROUTE_OTHER,       get_load,           NULL,             NULL },
};
enum { NUM_ROUTES = sizeof route_table / sizeof route_table[0] };

static bool path_matches(const struct route *route, const char *path)
{
    size_t len = strlen(route->path);

    if (route->path[len - 1] != '/') return strcmp(route->path, path) == 0;
    return strncmp(route->path, path, len) == 0 && path[len] != '\0';
}

static bool method_matches(const struct route *route, const char *method)
{
    return strcmp(route->method, method) == 0 || (strcmp(route->method, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* Finds the row; *of_path gets one with the path whatever its method, *allow what it answers to. */
static const struct route *find_route(const char *method, const char *path, const struct route **of_path,
                                      const char **allow)
{
    bool get = false, post = false;
    const struct route *found = NULL;

    *of_path = NULL;
    for (int i = 0; i < NUM_ROUTES; i++) {
        if (!path_matches(&route_table[i], path)) continue;
        *of_path = &route_table[i];
        get |= strcmp(route_table[i].method, "GET") == 0;
        post |= strcmp(route_table[i].method, "POST") == 0;
        if (!found && method_matches(&route_table[i], method)) found = &route_table[i];
    }
    *allow = get && post ? "GET, HEAD, POST" : post ? "POST" : "GET, HEAD";
    return found;
}

/* ---- headers ---- */

struct field_list { struct guard_field fields[GUARD_MAX_FIELDS]; size_t n; };

static enum MHD_Result collect_field(void *arg, enum MHD_ValueKind kind, const char *key, size_t key_size,
                                     const char *value,
                                     size_t value_size)
{
    struct field_list *list = arg;

    (void)kind;
    if (list->n < GUARD_MAX_FIELDS)
        list->fields[list->n] = (struct guard_field){ key ? key : "", key_size, value ? value : "", value_size };
    list->n++;
    return MHD_YES;
}

static bool needs_key(const struct exchange *ex, const struct route *route)
{
    if (!route || route->auth == AUTH_KEY) return true;
    return route->auth == AUTH_METRICS && strcmp(gateway_of(ex)->config->metrics_auth, "none") != 0;
}

static bool origin_allowed(const struct str_list *allowed, const struct guard_field *origin)
{
    for (size_t i = 0; origin && i < allowed->n; i++) {
        const char *item = allowed->items[i];
        if (strcmp(item, "*") == 0) return true;
        if (strlen(item) == origin->value_len && memcmp(item, origin->value, origin->value_len) == 0) return true;
    }
    return false;
}

/* A preflight needs no key: browsers send none with it. False without memory. */
static bool check_origin(struct exchange *ex, const char *method, const struct guard_result *headers)
{
    const struct guard_field *asked = headers->cors_headers;

    if (!origin_allowed(&gateway_of(ex)->config->cors_allow_origins, headers->origin)) return true;
    ex->cors_origin = strndup(headers->origin->value, headers->origin->value_len);
    if (strcmp(method, "OPTIONS") == 0) ex->cors_headers = strndup(asked ? asked->value : "", asked ? asked->value_len : 0);
    return ex->cors_origin && (ex->cors_headers || strcmp(method, "OPTIONS") != 0);
}

/* Errors that may be answered after the body, so that the connection lives on: key, route, method, encoding. */
static void check_request(struct exchange *ex, const char *url, const char *method, const struct guard_result *headers)
{
    const struct guard_field *authorization = headers->authorization;
    const struct route *of_path;
    const struct route *route = find_route(method, url, &of_path, &ex->allow);

    ex->route = route ? route : of_path;
    bool allowed = server_allows(ex->server, authorization ? authorization->value : NULL,
                                 authorization ? authorization->value_len : 0, ex->key_name);
    if (!allowed && needs_key(ex, of_path)) { err_set(&ex->early, ERR_API_KEY, "Incorrect API key provided."); return; }
    if (!of_path) { err_set(&ex->early, ERR_NOT_FOUND, "There is nothing at this path."); return; }
    if (!route) { err_set(&ex->early, ERR_METHOD, "This path answers %s only.", ex->allow); return; }
    if (headers->encoding)
        err_set(&ex->early, ERR_ENCODING, "Content-Encoding is not supported: send the body as it is.");
    size_t len = strlen(route->path);
    ex->path_tail = route->path[len - 1] == '/' ? len : 0;
}

static enum MHD_Result on_headers(struct exchange *ex, const char *url, const char *method, const char *version)
{
    struct field_list list = { .n = 0 };
    struct guard_input input = { .method = method, .version = version, .raw_url = ex->raw_url, .fields = list.fields };
    struct guard_result headers;
    struct err err = { 0 };

    ex->arrival_ms = clock_now_ms();
    MHD_get_connection_values_n(ex->connection, MHD_HEADER_KIND, collect_field, &list);
    input.n_fields = list.n;
    input.url_is_cut = version != ex->line_version;
    if (guard_check(&input, &gateway_of(ex)->config->allowed_hosts, &headers, &err) < 0)
        return exchange_refuse(ex, &err);
    if (headers.request_id) {
        memcpy(ex->request_id, headers.request_id->value, headers.request_id->value_len);
        ex->request_id[headers.request_id->value_len] = '\0';
    }
    if (headers.trace_id) memcpy(ex->trace_id, headers.trace_id, GUARD_TRACE_ID);
    ex->load_report = headers.load_report;
    if (!(ex->path = strdup(url))) return MHD_NO;
    if (!check_origin(ex, method, &headers)) return MHD_NO;
    if (!ex->cors_headers) check_request(ex, url, method, &headers);
    if (!ex->early.code && strcmp(method, "POST") == 0 && !headers.chunked && !headers.has_length) {
        err_set(&err, ERR_LENGTH_REQUIRED, "A POST needs Content-Length or Transfer-Encoding: chunked.");
        return exchange_refuse(ex, &err);
    }
    /* a refused body is not worth asking for, and not worth reading past when it is long or without length */
    bool worth = !headers.expect_continue && !headers.chunked && headers.content_length <= 1 << 20;
    if (ex->early.code && headers.has_body && !worth) return exchange_refuse(ex, &ex->early);
    if (body_expect(ex, &headers, &err) < 0) return exchange_refuse(ex, &err);
    if (ex->conn) conn_watch_phase(&ex->server->watch, ex->conn, headers.has_body ? CONN_BODY : CONN_SERVED);
    return MHD_YES;
}

/* ---- the rest of a request ---- */

static enum MHD_Result reply_now(struct exchange *ex)
{
    struct buf out = BUF_INIT;
    struct err err = { 0 };
    int status = ex->route->reply(ex, &out, &err);

    if (status < 0) {
        buf_release(&out);
        return exchange_send_error(ex, &err);
    }
    int code = status == 503 ? ERR_NO_REPLICA : 0;      /* for Retry-After */
    return exchange_send(ex, status, &out, ex->route->content_type ? ex->route->content_type : "application/json",
                         code);
}

/* The job goes to a worker; the connection sleeps until it is answered or fails. */
static enum MHD_Result give_to_worker(struct exchange *ex)
{
    int rc = 0;

    pthread_mutex_lock(&ex->lock);
    bool waits = exchange_suspend(ex);
    if (waits) rc = workers_give(&ex->server->workers, ex);
    if (rc < 0) {
        err_set(&ex->error, ERR_QUEUE_FULL, "Too many requests are waiting to be read.");
        ex->ready = true;
        exchange_wake(ex);
    }
    pthread_mutex_unlock(&ex->lock);
    return waits ? MHD_YES : MHD_NO;
}

static enum MHD_Result reply_preflight(struct exchange *ex)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    return response ? exchange_queue(ex, 204, response, 0) : MHD_NO;
}

static enum MHD_Result on_complete(struct exchange *ex)
{
    if (ex->conn) conn_watch_phase(&ex->server->watch, ex->conn, CONN_SERVED);
    if (ex->early.code) return exchange_send_error(ex, &ex->early);
    if (ex->cors_headers) return reply_preflight(ex);
    return ex->route->reply ? reply_now(ex) : give_to_worker(ex);
}

static enum MHD_Result on_resumed(struct exchange *ex)
{
    pthread_mutex_lock(&ex->lock);
    bool gone = ex->gone, ready = ex->ready;
    pthread_mutex_unlock(&ex->lock);
    if (gone) return MHD_NO;
    if (!ready) return stream_proceed(ex);
    if (ex->error.code) return exchange_send_error(ex, &ex->error);
    return exchange_send(ex, 200, &ex->reply, "application/json", 0);
}

void routes_work(struct exchange *ex)
{
    pthread_mutex_lock(&ex->lock);
    bool gone = ex->gone;
    pthread_mutex_unlock(&ex->lock);
    if (!gone) ex->route->work(ex);
}

enum MHD_Result routes_handle(void *server, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *data, size_t *data_len, void **state)
{
    struct exchange *ex = *state;

    (void)server; (void)connection;
    if (!ex) return MHD_NO;                              /* no memory when the request line was read */
    if (!ex->started) {
        ex->started = true;
        return on_headers(ex, url, method, version);
    }
    if (*data_len > 0) return body_take(ex, data, data_len);
    if (!ex->complete) {
        ex->complete = true;
        return on_complete(ex);
    }
    return on_resumed(ex);
}
