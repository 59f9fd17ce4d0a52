/* pool_test.c - every index once, whatever the threads; many jobs in a row; start and stop. */
#include "pool.h"

#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

struct tally { _Atomic uint8_t *hits; _Atomic int64_t chunks; int64_t n, grain; int threads; _Atomic bool wrong; };

static void count_body(void *arg, int thread, int64_t begin, int64_t end)
{
    struct tally *tally = arg;
    if (thread < 0 || thread >= tally->threads || begin < 0 || begin >= end || end > tally->n) tally->wrong = true;
    if (tally->threads > 1 && end - begin > tally->grain) tally->wrong = true;
    for (int64_t i = begin; i < end; i++) tally->hits[i]++;
    tally->chunks++;
}

static void every_index_once(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 1, 2, 7, 64, 1000 }, grains[] = { 1, 3, 64, 5000 };
    for (int threads = 1; threads <= 9; threads += 2) {
        struct pool *pool;
        assert_int_equal(pool_new(&pool, threads, NULL), 0);
        assert_int_equal(pool_threads(pool), threads);
        for (int rep = 0; rep < 50; rep++)
            for (int s = 0; s < 5; s++)
                for (int g = 0; g < 4; g++) {
                    struct tally tally = { .n = sizes[s], .grain = grains[g], .threads = threads };
                    tally.hits = calloc((size_t)tally.n, 1);
                    assert_non_null(tally.hits);
                    pool_run(pool, tally.n, tally.grain, count_body, &tally);
                    assert_false(tally.wrong);
                    for (int64_t i = 0; i < tally.n; i++) assert_int_equal(tally.hits[i], 1);
                    free((void *)tally.hits);
                }
        pool_free(pool);
    }
}

static void nothing_for_an_empty_range(void **state)
{
    (void)state;
    struct pool *pool;
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    struct tally tally = { .threads = 2 };
    pool_run(pool, 0, 1, count_body, &tally);
    assert_int_equal(tally.chunks, 0);
    pool_free(pool);
}

static void works_after_sleep(void **state)
{
    (void)state;
    struct pool *pool;
    _Atomic uint8_t hits[100] = { 0 };
    assert_int_equal(pool_new(&pool, 3, NULL), 0);
    for (int rep = 0; rep < 5; rep++) {
        usleep(5000);                      /* workers are in the futex by now */
        struct tally tally = { .hits = hits, .n = 100, .grain = 1, .threads = 3 };
        pool_run(pool, 100, 1, count_body, &tally);
    }
    for (int i = 0; i < 100; i++) assert_int_equal(hits[i], 5);
    pool_free(pool);
}

struct meet { _Atomic int inside; _Atomic bool met; };

/* Stays inside until a second thread is inside too: passes only when workers take part. */
static void meet_body(void *arg, int thread, int64_t begin, int64_t end)
{
    struct meet *meet = arg;
    (void)thread, (void)begin, (void)end;
    if (++meet->inside > 1) meet->met = true;
    for (int i = 0; i < 10000 && !meet->met; i++) usleep(200);
    --meet->inside;
}

static void workers_take_part(void **state)
{
    (void)state;
    struct pool *pool;
    struct meet meet = { 0 };
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    pool_run(pool, 2, 1, meet_body, &meet);
    assert_true(meet.met);
    pool_free(pool);
}

static void refuses_no_threads(void **state)
{
    (void)state;
    struct pool *pool;
    struct err err = { 0 };
    assert_int_equal(pool_new(&pool, 0, &err), ERR_CONFIG);
    assert_null(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_once),
        cmocka_unit_test(nothing_for_an_empty_range),
        cmocka_unit_test(works_after_sleep),
        cmocka_unit_test(workers_take_part),
        cmocka_unit_test(refuses_no_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
