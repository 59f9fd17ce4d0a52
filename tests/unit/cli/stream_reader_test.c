/* stream_reader_test.c - what is counted in a stream of events, wherever the reads cut it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "stream_reader.h"

#define CHUNKED "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
#define FRAME(text, reason) \
    "data: {\"id\":\"x\",\"choices\":[{\"index\":0,\"text\":" text ",\"finish_reason\":" reason "}],\"usage\":null}\n\n"

static void put_chunk(struct buf *out, const char *text)
{
    buf_printf(out, "%zx\r\n%s\r\n", strlen(text), text);
}

static void stream_of(struct buf *out)
{
    buf_puts(out, CHUNKED);
    put_chunk(out, ": keep-alive\n\ndata: {\"choices\":[{\"text\":\"\",\"finish_reason\":null,\"prompt_token_ids\":[1]}]}\n\n");
    put_chunk(out, FRAME("\" a\"", "null"));
    put_chunk(out, FRAME("\"\"", "null"));                          /* a token whose text is still to come */
    put_chunk(out, FRAME("\" \\\"usage\\\": {\\\"prompt_tokens\\\":9\"", "null") FRAME("\" c\"", "null"));
    put_chunk(out, FRAME("\"\"", "\"length\""));                    /* says only why it ends */
    put_chunk(out, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\": 4}}\n\n");
    put_chunk(out, "data: [DONE]\n\n");
    buf_puts(out, "0\r\n\r\n");
}

static void expect_counted(const struct stream_reader *reader)
{
    assert_int_equal(reader->state, STREAM_ENDED);
    assert_int_equal(reader->status, 200);
    assert_int_equal(reader->frames, 4);
    assert_int_equal(reader->prompt_tokens, 12);
    assert_int_equal(reader->completion_tokens, 4);
    assert_true(reader->done && reader->keep_alive && !reader->failed);
    assert_string_equal(stream_reader_error(reader), "");
}

static void any_cut_counts_the_same(void **state)
{
    struct stream_reader reader = { 0 };
    struct buf stream = BUF_INIT;

    (void)state;
    stream_of(&stream);
    for (size_t cut = 0; cut <= stream.len; cut++) {
        stream_reader_reset(&reader);
        int64_t frames = stream_reader_feed(&reader, stream.data, cut);
        frames += stream_reader_feed(&reader, stream.data + cut, stream.len - cut);
        assert_int_equal(frames, 4);
        expect_counted(&reader);
    }
    stream_reader_reset(&reader);
    for (size_t i = 0; i < stream.len; i++) stream_reader_feed(&reader, stream.data + i, 1);
    expect_counted(&reader);
    stream_reader_release(&reader);
    buf_release(&stream);
}

static void feed(struct stream_reader *reader, const char *text)
{
    stream_reader_reset(reader);
    stream_reader_feed(reader, text, strlen(text));
}

static void errors_are_told(void **state)
{
    struct stream_reader reader = { 0 };

    (void)state;
    feed(&reader, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 12\r\nconnection: close\r\n\r\n{\"error\":{}}");
    assert_int_equal(reader.state, STREAM_ENDED);
    assert_int_equal(reader.status, 429);
    assert_false(reader.keep_alive);
    assert_string_equal(stream_reader_error(&reader), "{\"error\":{}}");

    feed(&reader, CHUNKED "1c\r\ndata: {\"error\":{\"code\":5}}\n\n\r\n0\r\n\r\n");
    assert_true(reader.failed);
    assert_string_equal(stream_reader_error(&reader), "{\"error\":{\"code\":5}}");

    feed(&reader, "SSH-2.0-OpenSSH\r\n\r\n");
    assert_int_equal(reader.state, STREAM_BROKEN);
    feed(&reader, CHUNKED "zz\r\n");
    assert_int_equal(reader.state, STREAM_BROKEN);
    stream_reader_release(&reader);
}

static void the_end_of_the_connection(void **state)
{
    struct stream_reader reader = { 0 };

    (void)state;
    feed(&reader, "HTTP/1.1 200 OK\r\n\r\n" FRAME("\"a\"", "null") "data: [DONE]\n\n");
    assert_int_equal(reader.state, STREAM_BODY);
    stream_reader_close(&reader);
    assert_int_equal(reader.state, STREAM_ENDED);
    assert_true(reader.done && !reader.keep_alive);
    feed(&reader, CHUNKED "5\r\nda");
    stream_reader_close(&reader);
    assert_int_equal(reader.state, STREAM_BROKEN);
    stream_reader_release(&reader);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_cut_counts_the_same),
        cmocka_unit_test(errors_are_told),
        cmocka_unit_test(the_end_of_the_connection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
