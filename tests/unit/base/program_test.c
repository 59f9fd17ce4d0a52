#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/program.h"
#include "unit/base/cmocka_all.h"

static char *program;                  /* this one, whole */

static void it_lies_in_its_folder(void **state)
{
    char dir[PATH_MAX], path[PATH_MAX];
    const char *slash = strrchr(program, '/');
    (void)state;
    assert_true(program_dir(dir, sizeof dir));
    assert_int_equal(strlen(dir), slash - program);
    assert_memory_equal(dir, program, strlen(dir));
    assert_true(program_beside(path, sizeof path, slash + 1));
    assert_string_equal(path, program);
}

static void what_does_not_fit_is_refused(void **state)
{
    char dir[PATH_MAX], path[PATH_MAX], small[8] = "?";
    (void)state;
    assert_false(program_dir(small, sizeof small));
    assert_string_equal(small, "");
    assert_true(program_dir(dir, sizeof dir));
    size_t len = strlen(dir) + strlen("/engine");
    assert_false(program_beside(path, len, "engine"));
    assert_true(program_beside(path, len + 1, "engine"));
    assert_int_equal(strlen(path), len);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(it_lies_in_its_folder), cmocka_unit_test(what_does_not_fit_is_refused) };
    (void)argc;
    program = realpath(argv[0], NULL);
    int failed = program ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
    free(program);
    return failed;
}
