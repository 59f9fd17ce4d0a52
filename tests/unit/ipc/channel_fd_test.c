#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include <sluice/channel_fd.h>

#include "base/buf.h"

enum { OUTBOX = 4096 };

struct peer {
    int fd;                            /* the gateway's end */
    struct channel_fd *channel;
    _Atomic int frames, ended_code, refuse, calls;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t last_id;
};

static void changed(struct peer *peer)
{
    pthread_mutex_lock(&peer->lock);
    pthread_cond_broadcast(&peer->changed);
    pthread_mutex_unlock(&peer->lock);
}

#define WAIT_FOR(peer, cond) do {                                                        \
        pthread_mutex_lock(&(peer)->lock);                                               \
        while (!(cond)) pthread_cond_wait(&(peer)->changed, &(peer)->lock);              \
        pthread_mutex_unlock(&(peer)->lock);                                             \
    } while (0)

static int on_frame(void *arg, const struct frame_head *head, const void *payload)
{
    struct peer *peer = arg;

    if (head->type == MSG_STOP) return ERR_ENDED;
    peer->calls++;
    changed(peer);
    if (peer->refuse) return ERR_QUEUE_FULL;
    memcpy(&peer->last_id, payload, sizeof peer->last_id);
    peer->frames++;
    changed(peer);
    return 0;
}

static void on_ended(void *arg, int code)
{
    struct peer *peer = arg;

    peer->ended_code = code;
    changed(peer);
}

static const struct channel_fd_events events = { .frame = on_frame, .ended = on_ended };

static int setup(void **state)
{
    struct peer *peer = calloc(1, sizeof *peer);
    int pair[2];

    if (!peer || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) return -1;
    pthread_mutex_init(&peer->lock, NULL);
    pthread_cond_init(&peer->changed, NULL);
    peer->fd = pair[0];
    *state = peer;
    return channel_fd_open(&peer->channel, pair[1], OUTBOX, &events, peer, NULL);
}

static int teardown(void **state)
{
    struct peer *peer = *state;

    channel_fd_close(peer->channel);
    if (peer->fd >= 0) close(peer->fd);
    free(peer);
    return 0;
}

static void send_abort(struct peer *peer, uint64_t id)
{
    struct buf frame = BUF_INIT;

    ipc_put(&frame, MSG_ABORT, &id, sizeof id);
    assert_int_equal(write(peer->fd, frame.data, frame.len), frame.len);
    buf_release(&frame);
}

static void frames_come_in_order(void **state)
{
    struct peer *peer = *state;

    for (uint64_t id = 1; id <= 100; id++) send_abort(peer, id);
    WAIT_FOR(peer, peer->frames == 100);
    assert_int_equal(peer->last_id, 100);
}

static void a_refused_frame_is_offered_again(void **state)
{
    struct peer *peer = *state;

    peer->refuse = 1;
    send_abort(peer, 5);
    send_abort(peer, 6);
    WAIT_FOR(peer, peer->calls >= 3);
    assert_int_equal(peer->frames, 0);
    peer->refuse = 0;
    WAIT_FOR(peer, peer->frames == 2);
    assert_int_equal(peer->last_id, 6);
}

static void a_hang_up_is_seen_while_frames_are_refused(void **state)
{
    struct peer *peer = *state;

    peer->refuse = 1;
    send_abort(peer, 5);
    WAIT_FOR(peer, peer->calls >= 1);
    close(peer->fd);
    peer->fd = -1;
    WAIT_FOR(peer, peer->ended_code == ERR_ENDED);
}

static void garbage_ends_the_channel(void **state)
{
    struct peer *peer = *state;
    struct frame_head broken = { .len = 1, .type = MSG_ABORT, .zero = 9 };

    assert_int_equal(write(peer->fd, &broken, sizeof broken), sizeof broken);
    WAIT_FOR(peer, peer->ended_code == ERR_PROTOCOL);
    assert_int_equal(channel_fd_write(peer->channel, "12345678", 8), ERR_ENDED);
}

static void stop_ends_politely(void **state)
{
    struct peer *peer = *state;
    struct frame_head stop = { .type = MSG_STOP };

    assert_int_equal(write(peer->fd, &stop, sizeof stop), sizeof stop);
    WAIT_FOR(peer, peer->ended_code == ERR_ENDED);
}

static void *write_a_megabyte(void *arg)
{
    struct peer *peer = arg;
    uint64_t words[64];

    for (uint64_t i = 0; i < (1 << 20) / sizeof words; i++) {
        for (int k = 0; k < 64; k++) words[k] = i * 64 + (uint64_t)k;
        if (channel_fd_write(peer->channel, words, sizeof words) < 0) return arg;
    }
    channel_fd_flush(peer->channel, 60000);
    return NULL;
}

/* More than outbox and socket hold: the writer waits for the reader and nothing is lost. */
static void a_slow_reader_holds_the_writer(void **state)
{
    struct peer *peer = *state;
    pthread_t writer;
    uint64_t expected = 0, words[512];
    size_t have = 0;
    void *failed;

    assert_int_equal(pthread_create(&writer, NULL, write_a_megabyte, peer), 0);
    while (expected < (1 << 20) / 8) {
        ssize_t n = read(peer->fd, (char *)words + have, sizeof words - have);
        assert_true(n > 0);
        have += (size_t)n;
        for (size_t i = 0; i < have / 8; i++) assert_int_equal(words[i], expected++);
        memmove(words, (char *)words + have / 8 * 8, have % 8);
        have %= 8;
    }
    pthread_join(writer, &failed);
    assert_null(failed);
}

static void a_waiting_writer_is_released_by_a_hang_up(void **state)
{
    struct peer *peer = *state;
    pthread_t writer;
    char byte;
    void *failed;

    assert_int_equal(pthread_create(&writer, NULL, write_a_megabyte, peer), 0);
    assert_int_equal(read(peer->fd, &byte, 1), 1);
    close(peer->fd);
    peer->fd = -1;
    pthread_join(writer, &failed);
    assert_non_null(failed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(frames_come_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(a_refused_frame_is_offered_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_hang_up_is_seen_while_frames_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(garbage_ends_the_channel, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_ends_politely, setup, teardown),
        cmocka_unit_test_setup_teardown(a_slow_reader_holds_the_writer, setup, teardown),
        cmocka_unit_test_setup_teardown(a_waiting_writer_is_released_by_a_hang_up, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
