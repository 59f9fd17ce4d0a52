/* trace.h - the last steps of an engine in a file: everything that went into the scheduler and what it planned.
 * Flow: engine.c tells each submission, plan and result -> trace_* -> ring file.   sluice-engine replay: trace_view ->
 * replay.c.
 * The file is a head page and a ring of records; the oldest are overwritten. A replay begins at a START record, where
 * the scheduler is as if new. When an engine is idle and a quarter of the ring was written since the last START, it
 * forgets its prefix cache and writes another: tracing costs that. A server that is never idle for longer than the ring
 * lasts can be dumped but not replayed.
 * Holds the prompts' token ids: mode 0600. Never the process's cache secret: replay uses a root of its own.
 * Thread: writer on the engine's, allocates nothing after trace_open; view: any.
 * The reader trusts nothing in the file: a broken record ends the view with ERR_PROTOCOL, what came before is good. */
#ifndef SLUICE_ENGINE_TRACE_H
#define SLUICE_ENGINE_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/step_plan.h>

#include "scheduler.h"

enum trace_type {
    TRACE_PAD = 1,                     /* rest of the ring's end */
    TRACE_START,                       /* trace_start: the scheduler is empty, its cache too */
    TRACE_SUBMIT,                      /* payload of MSG_SUBMIT */
    TRACE_ABORT,                       /* trace_note */
    TRACE_REFUSED,                     /* trace_note */
    TRACE_PLAN,                        /* trace_plan, trace_seq[num_seqs] */
    TRACE_COMMIT,                      /* trace_commit, trace_row[num_rows] */
    TRACE_LOST,                        /* something too large for a record: a replay ends here */
};

#define TRACE_MAGIC UINT64_C(0x736c756963747202)
enum { TRACE_HEAD_BYTES = 4096, TRACE_MIN_BYTES = 1 << 16 };

struct trace_head {
    uint64_t magic, capacity;          /* bytes of the ring: a multiple of 4096 */
    uint64_t tail, head;               /* oldest record, end of the newest; they only grow: place = position % capacity */
    uint64_t num_records;
    struct scheduler_options options;
};
_Static_assert(sizeof(struct trace_head) <= TRACE_HEAD_BYTES, "the head fits its page");

struct trace_record { uint32_t len; uint16_t type, zero; };        /* then len bytes and zeros up to a multiple of 8 */

struct trace_start { uint64_t step; };
struct trace_note { uint64_t id; int64_t err_code; };
struct trace_plan {
    uint64_t step;                     /* 0: nothing could run */
    int64_t now_ns;
    uint64_t hash;                     /* of the plan's arrays */
    int32_t micro_batch, num_seqs, num_tokens, num_rows;
    uint32_t throttled, waiting, running, blocks_used;
};
struct trace_seq { uint64_t id; int32_t position, num_tokens; };
struct trace_commit {
    uint64_t step;
    int64_t now_ns;
    double step_ms;
    int32_t micro_batch, num_rows;
};
struct trace_row { token_id token; uint32_t bad; };

struct trace;

/* bytes: of the ring, rounded down to pages. ERR_IO, ERR_NO_MEMORY. */
int  trace_open(struct trace **out, const char *path, uint64_t bytes, const struct scheduler_options *options,
                struct err *err);
/* trace may be NULL in all of these. */
void trace_submission(struct trace *trace, const struct submission *sub);
void trace_step(struct trace *trace, const struct scheduler *s, const struct step_plan *plan, int64_t now_ns);
void trace_result(struct trace *trace, const struct step_plan *plan, const struct step_result *result, double step_ms,
                  int64_t now_ns);
/* A START is due: the engine has nothing to do and the ring has moved on. */
bool trace_wants_start(const struct trace *trace);
void trace_restart(struct trace *trace, struct scheduler *s);
void trace_close(struct trace *trace);

uint64_t trace_plan_hash(const struct step_plan *plan);

/* ---- reading ---- */

struct trace_view {
    const uint8_t *data;
    struct trace_head head;            /* checked copy */
    uint64_t at;
};

/* data borrowed. ERR_PROTOCOL. */
int trace_view_open(struct trace_view *view, const void *data, size_t len, struct err *err);
/* 1 and the next record that is no PAD; 0 at the end; ERR_PROTOCOL for a broken one. payload: record->len bytes, 8-byte
 * aligned when data is; its size fits its type and counts. */
int trace_view_next(struct trace_view *view, struct trace_record *record, const void **payload, struct err *err);

#endif
