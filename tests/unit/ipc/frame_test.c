#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/ipc.h>

#include "base/buf.h"

static void frames_survive_any_cut(void **state)
{
    struct buf stream = BUF_INIT;
    char payload[100];

    (void)state;
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (char)i;
    for (size_t len = 0; len < sizeof payload; len++) ipc_put(&stream, MSG_STATS, payload, len);
    for (size_t step = 1; step < 40; step++) {
        struct ipc_reader reader;
        struct frame_head head;
        const void *got;
        size_t next = 0;
        ipc_reader_init(&reader);
        for (size_t at = 0; at < stream.len; at += step) {
            size_t n = stream.len - at < step ? stream.len - at : step;
            assert_int_equal(ipc_reader_feed(&reader, stream.data + at, n), 0);
            while (ipc_reader_next(&reader, &head, &got) == 1) {
                assert_int_equal(head.type, MSG_STATS);
                assert_int_equal(head.len, next);
                assert_int_equal((uintptr_t)got % 8, 0);
                assert_memory_equal(got, payload, next);
                next++;
            }
        }
        assert_int_equal(next, sizeof payload);
        ipc_reader_release(&reader);
    }
    buf_release(&stream);
}

static int next_of(struct frame_head head)
{
    struct ipc_reader reader;
    struct frame_head got;
    const void *payload;

    ipc_reader_init(&reader);
    assert_int_equal(ipc_reader_feed(&reader, &head, sizeof head), 0);
    int rc = ipc_reader_next(&reader, &got, &payload);
    ipc_reader_release(&reader);
    return rc;
}

static void broken_heads_are_refused(void **state)
{
    (void)state;
    assert_int_equal(next_of((struct frame_head){ .len = 0, .type = MSG_STOP }), 1);
    assert_int_equal(next_of((struct frame_head){ .len = IPC_MAX_PAYLOAD, .type = MSG_SUBMIT }), 0);
    assert_int_equal(next_of((struct frame_head){ .len = IPC_MAX_PAYLOAD + 1, .type = MSG_SUBMIT }), ERR_PROTOCOL);
    assert_int_equal(next_of((struct frame_head){ .len = 8, .type = MSG_SUBMIT, .zero = 1 }), ERR_PROTOCOL);
    assert_int_equal(next_of((struct frame_head){ .len = 8, .type = 0 }), ERR_PROTOCOL);
}

static void a_payload_stays_until_the_next_feed(void **state)
{
    struct buf stream = BUF_INIT;
    struct ipc_reader reader;
    struct frame_head head;
    const void *first, *second;

    (void)state;
    ipc_put(&stream, MSG_ABORT, "first...", 8);
    ipc_put(&stream, MSG_ABORT, "second..", 8);
    ipc_reader_init(&reader);
    assert_int_equal(ipc_reader_feed(&reader, stream.data, stream.len), 0);
    assert_int_equal(ipc_reader_next(&reader, &head, &first), 1);
    assert_int_equal(ipc_reader_next(&reader, &head, &second), 1);
    assert_memory_equal(first, "first...", 8);
    assert_memory_equal(second, "second..", 8);
    ipc_reader_release(&reader);
    buf_release(&stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_survive_any_cut),
        cmocka_unit_test(broken_heads_are_refused),
        cmocka_unit_test(a_payload_stays_until_the_next_feed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
