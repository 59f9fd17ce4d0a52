/* line_test.c - a line of results is one JSON object with what makes a figure count. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sluice/bench.h>

static void a_line_is_one_object(void **state)
{
    char *argv[] = { "step", "--text", "say \"hi\"\n" };
    struct bench_about about = { "step", "sluice-engine bench", 3, argv };
    struct bench_line line;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    (void)state;
    bench_line_begin(&line, &about);
    bench_line_int(&line, "steps", -3);
    bench_line_real(&line, "ms", 1.5);
    bench_line_real(&line, "floor", NAN);
    bench_line_text(&line, "note", NULL);
    assert_int_equal(bench_line_end(&line, out, NULL), 0);
    fclose(out);
    assert_true(strstr(text, "{\"bench\": \"step\", \"commit\": \"") == text);
    assert_non_null(strstr(text, "\"command\": \"sluice-engine bench step --text say \\\"hi\\\"\\n\""));
    assert_non_null(strstr(text, "\"gpu\": "));
    assert_non_null(strstr(text, "\"steps\": -3, \"ms\": 1.5, \"floor\": null, \"note\": null}\n"));
    assert_ptr_equal(strchr(text, '\n'), text + len - 1);
    free(text);
}

static void keys_are_not_printed(void **state)
{
    char *argv[] = { "serve", "--api-key", "sk-one", "--api-key=sk-two", "--model", "m" };
    struct bench_about about = { "serve", "sluice bench", 6, argv };
    struct bench_line line;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    (void)state;
    bench_line_begin(&line, &about);
    assert_int_equal(bench_line_end(&line, out, NULL), 0);
    fclose(out);
    assert_null(strstr(text, "sk-"));
    assert_non_null(strstr(text, "--api-key ... --api-key=... --model m"));
    free(text);
}

static void bandwidth_is_known_by_name(void **state)
{
    (void)state;
    assert_float_equal(bench_known_bandwidth_gbs("NVIDIA H200"), 4450, 0);
    assert_float_equal(bench_known_bandwidth_gbs("something else"), 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_is_one_object),
        cmocka_unit_test(keys_are_not_printed),
        cmocka_unit_test(bandwidth_is_known_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
