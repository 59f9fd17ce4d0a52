#include <sluice/channel_fd.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/bug.h"
#include "base/clock.h"

enum { READ_BYTES = 256 << 10, RETRY_MS = 2 };

struct outbox_half { char *data; size_t len; };

struct channel_fd {
    int fd, wake_fd;
    const struct channel_fd_events *events;
    void *arg;
    pthread_t thread;

    pthread_mutex_t lock;          /* guards what follows up to the blank line */
    pthread_cond_t changed;        /* room in the outbox, or the end */
    struct outbox_half filling;    /* by channel_fd_write */
    bool ended, closing, draining_busy;
    size_t outbox_bytes;           /* const */

    /* I/O thread only */
    struct outbox_half draining;
    size_t drained;
    struct ipc_reader reader;
    struct frame_head held_head;   /* a frame that was refused */
    const void *held_payload;
    bool held;
    char chunk[READ_BYTES];
};

static void wake(struct channel_fd *channel)
{
    uint64_t one = 1;

    /* the counter can only be full when a wake is pending anyway */
    while (write(channel->wake_fd, &one, sizeof one) < 0 && errno == EINTR) { }
}

/* ---- I/O thread ---- */

static int deliver(struct channel_fd *channel)
{
    const void *payload;
    int rc;

    for (;;) {
        if (!channel->held) {
            rc = ipc_reader_next(&channel->reader, &channel->held_head, &payload);
            if (rc <= 0) return rc;
            channel->held_payload = payload;
            channel->held = true;
        }
        rc = channel->events->frame(channel->arg, &channel->held_head, channel->held_payload);
        if (rc == ERR_QUEUE_FULL) return 0;
        if (rc < 0) return rc;
        channel->held = false;
    }
}

static int receive(struct channel_fd *channel)
{
    ssize_t n = recv(channel->fd, channel->chunk, sizeof channel->chunk, MSG_DONTWAIT);

    if (n == 0) return ERR_ENDED;
    if (n < 0)
        return errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK ? 0 : errno == ECONNRESET ? ERR_ENDED : ERR_IO;
    int rc = ipc_reader_feed(&channel->reader, channel->chunk, (size_t)n);
    return rc < 0 ? rc : deliver(channel);
}

/* Takes over what was written since, when the last half has gone. */
static void swap_halves(struct channel_fd *channel)
{
    pthread_mutex_lock(&channel->lock);
    if (channel->drained == channel->draining.len) {
        struct outbox_half empty = { channel->draining.data, 0 };
        channel->draining = channel->filling;
        channel->filling = empty;
        channel->drained = 0;
        channel->draining_busy = channel->draining.len > 0;
        pthread_cond_broadcast(&channel->changed);
    }
    pthread_mutex_unlock(&channel->lock);
}

/* Sends until the socket is full or nothing is left. */
static int drain(struct channel_fd *channel)
{
    for (;;) {
        swap_halves(channel);
        if (channel->drained == channel->draining.len) return 0;
        ssize_t n = send(channel->fd, channel->draining.data + channel->drained,
                         channel->draining.len - channel->drained, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
            return errno == EPIPE || errno == ECONNRESET ? ERR_ENDED : ERR_IO;
        }
        channel->drained += (size_t)n;
    }
}

static int turn(struct channel_fd *channel)
{
    struct pollfd fds[2] = {
        { .fd = channel->fd, .events = (short)(POLLRDHUP | (channel->held ? 0 : POLLIN) |
                                               (channel->drained < channel->draining.len ? POLLOUT : 0)) },
        { .fd = channel->wake_fd, .events = POLLIN },
    };
    uint64_t count;
    int rc = 0;

    if (poll(fds, 2, channel->held ? RETRY_MS : -1) < 0) return errno == EINTR ? 0 : ERR_IO;
    if (fds[1].revents & POLLIN) (void)!read(channel->wake_fd, &count, sizeof count);
    if (channel->events->woken) channel->events->woken(channel->arg);
    if ((rc = drain(channel)) < 0) return rc;
    if (channel->held) {
        if ((rc = deliver(channel)) < 0) return rc;
        /* a peer that has gone is not waited for until the inbox has room */
        return fds[0].revents & (POLLHUP | POLLRDHUP | POLLERR) ? ERR_ENDED : 0;
    }
    return fds[0].revents & (POLLIN | POLLHUP | POLLRDHUP | POLLERR) ? receive(channel) : 0;
}

static bool is_closing(struct channel_fd *channel)
{
    pthread_mutex_lock(&channel->lock);
    bool closing = channel->closing;
    pthread_mutex_unlock(&channel->lock);
    return closing;
}

static void *io_main(void *arg)
{
    struct channel_fd *channel = arg;
    int rc = 0;

    while (!is_closing(channel) && (rc = turn(channel)) >= 0) { }
    pthread_mutex_lock(&channel->lock);
    channel->ended = true;
    pthread_cond_broadcast(&channel->changed);
    pthread_mutex_unlock(&channel->lock);
    if (rc < 0) channel->events->ended(channel->arg, rc);
    return NULL;
}

/* ---- any thread ---- */

static void release(struct channel_fd *channel)
{
    close(channel->fd);
    if (channel->wake_fd >= 0) close(channel->wake_fd);
    ipc_reader_release(&channel->reader);
    free(channel->filling.data);
    free(channel->draining.data);
    pthread_mutex_destroy(&channel->lock);
    pthread_cond_destroy(&channel->changed);
    free(channel);
}

int channel_fd_open(struct channel_fd **out, int fd, size_t outbox_bytes, const struct channel_fd_events *events,
                    void *arg, struct err *err)
{
    struct channel_fd *channel = calloc(1, sizeof *channel);
    pthread_condattr_t attr;

    if (!channel) {
        close(fd);
        return err_set(err, ERR_NO_MEMORY, "channel: out of memory");
    }
    channel->fd = fd;
    channel->events = events;
    channel->arg = arg;
    channel->outbox_bytes = outbox_bytes;
    pthread_mutex_init(&channel->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&channel->changed, &attr);
    pthread_condattr_destroy(&attr);
    ipc_reader_init(&channel->reader);
    channel->filling.data = malloc(outbox_bytes);
    channel->draining.data = malloc(outbox_bytes);
    channel->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!channel->filling.data || !channel->draining.data || channel->wake_fd < 0) {
        release(channel);
        return err_set(err, ERR_NO_MEMORY, "channel: no memory for an outbox of %zu bytes", outbox_bytes);
    }
    if (pthread_create(&channel->thread, NULL, io_main, channel)) {
        release(channel);
        return err_set(err, ERR_LIMIT, "channel: cannot start a thread");
    }
    *out = channel;
    return 0;
}

int channel_fd_write(struct channel_fd *channel, const void *frames, size_t len)
{
    int rc = 0;

    BUG_ON(len > channel->outbox_bytes);
    pthread_mutex_lock(&channel->lock);
    while (!channel->ended && len > channel->outbox_bytes - channel->filling.len)
        pthread_cond_wait(&channel->changed, &channel->lock);
    if (channel->ended) {
        rc = ERR_ENDED;
    } else {
        memcpy(channel->filling.data + channel->filling.len, frames, len);
        channel->filling.len += len;
    }
    pthread_mutex_unlock(&channel->lock);
    if (!rc) wake(channel);
    return rc;
}

void channel_fd_flush(struct channel_fd *channel, int timeout_ms)
{
    int64_t until = clock_now_ns() + (int64_t)timeout_ms * 1000000;
    struct timespec deadline = { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };

    pthread_mutex_lock(&channel->lock);
    while (!channel->ended && (channel->filling.len || channel->draining_busy)) {
        if (pthread_cond_timedwait(&channel->changed, &channel->lock, &deadline) == ETIMEDOUT) break;
    }
    pthread_mutex_unlock(&channel->lock);
}

void channel_fd_close(struct channel_fd *channel)
{
    if (!channel) return;
    pthread_mutex_lock(&channel->lock);
    channel->closing = true;
    pthread_mutex_unlock(&channel->lock);
    wake(channel);
    pthread_join(channel->thread, NULL);
    release(channel);
}
