/* config_test.c - flag > environment > file > preset > default, and what is refused where. */
#include "config_fixture.h"

static void defaults_are_those_of_the_contract(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "", "");
    const struct config *config = &fix->config;
    assert_string_equal(config->model, "");
    assert_string_equal(config->host, "127.0.0.1");
    assert_int_equal(config->port, 8000);
    assert_int_equal(config->block_size, 64);
    assert_int_equal(config->max_queue_requests, 2048);
    assert_int_equal(config->max_body_bytes, 32 << 20);
    assert_int_equal(config->max_body_bytes_in_flight, 1 << 30);
    assert_int_equal(config->max_connections, 16384);
    assert_int_equal(config->header_timeout_ms, 10000);
    assert_int_equal(config->body_timeout_ms, 60000);
    assert_int_equal(config->keep_alive_timeout_ms, 75000);
    assert_int_equal(config->slow_client_timeout_ms, 60000);
    assert_int_equal(config->drain_timeout_ms, 60000);
    assert_int_equal(config->sse_keep_alive_interval, 15);
    assert_int_equal(config->max_logprobs, 20);
    assert_true(config->headroom == 0.10);
    assert_true(config->enable_prefix_caching);
    assert_true(config->prompt_special_tokens);
    assert_string_equal(config->cache_isolation, "key");
    assert_string_equal(config->metrics_compat, "vllm");
    assert_int_equal(config->api_keys.n, 0);
    assert_int_equal(config->served_model_name.n, 0);
    assert_string_equal(config_model_name(config), "");
}

static const char *origin(const struct fixture *fix, const char *name)
{
    static char line[8192];
    char *found = NULL;
    FILE *out = tmpfile();

    assert_non_null(out);
    config_print(&fix->config, out);
    rewind(out);
    while (!found && fgets(line, sizeof line, out))
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ' ') found = line;
    fclose(out);
    assert_non_null(found);
    found[strcspn(found, "\n")] = '\0';
    return found;
}

static void assert_origin(const struct fixture *fix, const char *name, const char *value, const char *from)
{
    char expected[512];

    snprintf(expected, sizeof expected, "%-28s %-30s %s", name, value, from);
    assert_string_equal(origin(fix, name), expected);
}

static void the_stronger_source_wins(void **state)
{
    struct fixture *fix = *state;
    char from[160];

    put_preset(fix, "2x", "max_num_seqs: 1\nblock_size: 16\nport: 1\nhost: preset\n");
    put_file(fix, "preset: 2x\nmax_num_seqs: 2\nblock_size: 32\nport: 2\n");
    load_ok(fix, "--config FILE --max-num-seqs 4", "SLUICE_MAX_NUM_SEQS=3 SLUICE_BLOCK_SIZE=128");
    assert_int_equal(fix->config.max_num_seqs, 4);
    assert_int_equal(fix->config.block_size, 128);
    assert_int_equal(fix->config.port, 2);
    assert_string_equal(fix->config.host, "preset");
    assert_int_equal(fix->config.max_num_batched_tokens, 2048);
    assert_origin(fix, "max_num_seqs", "4", "flag");
    assert_origin(fix, "block_size", "128", "env SLUICE_BLOCK_SIZE");
    snprintf(from, sizeof from, "file %s:4", fix->file);
    assert_origin(fix, "port", "2", from);
    assert_origin(fix, "host", "preset", "preset 2x:4");
    assert_origin(fix, "max_num_batched_tokens", "2048", "default");
}

static void preset_and_file_come_from_any_source(void **state)
{
    struct fixture *fix = *state;

    put_preset(fix, "2x", "port: 22\n");
    put_preset(fix, "cpu-dev", "port: 33\n");
    put_file(fix, "max_num_seqs: 5\n");
    load_ok(fix, "", "SLUICE_PRESET=2x SLUICE_CONFIG=FILE");
    assert_int_equal(fix->config.port, 22);
    assert_int_equal(fix->config.max_num_seqs, 5);
    load_ok(fix, "--preset cpu-dev", "SLUICE_PRESET=2x");
    assert_int_equal(fix->config.port, 33);
    load_ok(fix, "--config= --preset=", "SLUICE_PRESET=2x SLUICE_CONFIG=FILE");
    assert_int_equal(fix->config.port, 8000);
    assert_int_equal(fix->config.max_num_seqs, 256);
}

static void bad_presets_are_refused(void **state)
{
    struct fixture *fix = *state;

    assert_refused(fix, "--preset 3x", "", "preset: no configs/3x.yaml is shipped");
    assert_refused(fix, "--preset ../2x", "", "preset: '../2x' is not a name");
    put_preset(fix, "2x", "max_num_seqs: 0\n");
    assert_refused(fix, "--preset 2x", "", "2x:1:15: max_num_seqs: '0' is out of range");
    assert_refused(fix, "--preset 2x --max-num-seqs 3", "",
                   "2x:1:15: max_num_seqs");   /* checked even where it loses */
    put_preset(fix, "2x", "preset: 4x\n");
    assert_refused(fix, "--preset 2x", "", "2x:1:1: preset: not accepted in a preset");
}

static void flags_have_two_forms(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "--port 1 --host=::1 --max_num_seqs 7 --seed=5", "");
    assert_int_equal(fix->config.port, 1);
    assert_string_equal(fix->config.host, "::1");
    assert_int_equal(fix->config.max_num_seqs, 7);
    assert_int_equal(fix->config.seed, 5);
    load_ok(fix, "--port 1 --port 2", "");   /* the last one, as argparse does */
    assert_int_equal(fix->config.port, 2);
}

static void booleans_negate(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "--no-enable-prefix-caching", "");
    assert_false(fix->config.enable_prefix_caching);
    load_ok(fix, "--enable-prefix-caching", "SLUICE_ENABLE_PREFIX_CACHING=false");
    assert_true(fix->config.enable_prefix_caching);
    load_ok(fix, "--enable-prefix-caching=false", "");
    assert_false(fix->config.enable_prefix_caching);
    assert_refused(fix, "--no-enable-prefix-caching=true", "", "--no-enable-prefix-caching: takes no value");
    load_ok(fix, "--async-scheduling", "");             /* a choice that has true and false is a switch too */
    assert_string_equal(fix->config.async_scheduling, "true");
    load_ok(fix, "--no-async-scheduling", "");
    assert_string_equal(fix->config.async_scheduling, "false");
    load_ok(fix, "--async-scheduling=auto", "");
    assert_string_equal(fix->config.async_scheduling, "auto");
    assert_refused(fix, "--no-port", "", "--no-port: unknown option");
    assert_refused(fix, "--enable-prefix-caching=yes", "", "--enable-prefix-caching: 'yes' is not a boolean");
}

static void vllm_names_work(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "--gpu-memory-utilization 0.8 --max-num-queued-reqs 9 --shutdown-timeout 30 -tp 2 -pp=3 -dp 4 "
                 "--timeout-ms 5", "");
    assert_true(fix->config.headroom == 0.2);
    assert_int_equal(fix->config.max_queue_requests, 9);
    assert_int_equal(fix->config.drain_timeout_ms, 30000);
    assert_int_equal(fix->config.tensor_parallel_size, 2);
    assert_int_equal(fix->config.pipeline_parallel_size, 3);
    assert_int_equal(fix->config.data_parallel_size, 4);
    assert_int_equal(fix->config.timeout_total_ms, 5);
    put_file(fix, "gpu_memory_utilization: 0.7\n");
    load_ok(fix, "--config FILE", "");
    assert_true(fix->config.headroom == 0.3);
}

static void bad_flags_are_refused(void **state)
{
    struct fixture *fix = *state;

    assert_refused(fix, "--max-num-seq 4", "", "--max-num-seq: unknown option; the nearest is --max-num-seqs");
    assert_refused(fix, "--port", "", "--port: needs a value");
    assert_refused(fix, "--port --host", "", "--port: needs a value");
    assert_refused(fix, "--port=010", "", "--port: '010' has a leading zero; accepted: 0..65535");
    assert_refused(fix, "-port 1", "", "-port: unknown option");
    assert_refused(fix, "-x", "", "-x: unknown option");
    assert_refused(fix, "--=1", "", "--: unknown option");
    assert_refused(fix, "--load-format gguff", "", "auto, gguf, safetensors or dummy");
}

static void the_model_may_be_a_plain_argument(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "m/Some.gguf --port 1", "SLUICE_MODEL=other");
    assert_string_equal(fix->config.model, "m/Some.gguf");
    assert_string_equal(config_model_name(&fix->config), "Some");
    load_ok(fix, "--port 1 -- --odd-name", "");
    assert_string_equal(fix->config.model, "--odd-name");
    assert_refused(fix, "a b", "", "'b': one plain argument is accepted");
    assert_refused(fix, "a --model b", "", "'a': the model is given by --model too");
}

static void the_served_name_comes_from_the_path(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "--model /m/SmolLM2-135M.Q4_1.gguf", "");
    assert_string_equal(config_model_name(&fix->config), "SmolLM2-135M.Q4_1");
    load_ok(fix, "--model ./dir/Qwen3-0.6B/", "");
    assert_string_equal(config_model_name(&fix->config), "Qwen3-0.6B");
    load_ok(fix, "--model /c/models--Qwen--Qwen3-0.6B/snapshots/abc123", "");
    assert_string_equal(config_model_name(&fix->config), "Qwen/Qwen3-0.6B");
    load_ok(fix, "--model x.gguf --served-model-name a --served-model-name b,c", "");
    assert_int_equal(fix->config.served_model_name.n, 3);
    assert_string_equal(config_model_name(&fix->config), "a");
    assert_string_equal(fix->config.served_model_name.items[2], "c");
    load_ok(fix, "--model /", "");
    assert_string_equal(config_model_name(&fix->config), "/");
}

static void lists_are_replaced_by_a_stronger_source(void **state)
{
    struct fixture *fix = *state;

    put_file(fix, "allowed_hosts: [a, 'b,c']\ncors_allow_origins: x,y\n");
    load_ok(fix, "--config FILE", "");
    assert_int_equal(fix->config.allowed_hosts.n, 2);
    assert_string_equal(fix->config.allowed_hosts.items[1], "b,c");   /* items of a YAML list are not split */
    assert_int_equal(fix->config.cors_allow_origins.n, 2);
    load_ok(fix, "--config FILE --allowed-hosts d --allowed-hosts e", "SLUICE_ALLOWED_HOSTS=f");
    assert_int_equal(fix->config.allowed_hosts.n, 2);
    assert_string_equal(fix->config.allowed_hosts.items[0], "d");
    assert_string_equal(fix->config.allowed_hosts.items[1], "e");
    load_ok(fix, "--config FILE --allowed-hosts=", "");
    assert_int_equal(fix->config.allowed_hosts.n, 0);
}

static void environment_is_read(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "", "SLUICE_PORT=9 SLUICE_API_KEY=k1 SLUICE_HOST= OTHER=1 SLUICE_NOT_AN_OPTION=1 "
                     "SLUICE_GPU_MEMORY_UTILIZATION=0.5");
    assert_int_equal(fix->config.port, 9);
    assert_string_equal(fix->config.host, "127.0.0.1");   /* empty = not set */
    assert_string_equal(fix->config.api_keys.items[0], "k1");
    assert_true(fix->config.headroom == 0.5);
    load_ok(fix, "",
            "SLUICE_PORT=tcp://10.0.0.1:8000 SLUICE_PORT_8000_TCP=x");   /* a Kubernetes service called sluice */
    assert_int_equal(fix->config.port, 8000);
    assert_refused(fix, "", "SLUICE_PORT=http", "SLUICE_PORT: 'http' is not an integer");
    assert_refused(fix, "", "SLUICE_HEADROOM=0.2 SLUICE_GPU_MEMORY_UTILIZATION=0.5",
                   "SLUICE_GPU_MEMORY_UTILIZATION: sets headroom, as env SLUICE_HEADROOM does");
}

static void bad_files_are_refused_with_their_place(void **state)
{
    struct fixture *fix = *state;

    assert_file_refused(fix, "port: 1\nmax_num_seq: 4\n",
                        "2:1: max_num_seq: unknown option; the nearest is max_num_seqs");
    assert_file_refused(fix, "max-num-seqs: 4\n", "1:1: max-num-seqs: unknown option; the nearest is max_num_seqs");
    assert_file_refused(fix, "zzzzzzzzzzzzzzzz: 4\n", "1:1: zzzzzzzzzzzzzzzz: unknown option");
    assert_file_refused(fix, "port: 1\nhost: a\nport: 1\n", "3:1: port: duplicate; first set in line 1");
    assert_file_refused(fix, "headroom: 0.2\ngpu_memory_utilization: 0.8\n", "2:1: gpu_memory_utilization: duplicate");
    assert_file_refused(fix, "port:   010\n", "1:9: port: '010' has a leading zero");
    assert_file_refused(fix, "enable_prefix_caching: no\n", "1:24: enable_prefix_caching: 'no' is not a boolean");
    assert_file_refused(fix, "enable_prefix_caching: True\n", "1:24: enable_prefix_caching: 'True' is not a boolean");
    assert_file_refused(fix, "port: [1]\n", "1:8: port: takes one value, not a list");
    assert_file_refused(fix, "allowed_hosts:\n  - a\n  - \"\"\n", "3:5: allowed_hosts: a list item is empty");
    assert_file_refused(fix, "config: other.yaml\n", "1:1: config: not accepted in a file");
    assert_file_refused(fix, "port: 1e3\n", "1:7: port: '1e3' is not an integer; accepted: 0..65535");
    assert_file_refused(fix, "server:\n  port: 1\n", "2:3: expected one value or a list, found a mapping");
    assert_refused(fix, "--config missing.yaml", "", "missing.yaml: No such file or directory");
}

static void no_stays_text_where_text_is_wanted(void **state)
{
    struct fixture *fix = *state;

    put_file(fix, "served_model_name: no\nhost: \"010\"\n");
    load_ok(fix, "--config FILE", "");
    assert_string_equal(config_model_name(&fix->config), "no");
    assert_string_equal(fix->config.host, "010");
}

static void options_are_checked_together(void **state)
{
    struct fixture *fix = *state;

    assert_refused(fix, "--block-size 48", "", "block_size: must be a power of two (flag)");
    assert_refused(fix, "", "SLUICE_SSE_KEEP_ALIVE_INTERVAL=14",
                   "must be 0 or at least 15 s (env SLUICE_SSE_KEEP_ALIVE_INTERVAL)");
    load_ok(fix, "--sse-keep-alive-interval 0", "");
    assert_refused(fix, "--max-body-bytes 2GiB", "", "max_body_bytes: is larger than max_body_bytes_in_flight");
    assert_refused(fix, "-pp 2 --pp-layer-partition 8,8,8", "", "needs one item per stage");
    assert_refused(fix, "-pp 2 --pp-layer-partition 8,x", "", "each item is a number of layers");
    load_ok(fix, "-pp 2 --pp-layer-partition 8,22", "");
    assert_refused(fix, "--host=", "", "host: is empty");
}

static void api_keys_come_from_everywhere(void **state)
{
    struct fixture *fix = *state;
    char keys[128], args[256];

    snprintf(keys, sizeof keys, "%s/keys", fix->root);
    put(keys, "# people\nalice:key-of-alice-0001\r\n\nbob:with:colon\n", 0600);
    snprintf(args, sizeof args, "--api-key one --api-key two:a,b --api-keys-file %s", keys);
    load_ok(fix, args, "SLUICE_API_KEY=unused");
    assert_int_equal(fix->config.api_keys.n, 4);
    assert_string_equal(fix->config.api_keys.items[0], "one");
    assert_string_equal(fix->config.api_keys.items[1], "two:a,b");
    assert_string_equal(fix->config.api_keys.items[2], "alice:key-of-alice-0001");
    assert_string_equal(fix->config.api_keys.items[3], "bob:with:colon");
}

static void bad_api_keys_are_refused(void **state)
{
    struct fixture *fix = *state;
    char keys[128], args[256];

    assert_refused(fix, "--api-key name:", "", "api_keys: the key is empty (flag)");
    assert_refused(fix, "--api-key :key", "", "the name before ':' is empty");
    assert_refused(fix, "--api-key k\xc3\xa9y", "", "only printable ASCII");
    snprintf(keys, sizeof keys, "%s/keys", fix->root);
    snprintf(args, sizeof args, "--api-keys-file %s", keys);
    put(keys, "a:0123456789abcdef\nno-colon\n", 0600);
    assert_refused(fix, args, "", "keys:2:1: expected name:key");
    put(keys, "a:has blank\n", 0600);
    assert_refused(fix, args, "", "keys:1:1: only printable ASCII without blanks");
    put(keys, "a:0123456789abcdef\n", 0644);
    assert_refused(fix, args, "", "mode 0644; only the owner may have access");
}

static void refusals_never_say_a_key(void **state)
{
    struct fixture *fix = *state;
    char keys[128], args[256];

    snprintf(keys, sizeof keys, "%s/keys", fix->root);
    snprintf(args, sizeof args, "--api-keys-file %s", keys);
    put(keys, "a:topsecret with blank\n", 0600);
    assert_refused(fix, args, "", "keys:1:1");
    assert_null(strstr(fix->err.message, "topsecret"));
    assert_refused(fix, "--admin-api-key top\xc3\xa9secret", "", "admin_api_key");
    assert_null(strstr(fix->err.message, "top"));
}

static void the_admin_socket_follows_systemd(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "", "RUNTIME_DIRECTORY=/run/sluice:/run/other");
    assert_string_equal(fix->config.admin_socket, "/run/sluice/admin.sock");
    load_ok(fix, "--admin-socket /x", "RUNTIME_DIRECTORY=/run/sluice");
    assert_string_equal(fix->config.admin_socket, "/x");
    load_ok(fix, "", "");
    assert_string_equal(fix->config.admin_socket, "");
}

static void help_stops_the_reading(void **state)
{
    struct fixture *fix = *state;

    load_ok(fix, "--help --nonsense", "SLUICE_PORT=x");
    assert_true(fix->help);
    load_ok(fix, "-h", "");
    assert_true(fix->help);
    load_ok(fix, "--port 1", "");
    assert_false(fix->help);
}

static void errors_are_optional(void **state)
{
    struct fixture *fix = *state;
    char *args[] = { "--port", "x", NULL }, *env[] = { NULL };
    struct config_sources sources = { .argc = 2, .argv = args, .env = env, .program_dir = fix->bin };

    assert_int_equal(config_load_from(&fix->config, &sources, NULL, NULL), ERR_CONFIG);
}

#define WITH_FIXTURE(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FIXTURE(defaults_are_those_of_the_contract),
        WITH_FIXTURE(the_stronger_source_wins),
        WITH_FIXTURE(preset_and_file_come_from_any_source),
        WITH_FIXTURE(bad_presets_are_refused),
        WITH_FIXTURE(flags_have_two_forms),
        WITH_FIXTURE(booleans_negate),
        WITH_FIXTURE(vllm_names_work),
        WITH_FIXTURE(bad_flags_are_refused),
        WITH_FIXTURE(the_model_may_be_a_plain_argument),
        WITH_FIXTURE(the_served_name_comes_from_the_path),
        WITH_FIXTURE(lists_are_replaced_by_a_stronger_source),
        WITH_FIXTURE(environment_is_read),
        WITH_FIXTURE(bad_files_are_refused_with_their_place),
        WITH_FIXTURE(no_stays_text_where_text_is_wanted),
        WITH_FIXTURE(options_are_checked_together),
        WITH_FIXTURE(api_keys_come_from_everywhere),
        WITH_FIXTURE(bad_api_keys_are_refused),
        WITH_FIXTURE(refusals_never_say_a_key),
        WITH_FIXTURE(the_admin_socket_follows_systemd),
        WITH_FIXTURE(help_stops_the_reading),
        WITH_FIXTURE(errors_are_optional),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
