/* files_test.c - the way without openat2, which no test machine takes by itself: the same links are refused. */
#include "fixture.h"

#include "files.c"

static void fallback_follows_one_safe_link(void **state)
{
    char dir[64], inner[128], path[256];
    (void)state;
    temp_dir(dir);
    snprintf(inner, sizeof inner, "%s/models--o--n", dir);
    assert_int_equal(mkdir(inner, 0700), 0);
    snprintf(inner, sizeof inner, "%s/models--o--n/blobs", dir);
    assert_int_equal(mkdir(inner, 0700), 0);
    write_text(inner, "01", "blob");
    snprintf(inner, sizeof inner, "%s/models--o--n/snapshots", dir);
    assert_int_equal(mkdir(inner, 0700), 0);
    snprintf(inner, sizeof inner, "%s/models--o--n/snapshots/r", dir);
    assert_int_equal(mkdir(inner, 0700), 0);
    write_text(inner, "plain", "x");
    static const struct { const char *name, *target; int error;
    } links[] = {
        {"beside", "plain", 0},
        {"blob", "../../blobs/01", 0},
        {"up", "../plain", EXDEV},
        {"root", "/etc/passwd", EXDEV},
        {"deep", "../../blobs/../x", EXDEV},
        {"parent", "..", EXDEV},
        {"twice", "beside", ELOOP},
        {"gone", "none", ENOENT},
    };
    int fd = open(inner, O_RDONLY | O_DIRECTORY);
    for (size_t i = 0; i < COUNT(links); i++) {
        snprintf(path, sizeof path, "%s/%s", inner, links[i].name);
        assert_int_equal(symlink(links[i].target, path), 0);
        errno = 0;
        int got = open_without_openat2(fd, links[i].name);
        if (links[i].error) {
            assert_int_equal(got, -1);
            assert_int_equal(errno, links[i].error);
        } else {
            assert_true(got >= 0);
            close(got);
        }
    }
    int plain = open_without_openat2(fd, "plain");
    assert_true(plain >= 0);
    close(plain);
    close(fd);
    remove_dir(dir);
}

static void short_file_is_an_error(void **state)
{
    char bytes[8];
    struct err err = { 0 };
    (void)state;
    int fd = memory_file("abcd", 4);
    assert_int_equal(file_read_at(fd, "f", 1, bytes, 3, &err), 0);
    assert_memory_equal(bytes, "bcd", 3);
    assert_int_equal(file_read_at(fd, "f", 2, bytes, 5, &err), ERR_MODEL_FILE);
    assert_string_equal(err.message, "f: expected 3 more bytes at byte 4, found the end");
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fallback_follows_one_safe_link),
        cmocka_unit_test(short_file_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
