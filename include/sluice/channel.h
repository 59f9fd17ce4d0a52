/* channel.h - the gateway's end of the socket to one engine, on the libuv loop.
 * Thread: the loop's only. The reader side is unbounded in time but bounded per frame (IPC_MAX_PAYLOAD); the writer side
 * holds at most CHANNEL_MAX_QUEUED bytes that the engine has not taken, then the channel counts as broken. */
#ifndef SLUICE_CHANNEL_H
#define SLUICE_CHANNEL_H

#include <stddef.h>

#include <sluice/err.h>
#include <sluice/ipc.h>

struct uv_loop_s;
struct buf;
struct channel;

enum { CHANNEL_MAX_QUEUED = 512 << 20 };

struct channel_events {
    /* One whole frame; payload is valid during the call. May close the channel. */
    void (*frame)(void *arg, const struct frame_head *head, const void *payload);
    /* Peer gone or stream broken; called once, not after channel_close. */
    void (*broken)(void *arg, const struct err *err);
};

/* Takes fd (non-blocking, close-on-exec) over on success. */
int  channel_open(struct channel **out, struct uv_loop_s *loop, int fd, const struct channel_events *events, void *arg, struct err *err);
/* Sends the bytes of frames (whole frames made by ipc_put*) and empties the buf. ERR_ENDED when broken or too far behind. */
int  channel_send(struct channel *channel, struct buf *frames);
size_t channel_backlog(const struct channel *channel);     /* bytes not yet taken by the kernel */
/* Takes what an ended peer has left in the socket, now: its last words come before its exit is acted upon. */
void channel_drain(struct channel *channel);
void channel_close(struct channel *channel);    /* no callback after it; memory goes when libuv lets go */

#endif
