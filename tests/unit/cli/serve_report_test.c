/* serve_report_test.c - the figures of a run from the times of its requests. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "serve_report.h"

enum { MS = 1000000 };

static void figures_of_three_requests(void **state)
{
    struct load_request requests[] = { { 10, 5, 0 }, { 20, 3, 0 }, { 30, 9, 0 } };
    struct load_result results[] = {
        { 0, 100 * MS, 140 * MS, 5, 10, 5, true },              /* ttft 100, 4 gaps of 10 */
        { 50 * MS, 250 * MS, 290 * MS, 3, -1, 3, true },        /* ttft 200, 2 gaps of 20; no usage: 20 as asked */
        { 60 * MS, 0, 0, 0, -1, -1, false },
    };
    double gaps[] = { 10, 10, 10, 10, 20, 20 };
    struct load_outcome outcome = { .results = results, .gaps = { gaps, 6, 6 }, .ended_ns = 2000 * MS, .num_ok = 2,
                                    .num_failed = 1 };
    struct goodput goodput = { .ttft = 150, .tpot = 15 };
    struct serve_report report;

    (void)state;
    assert_int_equal(serve_report_of(&report, &outcome, requests, 3, &goodput, NULL), 0);
    assert_int_equal(report.completed, 2);
    assert_int_equal(report.failed, 1);
    assert_int_equal(report.input_tokens, 30);
    assert_int_equal(report.output_tokens, 8);
    assert_float_equal(report.ttft.mean, 150, 1e-9);
    assert_float_equal(report.tpot.mean, 15, 1e-9);
    assert_float_equal(report.itl.mean, 80.0 / 6, 1e-9);
    assert_float_equal(report.e2el.max, 240, 1e-9);
    assert_float_equal(report.output_throughput, 4, 1e-9);
    assert_float_equal(report.request_throughput, 1, 1e-9);
    assert_float_equal(report.total_token_throughput, 19, 1e-9);
    assert_float_equal(report.request_goodput, 0.5, 1e-9);      /* the second is too slow */
}

static void goodput_texts(void **state)
{
    static const char *const wrong[] = { "", "ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:1,", "itl:3", "ttft:1;tpot:2",
                                         "ttft:nan" };
    struct goodput goodput = { 0 };

    (void)state;
    assert_int_equal(goodput_read(&goodput, "ttft:200,tpot:20.5", NULL), 0);
    assert_float_equal(goodput.ttft, 200, 0);
    assert_float_equal(goodput.tpot, 20.5, 0);
    assert_true(goodput_asked(&goodput));
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        goodput = (struct goodput){ 0 };
        assert_int_equal(goodput_read(&goodput, wrong[i], NULL), ERR_CONFIG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(figures_of_three_requests), cmocka_unit_test(goodput_texts) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
