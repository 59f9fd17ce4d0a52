/* load.c - the client of the benchmarks over HTTP. Each thread owns every t-th request, its share of the concurrency, its
 * connections and its epoll; nothing is shared but the read-only requests and, per request, one result. */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sluice/bench.h>

#include "base/buf.h"
#include "base/clock.h"
#include "stream_reader.h"

enum { READ_BYTES = 256 << 10, EVENTS = 256, CONNECT_MS = 10000, SPIN_NS = 1000000 };

struct connection {
    int fd;
    size_t request;                    /* while busy */
    bool busy, used_before;
    size_t sent;
    struct stream_reader reader;
    struct connection *next;           /* of the idle ones */
};

struct worker {
    const struct load_spec *spec;
    const struct load_request *requests;
    const struct buf *messages;        /* [num] what is sent */
    struct load_outcome *outcome;      /* results only: one per request */
    size_t num, first, stride, next;   /* its requests: first, first + stride ... below num */
    size_t num_ended, num_mine;
    int64_t began_ns, concurrency, in_flight, max_in_flight, heard_ns;
    struct connection **all;           /* [num_all] */
    size_t num_all, cap_all;
    struct connection *idle;
    struct load_gaps gaps;
    int epoll;
    char *bytes;                       /* [READ_BYTES] */
    char first_error[LOAD_ERROR_SIZE];
    pthread_t thread;
    bool started;
};

/* ---- what is sent ---- */

static void put_number(struct buf *out, int64_t number)
{
    char digits[24];
    int n = sizeof digits;

    do {
        digits[--n] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    buf_append(out, digits + n, sizeof digits - (size_t)n);
}

static void write_body(struct buf *out, const struct load_spec *spec, const struct load_request *request, size_t i)
{
    struct bench_random random = { spec->seed * 0x9e3779b97f4a7c15u + i };

    buf_puts(out, "{\"model\":\"");
    buf_json_escape(out, spec->model, strlen(spec->model));
    buf_puts(out, "\",\"prompt\":[");
    for (int64_t t = 0; t < request->input_len; t++) {
        if (t) buf_putc(out, ',');
        put_number(out, bench_random_between(&random, 0, spec->vocab_size - 1));
    }
    buf_printf(out, "],\"max_tokens\":%lld,\"temperature\":0,\"stream\":true,\"stream_options\":{\"include_usage\":true}%s}",
               (long long)request->output_len, spec->ignore_eos ? ",\"ignore_eos\":true" : "");
}

static void write_message(struct buf *message, const struct load_spec *spec, const struct load_request *request, size_t i)
{
    struct buf body = BUF_INIT;
    char authority[AUTHORITY_SIZE];

    url_authority(&spec->target, authority);
    write_body(&body, spec, request, i);
    buf_printf(message, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n",
               spec->target.path, authority, body.len);
    if (spec->api_key) buf_printf(message, "Authorization: Bearer %s\r\n", spec->api_key);
    buf_puts(message, "\r\n");
    buf_append(message, body.data, body.len);
    message->failed = message->failed || body.failed;
    buf_release(&body);
}

/* ---- connections ---- */

static struct connection *new_connection(struct worker *w, char *why)
{
    struct connection *connection = calloc(1, sizeof *connection);
    struct err err = { 0 };
    int one = 1;

    if (connection && w->num_all == w->cap_all) {
        size_t cap = w->cap_all ? w->cap_all * 2 : 64;
        struct connection **grown = realloc(w->all, cap * sizeof *grown);
        if (grown) w->all = grown, w->cap_all = cap;
    }
    if (!connection || w->num_all == w->cap_all) {
        snprintf(why, LOAD_ERROR_SIZE, "out of memory");
        free(connection);
        return NULL;
    }
    connection->fd = url_connect(&w->spec->target, clock_now_ms() + CONNECT_MS, &err);
    if (connection->fd < 0) {
        snprintf(why, LOAD_ERROR_SIZE, "%.300s", err.message);
        free(connection);
        return NULL;
    }
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = connection };
    if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, connection->fd, &event) < 0) {
        snprintf(why, LOAD_ERROR_SIZE, "epoll_ctl: %s", strerror(errno));
        close(connection->fd);
        free(connection);
        return NULL;
    }
    w->all[w->num_all++] = connection;
    return connection;
}

/* The struct stays in `all` until the end; only its descriptor goes. */
static void hang_up(struct worker *w, struct connection *connection)
{
    for (struct connection **at = &w->idle; *at; at = &(*at)->next) {
        if (*at != connection) continue;
        *at = connection->next;
        break;
    }
    if (connection->fd >= 0) close(connection->fd);
    connection->fd = -1;
}

static struct connection *take_connection(struct worker *w, char *why)
{
    struct connection *connection = w->idle;

    if (!connection) return new_connection(w, why);
    w->idle = connection->next;
    connection->used_before = true;
    return connection;
}

/* ---- one request ---- */

static void note_error(struct worker *w, const char *text)
{
    if (!w->first_error[0]) snprintf(w->first_error, sizeof w->first_error, "%s", text);
}

static void fail(struct worker *w, struct connection *connection, const char *text)
{
    note_error(w, text);
    hang_up(w, connection);
    connection->busy = false;
    w->in_flight--;
    w->num_ended++;
}

static void want(struct worker *w, struct connection *connection, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = connection };

    epoll_ctl(w->epoll, EPOLL_CTL_MOD, connection->fd, &event);
}

/* Sends what the socket takes; the rest when it is writable. False: it has failed. */
static bool send_more(struct worker *w, struct connection *connection)
{
    const struct buf *message = &w->messages[connection->request];
    bool waited = connection->sent > 0;

    while (connection->sent < message->len) {
        ssize_t n = send(connection->fd, message->data + connection->sent, message->len - connection->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            want(w, connection, EPOLLIN | EPOLLOUT);
            return true;
        }
        if (n < 0) return false;
        connection->sent += (size_t)n;
    }
    if (waited) want(w, connection, EPOLLIN);
    return true;
}

/* A connection that was idle may have been closed by the server meanwhile: such a request is begun again, once. */
static void start(struct worker *w, size_t request)
{
    struct load_result *result = &w->outcome->results[request];
    char why[LOAD_ERROR_SIZE] = "";

    result->start_ns = clock_now_ns();
    for (;;) {
        struct connection *connection = take_connection(w, why);
        if (!connection) {
            note_error(w, why);
            w->num_ended++;
            return;
        }
        stream_reader_reset(&connection->reader);
        connection->request = request;
        connection->sent = 0;
        connection->busy = true;
        if (send_more(w, connection)) break;
        connection->busy = false;
        hang_up(w, connection);
        if (connection->used_before) continue;
        note_error(w, "the server closed a new connection");
        w->num_ended++;
        return;
    }
    if (++w->in_flight > w->max_in_flight) w->max_in_flight = w->in_flight;
}

static void add_gap(struct load_gaps *gaps, double ms)
{
    if (gaps->n == gaps->cap) {
        size_t cap = gaps->cap ? gaps->cap * 2 : 1 << 14;
        double *grown = realloc(gaps->ms, cap * sizeof *grown);
        if (!grown) return;
        gaps->ms = grown;
        gaps->cap = cap;
    }
    gaps->ms[gaps->n++] = ms;
}

/* n frames came at once: what the server or the network joined has no time between. */
static void count_frames(struct worker *w, struct load_result *result, int64_t n, int64_t now_ns)
{
    for (int64_t i = 0; i < n; i++) {
        if (!result->first_ns) result->first_ns = now_ns;
        else add_gap(&w->gaps, (double)(now_ns - result->last_ns) / 1e6);
        result->last_ns = now_ns;
    }
    result->frames += n;
}

static void finish(struct worker *w, struct connection *connection)
{
    struct stream_reader *reader = &connection->reader;
    struct load_result *result = &w->outcome->results[connection->request];
    char text[LOAD_ERROR_SIZE];

    if (reader->state != STREAM_ENDED || reader->status != 200 || reader->failed || !reader->done || !result->frames) {
        const char *what = reader->state == STREAM_BROKEN ? "the answer broke off" : result->frames ? "no [DONE]" : "no token";
        snprintf(text, sizeof text, "HTTP %d, %.260s", reader->status, reader->failed || reader->status != 200 ?
                 stream_reader_error(reader) : what);
        fail(w, connection, text);
        return;
    }
    result->ok = true;
    result->prompt_tokens = reader->prompt_tokens;
    result->completion_tokens = reader->completion_tokens;
    connection->busy = false;
    w->in_flight--;
    w->num_ended++;
    if (!reader->keep_alive) {
        hang_up(w, connection);
        return;
    }
    connection->next = w->idle;
    w->idle = connection;
}

static void on_readable(struct worker *w, struct connection *connection)
{
    struct load_result *result = &w->outcome->results[connection->request];
    ssize_t n = recv(connection->fd, w->bytes, READ_BYTES, 0);
    int64_t now_ns = clock_now_ns();

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (!connection->busy) {
        hang_up(w, connection);            /* an idle one: closed, or bytes that nobody asked for */
        return;
    }
    bool nothing_yet = connection->reader.state == STREAM_HEAD && !connection->reader.held.len;
    if (n <= 0 && nothing_yet && connection->used_before) {
        hang_up(w, connection);
        connection->busy = false;
        w->in_flight--;
        start(w, connection->request);
        return;
    }
    if (n > 0) count_frames(w, result, stream_reader_feed(&connection->reader, w->bytes, (size_t)n), now_ns);
    else stream_reader_close(&connection->reader);
    w->heard_ns = now_ns;
    if (connection->reader.state >= STREAM_ENDED) finish(w, connection);
}

static void on_event(struct worker *w, const struct epoll_event *event)
{
    struct connection *connection = event->data.ptr;

    if (connection->fd < 0) return;        /* hung up by an earlier event of this round */
    if ((event->events & EPOLLOUT) && connection->busy && !send_more(w, connection)) {
        fail(w, connection, "the server closed the connection while the request was sent");
        return;
    }
    if (event->events & ~(uint32_t)EPOLLOUT) on_readable(w, connection);
}

/* ---- the loop ---- */

/* Starts what is due; how long the next one is away: -1 = nothing to wait for but answers. */
static int64_t start_due(struct worker *w)
{
    while (w->next < w->num) {
        int64_t due_ns = w->began_ns + w->requests[w->next].at_ns - clock_now_ns();
        if (w->concurrency && w->in_flight >= w->concurrency) return -1;
        if (due_ns > 0) return due_ns;
        start(w, w->next);
        w->next += w->stride;
    }
    return -1;
}

static void give_up(struct worker *w)
{
    char text[LOAD_ERROR_SIZE];

    snprintf(text, sizeof text, "nothing came for %lld s", (long long)(w->spec->timeout_ms / 1000));
    for (size_t i = 0; i < w->num_all; i++)
        if (w->all[i]->busy) fail(w, w->all[i], text);
    w->heard_ns = clock_now_ns();
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct epoll_event events[EVENTS];

    w->heard_ns = clock_now_ns();
    while (w->num_ended < w->num_mine) {
        int64_t due_ns = start_due(w);
        int timeout = due_ns < 0 ? 1000 : due_ns < SPIN_NS ? 0 : (int)(due_ns / 1000000 < 1000 ? due_ns / 1000000 : 1000);
        int n = epoll_wait(w->epoll, events, EVENTS, timeout);
        for (int i = 0; i < n; i++) on_event(w, &events[i]);
        if (!w->in_flight) w->heard_ns = clock_now_ns();
        else if (clock_now_ns() - w->heard_ns > w->spec->timeout_ms * 1000000) give_up(w);
    }
    return NULL;
}

static void release_worker(struct worker *w)
{
    for (size_t i = 0; i < w->num_all; i++) {
        if (w->all[i]->fd >= 0) close(w->all[i]->fd);
        stream_reader_release(&w->all[i]->reader);
        free(w->all[i]);
    }
    free(w->all);
    free(w->bytes);
    free(w->gaps.ms);
    if (w->epoll >= 0) close(w->epoll);
}

/* Connections are made before the clock starts, where it is known how many: a handshake is not time to first token. */
static int connect_ahead(struct worker *w, struct err *err)
{
    size_t num = w->concurrency ? (size_t)w->concurrency : w->requests[w->num - 1].at_ns ? 0 : w->num_mine;
    char why[LOAD_ERROR_SIZE] = "";

    for (size_t i = 0; i < num && i < w->num_mine; i++) {
        struct connection *connection = new_connection(w, why);
        if (!connection) return err_set(err, ERR_IO, "%s", why);
        connection->next = w->idle;
        w->idle = connection;
    }
    return 0;
}

static int open_worker(struct worker *w, struct err *err)
{
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    w->bytes = malloc(READ_BYTES);
    w->next = w->first;
    w->num_mine = w->first < w->num ? (w->num - w->first + w->stride - 1) / w->stride : 0;
    if (w->epoll < 0) return err_sys(err, ERR_IO, "epoll_create1");
    return w->bytes ? connect_ahead(w, err) : err_set(err, ERR_NO_MEMORY, "out of memory");
}

/* ---- all threads ---- */

static void join_results(struct load_outcome *outcome, size_t num)
{
    for (size_t i = 0; i < num; i++) {
        struct load_result *result = &outcome->results[i];
        outcome->num_ok += result->ok;
        outcome->num_failed += !result->ok;
        if (!result->ok) continue;
        if (result->completion_tokens < 0) result->completion_tokens = result->frames;
        outcome->num_uneven += result->completion_tokens != result->frames;
        if (result->last_ns > outcome->ended_ns) outcome->ended_ns = result->last_ns;
    }
}

static void join_worker(struct load_outcome *outcome, struct worker *w)
{
    for (size_t i = 0; i < w->gaps.n; i++) add_gap(&outcome->gaps, w->gaps.ms[i]);
    outcome->max_in_flight += w->max_in_flight;
    if (w->first_error[0] && !outcome->first_error[0]) memcpy(outcome->first_error, w->first_error, sizeof w->first_error);
}

static int run_workers(struct worker *workers, int64_t num_threads, struct load_outcome *outcome, struct err *err)
{
    int rc = 0;

    for (int64_t t = 0; t < num_threads; t++) workers[t].epoll = -1;
    for (int64_t t = 0; t < num_threads && rc == 0; t++) rc = open_worker(&workers[t], err);
    if (rc < 0) return rc;
    outcome->began_ns = clock_now_ns();
    for (int64_t t = 0; t < num_threads; t++) {
        workers[t].began_ns = outcome->began_ns;
        workers[t].started = t > 0 && pthread_create(&workers[t].thread, NULL, work, &workers[t]) == 0;
        if (t > 0 && !workers[t].started) rc = err_set(err, ERR_NO_MEMORY, "thread %lld", (long long)t);
    }
    work(&workers[0]);
    for (int64_t t = 1; t < num_threads; t++)
        if (workers[t].started) pthread_join(workers[t].thread, NULL);
    for (int64_t t = 0; t < num_threads; t++) join_worker(outcome, &workers[t]);
    return rc;
}

static struct buf *write_messages(const struct load_spec *spec, const struct load_request *requests, size_t num)
{
    struct buf *messages = calloc(num, sizeof *messages);
    bool failed = !messages;

    for (size_t i = 0; i < num && !failed; i++) {
        write_message(&messages[i], spec, &requests[i], i);
        failed = messages[i].failed;
    }
    if (!failed) return messages;
    for (size_t i = 0; messages && i < num; i++) buf_release(&messages[i]);
    free(messages);
    return NULL;
}

/* A connection each: take what the hard limit gives. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int load_run(const struct load_spec *spec, const struct load_request *requests, size_t num, struct load_outcome *outcome,
             struct err *err)
{
    int64_t threads = spec->threads;
    struct worker *workers = NULL;
    struct buf *messages = NULL;
    int rc = 0;

    *outcome = (struct load_outcome){ 0 };
    raise_descriptor_limit();
    if (spec->concurrency && threads > spec->concurrency) threads = spec->concurrency;
    outcome->results = calloc(num, sizeof *outcome->results);
    workers = calloc((size_t)threads, sizeof *workers);
    messages = outcome->results && workers ? write_messages(spec, requests, num) : NULL;
    if (!messages) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory for %zu requests", num);
        goto out;
    }
    for (int64_t t = 0; t < threads; t++) {
        int64_t share = spec->concurrency ? (spec->concurrency + threads - 1 - t) / threads : 0;
        workers[t] = (struct worker){ .spec = spec, .requests = requests, .messages = messages, .outcome = outcome, .num = num,
                                      .first = (size_t)t, .stride = (size_t)threads, .concurrency = share };
    }
    rc = run_workers(workers, threads, outcome, err);
    join_results(outcome, num);
    if (!outcome->ended_ns) outcome->ended_ns = clock_now_ns();
out:
    for (int64_t t = 0; workers && t < threads; t++) release_worker(&workers[t]);
    for (size_t i = 0; messages && i < num; i++) buf_release(&messages[i]);
    free(messages);
    free(workers);
    return rc;
}

void load_outcome_release(struct load_outcome *outcome)
{
    free(outcome->results);
    free(outcome->gaps.ms);
    *outcome = (struct load_outcome){ 0 };
}
