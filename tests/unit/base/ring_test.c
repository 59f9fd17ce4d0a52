#include <pthread.h>

#include <sluice/err.h>

#include "base/list.h"
#include "base/ring.h"
#include "unit/base/cmocka_all.h"

static void full_and_closed_are_refused(void **state)
{
    struct ring ring;
    int a, b, c;

    (void)state;
    assert_int_equal(ring_init(&ring, 2), 0);
    assert_null(ring_pop(&ring));
    assert_null(ring_pop_within(&ring, 2));
    assert_int_equal(ring_push(&ring, &a), 0);
    assert_int_equal(ring_push(&ring, &b), 0);
    assert_int_equal(ring_push(&ring, &c), ERR_QUEUE_FULL);
    assert_ptr_equal(ring_pop_within(&ring, 60000), &a);
    assert_int_equal(ring_push(&ring, &c), 0);
    ring_close(&ring);
    assert_int_equal(ring_push(&ring, &a), ERR_ENDED);
    assert_ptr_equal(ring_pop_wait(&ring), &b);            /* what was in it still comes out */
    assert_ptr_equal(ring_pop_wait(&ring), &c);
    assert_null(ring_pop_wait(&ring));
    assert_null(ring_pop_within(&ring, 60000));            /* closed: nothing can come */
    ring_release(&ring);
}

enum { WRITERS = 4, PER_WRITER = 5000 };

static void *writer(void *arg)
{
    struct ring *ring = arg;

    for (uintptr_t i = 1; i <= PER_WRITER; i++) {
        while (ring_push(ring, (void *)i) == ERR_QUEUE_FULL) continue;
    }
    return NULL;
}

static void many_writers_lose_nothing(void **state)
{
    pthread_t threads[WRITERS];
    struct ring ring;
    uint64_t sum = 0;

    (void)state;
    assert_int_equal(ring_init(&ring, 16), 0);
    for (int i = 0; i < WRITERS; i++) assert_int_equal(pthread_create(&threads[i], NULL, writer, &ring), 0);
    for (int i = 0; i < WRITERS * PER_WRITER; i++) sum += (uintptr_t)ring_pop_wait(&ring);
    for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
    assert_int_equal(sum, (uint64_t)WRITERS * PER_WRITER * (PER_WRITER + 1) / 2);
    assert_int_equal(ring_count(&ring), 0);
    ring_release(&ring);
}

static void list_removal_is_idempotent(void **state)
{
    struct list head, a, b, c;

    (void)state;
    list_init(&head);
    list_push_back(&head, &b);
    list_push_back(&head, &c);
    list_push_front(&head, &a);
    list_remove(&b);
    list_remove(&b);
    assert_ptr_equal(head.next, &a);
    assert_ptr_equal(a.next, &c);
    assert_ptr_equal(head.prev, &c);
    list_remove(&a);
    list_remove(&c);
    assert_true(list_empty(&head));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_and_closed_are_refused),
        cmocka_unit_test(many_writers_lose_nothing),
        cmocka_unit_test(list_removal_is_idempotent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
