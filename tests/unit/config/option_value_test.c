/* option_value_test.c - what each type of option accepts and refuses. */
#include "options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct option_ref ref_of(const char *name)
{
    struct option_ref ref = option_find(name);

    assert_non_null(ref.option);
    return ref;
}

static int64_t integer_of(const char *name, const char *text)
{
    struct option_value value = { 0 };
    struct err err = { 0 };

    if (option_parse(ref_of(name), text, &value, &err) < 0) fail_msg("%s = '%s': %s", name, text, err.message);
    int64_t integer = value.integer;
    option_value_release(&value);
    return integer;
}

/* The message must name what was found or accepted. */
static void assert_refused(const char *name, const char *text, const char *message)
{
    struct option_value value = { 0 };
    struct err err = { 0 };

    if (option_parse(ref_of(name), text, &value, &err) != ERR_CONFIG) fail_msg("%s = '%s' was accepted", name, text);
    if (!strstr(err.message, message)) fail_msg("%s = '%s': '%s' lacks '%s'", name, text, err.message, message);
    option_value_release(&value);
}

static void integers_are_plain_decimal(void **state)
{
    (void)state;
    assert_int_equal(integer_of("max_num_seqs", "1"), 1);
    assert_int_equal(integer_of("max_num_seqs", "4096"), 4096);
    assert_int_equal(integer_of("seed", "9007199254740991"), INT64_C(9007199254740991));
    static const char *const bad[] = { "010", "0x10", "+4", " 4", "4 ", "1e3", "4.0", "1_000", "four", "--4", "-",
                                      "\xd9\xa3" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_refused("max_num_seqs", bad[i],
                                                                           "accepted: 1..4096 seqs");
    assert_refused("max_num_seqs", "010", "leading zero");
    assert_refused("max_num_seqs", "", "empty");
}

static void integers_have_bounds(void **state)
{
    (void)state;
    assert_refused("max_num_seqs", "0", "out of range");
    assert_refused("max_num_seqs", "4097", "out of range");
    assert_refused("max_num_seqs", "-1", "out of range");
    assert_refused("max_num_seqs", "9223372036854775808", "out of range");
    assert_refused("port", "65536", "0..65535");
    assert_int_equal(integer_of("port", "0"), 0);
}

static void bytes_take_binary_suffixes(void **state)
{
    (void)state;
    assert_int_equal(integer_of("max_body_bytes", "33554432"), 32 << 20);
    assert_int_equal(integer_of("max_body_bytes", "32MiB"), 32 << 20);
    assert_int_equal(integer_of("max_body_bytes", "32 MiB"), 32 << 20);
    assert_int_equal(integer_of("max_body_bytes", "2KiB"), 2048);
    assert_true(integer_of("kv_cache_memory_bytes", "3GiB") == INT64_C(3) << 30);
    assert_true(integer_of("kv_cache_memory_bytes", "1TiB") == INT64_C(1) << 40);
    static const char *const bad[] = { "32MB", "32mib", "32M", "1.5GiB", "MiB", "32MiBx", "0x20MiB" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_refused("max_body_bytes", bad[i], "1KiB..4GiB");
    assert_refused("max_body_bytes", "32MB", "unknown unit (KiB, MiB, GiB, TiB)");
    assert_refused("kv_cache_memory_bytes", "99999999999TiB", "out of range");
}

static void durations_are_stored_in_ms(void **state)
{
    (void)state;
    assert_int_equal(integer_of("drain_timeout", "60"), 60000);      /* seconds without a suffix */
    assert_int_equal(integer_of("drain_timeout", "1500ms"), 1500);
    assert_int_equal(integer_of("drain_timeout", "5m"), 300000);
    assert_int_equal(integer_of("drain_timeout", "1h"), 3600000);
    assert_int_equal(integer_of("timeout_queue_ms", "60"), 60);      /* milliseconds without a suffix */
    assert_int_equal(integer_of("timeout_queue_ms", "60s"), 60000);
    assert_refused("drain_timeout", "60x", "unknown unit (ms, s, m, h)");
    assert_refused("drain_timeout", "86401", "out of range");
    assert_refused("drain_timeout", "9223372036854775807h", "out of range");
    assert_refused("header_timeout", "99ms", "0.1..86400 s");
    assert_int_equal(integer_of("header_timeout", "100ms"), 100);
}

static void reals_are_json_numbers(void **state)
{
    struct option_value value = { 0 };

    (void)state;
    assert_int_equal(option_parse(ref_of("headroom"), "0.25", &value, NULL), 0);
    assert_true(value.real == 0.25);
    assert_int_equal(option_parse(ref_of("headroom"), "2.5e-1", &value, NULL), 0);
    assert_true(value.real == 0.25);
    static const char *const bad[] = { "nan", "inf", "0x1p-3", ".5", "1.", "00.5", "+0.5", "0,5", "0.5 ", "1e", "10%" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_refused("headroom", bad[i], "is not a number");
    assert_refused("headroom", "0.95", "0.01..0.9");
    assert_refused("headroom", "1e999", "out of range");
}

static void utilization_is_the_rest_of_headroom(void **state)
{
    struct option_value value = { 0 };

    (void)state;
    assert_int_equal(option_parse(ref_of("gpu_memory_utilization"), "0.9", &value, NULL), 0);
    assert_true(value.real == 0.1);
    assert_refused("gpu_memory_utilization", "1.5", "1 - headroom");
    assert_refused("gpu_memory_utilization", "1", "0.1..0.99");
}

static void booleans_are_two_words(void **state)
{
    struct option_value value = { 0 };

    (void)state;
    assert_int_equal(option_parse(ref_of("enable_prefix_caching"), "true", &value, NULL), 0);
    assert_true(value.boolean);
    assert_int_equal(option_parse(ref_of("enable_prefix_caching"), "false", &value, NULL), 0);
    assert_false(value.boolean);
    static const char *const bad[] = { "no", "yes", "on", "off", "1", "0", "True", "FALSE", "null" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_refused("enable_prefix_caching", bad[i], "accepted: true or false");
}

static void choices_are_whole_words(void **state)
{
    struct option_value value = { 0 };

    (void)state;
    assert_int_equal(option_parse(ref_of("load_format"), "gguf", &value, NULL), 0);
    assert_string_equal(value.text, "gguf");
    option_value_release(&value);
    assert_refused("load_format", "ggu", "auto, gguf, safetensors or dummy");
    assert_refused("load_format", "auto gguf", "is not a choice");
    assert_refused("load_format", "", "empty");
}

static void texts_are_clean_and_bounded(void **state)
{
    char longest[OPTION_MAX_TEXT + 2];

    (void)state;
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_refused("host", longest, "4097 bytes");
    assert_refused("host", "a\nb", "control character (byte 1)");
    assert_refused("host", "\xff", "not UTF-8");
}

static void lists_split_at_commas_but_keys_do_not(void **state)
{
    struct option_value value = { 0 };

    (void)state;
    assert_int_equal(option_parse(ref_of("pp_layer_partition"), "8,22", &value, NULL), 0);
    assert_int_equal(value.list.n, 2);
    assert_string_equal(value.list.items[1], "22");
    option_value_release(&value);
    assert_int_equal(option_parse(ref_of("api_key"), "one,two", &value, NULL), 0);
    assert_int_equal(value.list.n, 1);
    assert_string_equal(value.list.items[0], "one,two");
    option_value_release(&value);
    assert_refused("pp_layer_partition", "8,", "list item is empty");
    assert_refused("pp_layer_partition", ",8", "list item is empty");
    assert_refused("api_key", "", "list item is empty");
}

static void lists_have_a_longest_length(void **state)
{
    char text[2 * (OPTION_MAX_ITEMS + 1)];

    (void)state;
    for (size_t i = 0; i <= OPTION_MAX_ITEMS; i++) memcpy(text + 2 * i, "a,", 2);
    text[sizeof text - 1] = '\0';
    assert_refused("allowed_hosts", text, "more than 1024 items");
}

static void secrets_stay_out_of_messages(void **state)
{
    struct option_value value = { 0 };
    struct err err = { 0 };

    (void)state;
    assert_int_equal(option_parse(ref_of("admin_api_key"), "se\tcret", &value, &err), ERR_CONFIG);
    assert_null(strstr(err.message, "cret"));
}

/* Every default reads back, through the text that config_engine_args and config_print use. */
static void formats_read_back(void **state)
{
    struct config config = { 0 };
    struct option_value value = { 0 };
    struct buf first = BUF_INIT, second = BUF_INIT;

    (void)state;
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        struct option_ref ref = { .option = option };
        bool empty_list = option->type == OPT_LIST && option->default_text[0] == '\0';
        assert_int_equal(option_parse(ref, empty_list ? "x,y" : option->default_text, &value, NULL), 0);
        assert_int_equal(option_store(option, &config, &value, false, NULL), 0);
        buf_reset(&first);
        option_format(option, &config, &first);
        assert_int_equal(option_parse(ref, first.data ? first.data : "", &value, NULL), 0);
        assert_int_equal(option_store(option, &config, &value, false, NULL), 0);
        buf_reset(&second);
        option_format(option, &config, &second);
        assert_string_equal(first.data ? first.data : "", second.data ? second.data : "");
        option_clear(option, &config);
    }
    buf_release(&first);
    buf_release(&second);
}

static void format_uses_the_largest_whole_unit(void **state)
{
    struct config config = { .max_body_bytes = 3 << 20, .max_response_bytes = 1025, .drain_timeout_ms = 1500,
                            .headroom = 0.1 };
    struct buf out = BUF_INIT;

    (void)state;
    option_format(option_find("max_body_bytes").option, &config, &out);
    buf_putc(&out, ' ');
    option_format(option_find("max_response_bytes").option, &config, &out);
    buf_putc(&out, ' ');
    option_format(option_find("drain_timeout").option, &config, &out);
    buf_putc(&out, ' ');
    option_format(option_find("headroom").option, &config, &out);
    assert_string_equal(out.data, "3MiB 1025 1500ms 0.1");
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_plain_decimal),
        cmocka_unit_test(integers_have_bounds),
        cmocka_unit_test(bytes_take_binary_suffixes),
        cmocka_unit_test(durations_are_stored_in_ms),
        cmocka_unit_test(reals_are_json_numbers),
        cmocka_unit_test(utilization_is_the_rest_of_headroom),
        cmocka_unit_test(booleans_are_two_words),
        cmocka_unit_test(choices_are_whole_words),
        cmocka_unit_test(texts_are_clean_and_bounded),
        cmocka_unit_test(lists_split_at_commas_but_keys_do_not),
        cmocka_unit_test(lists_have_a_longest_length),
        cmocka_unit_test(secrets_stay_out_of_messages),
        cmocka_unit_test(formats_read_back),
        cmocka_unit_test(format_uses_the_largest_whole_unit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
