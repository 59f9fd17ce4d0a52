/* guard_test.c - framing and header rules on fields, without sockets. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "guard.h"

/* name, value, name, value, ..., NULL */
static int check(const char *version, const char *url, struct guard_result *result, ...)
{
    struct guard_field fields[GUARD_MAX_FIELDS];
    struct guard_input input = { .method = "POST", .version = version, .raw_url = url, .fields = fields };
    struct err err = { 0 };
    va_list args;
    const char *name;

    va_start(args, result);
    while ((name = va_arg(args, const char *))) {
        const char *value = va_arg(args, const char *);
        fields[input.n_fields++] = (struct guard_field){ name, strlen(name), value, strlen(value) };
    }
    va_end(args);
    int rc = guard_check(&input, NULL, result, &err);
    assert_int_equal(err.code, rc);
    return rc;
}

static void plain_requests_pass(void **state)
{
    struct guard_result result;

    (void)state;
    assert_int_equal(check("HTTP/1.1", "/x?a=%00", &result, "Host", "a", "content-length", "12", NULL), 0);
    assert_true(result.has_body && result.has_length && !result.chunked);
    assert_int_equal(result.content_length, 12);
    assert_int_equal(check("HTTP/1.1", "/x", &result, "Host", "a", "Transfer-Encoding", "CHUNKED", NULL), 0);
    assert_true(result.has_body && result.chunked);
    assert_int_equal(check("HTTP/1.0", "/x", &result, "X-Anything", "\t caf\xc3\xa9", NULL), 0);
    assert_false(result.has_body);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Content-Length", "0", "Expect", "100-Continue",
                           NULL), 0);
    assert_true(result.expect_continue && result.has_length && !result.has_body);
}

static void smuggling_is_refused(void **state)
{
    static const char *const bad_lengths[] = { "", "3,3", "+3", "-1", "0x3", "3 ", "1234567890123456789", "three" };
    struct guard_result result;

    (void)state;
    for (size_t i = 0; i < sizeof bad_lengths / sizeof bad_lengths[0]; i++)
        assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Content-Length", bad_lengths[i], NULL),
                         ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Content-Length", "3", "content-Length", "3", NULL),
                     ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Content-Length", "3", "Transfer-Encoding",
                           "chunked", NULL), ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Transfer-Encoding", "gzip, chunked", NULL),
                     ERR_HTTP);
    assert_int_equal(check("HTTP/1.0", "/", &result, "Host", "a", "Transfer-Encoding", "chunked", NULL), ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Host", "a", NULL), ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Authorization", "a", "Host", "a", "Authorization", "a", NULL),
                     ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, NULL), ERR_HTTP);
    assert_int_equal(check("HTTP/2.0", "/", &result, "Host", "a", NULL), ERR_HTTP_VERSION);
    assert_int_equal(check("HTTP/1.1", "/a%00b", &result, "Host", "a", NULL), ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Content-Length ", "3", NULL), ERR_HTTP);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X", "a\rb", NULL), ERR_HTTP);
}

static void sizes_have_limits(void **state)
{
    static char url[GUARD_MAX_URL + 2], value[GUARD_MAX_HEADER_BYTES + 1];
    struct guard_field fields[GUARD_MAX_FIELDS] = { { "Host", 4, "a", 1 } };
    struct guard_input input = { .method = "GET", .version = "HTTP/1.1", .raw_url = "/", .fields = fields,
        .n_fields = 100 };
    struct guard_result result;

    (void)state;
    memset(url, 'a', GUARD_MAX_URL);
    assert_int_equal(check("HTTP/1.1", url, &result, "Host", "a", NULL), 0);
    url[GUARD_MAX_URL] = 'a';
    assert_int_equal(check("HTTP/1.1", url, &result, "Host", "a", NULL), ERR_URI_LONG);
    memset(value, 'a', GUARD_MAX_HEADER_BYTES - 20);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X", value, NULL), 0);
    memset(value, 'a', GUARD_MAX_HEADER_BYTES);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X", value, NULL), ERR_HEADERS_LARGE);
    for (int i = 1; i < GUARD_MAX_FIELDS; i++) fields[i] = (struct guard_field){ "X", 1, "", 0 };
    assert_int_equal(guard_check(&input, NULL, &result, NULL), 0);
    input.n_fields = 101;
    assert_int_equal(guard_check(&input, NULL, &result, NULL), ERR_HEADERS_LARGE);
}

static void request_ids_are_echoed_only_when_plain(void **state)
{
    struct guard_result result;
    char longest[REQUEST_ID_MAX + 2] = { 0 };

    (void)state;
    memset(longest, 'a', REQUEST_ID_MAX);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X-Request-Id", longest, NULL), 0);
    assert_non_null(result.request_id);
    longest[REQUEST_ID_MAX] = 'a';
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X-Request-Id", longest, NULL), 0);
    assert_null(result.request_id);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X-Request-Id", "a b", NULL), 0);
    assert_null(result.request_id);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "X-Request-Id", "a", "X-Request-Id", "b", NULL), 0);
    assert_null(result.request_id);
}

static void trace_ids_are_those_of_w3c(void **state)
{
    static const char good[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    static const char *const bad[] = {
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "", "00", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
    };
    struct guard_result result;

    (void)state;
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "traceparent", good, NULL), 0);
    assert_memory_equal(result.trace_id, "0af7651916cd43dd8448eb211c80319c", GUARD_TRACE_ID);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "Traceparent", bad[i], NULL), 0);
        assert_null(result.trace_id);
    }
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", "traceparent", good, "traceparent", good, NULL), 0);
    assert_null(result.trace_id);
    assert_int_equal(check("HTTP/1.1", "/", &result, "Host", "a", NULL), 0);
    assert_null(result.trace_id);
}

static void hosts_can_be_restricted(void **state)
{
    char *names[] = { "localhost", "[::1]" };
    struct str_list allowed = { names, 2 };
    const struct { const char *host; int rc; } cases[] = {
        { "localhost", 0 }, { "LOCALHOST:8000", 0 }, { "[::1]:8000", 0 }, { "[::1]", 0 }, { "evil.example",
            ERR_HTTP }, { "localhost.evil", ERR_HTTP },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct guard_field field = { "Host", 4, cases[i].host, strlen(cases[i].host) };
        struct guard_input input = { .method = "GET", .version = "HTTP/1.1", .raw_url = "/", .fields = &field,
            .n_fields = 1 };
        struct guard_result result;
        assert_int_equal(guard_check(&input, &allowed, &result, NULL), cases[i].rc);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_requests_pass), cmocka_unit_test(smuggling_is_refused), cmocka_unit_test(sizes_have_limits),
        cmocka_unit_test(request_ids_are_echoed_only_when_plain),
        cmocka_unit_test(trace_ids_are_those_of_w3c), cmocka_unit_test(hosts_can_be_restricted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
