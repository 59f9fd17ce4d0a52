/* comm_cpu.c - ranks are threads of one process: data moves by reading each other's buffers between two barriers.
 * Collective: publish a pointer, barrier, read the peers, barrier. Send and recv meet in a mailbox per (from, to).
 * The words that carry the ordering are `generation` of the barrier and `state` of a mailbox; abort changes them all,
 * so that whoever is about to sleep on one does not. A mailbox changes state by compare-and-swap only: after an abort
 * it stays closed. */
#include <sluice/comm.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bug.h"
#include "base/clock.h"
#include "base/futex.h"

enum { SPINS = 2000 };                             /* some tens of microseconds: longer than a rank's usual lag */
enum mailbox_state { MAILBOX_EMPTY, MAILBOX_FULL, MAILBOX_CLOSED };

struct comm {
    struct comm_group *group;
    int rank;
    const void *published;                         /* written before a barrier, read by peers until the next */
    atomic_bool waiting;                           /* says who is not the reason when a step does not end */
} __attribute__((aligned(64)));

struct mailbox {
    _Atomic uint32_t state;
    const void *data;
    int64_t bytes;
};

struct comm_group {
    int size, spins;
    int64_t timeout_ns;
    atomic_bool aborted;
    _Atomic uint32_t arrived, generation;
    struct comm *ends;                             /* [size] */
    struct mailbox *mailboxes;                     /* [size from, size to] */
};

static struct mailbox *mailbox_of(struct comm_group *group, int from, int to)
{
    return &group->mailboxes[from * group->size + to];
}

static void group_abort(struct comm_group *group)
{
    atomic_store(&group->aborted, true);
    atomic_fetch_add(&group->generation, 1);
    futex_wake_all(&group->generation);
    for (int i = 0; i < group->size * group->size; i++) {
        atomic_store(&group->mailboxes[i].state, MAILBOX_CLOSED);
        futex_wake_all(&group->mailboxes[i].state);
    }
}

/* Until *word differs from `from`, the group is aborted or the time is up (which aborts it). */
static int wait_change(struct comm *c, _Atomic uint32_t *word, uint32_t from)
{
    struct comm_group *group = c->group;
    int64_t deadline = 0;
    if (atomic_load(word) == from) atomic_store_explicit(&c->waiting, true, memory_order_relaxed);
    while (atomic_load(word) == from && !atomic_load(&group->aborted)) {
        int64_t now = clock_now_ns();
        if (deadline == 0) deadline = now + group->timeout_ns;
        if (now >= deadline) group_abort(group);
        else futex_wait(word, from, group->spins, deadline - now);
    }
    atomic_store_explicit(&c->waiting, false, memory_order_relaxed);
    return atomic_load(&group->aborted) ? ERR_ENDED : 0;
}

static int cpu_barrier(struct comm *c)
{
    struct comm_group *group = c->group;
    uint32_t generation = atomic_load(&group->generation);
    if (atomic_load(&group->aborted)) return ERR_ENDED;
    if (atomic_fetch_add(&group->arrived, 1) + 1 < (uint32_t)group->size) {
        return wait_change(c, &group->generation, generation);
    }
    atomic_store(&group->arrived, 0);
    atomic_fetch_add(&group->generation, 1);
    futex_wake_all(&group->generation);
    return atomic_load(&group->aborted) ? ERR_ENDED : 0;
}

/* Each rank sums one slice of all buffers into its own, then copies the other slices from their owners. The last
 * barrier keeps a rank from changing its buffer while a slower one still copies from it. */
static int cpu_all_reduce(struct comm *c, void *data, int64_t n, enum dtype dtype)
{
    struct comm_group *group = c->group;
    int64_t size = group->size;
    float *mine = data;
    int rc;
    if (dtype != DTYPE_F32) return ERR_UNSUPPORTED;
    c->published = data;
    if ((rc = cpu_barrier(c)) < 0) return rc;
    int64_t begin = n * c->rank / size, end = n * (c->rank + 1) / size;
    for (int64_t i = begin; i < end; i++) {
        float sum = ((const float *)group->ends[0].published)[i];
        for (int64_t r = 1; r < size; r++) sum += ((const float *)group->ends[r].published)[i];
        mine[i] = sum;
    }
    if ((rc = cpu_barrier(c)) < 0) return rc;
    for (int64_t r = 0; r < size; r++) {
        int64_t first = n * r / size, count = n * (r + 1) / size - first;
        if (r == c->rank || count == 0) continue;
        memcpy(mine + first, (const float *)group->ends[r].published + first, (size_t)count * sizeof(float));
    }
    return cpu_barrier(c);
}

static int cpu_all_gather(struct comm *c, const void *src, void *dst, int64_t n, enum dtype dtype)
{
    struct comm_group *group = c->group;
    int64_t bytes = dtype_row_bytes(dtype, n);
    int rc;
    if (bytes < 0) return ERR_UNSUPPORTED;
    c->published = src;
    if ((rc = cpu_barrier(c)) < 0) return rc;
    for (int r = 0; r < group->size && bytes > 0; r++) {
        memcpy((char *)dst + bytes * r, group->ends[r].published, (size_t)bytes);
    }
    return cpu_barrier(c);
}

static int cpu_broadcast(struct comm *c, void *data, int64_t bytes, int root)
{
    int rc;
    BUG_ON(root < 0 || root >= c->group->size);
    c->published = data;
    if ((rc = cpu_barrier(c)) < 0) return rc;
    if (c->rank != root && bytes > 0) memcpy(data, c->group->ends[root].published, (size_t)bytes);
    return cpu_barrier(c);
}

/* False: an abort closed the mailbox in between. */
static bool mailbox_turn(struct mailbox *box, uint32_t from, uint32_t to)
{
    bool turned = atomic_compare_exchange_strong(&box->state, &from, to);
    futex_wake_all(&box->state);
    return turned;
}

static int cpu_send(struct comm *c, const void *data, int64_t bytes, int peer)
{
    BUG_ON(peer < 0 || peer >= c->group->size || peer == c->rank);
    struct mailbox *box = mailbox_of(c->group, c->rank, peer);
    if (atomic_load(&c->group->aborted)) return ERR_ENDED;
    box->data = data;
    box->bytes = bytes;
    if (!mailbox_turn(box, MAILBOX_EMPTY, MAILBOX_FULL)) return ERR_ENDED;
    return wait_change(c, &box->state, MAILBOX_FULL);
}

static int cpu_recv(struct comm *c, void *data, int64_t bytes, int peer)
{
    BUG_ON(peer < 0 || peer >= c->group->size || peer == c->rank);
    struct mailbox *box = mailbox_of(c->group, peer, c->rank);
    int rc = wait_change(c, &box->state, MAILBOX_EMPTY);
    if (rc < 0) return rc;
    if (box->bytes != bytes) {                     /* the ranks disagree about the step: nothing they hold is right */
        group_abort(c->group);
        return ERR_PROTOCOL;
    }
    if (bytes > 0) memcpy(data, box->data, (size_t)bytes);
    return mailbox_turn(box, MAILBOX_FULL, MAILBOX_EMPTY) ? 0 : ERR_ENDED;
}

static void cpu_abort(struct comm *c)
{
    group_abort(c->group);
}

static bool cpu_waiting(const struct comm *c)
{
    return atomic_load_explicit(&c->waiting, memory_order_relaxed);
}

int comm_cpu_new(struct comm_group **out, int size, int64_t timeout_ms, struct err *err)
{
    struct comm_group *group = NULL;
    if (size < 1 || size > MAX_COMM_RANKS || timeout_ms < 1) {
        return err_set(err, ERR_CONFIG, "a communicator of %d ranks, timeout %lld ms", size, (long long)timeout_ms);
    }
    group = calloc(1, sizeof(*group));
    if (!group) return err_set(err, ERR_NO_MEMORY, "communicator");
    group->ends = aligned_alloc(64, (size_t)size * sizeof(*group->ends));
    group->mailboxes = calloc((size_t)size * (size_t)size, sizeof(*group->mailboxes));
    if (!group->ends || !group->mailboxes) {
        comm_cpu_free(group);
        return err_set(err, ERR_NO_MEMORY, "communicator of %d ranks", size);
    }
    group->size = size;
    group->spins = size <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 0;
    group->timeout_ns = timeout_ms * 1000000;
    for (int r = 0; r < size; r++) group->ends[r] = (struct comm){ .group = group, .rank = r };
    *out = group;
    return 0;
}

struct comm *comm_cpu_rank(struct comm_group *group, int rank)
{
    BUG_ON(rank < 0 || rank >= group->size);
    return &group->ends[rank];
}

void comm_cpu_no_spin(struct comm_group *group)
{
    group->spins = 0;
}

void comm_cpu_free(struct comm_group *group)
{
    if (!group) return;
    free(group->mailboxes);
    free(group->ends);
    free(group);
}

static int cpu_join(struct comm *c, int32_t device, void *stream, struct err *err)
{
    (void)c;
    (void)device;
    (void)stream;
    (void)err;
    return 0;
}

static int cpu_check(struct comm *c)
{
    return atomic_load(&c->group->aborted) ? ERR_ENDED : 0;
}

const struct comm_ops comm_cpu_ops = {
    .new_group = comm_cpu_new,
    .end = comm_cpu_rank,
    .free_group = comm_cpu_free,
    .join = cpu_join,
    .check = cpu_check,
    .name = "comm_cpu",
    .all_reduce = cpu_all_reduce,
    .all_gather = cpu_all_gather,
    .broadcast = cpu_broadcast,
    .send = cpu_send,
    .recv = cpu_recv,
    .barrier = cpu_barrier,
    .abort = cpu_abort,
    .waiting = cpu_waiting,
};
