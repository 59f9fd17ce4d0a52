/* auth_test.c - keys and what they open; the file of keys is the configuration's (config/). */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "auth.h"

static bool opens(const struct key_ring *ring, const char *value, const char *name)
{
    char found[AUTH_NAME_MAX];
    bool allowed = key_ring_allows(ring, value, value ? strlen(value) : 0, found);

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

static void wrong_keys_are_refused(void **state)
{
    char *items[] = { "alice:" };
    struct config config = { .api_keys = { items, 1 } };
    struct key_ring ring;
    struct err err = { 0 };

    (void)state;
    assert_int_equal(key_ring_init(&ring, &config, &err), ERR_CONFIG);
    assert_non_null(strstr(err.message, "empty key"));
}

static void as_many_keys_as_the_configuration_takes(void **state)
{
    enum { N = AUTH_MAX_KEYS };
    static char texts[N][32], *items[N];
    struct config config = { .api_keys = { items, N } };
    struct key_ring ring;

    (void)state;
    for (int i = 0; i < N; i++) {
        snprintf(texts[i], sizeof texts[i], "n%d:secret-number-%06d", i, i);
        items[i] = texts[i];
    }
    assert_int_equal(key_ring_init(&ring, &config, NULL), 0);
    assert_true(opens(&ring, "Bearer secret-number-000000", "n0"));
    assert_true(opens(&ring, "Bearer secret-number-001023", "n1023"));
    key_ring_release(&ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_keys_is_an_open_server), cmocka_unit_test(keys_and_admin_key), cmocka_unit_test(wrong_keys_are_refused),
        cmocka_unit_test(as_many_keys_as_the_configuration_takes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
