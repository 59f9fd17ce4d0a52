/* ipc.h - the complete list of what crosses between gateway and engine: bounded frames over a socketpair.
 * A frame is a frame_head, len payload bytes and zeros up to a multiple of 8 (so every payload is 8-byte aligned), in host
 * byte order (same host, same build: version checked in MSG_READY).
 * The gateway range-checks every field of every message as if the engine were hostile; a bad frame costs the replica.
 * Encoders append to a buf; decoders borrow from the payload they are given and copy nothing. Thread: none. */
#ifndef SLUICE_IPC_H
#define SLUICE_IPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/request.h>
#include <sluice/step_plan.h>
#include <sluice/token_event.h>

struct buf;

enum { IPC_VERSION = 4, IPC_MAX_PAYLOAD = 64 << 20, IPC_FD = 3, IPC_PAGE_FD = 4 };   /* descriptors an engine inherits */

enum msg_type {
    /* gateway -> engine */
    MSG_SUBMIT = 1,         /* engine_request with its arrays */
    MSG_ABORT,              /* msg_abort; unknown ids are ignored (idempotent) */
    MSG_STOP,               /* no payload: finish nothing more, exit 0 */
    /* engine -> gateway */
    MSG_PROGRESS = 64,      /* msg_progress: weights loaded */
    MSG_READY,              /* msg_ready */
    MSG_FAILED,             /* msg_failed: cannot start; the engine exits with exit_code next */
    MSG_LOGPROBS,           /* logprob rows of the MSG_EVENTS frame that follows directly */
    MSG_EVENTS,             /* token_event[] */
    MSG_STATS,              /* engine_stats, at most every 100 ms and when the engine goes idle */
    MSG_BEGUN,              /* uint64_t ids[] of those with start_by_ms whose first step begins: they wait no longer */
    MSG_PROMPT_LOGPROBS,    /* prompt_row_head and its top logprobs, for each prompt token that a step scored */
    MSG_SAMPLES,            /* engine_sample[]: for histograms; before a MSG_STATS, or when there are many */
};

struct frame_head { uint32_t len; uint16_t type; uint16_t zero; };

struct msg_abort { uint64_t id; int64_t seen_ns; };    /* seen_ns: when its cause was seen, CLOCK_MONOTONIC; 0 = not to be measured */
struct msg_progress { float share; };          /* 0..1 */
struct msg_ready {
    uint32_t version, pid;
    int32_t num_blocks, block_size, max_model_len, max_num_seqs, max_num_batched_tokens, vocab_size;
    int64_t load_ms;
    char describe[128];                        /* "cpu-fast, AVX-512 BF16, 2 threads" */
};
struct msg_failed { int32_t exit_code; char message[512]; };

struct engine_stats {
    uint64_t steps, prompt_tokens, generation_tokens, preemptions, cache_hit_tokens, cache_miss_tokens, aborted;
    uint64_t corrupted;                        /* sequences that ended because their logits were no numbers */
    uint32_t running, waiting;                 /* sequences */
    uint32_t blocks_total, blocks_used, blocks_cached;   /* cached: unreferenced but reusable; free = total - used - cached */
    float last_step_ms;
    uint32_t throttled;                        /* 1: memory is short, nobody is admitted while anything runs */
    uint32_t reserved_;
    uint64_t free_bytes, headroom_bytes;       /* memory; below headroom_bytes it is short. 0 = not watched */
};

/* What an engine measures one by one. Finite and not negative; seconds unless said. */
enum sample_kind {
    SAMPLE_STEP_PREFILL, SAMPLE_STEP_DECODE, SAMPLE_STEP_MIXED,     /* a step, by what it held */
    SAMPLE_STEP_HOST,       /* before a step: the ranks had nothing to do though there was work */
    SAMPLE_STEP_TOKENS, SAMPLE_STEP_SEQUENCES,                      /* a step's, as counts */
    SAMPLE_CANCEL,          /* msg_abort.seen_ns to the end of the sequence, its blocks given back */
    SAMPLE_BLOCK_LIFETIME,  /* of an evicted block: since it was taken for these tokens, */
    SAMPLE_BLOCK_IDLE,      /* and since a sequence last held it */
    SAMPLE_BLOCK_REUSE,     /* of a block that is found: since a sequence last took or left it */
    SAMPLE_KINDS
};
struct engine_sample { uint32_t kind; float value; };

/* One token's top logprobs in MSG_LOGPROBS: head, then n token_logprob. */
struct logprob_row_head { uint64_t id; uint32_t index, n; };
/* One prompt token in MSG_PROMPT_LOGPROBS: head, then n token_logprob. Positions of a sequence rise by one from 1 on; one that
 * is computed again after a preemption is not said again. All of them come before its first token_event. */
struct prompt_row_head { uint64_t id; uint32_t position; token_id token; float logprob; int32_t rank; uint32_t n, zero; };

/* Appends a whole frame (head and payload). */
void ipc_put(struct buf *out, enum msg_type type, const void *payload, size_t len);
void ipc_put_submit(struct buf *out, const struct engine_request *req);
/* Decodes MSG_SUBMIT; arrays point into payload. Checks every count and range against limits. ERR_PROTOCOL.
 * The payload begins with the id, so that a request that is refused here can still be answered. */
struct ipc_limits { int32_t vocab_size, max_model_len; };
int  ipc_get_submit(const void *payload, size_t len, const struct ipc_limits *limits, struct engine_request *req, struct err *err);

/* Cuts frames out of a byte stream. Bytes are appended with ipc_reader_feed; next returns 1 with a frame (payload 8-byte
 * aligned, valid until the next feed), 0 when more bytes are needed, ERR_PROTOCOL for a head that breaks the rules. */
struct ipc_reader { char *data; size_t len, cap, pos; };
void ipc_reader_init(struct ipc_reader *reader);
int  ipc_reader_feed(struct ipc_reader *reader, const void *data, size_t len);          /* 0 or ERR_NO_MEMORY */
int  ipc_reader_next(struct ipc_reader *reader, struct frame_head *head, const void **payload);
void ipc_reader_release(struct ipc_reader *reader);

/* The shared read-only page: written by the engine, read by the supervisor (heartbeat). All fields relaxed atomics. */
struct engine_page {
    uint64_t magic;             /* ENGINE_PAGE_MAGIC once the engine runs */
    uint64_t steps;             /* finished steps */
    uint64_t pending;           /* sequences with work; 0 = idle, no heartbeat expected */
    int64_t step_began_ns;      /* 0 = between steps */
    uint64_t longest_step_ns;
    uint64_t layers;            /* begun by the ranks: a long step on a busy host moves too */
};
#define ENGINE_PAGE_MAGIC UINT64_C(0x736c756963650002)
/* Maps the page behind fd for the engine. NULL when fd is no descriptor or too small: the engine then runs without. */
struct engine_page *engine_page_map(int fd);
void engine_page_unmap(struct engine_page *page);

#endif
