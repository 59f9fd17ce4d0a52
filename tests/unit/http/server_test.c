/* server_test.c - the real HTTP server on a free port, the router behind it replaced by one that echoes prompts. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "unit/api/tiny_gateway.h"
#include "unit/http/client.h"
#include "unit/http/fake_router.h"

#include <sluice/metrics.h>

struct fixture {
    struct tiny tiny;
    struct router router;
    struct http_server *server;
    int port;
};

static void serve(struct fixture *f)
{
    struct err err = { 0 };

    fake_router_start(&f->router, f->tiny.tokenizer, NULL);
    f->tiny.gateway.router = &f->router;
    assert_int_equal(http_server_start(&f->server, &f->tiny.gateway, &f->port, &err), 0);
    assert_true(f->port > 0);
}

static void start(struct fixture *f, char *const *flags)
{
    tiny_init(&f->tiny, flags);
    serve(f);
}

static void stop(struct fixture *f)
{
    http_server_stop(f->server, 1000);
    fake_router_stop(&f->router);
    tiny_release(&f->tiny);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f) return -1;
    start(f, NULL);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    stop(*state);
    free(*state);
    return 0;
}

/* One request on a fresh connection. */
static struct reply ask(const struct fixture *f, const char *method, const char *path, const char *extra,
                        const char *body)
{
    struct buf out = BUF_INIT, in = BUF_INIT;
    struct reply reply = { 0 };
    int fd = client_connect(f->port);

    assert_true(fd >= 0);
    client_format(&out, method, path, extra, body);
    assert_true(client_send(fd, out.data, out.len));
    assert_true(client_reply(fd, &in, &reply));
    close(fd);
    buf_release(&out);
    buf_release(&in);
    return reply;
}

static void expect(const struct fixture *f, const char *method, const char *path, const char *body, int status,
                   const char *text)
{
    struct reply reply = ask(f, method, path, NULL, body);

    if (reply.status != status || !strstr(reply.body.data ? reply.body.data : "", text))
        print_error("%s %s: %d %s\n", method, path, reply.status, reply.body.data ? reply.body.data : "");
    assert_int_equal(reply.status, status);
    assert_non_null(strstr(reply.body.data ? reply.body.data : "", text));
    reply_release(&reply);
}

static void plain_routes_answer(void **state)
{
    const struct fixture *f = *state;

    expect(f, "GET", "/health", NULL, 200, "{\"status\":\"ok\"}");
    expect(f, "GET", "/health/live?x=1", NULL, 200, "{\"status\":\"ok\"}");
    expect(f, "POST", "/ping", "", 200, "{\"status\":\"ok\"}");
    expect(f, "GET", "/version", NULL, 200, "{\"version\":\"0.1.0\"}");
    expect(f, "GET", "/load", NULL, 200, "\"server_load\":3");
    expect(f, "GET", "/v1/models", NULL, 200,
           "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"sluice\","
           "\"root\":\"tiny\",\"parent\":null,\"max_model_len\":2048},{\"id\":\"org/tiny\"");
    expect(f, "GET", "/v1/models/org/tiny", NULL, 200, "{\"id\":\"org/tiny\"");
    expect(f, "GET", "/v1/models/org%2Ftiny", NULL, 200, "{\"id\":\"org/tiny\"");
    expect(f, "GET", "/v1/models/nope", NULL, 404, "\"code\":\"model_not_found\"");
    expect(f, "GET", "/nowhere", NULL, 404, "\"code\":\"not_found\"");
    expect(f, "POST", "/nowhere", "{\"some\":\"body\"}", 404, "\"code\":\"not_found\"");
    expect(f, "GET", "/v1/completions", NULL, 405, "\"code\":\"method_not_allowed\"");
    expect(f, "DELETE", "/health", NULL, 405, "\"code\":\"method_not_allowed\"");
    expect(f, "GET", "//health", NULL, 404, "\"code\":\"not_found\"");
    expect(f, "POST", "/tokenize", "{\"prompt\":\"ab<|im_end|>\",\"return_token_strs\":true}", 200,
           "{\"count\":3,\"max_model_len\":2048,\"tokens\":[97,98,258],\"token_strs\":[\"a\",\"b\",\"<|im_end|>\"]}");
    expect(f, "POST", "/detokenize", "{\"tokens\":[104,105]}", 200, "{\"prompt\":\"hi\"}");
}

static void health_follows_the_router(void **state)
{
    struct fixture *f = *state;

    fake_router_set(&f->router, ROUTER_LOADING, ERR_NO_REPLICA);
    expect(f, "GET", "/health/ready", NULL, 503, "{\"status\":\"loading\"}");
    expect(f, "GET", "/health/live", NULL, 200, "ok");
    struct reply reply = ask(f, "POST", "/v1/completions", NULL, "{\"model\":\"tiny\",\"prompt\":\"a\"}");
    char value[64];
    assert_int_equal(reply.status, 503);
    assert_non_null(strstr(reply.body.data, "\"code\":\"no_replica_available\""));
    assert_string_equal(reply_header(&reply, "Retry-After", value, sizeof value), "7");
    reply_release(&reply);
    fake_router_set(&f->router, ROUTER_DRAINING, 0);
    expect(f, "GET", "/ping", NULL, 503, "{\"status\":\"draining\"}");
}

static void completion_answers_in_one_body(void **state)
{
    const struct fixture *f = *state;
    struct reply reply = ask(f, "POST", "/v1/completions", "x-request-id: my.id-1\r\n",
                             "{\"model\":\"tiny\",\"prompt\":[\"hello\",\"abc\"],\"max_tokens\":4,\"n\":2}");
    char value[64];

    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_header(&reply, "x-request-id", value, sizeof value), "my.id-1");
    assert_string_equal(reply_header(&reply, "Content-Type", value, sizeof value), "application/json");
    assert_null(reply_header(&reply, "Server", value, sizeof value));
    assert_memory_equal(reply.body.data, "{\"id\":\"cmpl-", 12);
    assert_non_null(strstr(reply.body.data, "\"object\":\"text_completion\""));
    assert_non_null(strstr(reply.body.data,
                           "\"model\":\"tiny\",\"system_fingerprint\":\"fp_0123456789ab\",\"choices\":["
        "{\"index\":0,\"text\":\"hell\",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null},"
        "{\"index\":1,\"text\":\"hell\",\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null},"
        "{\"index\":2,\"text\":\"abc\",\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null},"
        "{\"index\":3,\"text\":\"abc\",\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],"
        "\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":14,\"total_tokens\":22,"
        "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}}"));
    reply_release(&reply);
}

static void chat_streams_events(void **state)
{
    const struct fixture *f = *state;
    struct reply reply = ask(f, "POST", "/v1/chat/completions", NULL,
        "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"hey\"}],\"stream\":true,\"max_tokens\":2,"
        "\"stream_options\":{\"include_usage\":true}}");
    char value[64];
    const char *p = reply.body.data;

    assert_int_equal(reply.status, 200);
    assert_string_equal(reply_header(&reply, "Content-Type", value, sizeof value), "text/event-stream");
    assert_memory_equal(p, "data: {\"id\":\"chatcmpl-", 22);
    assert_non_null(p = strstr(p,
                               "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                               "\"finish_reason\":null}],\"usage\":null}\n\ndata: {"));
    assert_non_null(p = strstr(p,
                               "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"<|im_start|>\"},\"logprobs\":null,\"finish_reason\":null}]"));
    assert_non_null(p = strstr(p,
                               "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"u\"},\"logprobs\":null,\"finish_reason\":null}]"));
    assert_non_null(p = strstr(p,
                               "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}]"));
    assert_non_null(p = strstr(p, "\"choices\":[],\"usage\":{\"prompt_tokens\":"));
    assert_string_equal(strstr(p, "\n\n"), "\n\ndata: [DONE]\n\n");
    reply_release(&reply);
}

static void failures_keep_their_status_until_headers_are_out(void **state)
{
    const struct fixture *f = *state;

    expect(f, "POST", "/v1/completions", "{\"model\":\"tiny\",\"prompt\":\"!fail\",\"stream\":true}", 503,
           "\"code\":\"replica_lost\"");
    expect(f, "POST", "/v1/completions", "{\"model\":\"tiny\",\"prompt\":\"!late\",\"max_tokens\":5}", 503,
           "\"code\":\"replica_lost\"");
    struct reply reply = ask(f, "POST", "/v1/completions", NULL,
                             "{\"model\":\"tiny\",\"prompt\":\"!late\",\"stream\":true,\"max_tokens\":5}");
    if (reply.status == 503) {      /* the failure may overtake the headers: then the status is the true one */
        reply_release(&reply);
        return;
    }
    assert_int_equal(reply.status, 200);
    const char *p = strstr(reply.body.data,
                           "data: {\"error\":{\"message\":\"The replica was lost.\",\"type\":\"server_error\","
                           "\"param\":null,\"code\":\"replica_lost\"}}\n\n");
    assert_non_null(p);
    assert_string_equal(strstr(p, "\n\n"), "\n\ndata: [DONE]\n\n");
    reply_release(&reply);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    const struct fixture *f = *state;
    struct buf out = BUF_INIT, in = BUF_INIT;
    int fd = client_connect(f->port);

    for (int i = 0; i < 20; i++) {
        char body[96];
        snprintf(body, sizeof body, "{\"model\":\"tiny\",\"prompt\":\"number %d.\",\"stream\":%s}", i, i % 3 ? "false"
                 : "true");
        client_format(&out, "POST", "/v1/completions", NULL, body);
        client_format(&out, "GET", "/health", NULL, NULL);
    }
    assert_true(client_send(fd, out.data, out.len));
    for (int i = 0; i < 20; i++) {
        struct reply reply;
        char text[32];
        assert_true(client_reply(fd, &in, &reply));
        snprintf(text, sizeof text, i % 3 ? "\"number %d.\"" : "\"text\":\"%d\"", i % 3 ? i : i % 10);
        if (!strstr(reply.body.data, text)) print_error("%s\n", reply.body.data);
        assert_non_null(strstr(reply.body.data, text));
        reply_release(&reply);
        assert_true(client_reply(fd, &in, &reply));
        assert_string_equal(reply.body.data, "{\"status\":\"ok\"}");
        reply_release(&reply);
    }
    close(fd);
    buf_release(&out);
    buf_release(&in);
}

/* Waits (bounded) until a counter of the router reaches a value. */
static void await_count(struct fixture *f, const int *count, int value)
{
    struct timespec pause = { .tv_nsec = 2000000 };

    for (int i = 0; i < 5000 && fake_router_count(&f->router, count) < value; i++) nanosleep(&pause, NULL);
    assert_int_equal(fake_router_count(&f->router, count), value);
}

static void hang_up_cancels(void **state)
{
    struct fixture *f = *state;
    struct buf out = BUF_INIT;

    for (int stream = 0; stream < 2; stream++) {
        int fd = client_connect(f->port), before = fake_router_count(&f->router, &f->router.cancelled);
        buf_reset(&out);
        client_format(&out, "POST", "/v1/completions", NULL,
                      stream ? "{\"model\":\"tiny\",\"prompt\":\"!hang\",\"stream\":true}"
                          : "{\"model\":\"tiny\",\"prompt\":\"!hang\"}");
        assert_true(client_send(fd, out.data, out.len));
        await_count(f, &f->router.submitted, stream + 1);
        close(fd);
        await_count(f, &f->router.cancelled, before + 1);
        await_count(f, &f->router.finished, stream + 1);
    }
    buf_release(&out);
}

static void stop_ends_a_running_stream(void **state)
{
    struct fixture f = { 0 };
    struct buf out = BUF_INIT, in = BUF_INIT;
    struct reply reply;

    (void)state;
    start(&f, NULL);
    int fd = client_connect(f.port), idle = client_connect(f.port);
    client_format(&out, "POST", "/v1/completions", NULL, "{\"model\":\"tiny\",\"prompt\":\"!hang\",\"stream\":true}");
    assert_true(client_send(fd, out.data, out.len));
    await_count(&f, &f.router.submitted, 1);
    http_server_stop(f.server, 50);
    assert_false(client_reply(fd, &in, &reply));
    assert_true(reply.closed);
    assert_int_equal(fake_router_count(&f.router, &f.router.cancelled), 1);
    assert_int_equal(client_connect(f.port), -1);
    fake_router_stop(&f.router);
    tiny_release(&f.tiny);
    close(fd);
    close(idle);
    buf_release(&out);
    buf_release(&in);
}

static void keys_open_their_routes(void **state)
{
    char *flags[] = { "--api-key", "alice:0123456789abcdef", "--api-key", "bare-key-0123456789", NULL };
    struct fixture f = { 0 };
    char value[64];

    (void)state;
    start(&f, flags);
    struct reply reply = ask(&f, "GET", "/v1/models", NULL, NULL);
    assert_int_equal(reply.status, 401);
    assert_non_null(strstr(reply.body.data,
                           "{\"error\":{\"message\":\"Incorrect API key provided.\",\"type\":\"authentication_error\","
                                            "\"param\":null,\"code\":\"invalid_api_key\"}}"));
    assert_string_equal(reply_header(&reply, "WWW-Authenticate", value, sizeof value), "Bearer");
    reply_release(&reply);
    const struct { const char *header; int status; } cases[] = {
        { "Authorization: Bearer 0123456789abcdef\r\n", 200 },  { "authorization: bEARER bare-key-0123456789\r\n",
            200 },
        { "Authorization: Bearer alice:0123456789abcdef\r\n", 401 }, { "Authorization: Bearer 0123456789abcde\r\n",
            401 },
        { "Authorization: Bearer \r\n", 401 }, { "Authorization: 0123456789abcdef\r\n", 401 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        reply = ask(&f, "GET", "/v1/models", cases[i].header, NULL);
        assert_int_equal(reply.status, cases[i].status);
        reply_release(&reply);
    }
    expect(&f, "GET", "/nowhere", NULL, 401, "invalid_api_key");
    expect(&f, "GET", "/health", NULL, 200, "ok");
    stop(&f);
}

static void silence_is_broken_by_comments(void **state)
{
    struct fixture f = { 0 };
    struct buf out = BUF_INIT, in = BUF_INIT;
    bool closed = false;

    (void)state;
    tiny_init(&f.tiny, NULL);
    f.tiny.config.sse_keep_alive_interval = 1;          /* the option's own least value is 15: too long for a test */
    serve(&f);
    int fd = client_connect(f.port);
    client_format(&out, "POST", "/v1/completions", NULL, "{\"model\":\"tiny\",\"prompt\":\"!hang\",\"stream\":true}");
    assert_true(client_send(fd, out.data, out.len));
    for (const char *first; !(in.data && (first = strstr(in.data, ": keepalive\n\n")) &&
                              strstr(first + 1, ": keepalive\n\n")); )
        assert_true(client_more(fd, &in, &closed));
    assert_non_null(strstr(in.data, "HTTP/1.1 200 OK\r\n"));
    assert_null(strstr(in.data, "data:"));
    close(fd);
    await_count(&f, &f.router.cancelled, 1);
    stop(&f);
    buf_release(&out);
    buf_release(&in);
}

static void a_client_that_reads_nothing_is_cut(void **state)
{
    char *flags[] = { "--slow-client-timeout", "300ms", NULL };
    struct fixture f = { 0 };
    struct buf out = BUF_INIT, body = BUF_INIT;
    int small = 2048;

    (void)state;
    start(&f, flags);
    int fd = client_connect(f.port);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    /* 128 choices of 40 tokens with logprobs: megabytes of frames, more than any socket buffer takes */
    buf_puts(&body, "{\"model\":\"tiny\",\"stream\":true,\"logprobs\":2,\"n\":128,\"max_tokens\":2000,\"prompt\":\"");
    for (int i = 0; i < 1900; i++) buf_putc(&body, 'a');
    buf_puts(&body, "\"}");
    client_format(&out, "POST", "/v1/completions", NULL, body.data);
    assert_true(client_send(fd, out.data, out.len));
    struct pollfd reset = { .fd = fd, .events = POLLRDHUP };
    assert_int_equal(poll(&reset, 1, CLIENT_TIMEOUT_MS), 1);
    assert_true(reset.revents & (POLLERR | POLLHUP | POLLRDHUP));
    close(fd);
    await_count(&f, &f.router.finished, 1);
    stop(&f);
    buf_release(&out);
    buf_release(&body);
}

static void bodies_share_a_budget(void **state)
{
    char *flags[] = { "--max-body-bytes", "64KiB", "--max-body-bytes-in-flight", "64KiB", NULL };
    struct fixture f = { 0 };
    struct buf in = BUF_INIT;
    char head[128], value[64];
    struct reply reply;

    (void)state;
    start(&f, flags);
    int first = client_connect(f.port), second = client_connect(f.port);
    int len = snprintf(head, sizeof head,
                       "POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 40000\r\n\r\n");
    assert_true(client_send(first, head, (size_t)len));
    assert_true(client_reply(first, &in, &reply));
    assert_int_equal(reply.status, 100);                /* its bytes are reserved from here */
    reply_release(&reply);
    assert_true(client_send(second, head, (size_t)len));
    assert_true(client_reply(second, &in, &reply));
    assert_int_equal(reply.status, 429);
    assert_non_null(strstr(reply.body.data, "\"code\":\"queue_full\""));
    assert_string_equal(reply_header(&reply, "Retry-After", value, sizeof value), "7");
    reply_release(&reply);
    close(first);
    close(second);
    expect(&f, "GET", "/health", NULL, 200, "ok");
    stop(&f);
    buf_release(&in);
}

/* ---- storms ---- */

struct storm { const struct fixture *f; unsigned seed; int requests, answered; };

/* Whole requests, and requests whose client leaves after a random number of bytes or of answers. */
static void *storm_main(void *arg)
{
    struct storm *storm = arg;
    struct buf out = BUF_INIT, in = BUF_INIT;
    int fd = -1;

    for (int i = 0; i < storm->requests; i++) {
        struct reply reply = { 0 };
        bool stream = rand_r(&storm->seed) % 2;
        int leave = rand_r(&storm->seed) % 4;
        char body[256];
        if (fd < 0) fd = client_connect(storm->f->port);
        buf_reset(&out);
        snprintf(body, sizeof body,
                 "{\"model\":\"tiny\",\"prompt\":\"%s some words %d\",\"stream\":%s,\"max_tokens\":%d,\"logprobs\":2}",
                 leave == 1 ? "!hang" : "", i, stream ? "true" : "false", 1 + rand_r(&storm->seed) % 30);
        client_format(&out, "POST", "/v1/completions", NULL, body);
        size_t len = leave == 0 ? (size_t)rand_r(&storm->seed) % out.len : out.len;
        bool alive = client_send(fd, out.data, len);
        if (alive && leave > 1 && client_reply(fd, &in, &reply)) {
            storm->answered += reply.status == 200 && strstr(reply.body.data, stream ? "[DONE]"
                                                             : "\"finish_reason\":\"length\"");
            storm->answered += reply.status == 200 && !stream && strstr(reply.body.data, "\"finish_reason\":\"stop\"");
        } else if (leave == 1 && rand_r(&storm->seed) % 2) {
            struct timespec pause = { .tv_nsec = rand_r(&storm->seed) % 3000000 };
            nanosleep(&pause, NULL);
        }
        reply_release(&reply);
        if (leave < 3 || !alive) {
            close(fd);
            fd = -1;
            buf_reset(&in);
        }
    }
    if (fd >= 0) close(fd);
    buf_release(&out);
    buf_release(&in);
    return NULL;
}

static int open_descriptors(void)
{
    int n = 0;

    for (int fd = 0; fd < 4096; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void two_thousand_requests_leave_nothing_behind(void **state)
{
    enum { CLIENTS = 20, EACH = 100 };
    struct fixture *f = *state;
    struct storm storms[CLIENTS];
    pthread_t threads[CLIENTS];
    int before = open_descriptors(), answered = 0;
    struct timespec pause = { .tv_nsec = 10000000 };

    for (int i = 0; i < CLIENTS; i++) {
        storms[i] = (struct storm){ .f = f, .seed = (unsigned)i + 1, .requests = EACH };
        assert_int_equal(pthread_create(&threads[i], NULL, storm_main, &storms[i]), 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        answered += storms[i].answered;
    }
    assert_true(answered > CLIENTS * EACH / 4);
    await_count(f, &f->router.finished, fake_router_count(&f->router, &f->router.submitted));
    for (int i = 0; i < 1000 && open_descriptors() > before; i++) nanosleep(&pause, NULL);
    assert_int_equal(open_descriptors(), before);
    expect(f, "GET", "/health", NULL, 200, "ok");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(plain_routes_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(health_follows_the_router, setup, teardown),
        cmocka_unit_test_setup_teardown(completion_answers_in_one_body, setup, teardown),
        cmocka_unit_test_setup_teardown(chat_streams_events, setup, teardown),
        cmocka_unit_test_setup_teardown(failures_keep_their_status_until_headers_are_out, setup, teardown),
        cmocka_unit_test_setup_teardown(pipelined_requests_are_answered_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(hang_up_cancels, setup, teardown),
        cmocka_unit_test(stop_ends_a_running_stream),
        cmocka_unit_test(keys_open_their_routes),
        cmocka_unit_test(silence_is_broken_by_comments),
        cmocka_unit_test(a_client_that_reads_nothing_is_cut),
        cmocka_unit_test(bodies_share_a_budget),
        cmocka_unit_test_setup_teardown(two_thousand_requests_leave_nothing_behind, setup, teardown),
    };
    struct metrics_info info = { .model_name = "tiny", .num_replicas = 1, .version = "0.1.0", .commit = "",
        .max_model_len = 2048 };

    metrics_init(&info);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
