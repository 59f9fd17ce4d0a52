/* rank.h - the ranks of one engine: threads that hold a shard each and run the same step_plan together.
 * Flow: engine thread -> ranks_execute(plan) -> every rank: forward -> last stage, tp_rank 0: sample -> step_result.
 * Between plans, once none has come for RANKS_IDLE_MS, a rank's device may do slices of work of its own (backend.h, idle): a plan that
 * comes then waits for one slice at most.
 * Thread: engine thread only, unless said. Owns rank threads, backends, models, KV memory. No allocation after
 * ranks_start. A rank that fails or stalls ends them all: one "rank_failed" line in the log names rank and step, every
 * later call answers the error, and no thread waits for the one that is gone.
 * Also the home of step_plan.c: layout and check of a plan. */
#ifndef SLUICE_RANK_H
#define SLUICE_RANK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <sluice/backend.h>
#include <sluice/err.h>
#include <sluice/loader.h>
#include <sluice/parallel.h>
#include <sluice/step_plan.h>

struct ranks;
struct comm_ops;                           /* comm.h */
struct config;                             /* config.h */

enum { MAX_RANKS = MAX_TP * MAX_PP };

struct ranks_options {
    const struct backend_ops *ops;
    int tp_size, pp_size;
    const int *layer_partition;            /* [pp_size] or NULL */
    int32_t threads;                       /* CPU threads per rank */
    int32_t first_device;                  /* GPU of rank 0; rank i has first_device + i */
    enum dtype kv_dtype;
    int32_t max_num_seqs, max_num_batched_tokens, max_model_len, block_size;
    int32_t max_rows;                      /* rows of logits in one step; 0 = max_num_seqs */
    bool overlap;                          /* plans in flight may hold the same sequences, where the ranks can */
    bool eager;                            /* no captured steps */
    enum tuning tuning;                    /* idle: taken as start where there are several ranks */
    double headroom;                       /* share of the device's (host's) memory kept free */
    uint64_t kv_cache_bytes;               /* > 0: KV memory of all ranks together instead of what is free */
    int32_t num_blocks_override;           /* > 0: this many blocks whatever the memory */
    uint64_t seed;                         /* dummy weights */
    int64_t stall_timeout_ms;              /* no plan ended and no layer begun for so long, nor for RANKS_STALL_FACTOR x
                                              the longest plan: the ranks have failed; 0 = 5 minutes */
    uint64_t *layers_begun;                /* counter of who watches from outside; NULL = one of their own */
    const struct comm_ops *comm_ops;       /* over ends of comm_cpu; NULL = comm_cpu itself */
    int64_t (*now_ns)(void);               /* of step_result.stages, on the rank's thread; NULL = CLOCK_MONOTONIC */
    const struct model_source *src;        /* for the plan: the files, matrices of which may be kept as they are; NULL =
                                              not known: counted in the backend's own form. ranks_start sets it */
};
enum { RANKS_STALL_FACTOR = 18, RANKS_IDLE_MS = 200 };

/* What the configuration asks of one replica of this model. layers: storage that options points into. cuda: the GPU's backend,
 * NULL in a program without; taken, or its f16 (by option dtype), for device cuda, and for auto where a GPU is visible. ERR_CONFIG. */
int ranks_options_of(struct ranks_options *options, int layers[MAX_PP], const struct config *config,
                     const struct model_config *model, const struct backend_ops *cuda, struct err *err);

/* The plan of one rank's memory; every term in bytes. Arithmetic only: `sluice plan` uses it without a device. */
struct memory_plan {
    uint64_t device_bytes;                 /* what there is for this rank (CPU: its share of the host's) */
    uint64_t headroom_bytes;
    uint64_t weights, activations, workspace, rope_table, comm;
    uint64_t context;                      /* held before the arena is: driver, modules, other processes; 0 on the CPU */
    uint64_t library;                      /* taken outside the arena later: captured steps, library handles; 0 on the CPU */
    uint64_t kv_per_block;                 /* all layers of this rank */
    int32_t num_blocks;                    /* the same on every rank once the lowest is taken */
    int32_t block_size, max_model_len;
    uint64_t kv, total;
};
#define MEMORY_PLAN_WAYS_OUT ". Ways out: "      /* what follows the reason when it refuses */
/* device_bytes: of this rank; context_bytes of them are taken already. KV blocks: kv_cache_bytes, else num_blocks_override, else the least of what is left under
 * the headroom, what max_num_seqs x max_model_len can use, and (host memory) 1 GiB for all ranks, but room for one
 * sequence of max_model_len. ERR_CONFIG naming the term that does not fit and three ways out. */
int  memory_plan_make(struct memory_plan *plan, const struct model_config *config, const struct shard *shard,
                      const struct ranks_options *options, uint64_t device_bytes, uint64_t context_bytes, struct err *err);
void memory_plan_print(const struct memory_plan *plan, FILE *out);

/* One rank of the plan, and all of them: plans[tp_size * pp_size], the number of blocks the same on each. host_bytes:
 * of all together. ERR_CONFIG: an impossible layout, or what memory_plan_make refuses. */
struct rank_plan { struct shard shard; struct memory_plan memory; };
/* device_free: of each rank's device, when host_bytes is what each device has in all (NULL: ranks share the host's memory). */
int  ranks_plan(struct rank_plan *plans, const struct model_config *config, const struct ranks_options *options,
                uint64_t host_bytes, const uint64_t *device_free, struct err *err);
/* The table of them, a line at a time: line -1 is the heading, line n_ranks the sum. No newline. */
enum { RANK_LINE_MAX = 256 };
void ranks_plan_line(char line[RANK_LINE_MAX], const struct rank_plan *plans, int num_ranks, int i);
/* What each layout of a host's GPUs would give; `sluice plan` prints it. Arithmetic only. */
enum { MAX_HOST_GPUS = 8, MAX_LAYOUTS = 16, LAYOUT_ROOM_SHARE = 5 };
struct layout_offer {
    int tp_size, pp_size, dp_size;         /* dp_size replicas, together all of the GPUs */
    bool fits;                             /* else only `why` says something */
    struct memory_plan memory;             /* of the fullest rank */
    uint64_t room_bytes;                   /* what that rank has for KV under the headroom, used or not */
    struct err why;
};
static inline bool layout_is_roomy(const struct layout_offer *offer)
{
    return offer->room_bytes >= offer->memory.device_bytes / LAYOUT_ROOM_SHARE;
}
/* Every tp x pp that divides num_gpus (1..MAX_HOST_GPUS), in order of ranks per replica, then of pp. options: its tp_size, pp_size and
 * layer_partition are not looked at. device_bytes: of one GPU; context_bytes of them are taken before. Returns how many. */
int  layouts_offered(struct layout_offer offers[MAX_LAYOUTS], const struct model_config *config, const struct ranks_options *options,
                     int num_gpus, uint64_t device_bytes, uint64_t context_bytes);
/* The one to take: of those that leave 1/LAYOUT_ROOM_SHARE of the memory to KV (the roomy ones) the one with the fewest ranks per replica (most replicas,
 * least traffic), tp before pp; when none does, the one with the most room. -1: none fits. */
int  layouts_best(const struct layout_offer *offers, int n);
/* Host memory this process may still take: MemAvailable, or what its cgroup leaves if that is less. 0: unknown. */
uint64_t host_memory_bytes(void);

/* Logs the plan's table (level info when there are several ranks, else debug), loads every shard and starts the
 * threads. progress: share of the weights read, 0..1, from any thread.
 * src is not used after the return. Errors: ERR_CONFIG, ERR_MODEL_FILE, ERR_NO_MEMORY, ERR_IO. */
int  ranks_start(struct ranks **out, const struct model_source *src, const struct ranks_options *options,
                 void (*progress)(void *arg, double share), void *progress_arg, struct err *err);
/* Plans still in flight are finished first. Joins and frees; a rank that hangs for a second more is left behind with all
 * that it may still touch: then the process has to end. */
void ranks_stop(struct ranks *ranks);
int32_t ranks_num_blocks(const struct ranks *ranks);     /* same on every rank */
int32_t ranks_num_slots(const struct ranks *ranks);      /* plans in flight at once: pp_size, 2 with overlap */
/* Plans in flight may hold the same sequences, with TOKEN_FEEDBACK for what an earlier one draws. Asked for, one stage, and
 * every rank draws: a device that takes steps ahead, or the one rank that there is. */
bool ranks_overlaps(const struct ranks *ranks);
int32_t ranks_max_rows(const struct ranks *ranks);       /* rows of logits one plan may have */
const struct memory_plan *ranks_memory_plan(const struct ranks *ranks, int rank);
/* The least that any of their devices has free (CPU: the host), other processes counted; 0: unknown. Any thread. */
uint64_t ranks_free_memory(const struct ranks *ranks);
const char *ranks_describe(const struct ranks *ranks);   /* "cpu-fast, AVX-512 BF16, 2 threads" */

/* 0, or the error that every later call answers: a rank may fail while it has no plan. Any thread. */
int  ranks_error(const struct ranks *ranks);
/* Which rank failed at which step, "rank 2 (stage 1, tp 0) stalled at step 17: ..."; "" while all is well. */
const char *ranks_failure(const struct ranks *ranks);

/* Runs one plan to its end: result->rows filled (caller's memory, at least num_rows). 0 or the error that ends the
 * engine: after one, every later call answers it too. No plan may be in flight. */
int  ranks_execute(struct ranks *ranks, const struct step_plan *plan, struct step_result *result);
/* The same in two halves, so that num_slots plans are in flight: submit queues the plan (ERR_QUEUE_FULL when all slots are
 * taken), wait takes the oldest. They run in the order of submission. plan and result stay the ranks' until wait returned
 * them; sequences of plans in flight at the same time must differ, unless the ranks overlap. wait with nothing in flight:
 * ERR_NOT_FOUND. After an error the result says nothing. */
int  ranks_submit(struct ranks *ranks, const struct step_plan *plan, struct step_result *result);
int  ranks_wait(struct ranks *ranks, struct step_result **result);
bool ranks_finished(const struct ranks *ranks);          /* wait would return at once */

#endif
