/* engine.h - one replica: requests in, steps on the ranks, token events out.
 * Flow: gateway socket -> I/O thread: MSG_SUBMIT -> submission -> inbox -> engine thread: the loop of engine_run
 *       -> one write of frames per step -> outbox -> I/O thread -> gateway.
 * Threads: the caller's is the engine thread and holds all scheduler state; one I/O thread (ipc) decodes, allocates and
 * frees submissions. Queues between them: inbox and give-back (rings), the channel's outbox. All bounded: a full inbox
 * stops the reading, a full outbox stops the engine, a hang-up ends both.
 * From READY on the engine thread allocates nothing; it then carries the thread name "engine-step", by which tests find
 * it. Owns channel, rings, scheduler. Borrows ranks. */
#ifndef SLUICE_ENGINE_H
#define SLUICE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/rank.h>

#include "scheduler.h"

struct engine;

struct engine_setup {
    uint64_t *layers_begun;            /* for engine_load: engine_layers_begun, or NULL */
    struct ranks *ranks;
    /* num_blocks, num_plans, overlap come from the ranks; max_model_len may shrink to the blocks */
    struct scheduler_options scheduler;
    uint8_t model_digest[32];
    /* headroom.h; NULL: memory is not watched */
    uint64_t (*free_memory)(void *arg);
    void *free_memory_arg;
    uint64_t headroom_bytes;
    bool sample_blocks;                /* ages of KV blocks are told */
    char trace_path[4096];             /* "": no trace */
    uint64_t trace_bytes;
    int64_t load_ms;
};

/* Takes fd over and starts the I/O thread. page_fd: heartbeat page, or a descriptor that is none. leave (may be NULL)
 * is called on the I/O thread with an exit code when the gateway has gone or broken the stream, or stops an engine that
 * is not READY: a program ends there and then. Without it the engine thread sees the end after its step. */
int  engine_open(struct engine **out, int fd, int page_fd, void (*leave)(int exit_code), struct err *err);
/* What the ranks count up (rank.h) for the supervisor; NULL without a page. */
uint64_t *engine_layers_begun(struct engine *engine);
/* MSG_PROGRESS, at most every 100 ms. share 0..1. Any thread, before engine_start. arg is the engine: fits
 * ranks_start. */
void engine_progress(void *arg, double share);
/* MSG_FAILED; waits until it has left. Before engine_start only. */
void engine_fail(struct engine *engine, int exit_code, const char *message);
/* Builds the scheduler, tells READY. ERR_CONFIG, ERR_NO_MEMORY. */
int  engine_start(struct engine *engine, const struct engine_setup *setup, struct err *err);
/* Steps until the gateway stops the engine or goes away (0), or the ranks fail (their error). */
int  engine_run(struct engine *engine);
/* Ends the thread that watches the memory of the ranks: before they are stopped. Idempotent. */
void engine_end_watch(struct engine *engine);
void engine_close(struct engine *engine);

#endif
