#include <sluice/channel.h>

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/buf.h"

enum { MAX_DRAIN_READS = 64 };     /* more than a socket holds */

struct channel {
    uv_pipe_t pipe;
    const struct channel_events *events;
    void *arg;
    struct ipc_reader reader;
    bool closing;
    char chunk[256 << 10];         /* one read; the reader copies */
};

struct pending_write {
    uv_write_t req;
    char *data;
};

static void on_closed(uv_handle_t *handle)
{
    struct channel *channel = handle->data;

    ipc_reader_release(&channel->reader);
    free(channel);
}

void channel_close(struct channel *channel)
{
    if (channel->closing) return;
    channel->closing = true;
    uv_close((uv_handle_t *)&channel->pipe, on_closed);
}

/* Tells the owner once; the owner closes. */
static void report_broken(struct channel *channel, int code, const char *what, const char *detail)
{
    struct err err = { 0 };

    if (channel->closing) return;
    uv_read_stop((uv_stream_t *)&channel->pipe);
    err_set(&err, code, "%s: %s", what, detail);
    channel->events->broken(channel->arg, &err);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct channel *channel = handle->data;

    (void)suggested;
    *buf = uv_buf_init(channel->chunk, sizeof channel->chunk);
}

/* False once the channel is closed or broken. */
static bool take(struct channel *channel, const char *data, size_t len)
{
    struct frame_head head;
    const void *payload;
    int rc = 0;

    if (ipc_reader_feed(&channel->reader, data, len) < 0) {
        report_broken(channel, ERR_NO_MEMORY, "engine socket", "out of memory");
        return false;
    }
    while (!channel->closing && (rc = ipc_reader_next(&channel->reader, &head, &payload)) > 0)
        channel->events->frame(channel->arg, &head, payload);
    if (rc < 0) report_broken(channel, ERR_PROTOCOL, "engine socket", "broken frame");
    return rc == 0 && !channel->closing;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct channel *channel = stream->data;

    if (n < 0) report_broken(channel, ERR_ENDED, "engine socket", uv_strerror((int)n));
    else if (n > 0) take(channel, buf->base, (size_t)n);
}

void channel_drain(struct channel *channel)
{
    uv_os_fd_t fd;

    if (channel->closing || uv_fileno((uv_handle_t *)&channel->pipe, &fd) < 0) return;
    for (int reads = 0; reads < MAX_DRAIN_READS; reads++) {
        ssize_t n = recv(fd, channel->chunk, sizeof channel->chunk, MSG_DONTWAIT);
        if (n <= 0 || !take(channel, channel->chunk, (size_t)n)) return;
    }
}

int channel_open(struct channel **out, struct uv_loop_s *loop, int fd, const struct channel_events *events, void *arg, struct err *err)
{
    struct channel *channel = calloc(1, sizeof *channel);
    int rc;

    if (!channel) return err_set(err, ERR_NO_MEMORY, "engine channel: out of memory");
    channel->events = events;
    channel->arg = arg;
    ipc_reader_init(&channel->reader);
    rc = uv_pipe_init(loop, &channel->pipe, 0);
    if (rc < 0) {
        free(channel);
        return err_set(err, ERR_IO, "engine channel: %s", uv_strerror(rc));
    }
    channel->pipe.data = channel;
    rc = uv_pipe_open(&channel->pipe, fd);
    if (rc >= 0) rc = uv_read_start((uv_stream_t *)&channel->pipe, on_alloc, on_read);
    if (rc < 0) {
        channel_close(channel);
        return err_set(err, ERR_IO, "engine channel: %s", uv_strerror(rc));
    }
    *out = channel;
    return 0;
}

static void on_written(uv_write_t *req, int status)
{
    struct pending_write *pending = (struct pending_write *)req;
    struct channel *channel = req->data;

    free(pending->data);
    free(pending);
    if (status < 0 && status != UV_ECANCELED) report_broken(channel, ERR_ENDED, "engine socket", uv_strerror(status));
}

int channel_send(struct channel *channel, struct buf *frames)
{
    size_t len = frames->len;

    if (channel->closing || frames->failed || len > UINT_MAX || uv_stream_get_write_queue_size((uv_stream_t *)&channel->pipe) > CHANNEL_MAX_QUEUED)
        return ERR_ENDED;
    if (!len) return 0;
    struct pending_write *pending = malloc(sizeof *pending);
    if (!pending) return ERR_NO_MEMORY;
    pending->data = buf_detach(frames);
    if (!pending->data) {
        free(pending);
        return ERR_NO_MEMORY;
    }
    pending->req.data = channel;
    uv_buf_t buf = uv_buf_init(pending->data, (unsigned)len);
    if (uv_write(&pending->req, (uv_stream_t *)&channel->pipe, &buf, 1, on_written) < 0) {
        free(pending->data);
        free(pending);
        return ERR_ENDED;
    }
    return 0;
}

size_t channel_backlog(const struct channel *channel)
{
    return channel->closing ? 0 : uv_stream_get_write_queue_size((const uv_stream_t *)&channel->pipe);
}
