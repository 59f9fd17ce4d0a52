/* Steps under way, with ranks and a clock that the test makes up. */
#include "helpers.h"

#include <string.h>

#include <sluice/rank.h>

#include "base/clock.h"

static int64_t test_ns;
static int submit_rc, wait_rc;
static struct step_result *under_way[4];
static int num_submitted, num_waited;

static int made_up_submit(struct ranks *ranks, const struct step_plan *plan, struct step_result *result)
{
    (void)ranks;
    result->step = plan->step;
    result->rc = 0;
    under_way[num_submitted++ % 4] = result;
    return submit_rc;
}

static int made_up_wait(struct ranks *ranks, struct step_result **result)
{
    (void)ranks;
    *result = under_way[num_waited++ % 4];
    return wait_rc;
}

static int64_t made_up_clock(void) { return test_ns; }

#define ranks_submit made_up_submit
#define ranks_wait made_up_wait
#define clock_now_ns made_up_clock
#include "flights.c"

static struct step_plan plans[2] = { { .step = 1, .micro_batch = 0 }, { .step = 2, .micro_batch = 1 } };

static int open_flights(void **state)
{
    static struct flights flights;
    test_ns = submit_rc = wait_rc = num_submitted = num_waited = 0;
    plans[0].step = 1;
    plans[1].step = 2;
    assert_int_equal(flights_init(&flights, NULL, 2, 8), 0);
    *state = &flights;
    return 0;
}

static int close_flights(void **state)
{
    flights_release(*state);
    return 0;
}

static void launch(struct flights *flights, int which, int64_t at_ms)
{
    assert_int_equal(flights_launch(flights, &(struct flight){ .plan = &plans[which], .began_ns = at_ms * 1000000, .host_ns = 7 + which,
                                                               .expected_ms = 3 + which }), 0);
}

static void they_land_oldest_first_with_what_they_took_alone(void **state)
{
    struct flights *flights = *state;
    struct flight flight;

    launch(flights, 0, 100);
    launch(flights, 1, 101);
    assert_int_equal(flights->num, 2);
    test_ns = 104 * 1000000;
    assert_true(flights_alone_ms(flights, test_ns) == 4);
    test_ns = 110 * 1000000;
    assert_int_equal(flights_land(flights, &flight), 0);
    assert_ptr_equal(flight.plan, &plans[0]);
    assert_ptr_equal(flight.result, &flights->results[0]);
    assert_int_equal(flight.landed_ns, test_ns);
    assert_true(flight.alone_ms == 10 && flight.host_ns == 7 && flight.expected_ms == 3);
    assert_int_equal(flights->num, 1);
    test_ns = 112 * 1000000;
    assert_true(flights_alone_ms(flights, test_ns) == 2);       /* it began at 101, but behind the other */
    test_ns = 115 * 1000000;
    assert_int_equal(flights_land(flights, &flight), 0);
    assert_ptr_equal(flight.plan, &plans[1]);
    assert_ptr_equal(flight.result, &flights->results[1]);
    assert_true(flight.alone_ms == 5 && flight.host_ns == 8 && flight.expected_ms == 4);
    assert_int_equal(flights->num, 0);
    assert_int_equal(flights->landed_ns, test_ns);
}

static void a_slot_is_used_again_with_its_rows(void **state)
{
    struct flights *flights = *state;
    struct flight flight;

    for (int i = 0; i < 20; i++) {
        plans[0].step = (uint64_t)i + 1;
        launch(flights, 0, i);
        assert_int_equal(flights_land(flights, &flight), 0);
        assert_ptr_equal(flight.result, &flights->results[0]);
        memset(flight.result->rows, i, 8 * sizeof *flight.result->rows);
    }
    assert_int_equal(flights->num, 0);
}

static void a_rank_that_fails_is_told_with_its_plan(void **state)
{
    struct flights *flights = *state;
    struct flight flight;

    submit_rc = ERR_INTERNAL;
    assert_int_equal(flights_launch(flights, &(struct flight){ .plan = &plans[0] }), ERR_INTERNAL);
    submit_rc = 0;
    wait_rc = ERR_INTERNAL;
    test_ns = 5;
    assert_int_equal(flights_land(flights, &flight), ERR_INTERNAL);
    assert_ptr_equal(flight.plan, &plans[0]);
    assert_null(flight.result);
    wait_rc = 0;
    launch(flights, 1, 0);
    under_way[1]->rc = ERR_NO_MEMORY;                             /* the step came back, without success */
    assert_int_equal(flights_land(flights, &flight), ERR_NO_MEMORY);
    assert_ptr_equal(flight.plan, &plans[1]);
    assert_null(flight.result);
    assert_int_equal(flights->landed_ns, 0);
    assert_int_equal(flights->num, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(they_land_oldest_first_with_what_they_took_alone, open_flights, close_flights),
        cmocka_unit_test_setup_teardown(a_slot_is_used_again_with_its_rows, open_flights, close_flights),
        cmocka_unit_test_setup_teardown(a_rank_that_fails_is_told_with_its_plan, open_flights, close_flights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
