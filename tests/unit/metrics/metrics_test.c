#include <string.h>

#include <sluice/metrics.h>

#include "base/buf.h"
#include "unit/base/cmocka_all.h"

static void start(int vllm_aliases)
{
    struct metrics_info info = { .model_name = "a\"b", .num_replicas = 2, .vllm_aliases = vllm_aliases, .version = "9", .commit = "c" };

    metrics_init(&info);
}

static void expect(const char *text, const char *line)
{
    if (!strstr(text, line)) fail_msg("no line %s in:\n%s", line, text);
}

static void counters_gauges_and_labels(void **state)
{
    struct buf out = BUF_INIT;

    (void)state;
    start(1);
    metric_add(M_REQUESTS, ROUTE_CHAT, 3);
    metric_set(M_RUNNING, 1, 7);
    metric_add(M_HTTP_CONNECTIONS, CONN_ACTIVE, 2);
    metric_add(M_HTTP_CONNECTIONS, CONN_ACTIVE, -1);
    metrics_http_request(ROUTE_COMPLETIONS, 429);
    metrics_http_rejected(ERR_IO);                          /* shares its wire code with ERR_INTERNAL: one series */
    metrics_http_rejected(ERR_INTERNAL);
    metrics_write(&out);
    expect(out.data, "sluice_requests_total{model_name=\"a\\\"b\",route=\"chat\"} 3\n");
    expect(out.data, "sluice_requests_running{model_name=\"a\\\"b\",replica=\"1\"} 7\n");
    expect(out.data, "vllm:num_requests_running{model_name=\"a\\\"b\",engine=\"1\"} 7\n");
    expect(out.data, "sluice_http_connections{model_name=\"a\\\"b\",state=\"active\"} 1\n");
    expect(out.data, "sluice_http_requests_total{model_name=\"a\\\"b\",route=\"completions\",status=\"429\"} 1\n");
    expect(out.data, "sluice_http_rejected_total{model_name=\"a\\\"b\",code=\"internal_error\"} 2\n");
    assert_null(strstr(out.data, "status=\"200\""));
    buf_release(&out);
}

static void histogram_buckets_are_cumulative(void **state)
{
    struct buf out = BUF_INIT;

    (void)state;
    start(0);
    metric_observe(M_TTFT, 0, 0.001);                       /* on the bound: belongs to it */
    metric_observe(M_TTFT, 0, 0.0011);
    metric_observe(M_TTFT, 0, 1e9);
    metrics_write(&out);
    expect(out.data, "sluice_ttft_seconds_bucket{model_name=\"a\\\"b\",le=\"0.001\"} 1\n");
    expect(out.data, "sluice_ttft_seconds_bucket{model_name=\"a\\\"b\",le=\"0.005\"} 2\n");
    expect(out.data, "sluice_ttft_seconds_bucket{model_name=\"a\\\"b\",le=\"2560\"} 2\n");
    expect(out.data, "sluice_ttft_seconds_bucket{model_name=\"a\\\"b\",le=\"+Inf\"} 3\n");
    expect(out.data, "sluice_ttft_seconds_count{model_name=\"a\\\"b\"} 3\n");
    assert_null(strstr(out.data, "vllm:"));
    buf_release(&out);
}

static void histograms_of_replicas_and_phases(void **state)
{
    struct buf out = BUF_INIT;

    (void)state;
    start(1);
    metric_observe(M_STEP, 1 * PHASE_COUNT + PHASE_MIXED, 0.02);
    metric_observe(M_STEP_TOKENS, 0, 3);
    metric_observe(M_STEP_TOKENS, 1, 9);
    metric_observe(M_TTFT, 0, 0.5);                         /* its neighbour in memory is not touched */
    metrics_write(&out);
    expect(out.data, "sluice_step_seconds_count{model_name=\"a\\\"b\",replica=\"1\",phase=\"mixed\"} 1\n");
    expect(out.data, "sluice_step_seconds_count{model_name=\"a\\\"b\",replica=\"1\",phase=\"decode\"} 0\n");
    expect(out.data, "sluice_step_seconds_count{model_name=\"a\\\"b\",replica=\"0\",phase=\"mixed\"} 0\n");
    expect(out.data, "sluice_step_tokens_bucket{model_name=\"a\\\"b\",replica=\"0\",le=\"4\"} 1\n");
    expect(out.data, "vllm:iteration_tokens_total_sum{model_name=\"a\\\"b\",engine=\"1\"} 9\n");
    expect(out.data, "vllm:iteration_tokens_total_bucket{model_name=\"a\\\"b\",engine=\"1\",le=\"8\"} 0\n");
    expect(out.data, "sluice_ttft_seconds_count{model_name=\"a\\\"b\"} 1\n");
    buf_release(&out);
}

static void buckets_of_token_counts_end_with_the_context(void **state)
{
    struct metrics_info info = { .model_name = "m", .num_replicas = 1, .version = "9", .commit = "c", .max_model_len = 2048 };
    struct buf out = BUF_INIT;

    (void)state;
    metrics_init(&info);
    metric_observe(M_REQ_PROMPT_TOKENS, 0, 2040);
    metrics_write(&out);
    expect(out.data, "sluice_request_prompt_tokens_bucket{model_name=\"m\",le=\"2000\"} 0\n");
    assert_null(strstr(out.data, "le=\"5000\""));
    expect(out.data, "sluice_request_prompt_tokens_bucket{model_name=\"m\",le=\"+Inf\"} 1\n");
    buf_release(&out);
}

static void every_family_has_help_and_type_once(void **state)
{
    struct buf out = BUF_INIT;
    int kv = 0;

    (void)state;
    start(1);
    metrics_write(&out);
    for (const char *at = out.data; (at = strstr(at, "# TYPE sluice_kv_blocks ")); at++) kv++;
    assert_int_equal(kv, 1);
    expect(out.data, "sluice_kv_blocks{model_name=\"a\\\"b\",replica=\"0\",state=\"cached\"} 0\n");
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_gauges_and_labels),
        cmocka_unit_test(histogram_buckets_are_cumulative),
        cmocka_unit_test(histograms_of_replicas_and_phases),
        cmocka_unit_test(buckets_of_token_counts_end_with_the_context),
        cmocka_unit_test(every_family_has_help_and_type_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
