/* comm.h - how the ranks of one engine move data between them. Two implementations: comm_cpu (threads of one process),
 * comm_nccl (GPUs). Stream-ordered: a call takes its place behind the ops issued before on that rank; on the CPU it has
 * finished on return. Every rank of a group makes the same collective calls in the same order; a send meets the recv of
 * its peer with the same byte count. A rank that fails or stalls makes every other rank's call return ERR_ENDED: nobody
 * waits for ever. After ERR_ENDED buffers handed to the group stay alive until all its ranks have left it (threads
 * joined). */
#ifndef SLUICE_COMM_H
#define SLUICE_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/types.h>

struct comm;        /* one rank's end of a group */
struct comm_group;  /* shared by the ranks of a group */

enum { MAX_COMM_RANKS = 64 };

struct comm_ops {
    const char *name;
    /* A group of size ranks (1..MAX_COMM_RANKS), timeout for any one wait; its ends, which live until free_group, which no rank may
     * still be using. Engine thread. */
    int  (*new_group)(struct comm_group **out, int size, int64_t timeout_ms, struct err *err);
    struct comm *(*end)(struct comm_group *group, int rank);
    void (*free_group)(struct comm_group *group);
    /* Every rank of a group once, on its own thread, before its first call: waits for the others. stream: of its backend, which
     * orders the group's work from then on. After join no call allocates. */
    int  (*join)(struct comm *c, int32_t device, void *stream, struct err *err);
    /* Has anything gone wrong by now? 0 or ERR_ENDED. Called once a step. */
    int  (*check)(struct comm *c);
    /* In place over n elements; sums are made in rank order, so every rank gets the same bits. f32 (cpu), f32, bf16 or
       f16 (nccl). */
    int (*all_reduce)(struct comm *c, void *data, int64_t n, enum dtype dtype);
    /* dst [size, n] in rank order, src [n]. */
    int (*all_gather)(struct comm *c, const void *src, void *dst, int64_t n, enum dtype dtype);
    int (*broadcast)(struct comm *c, void *data, int64_t bytes, int root);
    int (*send)(struct comm *c, const void *data, int64_t bytes, int peer);
    int (*recv)(struct comm *c, void *data, int64_t bytes, int peer);
    int (*barrier)(struct comm *c);
    void (*abort)(struct comm *c);      /* any thread: every present and later call of the group answers ERR_ENDED */
    bool (*waiting)(const struct comm *c);   /* any thread: this rank is inside a call and waits for others */
};

/* size ranks (1..MAX_COMM_RANKS), timeout for any one wait. comm_cpu_rank hands out the ends; they live until
 * comm_cpu_free, which no rank may still be using. No call allocates after comm_cpu_new. */
int  comm_cpu_new(struct comm_group **out, int size, int64_t timeout_ms, struct err *err);
struct comm *comm_cpu_rank(struct comm_group *group, int rank);
/* Before the first call: waits of this group sleep at once. For when more threads than cores would spin. */
void comm_cpu_no_spin(struct comm_group *group);
void comm_cpu_free(struct comm_group *group);
extern const struct comm_ops comm_cpu_ops;
extern const struct comm_ops comm_nccl_ops;    /* builds with CUDA; the library is opened when the first group is made */

#endif
