#include "stream.h"

#include <stdlib.h>
#include <string.h>

#include <sluice/metrics.h>

#include "base/bug.h"
#include "base/clock.h"
#include "routes.h"
#include "server.h"

enum { WIRE_BYTES = 16 << 10 };      /* frames made in one go; the rest stays in the outbox */

/* A delta as a value: text, tokens and their alternatives follow in the same allocation. */
struct delta_record {
    struct delta_record *next;
    struct text_delta delta;
    struct generation_usage usage;
};

/* ---- outbox ---- */

static struct delta_record *record_new(const struct text_delta *delta, const struct generation_usage *usage,
                                       bool with_tokens)
{
    size_t num_tokens = with_tokens ? delta->num_tokens : 0, tops = 0;

    for (size_t i = 0; i < num_tokens; i++) tops += (size_t)delta->tokens[i].num_top;
    size_t tokens_bytes = num_tokens * sizeof(struct delta_token), tops_bytes = tops * sizeof(struct token_logprob);
    struct delta_record *record = malloc(sizeof *record + tokens_bytes + tops_bytes + delta->len);
    if (!record) return NULL;
    struct delta_token *tokens = (struct delta_token *)(record + 1);
    struct token_logprob *top = (struct token_logprob *)(tokens + num_tokens);
    char *text = (char *)(top + tops);
    record->next = NULL;
    record->delta = *delta;
    record->usage = *usage;
    if (delta->len) memcpy(text, delta->text, delta->len);
    record->delta.text = text;
    record->delta.tokens = tokens;
    record->delta.num_tokens = num_tokens;
    for (size_t i = 0; i < num_tokens; i++) {
        size_t n = (size_t)delta->tokens[i].num_top;
        tokens[i] = delta->tokens[i];
        if (n) memcpy(top, delta->tokens[i].top, n * sizeof *top);
        tokens[i].top = top;
        top += n;
    }
    return record;
}

void outbox_release(struct outbox *outbox)
{
    for (struct delta_record *record = outbox->head, *next; record; record = next) {
        next = record->next;
        free(record);
    }
    *outbox = (struct outbox){ 0 };
}

/* Lock held. */
static void outbox_push(struct outbox *outbox, struct delta_record *record)
{
    *(outbox->head ? outbox->tail : &outbox->head) = record;
    outbox->tail = &record->next;
}

/* ---- sink: the router's loop ---- */

static void on_delta(void *arg, const struct text_delta *delta, const struct generation_usage *usage)
{
    struct exchange *ex = arg;
    const struct generation_params *params = api_request_params(ex->request);

    BUG_ON(delta->choice < 0 || (uint32_t)delta->choice >= api_request_num_choices(ex->request));
    /* a frame that would show nothing is not worth a wake-up */
    bool with_tokens = delta->num_tokens && api_request_wants_tokens(ex->request, delta->prompt_begin != 0);
    if (delta->len == 0 && delta->finish == FINISH_NONE && !with_tokens) return;
    struct delta_record *record = record_new(delta, usage, with_tokens);
    pthread_mutex_lock(&ex->lock);
    if (!record && ex->done_err.code == 0) {
        err_set(&ex->done_err, ERR_NO_MEMORY, "out of memory");
        if (params->stream) exchange_wake(ex);
    }
    if (record && (ex->gone || ex->done_err.code)) {
        free(record);
    } else if (record) {
        outbox_push(&ex->outbox, record);
        if (params->stream) exchange_wake(ex);
    }
    pthread_mutex_unlock(&ex->lock);
}

static void on_done(void *arg, const struct generation_usage *usage, const struct err *err)
{
    struct exchange *ex = arg;

    pthread_mutex_lock(&ex->lock);
    ex->usage = *usage;
    if (err && ex->done_err.code == 0) ex->done_err = *err;
    ex->done = true;
    ex->router_id = 0;
    exchange_wake(ex);
    pthread_mutex_unlock(&ex->lock);
    exchange_unref(ex);
}

static const struct generation_sink sink = { .delta = on_delta, .done = on_done };

/* ---- worker ---- */

/* The router has it from here. A hang-up that came before the id was known is passed on now. */
static int submit(struct exchange *ex, struct err *err)
{
    struct generation_spec spec = { .arrival_ms = ex->arrival_ms, .sink = &sink, .sink_arg = ex };
    uint64_t id = 0;
    bool gone;

    api_request_fill_spec(ex->request, &spec);
    exchange_ref(ex);                      /* the router's, until done() */
    int rc = router_submit(ex->server->gateway->router, &spec, &id, err);
    if (rc < 0) {
        exchange_unref(ex);
        return rc;
    }
    metric_add(M_REQUESTS, ex->route->metric, 1);
    pthread_mutex_lock(&ex->lock);
    gone = ex->gone;
    if (!ex->done) ex->router_id = id;
    pthread_mutex_unlock(&ex->lock);
    if (gone) router_cancel(ex->server->gateway->router, id, CANCEL_CLIENT_GONE);
    return 0;
}

void stream_begin(struct exchange *ex, enum generation_route route)
{
    struct caller caller = { .key_name = ex->key_name, .cache_secret = ex->server->cache_secret };
    struct api_request *request = NULL;
    struct answer *answer = NULL;
    struct err err = { 0 };
    int rc = api_request_new(&request, ex->server->gateway, route, &caller, ex->body.data ? ex->body.data : "",
                             ex->body.len, &err);

    exchange_free_body(ex);
    if (rc == 0 && (rc = answer_new(&answer, request)) < 0) err_set(&err, rc, "out of memory");
    pthread_mutex_lock(&ex->lock);
    ex->request = request;
    ex->answer = answer;
    bool gone = ex->gone;
    pthread_mutex_unlock(&ex->lock);
    if (rc == 0 && !gone) rc = submit(ex, &err);
    if (rc < 0) exchange_finish(ex, NULL, &err);
}

/* ---- HTTP thread ---- */

/* Lock held; drops it while frames are made. Returns false when memory is out. */
static bool make_frames(struct exchange *ex)
{
    struct outbox taken = { 0 };
    bool limited = false, done = ex->done;
    struct err done_err = ex->done_err;

    if (ex->wire_sent < ex->wire.len) return true;
    buf_reset(&ex->wire);
    ex->wire_sent = 0;
    taken = ex->outbox;
    ex->outbox = (struct outbox){ 0 };
    pthread_mutex_unlock(&ex->lock);
    while (taken.head && !(limited = ex->wire.len >= WIRE_BYTES)) {
        struct delta_record *record = taken.head;
        taken.head = record->next;
        answer_frames(ex->answer, &record->delta, &record->usage, &ex->wire);
        free(record);
    }
    if (!taken.head && (done || done_err.code) && !ex->end_written) {
        if (done_err.code) answer_error_frames(&done_err, &ex->wire);
        else answer_end_frames(ex->answer, &ex->usage, &ex->wire);
        ex->close_after |= done_err.code != 0;
        ex->end_written = true;
    }
    pthread_mutex_lock(&ex->lock);
    if (taken.head) {                      /* back in front of what came meanwhile */
        if (ex->outbox.head) *taken.tail = ex->outbox.head;
        else ex->outbox.tail = taken.tail;
        ex->outbox.head = taken.head;
    }
    return !ex->wire.failed;
}

static ssize_t read_stream(void *arg, uint64_t pos, char *out, size_t max)
{
    static const char keepalive[] = ": keepalive\n\n";
    struct exchange *ex = arg;
    ssize_t got = 0;

    (void)pos;
    pthread_mutex_lock(&ex->lock);
    ex->last_write_ms = clock_now_ms();
    while (got == 0) {
        if (ex->gone || !make_frames(ex)) { got = MHD_CONTENT_READER_END_WITH_ERROR; break; }
        size_t left = ex->wire.len - ex->wire_sent;
        if (left > 0) {
            got = (ssize_t)(left < max ? left : max);
            memcpy(out, ex->wire.data + ex->wire_sent, (size_t)got);
            ex->wire_sent += (size_t)got;
        } else if (ex->end_written) {
            got = MHD_CONTENT_READER_END_OF_STREAM;
        } else if (ex->outbox.head || ex->done || ex->done_err.code) {
            continue;
        } else if (ex->keepalive_due && max >= sizeof keepalive - 1) {
            memcpy(out, keepalive, sizeof keepalive - 1);
            got = sizeof keepalive - 1;
        } else if (!exchange_suspend(ex)) {
            got = MHD_CONTENT_READER_END_WITH_ERROR;
        } else {
            break;
        }
    }
    ex->keepalive_due = false;
    pthread_mutex_unlock(&ex->lock);
    return got;
}

static enum MHD_Result start_stream(struct exchange *ex)
{
    struct MHD_Response *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, ex, NULL);

    if (!response) return MHD_NO;
    MHD_add_response_header(response, "Content-Type", "text/event-stream");
    MHD_add_response_header(response, "Cache-Control", "no-cache");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    return exchange_queue(ex, 200, response, 0);
}

static enum MHD_Result send_whole(struct exchange *ex, struct outbox taken)
{
    struct buf body = BUF_INIT;
    struct err err = { 0 };
    int rc = 0;

    for (struct delta_record *record = taken.head; record && rc == 0; record = record->next)
        rc = answer_add(ex->answer, &record->delta);
    outbox_release(&taken);
    if (rc == 0) rc = answer_body(ex->answer, &ex->usage, &body);
    if (rc == 0) return exchange_send(ex, 200, &body, "application/json", 0);
    buf_release(&body);
    err_set(&err, rc, rc == ERR_RESPONSE_LARGE ? "The answer is larger than this server's max_response_bytes."
            : "out of memory");
    return exchange_send_error(ex, &err);
}

enum MHD_Result stream_proceed(struct exchange *ex)
{
    enum { WAIT, STREAM, WHOLE, FAIL, DROP } next = WAIT;
    struct outbox taken = { 0 };

    pthread_mutex_lock(&ex->lock);
    bool stream = ex->request && api_request_params(ex->request)->stream;
    if (ex->gone) next = DROP;
    else if (ex->done && ex->done_err.code && !ex->outbox.head) next = FAIL;
    else if (ex->done && ex->done_err.code && !stream) next = FAIL;
    else if (stream && (ex->outbox.head || ex->done || ex->done_err.code || ex->keepalive_due)) next = STREAM;
    else if (ex->done) next = WHOLE;
    else if (!exchange_suspend(ex)) next = DROP;
    if (next == STREAM) {
        ex->streaming = true;
        ex->last_write_ms = clock_now_ms();
    }
    /* done: nothing is added any more, but a hang-up empties what is left here */
    if (next == WHOLE) {
        taken = ex->outbox;
        ex->outbox = (struct outbox){ 0 };
    }
    pthread_mutex_unlock(&ex->lock);
    switch (next) {
    case WAIT: return MHD_YES;
    case STREAM: return start_stream(ex);
    case WHOLE: return send_whole(ex, taken);
    case FAIL: return exchange_send_error(ex, &ex->done_err);
    case DROP: break;
    }
    return MHD_NO;
}
