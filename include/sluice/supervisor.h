/* supervisor.h - keeps the engine processes running: spawn, READY, heartbeat, restart with backoff, stop.
 * It knows processes, not requests: frames and changes of state go up to the router through callbacks.
 * Thread: the loop's only. A replica is in exactly one state:
 *   STARTING --READY frame--> READY --exit, broken socket, stall--> DOWN --backoff 1,2,4..60 s--> STARTING
 *   The backoff starts over once a replica has served three times as long as its last one. Else it doubles: after each life
 *   without a single step, after every fourth with some or that somebody's SIGKILL ended. At 60 s the replica counts as parked
 *   (logged).
 *   any --supervisor_stop--> STOPPED */
#ifndef SLUICE_SUPERVISOR_H
#define SLUICE_SUPERVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/config.h>
#include <sluice/err.h>
#include <sluice/ipc.h>

struct uv_loop_s;
struct buf;
struct supervisor;

enum replica_state { REPLICA_STARTING, REPLICA_READY, REPLICA_DOWN, REPLICA_STOPPED };

struct supervisor_events {
    void (*progress)(void *arg, int replica, double share);                       /* weights loaded, 0..1 */
    void (*ready)(void *arg, int replica, const struct msg_ready *info);
    /* Was READY; a restart is under way. crashed: by its own doing (exit, fault, stall, bad frames), not by somebody's SIGKILL. */
    void (*lost)(void *arg, int replica, const struct err *why, bool crashed);
    /* Cannot start: EXIT_CONFIG when its configuration or model was refused. It is tried again by backoff all the same. */
    void (*refused)(void *arg, int replica, int exit_code, const char *message);
    /* Has the router work there? No step with work pending for too long is a stall, whatever the engine's own page says. */
    bool (*busy)(void *arg, int replica);
    void (*frame)(void *arg, int replica, const struct frame_head *head, const void *payload);   /* READY state only */
    void (*stopped)(void *arg);                                                   /* after supervisor_stop: no process left */
};

int  supervisor_start(struct supervisor **out, struct uv_loop_s *loop, const struct config *config,
                      const struct supervisor_events *events, void *arg, struct err *err);
int  supervisor_num_replicas(const struct supervisor *sup);
enum replica_state supervisor_state(const struct supervisor *sup, int replica);
/* Whole frames to a READY replica; the buf is emptied. ERR_ENDED otherwise. */
int  supervisor_send(struct supervisor *sup, int replica, struct buf *frames);
size_t supervisor_backlog(const struct supervisor *sup, int replica);     /* bytes sent that the engine has not read yet */
/* SIGKILL: a replica that broke the protocol. It comes back by backoff. */
void supervisor_kill(struct supervisor *sup, int replica, const char *why);
/* Sends MSG_STOP, SIGKILLs after 2 s; `stopped` is called when every process is reaped. */
void supervisor_stop(struct supervisor *sup);
void supervisor_free(struct supervisor *sup);     /* after stopped and after the loop has run its close callbacks */

#endif
