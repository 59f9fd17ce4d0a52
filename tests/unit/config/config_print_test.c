/* config_print_test.c - what is generated from the table: help, documents, engine arguments, masks. */
#include "config_fixture.h"

#include "base/buf.h"
#include "options.h"

static char *read_back(FILE *file)
{
    long size = ftell(file);
    char *text = NULL;

    assert_true(size >= 0);
    rewind(file);
    text = calloc(1, (size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    fclose(file);
    return text;
}

static void assert_lists_every_option(const char *text, const char *before, bool dashes)
{
    for (size_t i = 0; i < option_count; i++) {
        struct buf name = BUF_INIT;
        buf_puts(&name, before);
        for (const char *at = option_table[i].name; *at; at++) buf_putc(&name, dashes && *at == '_' ? '-' : *at);
        if (!strstr(text, name.data)) fail_msg("lacks '%s'", name.data);
        buf_release(&name);
    }
}

static void help_lists_every_option(void **state)
{
    FILE *out = tmpfile();

    (void)state;
    assert_non_null(out);
    config_print_help(out, "usage: x");
    char *text = read_back(out);
    assert_int_equal(strncmp(text, "usage: x\n", 9), 0);
    assert_lists_every_option(text, "  --", true);
    assert_non_null(strstr(text, "--gpu-memory-utilization = --headroom of 1 - X"));
    assert_non_null(strstr(text, "  -tp = --tensor-parallel-size"));
    free(text);
}

static void markdown_lists_every_option(void **state)
{
    FILE *out = tmpfile();

    (void)state;
    assert_non_null(out);
    config_print_markdown(out);
    char *text = read_back(out);
    assert_lists_every_option(text, "| `", false);
    free(text);
}

static void assert_same_as_file(void (*print)(FILE *out), const char *path)
{
    FILE *out = tmpfile(), *file = fopen(path, "r");

    assert_non_null(out);
    if (!file) fail_msg("%s is missing (the test runs in the source folder)", path);
    print(out);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    char *generated = read_back(out), *stored = read_back(file);
    if (strcmp(generated, stored) != 0) fail_msg("%s is stale: its first lines name the command that makes it", path);
    free(generated);
    free(stored);
}

static void documents_are_current(void **state)
{
    (void)state;
    assert_same_as_file(config_print_markdown, "docs/options.md");
    assert_same_as_file(config_print_yaml, "configs/sluice.yaml");
}

/* Every line uncommented is a file that loads and says what the defaults say. */
static void yaml_holds_the_defaults(void **state)
{
    struct fixture *fix = *state;
    FILE *out = tmpfile();

    assert_non_null(out);
    config_print_yaml(out);
    char *text = read_back(out);
    put_file(fix, text);
    load_ok(fix, "--config FILE", "");   /* all commented */
    struct buf active = BUF_INIT;
    size_t lines = 0;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (line[0] != '#' || line[1] == ' ') continue;
        buf_printf(&active, "%s\n", line + 1);
        lines++;
    }
    assert_int_equal(lines, option_count - 1);   /* all but `config` */
    put_file(fix, active.data);
    free(text);
    struct config defaults = fix->config;
    fix->config = (struct config){ 0 };
    load_ok(fix, "--config FILE", "");
    for (size_t i = 0; i < option_count; i++) {
        struct buf want = BUF_INIT, got = BUF_INIT;
        if (option_table[i].flags & OPTION_NO_FILE) continue;
        option_format(&option_table[i], &defaults, &want);
        option_format(&option_table[i], &fix->config, &got);
        assert_string_equal(want.data ? want.data : "", got.data ? got.data : "");
        buf_release(&want);
        buf_release(&got);
    }
    config_release(&defaults);
    buf_release(&active);
}

static void keys_are_masked(void **state)
{
    struct fixture *fix = *state;
    FILE *out = tmpfile();

    assert_non_null(out);
    load_ok(fix, "--api-key name:topsecret1 --api-key topsecret2 --admin-api-key topsecret3", "");
    config_print(&fix->config, out);
    char *text = read_back(out);
    assert_null(strstr(text, "topsecret"));
    assert_non_null(strstr(text, "2 hidden"));
    free(text);
}

static int count(char *const *args)
{
    int n = 0;

    while (args[n]) n++;
    return n;
}

static void assert_same_for_engine(const struct config *a, const struct config *b)
{
    for (size_t i = 0; i < option_count; i++) {
        struct buf want = BUF_INIT, got = BUF_INIT;
        if (!(option_table[i].flags & OPTION_ENGINE)) continue;
        option_format(&option_table[i], a, &want);
        option_format(&option_table[i], b, &got);
        assert_string_equal(want.data ? want.data : "", got.data ? got.data : "");
        buf_release(&want);
        buf_release(&got);
    }
}

static void engine_args_round_trip(void **state)
{
    struct fixture *fix = *state;
    struct config second = { 0 };
    char *env[] = { "SLUICE_MAX_NUM_SEQS=1", "SLUICE_CONFIG=no/such/file.yaml", "SLUICE_PRESET=nothing", NULL };
    struct err err = { 0 };

    load_ok(fix, "odd=name,with.gguf --load-format dummy --max-model-len 4096 --seed 77 --device cpu --cpu-kernels ref "
                 "--cpu-threads 2 -tp 2 -pp 2 -dp 2 --pp-layer-partition 14,16 --block-size 32 --kv-cache-dtype f32 "
                 "--gpu-memory-utilization 0.87 --kv-cache-memory-bytes 123456789 --num-gpu-blocks-override 99 "
                 "--max-num-seqs 3 --max-num-batched-tokens 500 --scheduling-policy fcfs --long-prefill-chunk 0 "
                 "--no-enable-prefix-caching --cache-isolation none --max-logprobs 5 --max-queue-requests 12 "
                 "--log-level debug --api-key secretsecretsecret", "");
    char **args = config_engine_args(&fix->config);
    assert_non_null(args);
    for (char **arg = args; *arg; arg++) assert_null(strstr(*arg, "secretsecret"));
    struct config_sources sources = { .argc = count(args), .argv = args, .env = env, .program_dir = fix->bin };
    if (config_load_from(&second, &sources, NULL, &err) < 0) fail_msg("%s", err.message);
    assert_same_for_engine(&fix->config, &second);
    assert_string_equal(second.model, "odd=name,with.gguf");
    assert_int_equal(second.max_num_seqs, 3);
    assert_true(second.headroom == fix->config.headroom);
    assert_int_equal(second.pp_layer_partition.n, 2);
    assert_int_equal(second.api_keys.n, 0);
    config_args_free(args);
    config_release(&second);
}

static void engine_args_of_defaults_round_trip(void **state)
{
    struct fixture *fix = *state;
    struct config second = { 0 };
    char *env[] = { NULL };

    load_ok(fix, "", "");
    char **args = config_engine_args(&fix->config);
    assert_non_null(args);
    struct config_sources sources = { .argc = count(args), .argv = args, .env = env, .program_dir = fix->bin };
    assert_int_equal(config_load_from(&second, &sources, NULL, NULL), 0);
    assert_same_for_engine(&fix->config, &second);
    config_args_free(args);
    config_release(&second);
    config_args_free(NULL);
}

/* What config_warn writes to stderr for these arguments. */
static char *warnings(struct fixture *fix, const char *args, const char *env)
{
    int saved = dup(STDERR_FILENO);
    FILE *out = tmpfile();

    assert_true(saved >= 0 && out);
    load_ok(fix, args, env);
    assert_true(dup2(fileno(out), STDERR_FILENO) >= 0);
    config_warn(&fix->config);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    assert_int_equal(fseek(out, 0, SEEK_END), 0);
    return read_back(out);
}

static void warnings_name_what_is_unwise(void **state)
{
    struct fixture *fix = *state;
    char *text = warnings(fix, "--api-key bob:short-secret --host 0.0.0.0", "");

    assert_non_null(strstr(text, "api_key_on_command_line"));
    assert_non_null(strstr(text, "(bob) has fewer than 16 bytes"));
    assert_null(strstr(text, "secret"));
    assert_null(strstr(text, "open_server"));
    free(text);
    text = warnings(fix, "--host 0.0.0.0", "");
    assert_non_null(strstr(text, "open_server"));
    free(text);
    text = warnings(fix, "", "SLUICE_API_KEY=long-enough-key-0123456789");
    assert_null(strstr(text, "api_key"));
    assert_null(strstr(text, "open_server"));
    free(text);
    setenv("SLUICE_MAX_NUM_SEQ", "1", 1);
    setenv("SLUICE_SERVICE_HOST", "10.0.0.1", 1);
    text = warnings(fix, "", "");
    assert_non_null(strstr(text, "SLUICE_MAX_NUM_SEQ sets no option; the nearest is max_num_seqs"));
    assert_null(strstr(text, "SERVICE_HOST"));
    free(text);
    unsetenv("SLUICE_MAX_NUM_SEQ");
    unsetenv("SLUICE_SERVICE_HOST");
}

#define WITH_FIXTURE(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_lists_every_option),
        cmocka_unit_test(markdown_lists_every_option),
        cmocka_unit_test(documents_are_current),
        WITH_FIXTURE(yaml_holds_the_defaults),
        WITH_FIXTURE(keys_are_masked),
        WITH_FIXTURE(engine_args_round_trip),
        WITH_FIXTURE(engine_args_of_defaults_round_trip),
        WITH_FIXTURE(warnings_name_what_is_unwise),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
