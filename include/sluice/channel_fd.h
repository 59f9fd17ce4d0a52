/* channel_fd.h - the engine's end of the socket to the gateway: one I/O thread around a descriptor.
 * Flow: gateway -> frame() on the I/O thread;  any engine thread -> channel_fd_write -> outbox -> I/O thread ->
 * gateway.
 * The outbox is bounded: a writer waits while the gateway does not read, and is released with ERR_ENDED when it goes
 * away. While a frame is refused (the engine's inbox is full) nothing more is read, but a hang-up is still seen.
 * Owns: thread, outbox, reader, descriptor. After open the write path never allocates. */
#ifndef SLUICE_CHANNEL_FD_H
#define SLUICE_CHANNEL_FD_H

#include <stddef.h>

#include <sluice/err.h>
#include <sluice/ipc.h>

struct channel_fd;

/* All called on the I/O thread. */
struct channel_fd_events {
    /* 0: taken. ERR_QUEUE_FULL: offered again within milliseconds. ERR_ENDED: the peer asked to stop. Other: broken
     * stream. */
    int  (*frame)(void *arg, const struct frame_head *head, const void *payload);
    /* Once: peer gone or stopped (ERR_ENDED), or the code of what broke (ERR_PROTOCOL, ERR_IO, ERR_NO_MEMORY). */
    void (*ended)(void *arg, int code);
    /* After each wake-up; the place to free what other threads handed back. May be NULL. */
    void (*woken)(void *arg);
};

/* outbox_bytes: the most that channel_fd_write takes before it waits; no single write may be larger. Takes fd in any
 * case. */
int channel_fd_open(struct channel_fd **out, int fd, size_t outbox_bytes, const struct channel_fd_events *events,
                    void *arg, struct err *err);
/* Queues whole frames. Any thread. Waits for room; ERR_ENDED once the channel has ended. */
int  channel_fd_write(struct channel_fd *channel, const void *frames, size_t len);
/* Waits until all that was written has left, the channel has ended or timeout_ms has passed. Any thread but the I/O
 * thread. */
void channel_fd_flush(struct channel_fd *channel, int timeout_ms);
/* Joins the I/O thread, closes the descriptor, frees. No callback afterwards. */
void channel_fd_close(struct channel_fd *channel);

#endif
