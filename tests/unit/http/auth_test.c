/* auth_test.c - keys from flags and files, and what they open. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "auth.h"

static bool opens(const struct key_ring *ring, const char *value, const char *name)
{
    const char *found = NULL;
    bool allowed = key_ring_allows(ring, value, value ? strlen(value) : 0, &found);

    if (allowed) assert_string_equal(found, name);
    return allowed;
}

static void no_keys_is_an_open_server(void **state)
{
    struct config config = { .api_keys_file = "" };
    struct key_ring ring;

    (void)state;
    assert_int_equal(key_ring_init(&ring, &config, NULL), 0);
    assert_true(opens(&ring, NULL, ""));
    assert_true(opens(&ring, "Bearer anything", ""));
    key_ring_release(&ring);
}

static void keys_and_admin_key(void **state)
{
    char *items[] = { "alice:secret-of-alice-1", "bare-secret-0123456" };
    struct config config = { .api_keys = { items, 2 }, .admin_api_key = "admin-secret-0123456" };
    struct key_ring ring;

    (void)state;
    assert_int_equal(key_ring_init(&ring, &config, NULL), 0);
    assert_true(opens(&ring, "Bearer secret-of-alice-1", "alice"));
    assert_true(opens(&ring, "bearer   bare-secret-0123456", "key-2"));
    assert_true(opens(&ring, "Bearer admin-secret-0123456", "admin"));
    assert_false(opens(&ring, NULL, ""));
    assert_false(opens(&ring, "Bearer ", ""));
    assert_false(opens(&ring, "Basic secret-of-alice-1", ""));
    assert_false(opens(&ring, "Bearer secret-of-alice-12", ""));
    assert_false(opens(&ring, "Bearer alice:secret-of-alice-1", ""));
    key_ring_release(&ring);
}

static void a_file_must_be_private(void **state)
{
    char path[] = "/tmp/sluice-keys-XXXXXX";
    struct config config = { .api_keys_file = path };
    struct key_ring ring;
    struct err err = { 0 };
    int fd = mkstemp(path);
    static const char text[] = "# keys\nalice:secret-of-alice-1\n\nbob:secret-of-bob-123\r\n";

    (void)state;
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    assert_int_equal(key_ring_init(&ring, &config, NULL), 0);
    assert_int_equal(ring.n, 2);
    assert_true(opens(&ring, "Bearer secret-of-bob-123", "bob"));
    key_ring_release(&ring);
    assert_int_equal(fchmod(fd, 0640), 0);
    assert_int_equal(key_ring_init(&ring, &config, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "only its owner"));
    assert_int_equal(fchmod(fd, 0600), 0);
    assert_int_equal(write(fd, "carol:\n", 7), 7);
    err_clear(&err);
    assert_int_equal(key_ring_init(&ring, &config, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, ":5: "));
    close(fd);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_keys_is_an_open_server), cmocka_unit_test(keys_and_admin_key), cmocka_unit_test(a_file_must_be_private),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
