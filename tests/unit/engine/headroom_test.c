#include "helpers.h"

#include <stdatomic.h>
#include <unistd.h>

#include "headroom.h"

static _Atomic uint64_t free_now;
static _Atomic int num_readings;

static uint64_t read_free(void *arg)
{
    assert_ptr_equal(arg, &free_now);
    num_readings++;
    return free_now;
}

/* Until the watch has taken in what is free now. */
static void let_it_look(void)
{
    int seen = num_readings;

    while (num_readings < seen + 2) usleep(200);
}

static void it_lets_go_a_quarter_above_the_floor(void **state)
{
    (void)state;
    assert_false(headroom_is_short(100, 100, false));
    assert_true(headroom_is_short(99, 100, false));
    assert_true(headroom_is_short(124, 100, true));
    assert_false(headroom_is_short(125, 100, true));
}

static void the_flag_follows_the_memory(void **state)
{
    struct headroom_watch *watch = NULL;
    struct err err = { 0 };
    uint64_t free_bytes, floor_bytes;

    (void)state;
    free_now = 10000;
    assert_int_equal(headroom_open(&watch, 1000, read_free, &free_now, 1, &err), 0);
    let_it_look();
    assert_false(headroom_throttled(watch));
    free_now = 900;
    let_it_look();
    assert_true(headroom_throttled(watch));
    headroom_gauges(watch, &free_bytes, &floor_bytes);
    assert_int_equal(free_bytes, 900);
    assert_int_equal(floor_bytes, 1000);
    free_now = 1200;
    let_it_look();
    assert_true(headroom_throttled(watch));
    free_now = 0;                                      /* unknown changes nothing */
    let_it_look();
    assert_true(headroom_throttled(watch));
    free_now = 1300;
    let_it_look();
    assert_false(headroom_throttled(watch));
    headroom_close(watch);
}

static void a_tight_start_is_no_reason_to_throttle(void **state)
{
    struct headroom_watch *watch = NULL;
    struct err err = { 0 };

    (void)state;
    free_now = 600;
    assert_int_equal(headroom_open(&watch, 1000, read_free, &free_now, 1, &err), 0);
    let_it_look();
    assert_false(headroom_throttled(watch));
    free_now = 299;
    let_it_look();
    assert_true(headroom_throttled(watch));
    headroom_close(watch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_lets_go_a_quarter_above_the_floor),
        cmocka_unit_test(the_flag_follows_the_memory),
        cmocka_unit_test(a_tight_start_is_no_reason_to_throttle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
