/* comm_cpu_test.c - collectives against plain arithmetic, 10,000 random operations over threads, and nobody left
   waiting. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/comm.h>

enum { MAX_SIZE = 4, MAX_ELEMS = 300 };

struct member { struct comm *comm; int rank, size, rounds; int rc; int wrong; };

/* Runs fn on `size` threads, each with its end of one group. */
static void run_group(int size, int64_t timeout_ms, int rounds, void *(*fn)(void *), struct member members[MAX_SIZE])
{
    struct comm_group *group = NULL;
    pthread_t threads[MAX_SIZE];
    assert_int_equal(comm_cpu_new(&group, size, timeout_ms, NULL), 0);
    for (int r = 0; r < size; r++) {
        members[r] = (struct member){ .comm = comm_cpu_rank(group, r), .rank = r, .size = size, .rounds = rounds };
        assert_int_equal(pthread_create(&threads[r], NULL, fn, &members[r]), 0);
    }
    for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
    comm_cpu_free(group);
}

/* The same value on every rank for the same arguments: what rank r holds at element i in round k. */
static float value_of(int rank, int round, int64_t i)
{
    uint32_t x = (uint32_t)rank * 2654435761u + (uint32_t)round * 40503u + (uint32_t)i * 2246822519u;
    x ^= x >> 15;
    return (float)(x % 20011) / 977.0f - 10.0f;
}

static int one_all_reduce(struct member *m, int round, int64_t n)
{
    float data[MAX_ELEMS];
    for (int64_t i = 0; i < n; i++) data[i] = value_of(m->rank, round, i);
    int rc = comm_cpu_ops.all_reduce(m->comm, data, n, DTYPE_F32);
    for (int64_t i = 0; i < n && rc == 0; i++) {
        float sum = value_of(0, round, i);
        for (int r = 1; r < m->size; r++) sum += value_of(r, round, i);
        m->wrong += memcmp(&sum, &data[i], sizeof(sum)) != 0;      /* rank order, so the bits are known */
    }
    return rc;
}

static int one_all_gather(struct member *m, int round, int64_t n)
{
    float src[MAX_ELEMS], dst[MAX_SIZE * MAX_ELEMS];
    for (int64_t i = 0; i < n; i++) src[i] = value_of(m->rank, round, i);
    int rc = comm_cpu_ops.all_gather(m->comm, src, dst, n, DTYPE_F32);
    for (int r = 0; r < m->size && rc == 0; r++) {
        for (int64_t i = 0; i < n; i++) m->wrong += dst[r * n + i] != value_of(r, round, i);
    }
    return rc;
}

static int one_broadcast(struct member *m, int round, int64_t n)
{
    float data[MAX_ELEMS];
    int root = round % m->size;
    for (int64_t i = 0; i < n; i++) data[i] = value_of(m->rank, round, i);
    int rc = comm_cpu_ops.broadcast(m->comm, data, n * (int64_t)sizeof(float), root);
    for (int64_t i = 0; i < n && rc == 0; i++) m->wrong += data[i] != value_of(root, round, i);
    return rc;
}

/* A ring: rank 0 sends first, the others receive first, so every turn comes. */
static int one_ring(struct member *m, int round, int64_t n)
{
    float out[MAX_ELEMS], in[MAX_ELEMS];
    int right = (m->rank + 1) % m->size, left = (m->rank + m->size - 1) % m->size, rc;
    int64_t bytes = n * (int64_t)sizeof(float);
    if (m->size == 1) return 0;
    for (int64_t i = 0; i < n; i++) out[i] = value_of(m->rank, round, i);
    if (m->rank == 0) {
        rc = comm_cpu_ops.send(m->comm, out, bytes, right);
        if (rc == 0) rc = comm_cpu_ops.recv(m->comm, in, bytes, left);
    } else {
        rc = comm_cpu_ops.recv(m->comm, in, bytes, left);
        if (rc == 0) rc = comm_cpu_ops.send(m->comm, out, bytes, right);
    }
    for (int64_t i = 0; i < n && rc == 0; i++) m->wrong += in[i] != value_of(left, round, i);
    return rc;
}

static void *random_operations(void *arg)
{
    struct member *m = arg;
    uint32_t state = 12345;                        /* the same on every rank: all make the same calls */
    for (int round = 0; round < m->rounds && m->rc == 0; round++) {
        state = state * 1664525u + 1013904223u;
        int64_t n = (int64_t)((state >> 8) % (MAX_ELEMS + 1));
        switch (state >> 29) {
        case 0: case 1: case 2: m->rc = one_all_reduce(m, round, n); break;
        case 3: case 4: m->rc = one_all_gather(m, round, n); break;
        case 5: m->rc = one_broadcast(m, round, n); break;
        case 6: m->rc = one_ring(m, round, n); break;
        default: m->rc = comm_cpu_ops.barrier(m->comm); break;
        }
    }
    return NULL;
}

static void random_operations_agree(void **state)
{
    (void)state;
    for (int size = 1; size <= MAX_SIZE; size++) {
        struct member members[MAX_SIZE];
        run_group(size, 60000, 2500, random_operations, members);
        for (int r = 0; r < size; r++) {
            assert_int_equal(members[r].rc, 0);
            assert_int_equal(members[r].wrong, 0);
        }
    }
}

/* Rank 0 never comes: the others' time runs out, and afterwards rank 0 is told too. */
static void *stall_rank_0(void *arg)
{
    struct member *m = arg;
    float data = 1;
    m->rc = m->rank == 0 ? 0 : comm_cpu_ops.all_reduce(m->comm, &data, 1, DTYPE_F32);
    return NULL;
}

static void stalled_rank_ends_the_others(void **state)
{
    struct member members[MAX_SIZE];
    (void)state;
    run_group(3, 20, 1, stall_rank_0, members);
    assert_int_equal(members[1].rc, ERR_ENDED);
    assert_int_equal(members[2].rc, ERR_ENDED);
}

/* Rank 0 aborts while the others wait for it in different calls, with a timeout too long to matter. */
static void *abort_from_rank_0(void *arg)
{
    struct member *m = arg;
    char byte = 0;
    if (m->rank == 0) {
        comm_cpu_ops.abort(m->comm);
        m->rc = comm_cpu_ops.barrier(m->comm);
    } else if (m->rank == 1) {
        m->rc = comm_cpu_ops.recv(m->comm, &byte, 1, 0);
    } else if (m->rank == 2) {
        m->rc = comm_cpu_ops.send(m->comm, &byte, 1, 0);
    } else {
        m->rc = comm_cpu_ops.barrier(m->comm);
    }
    return NULL;
}

static void abort_reaches_every_wait(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++) {
        struct member members[MAX_SIZE];
        run_group(4, 600000, 1, abort_from_rank_0, members);
        for (int r = 0; r < 4; r++) assert_int_equal(members[r].rc, ERR_ENDED);
    }
}

static void *disagree_about_bytes(void *arg)
{
    struct member *m = arg;
    char bytes[8] = { 0 };
    m->rc = m->rank == 0 ? comm_cpu_ops.send(m->comm, bytes, 8, 1) : comm_cpu_ops.recv(m->comm, bytes, 4, 0);
    return NULL;
}

static void different_sizes_end_the_group(void **state)
{
    struct member members[MAX_SIZE];
    (void)state;
    run_group(2, 60000, 1, disagree_about_bytes, members);
    assert_int_equal(members[0].rc, ERR_ENDED);
    assert_int_equal(members[1].rc, ERR_PROTOCOL);
}

static void bad_sizes_are_refused(void **state)
{
    struct comm_group *group = NULL;
    (void)state;
    assert_int_equal(comm_cpu_new(&group, 0, 100, NULL), ERR_CONFIG);
    assert_int_equal(comm_cpu_new(&group, MAX_COMM_RANKS + 1, 100, NULL), ERR_CONFIG);
    assert_int_equal(comm_cpu_new(&group, 2, 0, NULL), ERR_CONFIG);
    assert_null(group);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_agree),  cmocka_unit_test(stalled_rank_ends_the_others),
        cmocka_unit_test(abort_reaches_every_wait), cmocka_unit_test(different_sizes_end_the_group),
        cmocka_unit_test(bad_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
